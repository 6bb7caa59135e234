//! The answering half of a connection: calls that run, and frames on their way out. On one thread.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use slab::Slab;
use ucrpc_transport::{Frame, SendError, Sender};

use super::admission::MethodLimit;
use super::core::{Core, count};
use super::handler;
use crate::call::{Accepted, Inherited, Reply};
use crate::codec::{encode_error, encode_response_with};
use crate::service::ReplyFuture;
use crate::streaming::Streams;
use crate::wire::stream::response_frame;
use crate::wire::{Head, Segments, Signal};
use crate::{Code, Status, frames};

/// Whom a reply goes to.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplyTo {
    pub(super) correlation_id: i64,
    /// The caller's stream: replies travel inside it.
    pub(super) stream: Option<i64>,
}

/// A call whose handler did not end at its first poll.
struct Running {
    future: RefCell<Option<ReplyFuture>>,
    waker: RefCell<Option<Waker>>,
    to: ReplyTo,
    deadline: Option<Instant>,
    inherited: Inherited,
    method: Option<Arc<MethodLimit>>,
    core: Arc<Core>,
    left: Cell<bool>,
}

impl Running {
    /// The handler is gone: its place is free, before its caller hears of the end.
    fn leave(&self) {
        if !self.left.replace(true) {
            self.core.admission.leave(self.method.as_ref());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            handler::discard(future);
        }
        self.leave();
    }
}

#[derive(Default)]
struct Calls {
    running: Slab<Rc<Running>>,
    /// The latest call with an id: what a cancel means.
    by_id: HashMap<i64, usize>,
}

pub(super) struct Replies {
    pub(super) core: Arc<Core>,
    pub(super) sender: Sender,
    pub(super) streams: Arc<Streams>,
    calls: RefCell<Calls>,
    /// Frames that the transport had no room for.
    backlog: RefCell<VecDeque<Frame>>,
    /// Streams whose responses are in the backlog.
    gates: RefCell<Vec<Accepted>>,
    /// Frames of this poll of the session: they go out together.
    outbox: RefCell<Vec<Frame>>,
    collecting: Cell<bool>,
    /// The session's waker: it waits for room, and for the end of calls.
    pub(super) session: RefCell<Option<Waker>>,
    /// The client said that it is ucrpc, and was not told so of this side yet.
    pub(super) hello_due: Cell<bool>,
}

impl Replies {
    pub(super) fn new(core: Arc<Core>, sender: Sender) -> Rc<Self> {
        let streams = Streams::new(core.limits, core.max_streams);
        Rc::new(Self {
            core,
            sender,
            streams,
            calls: RefCell::default(),
            backlog: RefCell::default(),
            gates: RefCell::default(),
            outbox: RefCell::default(),
            collecting: Cell::new(false),
            session: RefCell::new(None),
            hello_due: Cell::new(false),
        })
    }

    /// Frames from now on wait for [`Self::flush`].
    pub(super) fn collect(&self) {
        self.collecting.set(true);
    }

    /// Sends what was collected: one frame at once, several with one system call.
    pub(super) fn flush(&self) {
        self.collecting.set(false);
        let mut outbox = self.outbox.borrow_mut();
        let together = outbox.len() > 1;
        for frame in outbox.drain(..) {
            self.transmit(frame, together);
        }
    }

    fn transmit(&self, frame: Frame, deferred: bool) {
        let mut backlog = self.backlog.borrow_mut();
        if !backlog.is_empty() {
            return backlog.push_back(frame);
        }
        let sent = if deferred { self.sender.send_deferred(frame) } else { self.sender.send(frame) };
        match sent {
            Ok(()) => {}
            Err(SendError::Full(frame)) => backlog.push_back(frame),
            // The connection's end is seen by who reads.
            Err(SendError::Closed(..)) => {}
            Err(SendError::TooLarge(_, error) | SendError::Invalid(_, error)) => {
                tracing::warn!(%error, "a response is larger than the connection allows");
            }
        }
    }

