//! One open connection of a channel: what callers use of it, and the local task that reads from it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use ucrpc_transport::{Connection, Dispatcher, Frame, SendError, Sender};

use super::calls::{Answer, Calls};
use super::landings::Landings;
use crate::alarm::OneTimer;
use crate::call::Decoded;
use crate::codec::{decode_parts, encode_signal};
use crate::frames::{Incoming, status_of, take_apart, transport_name};
use crate::streaming::Streams;
use crate::wire::{Limits, RpcMeta, Signal};
use crate::{Code, Status};

/// Frames taken in one turn before other tasks of the dispatcher get theirs, and what was written meanwhile goes out: the peer
/// works on the first frames while this side is at the next.
const FRAMES_PER_TURN: usize = 32;

/// Calls in flight from which on frames are left to the dispatcher's turn, when they come from other threads: below, writing
/// them at once is quicker.
const DEFER_FROM: usize = 5;

/// What a channel counts over all its connections.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// Responses to calls that had ended, or never were.
    pub(super) responses: AtomicU64,
    /// Frames that made no sense on the client's side.
    pub(super) frames: AtomicU64,
}

pub(super) struct Conn {
    pub(super) sender: Sender,
    pub(super) transport: &'static str,
    pub(super) streams: Arc<Streams>,
    dispatcher: Dispatcher,
    calls: Mutex<Calls>,
    limits: Limits,
    max_message: usize,
    /// The server understands signals.
    is_ucrpc: AtomicBool,
    /// A response came: what goes with the first requests need not go any more.
    settled: AtomicBool,
    /// No new calls: the server is stopping, or the channel is gone. It closes when the last call has ended.
    retired: AtomicBool,
    reader: OnceLock<Waker>,
    pub(super) landings: Arc<Landings>,
    strays: Arc<Strays>,
}

impl Conn {
    pub(super) fn new(
        connection: &Connection,
        limits: Limits,
        max_message: usize,
        max_streams: usize,
        landings: Arc<Landings>,
        strays: Arc<Strays>,
    ) -> Arc<Self> {
        let is_native = connection.info().is_some_and(|info| info.framing.is_none());
        Arc::new(Self {
            sender: connection.sender(),
            transport: transport_name(connection.transport()),
            streams: Streams::new(limits, max_streams),
            dispatcher: connection.dispatcher(),
            calls: Mutex::new(Calls::new()),
            limits,
            max_message,
            is_ucrpc: AtomicBool::new(is_native),
            settled: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            reader: OnceLock::new(),
            landings,
            strays,
        })
    }

    pub(super) fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Whether new calls may use it.
    pub(super) fn is_usable(&self) -> bool {
        !self.retired.load(Ordering::Acquire) && self.sender.is_open()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// What to tell the server with a request.
    pub(super) fn signal(&self) -> Signal {
        let known = self.is_ucrpc.load(Ordering::Relaxed) || self.is_settled();
        if known { Signal::None } else { Signal::Hello }
    }

    /// Lets no new call in, and closes the connection after the last one.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.wake_reader();
    }

    pub(super) fn wake_reader(&self) {
        if let Some(reader) = self.reader.get() {
            reader.wake_by_ref();
        }
    }

    /// Sends a request: at once, or with others where several are under way.
    pub(super) fn send(&self, frame: Frame, waiting: usize) -> Result<(), SendError> {
        let from = if self.dispatcher.is_current() { 2 } else { DEFER_FROM };
        if waiting >= from { self.sender.send_deferred(frame) } else { self.sender.send(frame) }
    }

    /// Gives up on an attempt. The server is told if its answer had not come, and it can be told.
    pub(super) fn leave(&self, id: i64) {
        let (told, idle) = {
            let mut calls = self.calls();
            (calls.leave(id), calls.waiting() == 0)
        };
        if told && self.is_ucrpc.load(Ordering::Relaxed) {
            // Best effort: in a full queue the request itself may still be waiting.
            let _ = self.sender.send(Frame::from(encode_signal(Signal::Cancel, id)));
        }
        if idle && self.retired.load(Ordering::Relaxed) {
            self.wake_reader();
        }
    }

    /// Decodes what the reader left to the caller.
    pub(super) fn decode(&self, answer: Answer) -> Result<Decoded, Status> {
        let bad = |error: String| Status::new(Code::ERESPONSE, error);
        let (head, body) = match answer {
            Answer::Decoded(result) => return result,
            Answer::Lost(status) => return Err(status),
            Answer::PackedBytes(bytes) => (bytes, Bytes::new()),
            Answer::Packed(frame) => (frame.head, frame.body.into_bytes().unwrap_or_default()),
        };
        let mut meta = RpcMeta::default();
        match take_apart(&head, body, &self.limits, &mut meta).map_err(|error| bad(error.to_string()))? {
            Incoming::Prpc { message, attachment } => decode_parts(&meta, message, attachment, self.max_message),
            Incoming::Reject(error) => Err(bad(error.to_string())),
            Incoming::Strm { .. } => Err(bad("a stream's frame in place of a response".to_owned())),
        }
    }

