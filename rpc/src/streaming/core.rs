//! What a stream's two halves and its connection share, and a connection's table of streams.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::Waker;

use bytes::Bytes;
use ucrpc_transport::{Frame, SendError, Sender};

use crate::frames::body;
use crate::wire::stream::{Stream, StreamConfig, StreamEvent, WriteError};
use crate::wire::{Limits, Segments, StreamFrameMeta, StreamSettings};
use crate::{Code, Status};

/// How a stream ended.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// Closed by either side.
    Closed,
    /// Broken: reset, a lost connection, a peer that broke the rules.
    Broken(Status),
}

pub(super) struct State {
    pub(super) wire: Stream,
    sender: Option<Sender>,
    /// A server's stream before its response is on the way, a client's before the response is there: nothing may be written.
    gated: bool,
    pub(super) received: VecDeque<Segments>,
    /// Frames that the transport had no room for.
    unsent: VecDeque<Frame>,
    /// A task sends them.
    draining: bool,
    pub(super) end: Option<End>,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

/// What became of an attempt to write.
pub(super) enum Written {
    Done,
    /// No room in the window, or no response yet: the writer is woken. The message comes back.
    Wait(Segments),
    /// The message is accounted for; the transport has no room for its frames.
    Blocked(Sender),
    Failed(Status),
}

/// A stream.
pub(crate) struct Core {
    state: Mutex<State>,
    pub(super) table: Arc<Streams>,
    id: i64,
}

impl Core {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn id(&self) -> i64 {
        self.id
    }

    /// What to tell the peer.
    pub(crate) fn settings(&self) -> StreamSettings {
        self.lock().wire.settings(true)
    }

    /// The client's side: the response is there. Without settings the server did not accept.
    pub(crate) fn connect(&self, settings: Option<&StreamSettings>) {
        let mut state = self.lock();
        match settings {
            Some(settings) => {
                state.wire.connect(settings);
                state.gated = false;
            }
            None => {
                state.wire.close();
                state.end = Some(End::Broken(Status::new(Code::ECLOSE, "the server did not accept the stream")));
            }
        }
        wake(state);
        if settings.is_none() {
            self.table.remove(self.id);
        }
    }

    /// The server's side: the response is on its way. What the stream had to tell meanwhile (that it is closed) follows.
    pub(crate) fn open_gate(self: &Arc<Self>) {
        let mut state = self.lock();
        state.gated = false;
        self.flush_or_drain(&mut state);
        wake(state);
    }

    pub(crate) fn is_gated(&self) -> bool {
        self.lock().gated
    }

    /// Ends it without a word to the peer.
    pub(crate) fn fail(&self, status: Status) {
        let mut state = self.lock();
        state.wire.close();
        state.unsent.clear();
        state.end.get_or_insert(End::Broken(status));
        wake(state);
        self.table.remove(self.id);
    }

    /// Closes it in both directions and tells the peer.
    pub(super) fn close(self: &Arc<Self>) {
        let mut state = self.lock();
        if let Some(meta) = state.wire.close() {
            self.tell(&mut state, &meta);
        }
        state.end.get_or_insert(End::Closed);
        wake(state);
        self.table.remove(self.id);
    }

    /// Sends a frame without data, after what is waiting to be sent.
    pub(super) fn tell(self: &Arc<Self>, state: &mut State, meta: &StreamFrameMeta) {
        // A frame of a few bytes is within every limit.
        let Ok(head) = meta.encode_head(0, &Limits::DEFAULT) else { return };
        if state.gated {
            // The end of a stream, if it came before the response, would make the caller drop the response. And only a peer that
            // guessed the id makes this side tell anything else before: that is not kept.
            state.unsent.clear();
        }
        state.unsent.push_back(Frame::from(head));
        if !state.gated {
            self.flush_or_drain(state);
        }
    }