    pub(super) fn push(&self, frame: Frame) {
        if self.collecting.get() {
            self.outbox.borrow_mut().push(frame);
            return;
        }
        // Handlers that end in one turn are likely to have company.
        let company = !self.calls.borrow().running.is_empty();
        self.transmit(frame, company);
        if !self.backlog.borrow().is_empty() {
            self.wake_session();
        }
    }

    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.borrow().is_empty()
    }

    /// Sends what waited for room; true if all of it went.
    pub(super) fn drain_backlog(&self) -> bool {
        let waiting = std::mem::take(&mut *self.backlog.borrow_mut());
        for frame in waiting {
            self.transmit(frame, false);
        }
        let empty = !self.has_backlog();
        if empty {
            let gates = std::mem::take(&mut *self.gates.borrow_mut());
            gates.into_iter().for_each(Accepted::open);
        }
        empty
    }

    fn wake_session(&self) {
        if let Some(waker) = &*self.session.borrow() {
            waker.wake_by_ref();
        }
    }

    fn signal(&self) -> Signal {
        if self.hello_due.replace(false) { Signal::Hello } else { Signal::None }
    }

    /// Answers with a handler's reply.
    pub(super) fn reply(&self, to: ReplyTo, mut reply: Reply) {
        for interceptor in self.core.interceptors.iter().rev() {
            if let Err(status) = handler::guard(|| interceptor.reply(&mut reply)) {
                reply.result = Err(status);
            }
        }
        let accepted = reply.context.take_accepted();
        let (ok, server_id) = (reply.result.is_ok(), reply.context.response.stream.as_ref().map(|s| s.stream_id));
        let (head, attachment) = encode_response_with(reply, to.correlation_id, self.signal(), &self.core.limits);
        self.respond(to, head, attachment, server_id.filter(|_| ok));
        if ok && self.has_backlog() {
            // What the streams write must not overtake the response, which waits for room.
            self.gates.borrow_mut().extend(accepted);
        } else if ok {
            accepted.into_iter().for_each(Accepted::open);
        }
    }

    /// Answers with an error.
    pub(super) fn refuse(&self, to: ReplyTo, status: &Status) {
        let head = encode_error(status, to.correlation_id, self.signal(), &self.core.limits);
        self.respond(to, head, Segments::new(), None);
    }

    fn respond(&self, to: ReplyTo, head: Head, attachment: Segments, server: Option<i64>) {
        let Some(client) = to.stream else { return self.push(frames::frame(head, attachment)) };
        let meta = response_frame(client, server);
        let data: Segments = std::iter::once(head.bytes).chain(attachment.into_vec()).collect();
        match meta.encode_head(data.len(), &self.core.limits) {
            Ok(head) => {
                self.push(Frame::new(head, frames::body(data)));
                if server.is_some() {
                    // What the stream writes next must not overtake the response.
                    self.flush();
                    self.collect();
                }
            }
            Err(error) => tracing::warn!(%error, "a response is too long for its stream"),
        }
    }

    /// Keeps a handler that is pending after its first poll, as a local task.
    pub(super) fn keep(
        self: &Rc<Self>,
        future: ReplyFuture,
        to: ReplyTo,
        inherited: Inherited,
        method: Option<Arc<MethodLimit>>,
    ) {
        let running = Rc::new(Running {
            future: RefCell::new(Some(future)),
            waker: RefCell::new(None),
            to,
            deadline: inherited.deadline.instant(),
            inherited,
            method,
            core: self.core.clone(),
            left: Cell::new(false),
        });
        let key = {
            let mut calls = self.calls.borrow_mut();
            let key = calls.running.insert(running.clone());
            calls.by_id.insert(to.correlation_id, key);
            key
        };
        let replies = self.clone();
        let task = std::future::poll_fn(move |cx| running.poll(&replies, key, cx));
        if let Err(error) = ucrpc_transport::spawn_local(task) {
            tracing::error!(%error, "a session outside its dispatcher");
            self.finish(key);
        }
    }

    fn finish(&self, key: usize) -> Option<Rc<Running>> {
        let (gone, empty) = {
            let mut calls = self.calls.borrow_mut();
            let gone = calls.running.try_remove(key)?;
            if calls.by_id.get(&gone.to.correlation_id) == Some(&key) {
                calls.by_id.remove(&gone.to.correlation_id);
            }
            (gone, calls.running.is_empty())
        };
        if empty {
            self.wake_session();
        }
        Some(gone)
    }

    /// Drops a handler. Its task finds nothing left and ends.
    fn drop_call(&self, key: usize) -> Option<ReplyTo> {
        let running = self.finish(key)?;
        let future = running.future.take();
        future.into_iter().for_each(handler::discard);
        running.leave();
        if let Some(waker) = running.waker.take() {
            waker.wake();
        }
        Some(running.to)
    }

    /// The caller does not wait any more.
    pub(super) fn cancel(&self, correlation_id: i64) {
        let key = self.calls.borrow().by_id.get(&correlation_id).copied();
        if key.and_then(|key| self.drop_call(key)).is_some() {
            count(&self.core.counters.cancelled);
        }
    }

    /// Drops all handlers; with a status, their callers are told.
    pub(super) fn drop_all(&self, status: Option<&Status>) {
        let keys: Vec<_> = self.calls.borrow().running.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(to) = self.drop_call(key) {
                count(&self.core.counters.cancelled);
                if let Some(status) = status {
                    self.refuse(to, status);
                }
            }
        }
    }

    /// Drops handlers whose deadline passed, and says when the next one will.
    pub(super) fn expire(&self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut due = Vec::new();
        for (key, running) in &self.calls.borrow().running {
            match running.deadline {
                Some(at) if at <= now => due.push(key),
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {}
            }
        }
        let status = Status::new(Code::ERPCTIMEDOUT, "the call's deadline passed while it was served");
        for key in due {
            if let Some(to) = self.drop_call(key) {
                count(&self.core.counters.expired);
                self.refuse(to, &status);
            }
        }
        next
    }

    pub(super) fn is_idle(&self) -> bool {
        self.calls.borrow().running.is_empty() && !self.has_backlog() && self.streams.len() == 0
    }
}

impl Running {
    fn poll(&self, replies: &Replies, key: usize, cx: &mut Context<'_>) -> Poll<()> {
        let Some(mut future) = self.future.take() else { return Poll::Ready(()) };
        if self.waker.borrow().is_none() {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
        }
        match handler::poll(&mut future, self.inherited, cx) {
            Poll::Pending => {
                *self.future.borrow_mut() = Some(future);
                Poll::Pending
            }
            Poll::Ready(result) => {
                handler::discard(future);
                replies.finish(key);
                self.leave();
                match result {
                    Ok(reply) => replies.reply(self.to, reply),
                    Err(status) => {
                        count(&self.core.counters.panicked);
                        replies.refuse(self.to, &status);
                    }
                }
                Poll::Ready(())
            }
        }
    }
}