    /// Takes a frame. An error closes the connection.
    fn on_frame(&self, frame: Frame) -> Result<(), Status> {
        let bad = |error: String| Status::new(Code::ERESPONSE, error);
        let len = frame.len();
        let body = frame.body.into_bytes().ok_or_else(|| bad("a body that was not fetched".to_owned()))?;
        let mut meta = RpcMeta::default();
        match take_apart(&frame.head, body, &self.limits, &mut meta).map_err(|error| bad(error.to_string()))? {
            Incoming::Strm { meta, data } => {
                if let Some((stream, response)) = self.streams.on_frame(&self.sender, &meta, data) {
                    self.on_stream_response(&stream, response);
                }
            }
            Incoming::Reject(error) => {
                self.complete(meta.correlation_id, Answer::Decoded(Err(bad(error.to_string()))), len);
            }
            Incoming::Prpc { message, attachment } => {
                self.note(&meta);
                if meta.response.is_none() && meta.request.is_none() && meta.signal != Signal::None {
                    if meta.signal == Signal::GoAway {
                        self.retired.store(true, Ordering::Release);
                    }
                    return Ok(());
                }
                if meta.request.is_some() {
                    self.strays.frames.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                let id = meta.correlation_id;
                let attachment = self.landings.copy_in(id, attachment);
                let answer = if meta.compress_type == 0 && meta.checksum_type == 0 {
                    Answer::Decoded(decode_parts(&meta, message, attachment, self.max_message))
                } else {
                    Answer::Packed(Frame::new(frame.head.clone(), joined(&frame.head, &meta, message, attachment)))
                };
                self.complete(id, answer, len);
            }
        }
        Ok(())
    }

    /// What a response says about the server.
    fn note(&self, meta: &RpcMeta<'_>) {
        let refused = meta.response.is_some_and(|response| response.error_code == Code::ERPCAUTH.to_wire());
        if refused && !self.is_settled() {
            // The server closes a connection whose first request it did not trust: no other call should meet that end.
            self.retired.store(true, Ordering::Release);
        }
        if meta.signal == Signal::Hello {
            self.is_ucrpc.store(true, Ordering::Relaxed);
        }
        if !self.settled.load(Ordering::Relaxed) {
            self.settled.store(true, Ordering::Relaxed);
        }
    }

    /// The response of a call that opened a stream came in its first frame.
    fn on_stream_response(&self, stream: &crate::streaming::Core, response: Bytes) {
        let len = response.len() as u64;
        let mut meta = RpcMeta::default();
        let found = match take_apart(&response, Bytes::new(), &self.limits, &mut meta) {
            Ok(Incoming::Prpc { .. }) => {
                self.note(&meta);
                let failed = meta.response.is_some_and(|response| response.error_code != 0);
                // Before the next frame is looked at: it may be the stream's first message.
                stream.connect(meta.stream_settings.as_ref().filter(|_| !failed));
                Some(meta.correlation_id)
            }
            _ => None,
        };
        match found {
            Some(id) => self.complete(id, Answer::PackedBytes(response), len),
            None => {
                self.strays.frames.fetch_add(1, Ordering::Relaxed);
                stream.fail(Status::new(Code::ERESPONSE, "the stream's first frame is no response"));
            }
        }
    }

    fn complete(&self, id: i64, answer: Answer, len: u64) {
        let completed = self.calls().complete(id, answer, len);
        match completed {
            Ok(waker) => waker.into_iter().for_each(Waker::wake),
            Err(late) => {
                drop(late);
                self.strays.responses.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn end(&self, status: Status) {
        self.retired.store(true, Ordering::Release);
        let wakers = self.calls().end(status.clone());
        wakers.into_iter().for_each(Waker::wake);
        self.streams.end(&status);
    }
}

/// A frame's body as it came: what of message and attachment is not in the head.
fn joined(head: &Bytes, meta: &RpcMeta<'_>, message: Bytes, attachment: Bytes) -> Bytes {
    let in_head = |bytes: &Bytes| {
        let range = head.as_ptr_range();
        bytes.is_empty() || range.contains(&bytes.as_ptr())
    };
    let _ = meta;
    match (in_head(&message), in_head(&attachment)) {
        (true, true) => Bytes::new(),
        (true, false) => attachment,
        (false, true) => message,
        (false, false) => [message, attachment].concat().into(),
    }
}

/// Reads until the connection ends; says why it did.
pub(super) struct Reader {
    conn: Arc<Conn>,
    connection: Connection,
    timer: OneTimer,
    closing: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Reader {
    pub(super) fn new(conn: Arc<Conn>, connection: Connection) -> Self {
        Self { conn, connection, timer: OneTimer::default(), closing: None }
    }

    pub(super) async fn run(mut self) -> Status {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if self.conn.reader.get().is_none() {
            self.conn.reader.get_or_init(|| cx.waker().clone());
            self.conn.streams.when_empty(cx.waker());
        }
        let mut frames = 0;
        loop {
            match self.connection.poll_recv(cx) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Poll::Ready(status_of(&error)),
                Poll::Ready(Ok(frame)) => {
                    if let Err(status) = self.conn.on_frame(frame) {
                        self.connection.abort();
                        return Poll::Ready(status);
                    }
                }
            }
            frames += 1;
            if frames >= FRAMES_PER_TURN {
                cx.waker().wake_by_ref();
                break;
            }
        }
        loop {
            let armed = self.conn.calls().armed;
            if !self.timer.poll(&self.conn.dispatcher, armed, cx) {
                break;
            }
            let due = self.conn.calls().expire(Instant::now());
            due.into_iter().for_each(Waker::wake);
        }
        if self.conn.retired.load(Ordering::Acquire) {
            return self.poll_retired(cx);
        }
        Poll::Pending
    }

    fn poll_retired(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if self.closing.is_none() && self.conn.calls().waiting() == 0 && self.conn.streams.len() == 0 {
            let sender = self.connection.sender();
            self.closing = Some(Box::pin(async move { drop(sender.close().await) }));
        }
        match &mut self.closing {
            Some(closing) => closing.as_mut().poll(cx).map(|()| Code::ECLOSE.into()),
            None => Poll::Pending,
        }
    }
}

impl Drop for Reader {
    /// Whatever ends the reader, its dispatcher's end included, ends the calls.
    fn drop(&mut self) {
        let status = self.connection.error().map_or(Code::ECLOSE.into(), status_of);
        self.conn.end(status);
    }
}
