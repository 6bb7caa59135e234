//! A call under way: its attempts, one after the other or side by side, until one answers or the deadline passes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use ucrpc_transport::SendError;

use super::Channel;
use super::attempt::{Attempt, Outcome};
use super::calls::{Entered, MAX_CALLS};
use super::conn::Conn;
use super::lane::{Found, Lane};
use crate::alarm::AlarmEntry;
use crate::call::{CallOptions, CallStats, Decoded, MethodName, RawResponse};
use crate::client::RawCall;
use crate::codec::{AttemptMeta, CompressType, encode_request};
use crate::frames::{frame, status_of};
use crate::streaming::{Core as StreamCore, StreamConfig};
use crate::wire::{Head, MessageBuf};
use crate::{Code, Deadline, Status};

/// The serialized message, for as long as another attempt may need it.
enum Payload {
    Fresh(MessageBuf),
    Kept(Bytes),
    Gone,
}

/// A call of a [`Channel`] under way. Dropping it cancels the call, on the server too.
///
/// In one place from its start: futures are moved a few times before they are polled.
#[must_use = "dropping it cancels the call"]
pub struct ChannelCall(Box<State>);

struct State {
    channel: Channel,
    method: MethodName,
    options: Box<CallOptions>,
    payload: Payload,
    /// The first attempt, or its latest retry, and the hedge beside it.
    live: [Option<Attempt>; 2],
    /// A stream to open with the call, and what was opened.
    opens: Option<StreamConfig>,
    opened: Option<Arc<StreamCore>>,
    started: Instant,
    hedge_at: Option<Instant>,
    retry_at: Option<Instant>,
    alarm: Option<AlarmEntry>,
    /// Lanes that failed or are in use by this call, as bits: others are preferred.
    tried: u64,
    stats: CallStats,
    /// The time to look at the clock has come.
    due: bool,
    /// It is being started: the clock has not moved since.
    at_start: bool,
    /// The end, when it was known before the first poll.
    ended: Option<Status>,
    failure: Option<Status>,
}

impl ChannelCall {
    pub(super) fn start(channel: Channel, call: RawCall, opens: Option<StreamConfig>) -> Self {
        let mut state = Box::new(State::new(channel, call, opens));
        state.begin();
        Self(state)
    }

    /// The stream that was opened, after the call has ended well.
    pub(super) fn take_stream(&mut self) -> Option<Arc<StreamCore>> {
        self.0.opened.take()
    }
}

impl State {
    fn new(channel: Channel, mut call: RawCall, opens: Option<StreamConfig>) -> Self {
        let started = Instant::now();
        let inner = &channel.inner;
        inner.budget.earn();
        inner.counters.calls.fetch_add(1, Ordering::Relaxed);
        let mut ended = None;
        for interceptor in &inner.interceptors {
            if let Err(status) = interceptor.request(&mut call) {
                ended = Some(status);
                break;
            }
        }
        let RawCall { method, message, mut options } = call;
        if options.stream.is_some() && opens.is_none() {
            ended = Some(Status::new(Code::EINVAL, "open streams with `open_stream`: a channel numbers them itself"));
        }
        if options.deadline.instant().is_none()
            && let Some(timeout) = inner.timeout
        {
            options.deadline = Deadline::after(started, timeout);
        }
        let hedge_at = inner.hedge_after.filter(|_| opens.is_none()).map(|after| started + after);
        Self {
            method,
            options,
            payload: Payload::Fresh(message),
            live: [None, None],
            opens,
            opened: None,
            started,
            hedge_at,
            retry_at: None,
            alarm: None,
            tried: 0,
            stats: CallStats::default(),
            due: false,
            at_start: true,
            ended,
            failure: None,
            channel,
        }
    }

    /// The usual case: a connection is open, and the request leaves here.
    fn begin(&mut self) {
        if self.ended.is_none()
            && let Some((lane, conn)) = self.channel.inner.open_lane()
            && let Err((status, is_end)) = self.send(0, lane, conn)
        {
            let over = if is_end { Err(status) } else { self.fail(status, true) };
            self.ended = over.err();
        }
        self.at_start = false;
    }

    fn may_repeat(&self) -> bool {
        self.channel.inner.retry.max_attempts > 1 || self.hedge_at.is_some()
    }