    fn flush_or_drain(self: &Arc<Self>, state: &mut State) {
        if let Err(Written::Blocked(sender)) = state.flush()
            && !std::mem::replace(&mut state.draining, true)
        {
            // Nobody may write to the stream any more: who reads, or has closed it, does not wait for room.
            let core = self.clone();
            sender.dispatcher().spawn_task(move || async move { core.drain(&sender).await });
        }
    }

    async fn drain(&self, sender: &Sender) {
        while sender.ready().await.is_ok() {
            let mut state = self.lock();
            if !matches!(state.flush(), Err(Written::Blocked(_))) {
                break;
            }
        }
        self.lock().draining = false;
    }

    /// Takes a frame. A response is handed back.
    fn on_frame(self: &Arc<Self>, meta: &StreamFrameMeta, data: Bytes) -> Option<Bytes> {
        let mut state = self.lock();
        let event = match state.wire.handle_frame(meta, data) {
            Ok(event) => event,
            Err(error) => {
                if let Some(reset) = state.wire.reset() {
                    self.tell(&mut state, &reset);
                }
                state.end.get_or_insert(End::Broken(Status::new(Code::EREQUEST, error.to_string())));
                wake(state);
                self.table.remove(self.id);
                return None;
            }
        };
        match event {
            StreamEvent::None => {}
            StreamEvent::Response(bytes) => return Some(bytes),
            StreamEvent::Message(message) => {
                state.received.push_back(message);
                let reader = state.reader.take();
                drop(state);
                reader.into_iter().for_each(Waker::wake);
            }
            StreamEvent::Writable => {
                let writer = state.writer.take();
                drop(state);
                writer.into_iter().for_each(Waker::wake);
            }
            StreamEvent::Closed | StreamEvent::Reset => {
                let end = match event {
                    StreamEvent::Closed => End::Closed,
                    _ => End::Broken(Status::new(Code::ECONNRESET, "the stream was reset by the peer")),
                };
                state.end.get_or_insert(end);
                wake(state);
                self.table.remove(self.id);
            }
        }
        None
    }
}

fn wake(mut state: MutexGuard<'_, State>) {
    let wakers = [state.reader.take(), state.writer.take()];
    drop(state);
    wakers.into_iter().flatten().for_each(Waker::wake);
}

impl State {
    /// Gives the transport what it takes. `Err` gives back whom to wait for.
    fn flush(&mut self) -> Result<(), Written> {
        let Some(sender) = self.sender.clone() else { return Ok(()) };
        while let Some(frame) = self.unsent.pop_front() {
            match sender.send(frame) {
                Ok(()) => {}
                Err(SendError::Full(frame)) => {
                    self.unsent.push_front(frame);
                    return Err(Written::Blocked(sender));
                }
                Err(SendError::Closed(_, error) | SendError::TooLarge(_, error) | SendError::Invalid(_, error)) => {
                    self.unsent.clear();
                    return Err(Written::Failed(crate::frames::status_of(&error)));
                }
            }
        }
        Ok(())
    }

    fn ended(&self) -> Option<Status> {
        self.end.as_ref().map(|end| match end {
            End::Closed => Status::new(Code::ECLOSE, "the stream is closed"),
            End::Broken(status) => status.clone(),
        })
    }

    /// Writes `message`, or only what is left of earlier ones.
    pub(super) fn write(&mut self, message: Option<Segments>, limits: &Limits) -> Written {
        if let Some(status) = self.ended() {
            return Written::Failed(status);
        }
        if let Err(blocked) = self.flush() {
            // The message is not accounted for yet; the writer keeps it.
            return match (blocked, message) {
                (Written::Blocked(_), Some(message)) => Written::Wait(message),
                (blocked, _) => blocked,
            };
        }
        let Some(message) = message else { return Written::Done };
        if self.gated {
            return Written::Wait(message);
        }
        let frames = match self.wire.write(message) {
            Ok(frames) => frames,
            Err(WriteError::Full(message) | WriteError::NotConnected(message)) => return Written::Wait(message),
            Err(error) => {
                let code = if matches!(error, WriteError::TooLong(_)) { Code::EMSGSIZE } else { Code::ECLOSE };
                return Written::Failed(Status::new(code, error.to_string()));
            }
        };
        for (meta, data) in frames {
            match meta.encode_head(data.len(), limits) {
                Ok(head) => self.unsent.push_back(Frame::new(head, body(data))),
                Err(error) => return Written::Failed(Status::new(Code::EMSGSIZE, error.to_string())),
            }
        }
        match self.flush() {
            Ok(()) => Written::Done,
            Err(why) => why,
        }
    }