    /// The message for one more attempt.
    fn take_message(&mut self) -> MessageBuf {
        let names = self.method.len() + self.options.metadata.bytes();
        match std::mem::replace(&mut self.payload, Payload::Gone) {
            Payload::Fresh(message) if self.options.compress != CompressType::None && self.may_repeat() => {
                let bytes = message.freeze();
                let copy = MessageBuf::copy_from_slice(&bytes, names);
                self.payload = Payload::Kept(bytes);
                copy
            }
            Payload::Fresh(message) => message,
            Payload::Kept(bytes) => {
                let copy = MessageBuf::copy_from_slice(&bytes, names);
                self.payload = Payload::Kept(bytes);
                copy
            }
            Payload::Gone => MessageBuf::with_capacity(0, names),
        }
    }

    /// Starts an attempt on an open connection. An error says beside it whether it is the call's end.
    fn send(&mut self, slot: usize, lane: usize, conn: Arc<Conn>) -> Result<(), (Status, bool)> {
        let inner = self.channel.inner.clone();
        let release = |error| {
            inner.put_back(lane);
            Err(error)
        };
        let wake_at = self.wake_at();
        let number = inner.attempts.fetch_add(1, Ordering::Relaxed);
        let (entered, waiting) = {
            let mut calls = conn.calls();
            (calls.enter(number, wake_at), calls.waiting())
        };
        let Entered { id, rearm } = match entered {
            Ok(entered) => entered,
            Err(Some(end)) => return release((end, false)),
            Err(None) => {
                let text = format!("more than {MAX_CALLS} calls on a connection");
                return release((Status::new(Code::EOVERCROWDED, text), false));
            }
        };
        let mut attempt = Attempt::new(conn, lane, id);
        if let Some(buf) = self.options.receive_into.take() {
            attempt.land_in(buf);
        }
        let head = match self.open(&attempt.conn).and_then(|()| self.encode(&attempt.conn, id)) {
            Ok(head) => head,
            Err(status) => {
                attempt.abandon();
                return release((status, true));
            }
        };
        let frame = frame(head, self.options.attachment.clone());
        self.stats.attempts += 1;
        self.stats.bytes_sent += frame.len();
        match attempt.conn.send(frame, waiting) {
            Ok(()) => {}
            Err(SendError::Full(frame)) => attempt.unsent = Some(Box::new((frame, None))),
            Err(SendError::Closed(_, error)) => {
                self.options.receive_into = attempt.reclaim();
                attempt.abandon();
                return release((status_of(&error), false));
            }
            Err(SendError::TooLarge(_, error) | SendError::Invalid(_, error)) => {
                attempt.abandon();
                return release((status_of(&error), true));
            }
        }
        if rearm {
            attempt.conn.wake_reader();
        }
        self.tried |= 1 << (lane % 64);
        self.live[slot] = Some(attempt);
        Ok(())
    }

    /// Opens this side's half of the stream that the call asks for, on the connection of an attempt.
    fn open(&mut self, conn: &Conn) -> Result<(), Status> {
        if let Some(config) = self.opens {
            let stream = conn.streams.open(&conn.sender, config, None)?;
            self.options.stream = Some(stream.settings());
            self.drop_stream("the call was tried again");
            self.opened = Some(stream);
        }
        Ok(())
    }

    /// Encodes the request of an attempt.
    fn encode(&mut self, conn: &Conn, id: i64) -> Result<Head, Status> {
        let message = self.take_message();
        let inner = &self.channel.inner;
        let meta = AttemptMeta {
            correlation_id: id,
            authentication_data: inner.credentials.as_deref().filter(|_| !conn.is_settled()),
            signal: conn.signal(),
        };
        // The first attempt mostly leaves where the call starts: a look at the clock less.
        let now = if self.stats.attempts == 0 && self.at_start { self.started } else { Instant::now() };
        let head = encode_request(&self.method, message, &self.options, meta, now, &inner.limits)?;
        if self.may_repeat() && matches!(self.payload, Payload::Gone) {
            self.payload = Payload::Kept(head.message());
        }
        Ok(head)
    }