    /// Whether frames wait for room in the transport, and whom to ask for it.
    pub(super) fn blocked_on(&self) -> Option<Sender> {
        self.sender.clone().filter(|_| !self.unsent.is_empty())
    }
}

/// The streams of one connection.
pub(crate) struct Streams {
    open: Mutex<HashMap<i64, Arc<Core>>>,
    next_id: AtomicI64,
    pub(super) limits: Limits,
    max: usize,
    when_empty: OnceLock<Waker>,
    /// Frames for streams that are not there.
    stray: AtomicU64,
}

impl Streams {
    /// No streams, at most `max` at once.
    pub(crate) fn new(limits: Limits, max: usize) -> Arc<Self> {
        let (open, next_id, stray) = (Mutex::default(), AtomicI64::new(1), AtomicU64::new(0));
        Arc::new(Self { open, next_id, limits, max, when_empty: OnceLock::new(), stray })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i64, Arc<Core>>> {
        self.open.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn remove(&self, id: i64) {
        let (gone, empty) = {
            let mut open = self.lock();
            (open.remove(&id), open.is_empty())
        };
        drop(gone);
        if empty && let Some(waker) = self.when_empty.get() {
            waker.wake_by_ref();
        }
    }

    /// Wakes `waker` each time that the last stream ends. Set once.
    pub(crate) fn when_empty(&self, waker: &Waker) {
        self.when_empty.get_or_init(|| waker.clone());
    }

    pub(crate) fn get(&self, id: i64) -> Option<Arc<Core>> {
        self.lock().get(&id).cloned()
    }

    /// Adds a stream: a client's without, a server's with its peer's settings.
    pub(crate) fn open(
        self: &Arc<Self>,
        sender: &Sender,
        config: StreamConfig,
        peer: Option<&StreamSettings>,
    ) -> Result<Arc<Core>, Status> {
        let mut open = self.lock();
        if open.len() >= self.max {
            return Err(Status::new(Code::ELIMIT, format!("more than {} streams on a connection", self.max)));
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let wire = match peer {
            None => Stream::client(id, config),
            Some(peer) => Stream::server(id, peer, config),
        };
        let state = State {
            wire,
            sender: Some(sender.clone()),
            gated: true,
            received: VecDeque::new(),
            unsent: VecDeque::new(),
            draining: false,
            end: None,
            reader: None,
            writer: None,
        };
        let core = Arc::new(Core { state: Mutex::new(state), table: self.clone(), id });
        open.insert(id, core.clone());
        Ok(core)
    }

    /// Takes a frame from the peer. What comes back is the response to the call that opened the stream.
    pub(crate) fn on_frame(&self, sender: &Sender, meta: &StreamFrameMeta, data: Bytes) -> Option<(Arc<Core>, Bytes)> {
        let Some(core) = self.get(meta.stream_id) else {
            self.stray.fetch_add(1, Ordering::Relaxed);
            if let Some(reply) = meta.unknown_stream_reply()
                && let Ok(head) = reply.encode_head(0, &Limits::DEFAULT)
            {
                // Best effort: a peer that floods dead streams is not waited for.
                let _ = sender.send(Frame::from(head));
            }
            return None;
        };
        core.on_frame(meta, data).map(|response| (core, response))
    }

    /// Ends all streams, with the connection.
    pub(crate) fn end(&self, status: &Status) {
        let all: Vec<_> = self.lock().values().cloned().collect();
        for core in all {
            core.fail(status.clone());
        }
    }

    /// Streams that are open.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }
}