    /// When this call wants to be woken if nothing comes.
    fn wake_at(&self) -> Option<Instant> {
        match (self.options.deadline.instant(), self.hedge_at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn is_live(&self) -> bool {
        self.live.iter().any(Option::is_some)
    }

    fn drop_stream(&mut self, why: &'static str) {
        if let Some(stream) = self.opened.take() {
            stream.fail(Status::new(Code::ECANCELED, why));
        }
    }

    fn poll_live(&mut self, cx: &mut Context<'_>) -> Poll<Result<Decoded, Status>> {
        let wake_at = self.wake_at();
        for slot in 0..2 {
            let Some(attempt) = &mut self.live[slot] else { continue };
            let outcome = attempt.poll(wake_at, cx);
            let (lane, transport) = (attempt.lane, attempt.conn.transport);
            let (result, not_started) = match outcome {
                Outcome::Pending => continue,
                Outcome::Due => {
                    self.due = true;
                    continue;
                }
                Outcome::Answered(result, bytes) => {
                    self.stats.bytes_received += bytes;
                    let refused = |s: &Status| s.code() == Code::ELOGOFF || s.code() == Code::ELIMIT;
                    let not_started = result.as_ref().is_err_and(|status| bytes > 0 && refused(status));
                    (result, not_started)
                }
                Outcome::NotStarted(status) => (Err(status), true),
            };
            self.stats.transport = transport;
            if let Some(buf) = self.live[slot].take().and_then(|mut attempt| attempt.reclaim()) {
                self.options.receive_into = Some(buf);
            }
            self.channel.inner.put_back(lane);
            match result {
                Ok(response) => return Poll::Ready(Ok(response)),
                // The other one may still answer.
                Err(status) if self.is_live() => self.failure = Some(status),
                Err(status) => self.fail(status, not_started)?,
            }
        }
        Poll::Pending
    }

    /// An attempt failed and none is left: tries again later, or that was it.
    fn fail(&mut self, status: Status, not_started: bool) -> Result<(), Status> {
        let inner = &self.channel.inner;
        let retry = &inner.retry;
        let more = self.stats.attempts.max(1) + self.retries_unsent() < retry.max_attempts;
        if !more || !retry.on.covers(&status, not_started) {
            return Err(status);
        }
        if self.opens.is_some() && !not_started {
            return Err(status);
        }
        if !inner.budget.spend() {
            inner.counters.budget_refused.fetch_add(1, Ordering::Relaxed);
            return Err(status);
        }
        inner.counters.retries.fetch_add(1, Ordering::Relaxed);
        self.stats.retries += 1;
        self.retry_at = Some(Instant::now() + retry.backoff.delay(self.stats.retries));
        self.failure = Some(status);
        Ok(())
    }

    /// Retries that followed attempts which never were sent.
    fn retries_unsent(&self) -> u32 {
        (self.stats.retries + 1).saturating_sub(self.stats.attempts.max(1))
    }

    /// Looks for a connection and starts an attempt, or waits for one.
    fn poll_start(&mut self, slot: usize, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let inner = self.channel.inner.clone();
        loop {
            let Some((index, lane)) = inner.choose(self.tried, cx) else { return Poll::Pending };
            match Lane::find(&lane, &inner, inner.wait_for_ready, cx) {
                Found::Wait => {
                    inner.put_back(index);
                    return Poll::Pending;
                }
                Found::Down(status) => {
                    inner.put_back(index);
                    self.tried |= 1 << (index % 64);
                    // Fail fast means now, unless another address may do.
                    return Poll::Ready(if inner.any_up() { self.fail(status, true) } else { Err(status) });
                }
                Found::Open(conn) => match self.send(slot, index, conn) {
                    Ok(()) => return Poll::Ready(Ok(())),
                    Err((status, true)) => return Poll::Ready(Err(status)),
                    Err((status, false)) => {
                        self.fail(status, true)?;
                        if self.retry_at.is_some() {
                            return Poll::Ready(Ok(()));
                        }
                    }
                },
            }
        }
    }

    fn poll_call(&mut self, cx: &mut Context<'_>) -> Poll<Result<Decoded, Status>> {
        if let Some(status) = self.ended.take() {
            return Poll::Ready(Err(status));
        }
        loop {
            if self.is_live() {
                if let Poll::Ready(result) = self.poll_live(cx) {
                    return Poll::Ready(result);
                }
                if self.is_live() {
                    // Only a wake-up that was the timer's makes it worth to look at the clock.
                    if !std::mem::take(&mut self.due) {
                        return Poll::Pending;
                    }
                    match self.poll_times() {
                        Poll::Ready(Err(status)) => return Poll::Ready(Err(status)),
                        Poll::Ready(Ok(())) => continue,
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }
            let now = Instant::now();
            if self.options.deadline.is_expired(now) {
                return Poll::Ready(Err(self.timed_out()));
            }
            if let Some(at) = self.retry_at {
                if at > now {
                    let at = self.options.deadline.instant().map_or(at, |deadline| deadline.min(at));
                    self.channel.inner.alarm.set(&mut self.alarm, at, cx);
                    return Poll::Pending;
                }
                self.retry_at = None;
            }
            match self.poll_start(0, cx) {
                Poll::Ready(Ok(())) => self.alarm = None,
                Poll::Ready(Err(status)) => return Poll::Ready(Err(status)),
                Poll::Pending => {
                    if let Some(at) = self.options.deadline.instant() {
                        self.channel.inner.alarm.set(&mut self.alarm, at, cx);
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Attempts are under way: has the deadline passed, or is it time for a hedge? Ready means that something changed.
    fn poll_times(&mut self) -> Poll<Result<(), Status>> {
        if self.hedge_at.is_none() && self.options.deadline.instant().is_none() {
            return Poll::Pending;
        }
        let now = Instant::now();
        if self.options.deadline.is_expired(now) {
            return Poll::Ready(Err(self.timed_out()));
        }
        if self.hedge_at.is_none_or(|at| at > now) {
            return Poll::Pending;
        }
        self.hedge_at = None;
        let inner = self.channel.inner.clone();
        let slot = usize::from(self.live[0].is_some());
        // Where no other lane is open there is no hedge; one is being connected for the next time.
        if let Some((lane, conn)) = inner.open_lane_but(self.tried) {
            if !inner.budget.spend() {
                inner.put_back(lane);
                inner.counters.budget_refused.fetch_add(1, Ordering::Relaxed);
            } else if self.send(slot, lane, conn).is_ok() {
                inner.counters.hedges.fetch_add(1, Ordering::Relaxed);
            }
        }
        Poll::Ready(Ok(()))
    }

    fn timed_out(&mut self) -> Status {
        let waited = self.started.elapsed().as_millis();
        let text = match (&self.failure, self.stats.attempts) {
            (Some(failure), _) => format!("no answer within {waited} ms; before: {failure}"),
            (None, 0) => format!("no connection within {waited} ms"),
            (None, _) => format!("no answer within {waited} ms"),
        };
        Status::new(Code::ERPCTIMEDOUT, text)
    }

    /// Ends what is still under way, and says what the call took.
    fn finish(&mut self, result: Result<Decoded, Status>) -> Result<RawResponse, Status> {
        self.cancel();
        self.alarm = None;
        self.stats.latency = self.started.elapsed();
        let stats = std::mem::take(&mut self.stats);
        let inner = &self.channel.inner;
        let mut result = match result {
            Ok(decoded) => Ok(decoded.with_stats(stats)),
            Err(status) => {
                inner.counters.failed.fetch_add(1, Ordering::Relaxed);
                Err(status.with_stats(stats))
            }
        };
        for interceptor in inner.interceptors.iter().rev() {
            interceptor.response(&mut result);
        }
        if result.is_err() {
            self.drop_stream("the call that would open the stream failed");
        }
        result
    }

    fn cancel(&mut self) {
        for attempt in self.live.iter_mut().filter_map(Option::take) {
            let lane = attempt.lane;
            drop(attempt);
            self.channel.inner.put_back(lane);
        }
    }
}

impl Future for ChannelCall {
    type Output = Result<RawResponse, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let state = &mut *self.0;
        state.poll_call(cx).map(|result| state.finish(result))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.cancel();
        self.drop_stream("the call was dropped");
    }
}

impl std::fmt::Debug for ChannelCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChannelCall")
            .field("method", &self.0.method)
            .field("stats", &self.0.stats)
            .finish_non_exhaustive()
    }
}
