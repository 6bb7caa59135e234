//! Connections as the application holds them: handles that push to lock-free queues and wake the dispatcher.
//!
//! Nothing here touches a socket or UCX, but for one case: a future that is polled on the dispatcher's own thread acts on
//! its connections directly (see `driver::current`), and a caller's thread may write to an idle TCP connection itself.

use std::{
    fmt,
    future::Future,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
    },
    task::{Context, Poll, Waker},
};

use atomic_waker::AtomicWaker;

use crate::{
    Error, ErrorKind, FallbackReason, Frame, Result, SendError,
    config::ConnectionConfig,
    dispatcher, driver,
    event::{pipe::ReadyPipe, poller::Key},
    queue::{self, Announce, Limits, PushError},
    stats::{ConnectionCounters, ConnectionStats},
};

/// What a connection really runs over.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// UCX; the text names the lanes that UCX chose, for instance `posix`, `tcp/lo` or `rc_verbs/rxe0:1`.
    Ucx(String),
    /// A TCP socket.
    Tcp,
    /// A Unix socket.
    Unix,
    /// This process's memory.
    Mem,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ucx(lanes) => write!(f, "ucx ({lanes})"),
            Self::Tcp => f.write_str("tcp"),
            Self::Unix => f.write_str("unix"),
            Self::Mem => f.write_str("mem"),
        }
    }
}

/// What is known of a connection once it is open.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// What it runs over.
    pub transport: Transport,
    /// Why it does not run over UCX although it could have been asked to.
    pub fallback_reason: Option<FallbackReason>,
    /// The peer's socket address, where it has one.
    pub peer: Option<SocketAddr>,
    /// This side's socket address, where it has one.
    pub local: Option<SocketAddr>,
    /// Largest frame that the peer accepts, bytes.
    pub max_message: u64,
    /// Largest head that the peer accepts, bytes.
    pub max_head: u32,
    /// Name of the foreign protocol, if the connection does not use ucrpc's own framing.
    pub framing: Option<&'static str>,
}

/// Life of a connection, in the order of the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    Opening,
    Open,
    /// A graceful close was asked for: what is queued still goes out.
    Closing,
    Closed,
}

/// How the last handle, or `close`, wants the connection to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum CloseWish {
    None,
    Graceful,
    Abort,
}

/// A frame on its way to the dispatcher.
pub(crate) struct Outgoing {
    pub(crate) frame: Frame,
    pub(crate) done: Option<Completion>,
}

/// What handles and the dispatcher share.
pub(crate) struct Shared {
    pub(crate) dispatcher: Arc<dispatcher::Shared>,
    key: AtomicU64,
    pub(crate) queue: queue::Sender<Outgoing>,
    pub(crate) announce: Announce,
    phase: AtomicU8,
    wish: AtomicU8,
    end: OnceLock<Error>,
    pub(crate) info: OnceLock<ConnectionInfo>,
    /// Wakes the one receiver.
    pub(crate) reader: AtomicWaker,
    /// Wakers of `opened`, `ready` and `closed`; `waiting` says whether there are any.
    waiters: Mutex<Vec<Waker>>,
    waiting: AtomicBool,
    /// Frames and bytes that the application has taken, ever. Written by the receiver only.
    pub(crate) consumed_frames: AtomicU64,
    pub(crate) consumed_bytes: AtomicU64,
    /// Frames and bytes after which the receiver tells the dispatcher that it consumed.
    pub(crate) tell_frames: AtomicU32,
    pub(crate) tell_bytes: AtomicU64,
    pub(crate) counters: ConnectionCounters,
    /// The sending half of a TCP connection, which callers' threads may use directly.
    pub(crate) direct: OnceLock<Arc<Mutex<driver::SendHalf>>>,
}

/// Not yet in a dispatcher's table.
const NO_KEY: u64 = u64::MAX;

impl Shared {
    pub(crate) fn key(&self) -> Option<Key> {
        match self.key.load(Ordering::Acquire) {
            NO_KEY => None,
            packed => Some(unpack(packed)),
        }
    }

    pub(crate) fn set_key(&self, key: Key) {
        self.key.store(pack(key), Ordering::Release);
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Opening,
            1 => Phase::Open,
            2 => Phase::Closing,
            _ => Phase::Closed,
        }
    }

    /// Moves on to `phase`; never back.
    pub(crate) fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// The terminal error. `None` while the connection lives.
    pub(crate) fn end(&self) -> Option<&Error> {
        self.end.get()
    }

    /// Ends the connection for its handles: exactly one reason, everyone is woken.
    pub(crate) fn finish(&self, error: Error) {
        let _ = self.end.set(error);
        self.advance(Phase::Closed);
        self.queue.close();
        self.reader.wake();
        self.wake_waiters();
    }

    pub(crate) fn wish(&self) -> CloseWish {
        match self.wish.load(Ordering::Acquire) {
            0 => CloseWish::None,
            1 => CloseWish::Graceful,
            _ => CloseWish::Abort,
        }
    }

    fn want_close(&self, wish: CloseWish) {
        if self.wish.fetch_max(wish as u8, Ordering::AcqRel) < wish as u8 {
            self.advance(Phase::Closing);
            self.announce();
        }
    }

    /// The outside closed the readiness descriptor.
    pub(crate) fn close_by_pipe(&self) {
        self.want_close(CloseWish::Graceful);
    }

    /// Puts the connection on its dispatcher's ready ring, if it is not there.
    pub(crate) fn announce(&self) {
        if self.announce.announce() {
            match self.key() {
                Some(key) => self.dispatcher.ready(key),
                // The dispatcher looks at the queue when it takes the connection in. That it may do so between
                // our look at the key and now is why the key is looked at again.
                None => {
                    fence(Ordering::SeqCst);
                    if let Some(key) = self.key() {
                        self.dispatcher.ready(key);
                    }
                }
            }
        }
    }

    /// Wakes whoever waits for room, opening or the end. Called after the state that they wait for has changed.
    pub(crate) fn wake_waiters(&self) {
        // Pairs with the fence in `wait`: either the waiter sees the new state, or we see the waiter.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) {
            let wakers = {
                let mut waiters = self.waiters.lock().unwrap_or_else(|e| e.into_inner());
                self.waiting.store(false, Ordering::Relaxed);
                std::mem::take(&mut *waiters)
            };
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Polls `ready`, registering the waker if it says nothing yet: check, register, check again.
    fn wait<T>(&self, cx: &Context<'_>, ready: impl Fn() -> Option<T>) -> Poll<T> {
        if let Some(value) = ready() {
            return Poll::Ready(value);
        }
        {
            let mut waiters = self.waiters.lock().unwrap_or_else(|e| e.into_inner());
            if !waiters.iter().any(|w| w.will_wake(cx.waker())) {
                waiters.push(cx.waker().clone());
            }
            self.waiting.store(true, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        ready().map_or(Poll::Pending, Poll::Ready)
    }
}

pub(crate) fn pack(key: Key) -> u64 {
    u64::from(key.generation) << 32 | u64::from(key.index)
}

pub(crate) fn unpack(packed: u64) -> Key {
    Key { index: packed as u32, generation: (packed >> 32) as u32 }
}

/// The dispatcher's half of a new connection.
pub(crate) struct DriverHalf {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: queue::Receiver<Outgoing>,
    pub(crate) deliver: queue::Sender<Frame>,
    pub(crate) config: ConnectionConfig,
}

/// Makes both halves of a connection.
pub(crate) fn new(dispatcher: Arc<dispatcher::Shared>, config: ConnectionConfig) -> (Connection, DriverHalf) {
    let limits = Limits { messages: config.send_queue_frames.max(1), bytes: config.send_queue_bytes.max(1) };
    let (queue_in, queue_out) = queue::bounded(limits);
    // Credit and pausing bound what is delivered; the queue itself needs no second bound.
    let (deliver, receive) = queue::bounded(Limits { messages: (1 << 22) - 1, bytes: (1 << 41) - 1 });
    let shared = Arc::new(Shared {
        dispatcher,
        key: AtomicU64::new(NO_KEY),
        queue: queue_in,
        announce: Announce::new(),
        phase: AtomicU8::new(Phase::Opening as u8),
        wish: AtomicU8::new(CloseWish::None as u8),
        end: OnceLock::new(),
        info: OnceLock::new(),
        reader: AtomicWaker::new(),
        waiters: Mutex::new(Vec::new()),
        waiting: AtomicBool::new(false),
        consumed_frames: AtomicU64::new(0),
        consumed_bytes: AtomicU64::new(0),
        tell_frames: AtomicU32::new((config.recv_window_frames / 8).max(1)),
        tell_bytes: AtomicU64::new((config.recv_window_bytes / 8).max(1)),
        counters: ConnectionCounters::default(),
        direct: OnceLock::new(),
    });
    let handle = Arc::new(Handle { shared: shared.clone() });
    let connection = Connection { sender: Sender { handle }, receive, untold_frames: 0, untold_bytes: 0 };
    (connection, DriverHalf { shared, queue: queue_out, deliver, config })
}

/// Exists as long as any handle of the application does; its end asks for a graceful close.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.want_close(CloseWish::Graceful);
    }
}

/// A connection: it receives, sends, and closes when it and all its [`Sender`]s are dropped.
///
/// It is `Send` and may be used from any thread or executor. A future of it that is polled on its dispatcher's own
/// thread (`block_on`, local tasks) needs no hand-over between threads.
#[derive(Debug)]
pub struct Connection {
    sender: Sender,
    receive: queue::Receiver<Frame>,
    untold_frames: u32,
    untold_bytes: u64,
}

impl Connection {
    /// Takes the next frame; waits for it.
    ///
    /// # Errors
    /// The connection's terminal error, after every frame that had arrived was taken. An orderly close by the peer is
    /// [`ErrorKind::PeerClosed`].
    ///
    /// # Cancel safety
    /// Dropping the future loses no frame.
    pub fn recv(&mut self) -> Recv<'_> {
        Recv { connection: self }
    }

    /// Takes the next frame if it is there.
    ///
    /// # Errors
    /// As [`Connection::recv`].
    pub fn try_recv(&mut self) -> Result<Option<Frame>> {
        if let Some(frame) = self.pop() {
            return Ok(Some(frame));
        }
        match self.sender.shared().end() {
            None => Ok(None),
            // The end was published after the last frame: look once more.
            Some(end) => match self.receive.pop() {
                Some(frame) => Ok(Some(frame)),
                None => Err(end.clone()),
            },
        }
    }

    /// Polls for the next frame; what [`Connection::recv`] is made of.
    ///
    /// # Errors
    /// As [`Connection::recv`].
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame>> {
        if let Some(frame) = self.pop() {
            return Poll::Ready(Ok(frame));
        }
        self.sender.shared().reader.register(cx.waker());
        match self.try_recv() {
            Ok(Some(frame)) => Poll::Ready(Ok(frame)),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Waits for the next frame, blocking the calling thread.
    ///
    /// # Errors
    /// As [`Connection::recv`]; [`ErrorKind::Invalid`] on the dispatcher's own thread, which would wait for itself.
    pub fn recv_blocking(&mut self) -> Result<Frame> {
        driver::block_elsewhere(&self.sender.shared().dispatcher.clone(), self.recv())?
    }

    /// A handle that sends on this connection. It can be cloned and used from many threads at once.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    #[inline]
    fn pop(&mut self) -> Option<Frame> {
        let frame = self.receive.pop()?;
        let shared = self.sender.shared();
        let bytes = frame.len();
        // Only this receiver writes these two, so a plain load and store do. The bytes go first: whoever sees a frame
        // counted sees its bytes.
        let add = |counter: &AtomicU64, n| counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Release);
        add(&shared.consumed_bytes, bytes);
        add(&shared.consumed_frames, 1);
        self.untold_frames += 1;
        self.untold_bytes += bytes;
        if self.untold_frames >= shared.tell_frames.load(Ordering::Relaxed)
            || self.untold_bytes >= shared.tell_bytes.load(Ordering::Relaxed)
        {
            (self.untold_frames, self.untold_bytes) = (0, 0);
            shared.announce();
        }
        Some(frame)
    }
}

impl std::ops::Deref for Connection {
    type Target = Sender;

    fn deref(&self) -> &Sender {
        &self.sender
    }
}

/// Future of [`Connection::recv`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Recv<'a> {
    connection: &'a mut Connection,
}

impl Future for Recv<'_> {
    type Output = Result<Frame>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().connection.poll_recv(cx)
    }
}

/// Sends on a connection. Clones share it; any thread may use it.
#[derive(Clone)]
pub struct Sender {
    handle: Arc<Handle>,
}

impl Sender {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Takes a frame to send. It does not wait; frames are sent in the order in which `send` took them.
    ///
    /// A frame may be sent before the connection is open: it goes out when it is.
    ///
    /// # Errors
    /// [`SendError::Full`] if the queue is full (wait with [`Sender::ready`]), [`SendError::Closed`] after the end,
    /// [`SendError::TooLarge`] above the peer's limit. The frame comes back each time.
    #[inline]
    pub fn send(&self, frame: impl Into<Frame>) -> Result<(), SendError> {
        self.push(Outgoing { frame: frame.into(), done: None })
    }

    /// Like [`Sender::send`], but leaves the writing to the dispatcher's next turn: frames that are sent one after the
    /// other go out in one system call.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send_deferred(&self, frame: impl Into<Frame>) -> Result<(), SendError> {
        let outgoing = Outgoing { frame: frame.into(), done: None };
        let len = outgoing.frame.len();
        match too_large(self.shared(), &outgoing.frame, len) {
            Some(error) => Err(SendError::TooLarge(outgoing.frame, error)),
            None => self.enqueue(outgoing, len),
        }
    }

    /// The dispatcher that the connection belongs to.
    pub fn dispatcher(&self) -> crate::Dispatcher {
        crate::Dispatcher { shared: self.shared().dispatcher.clone() }
    }

    /// Like [`Sender::send`], and tells when the transport is done with the frame's memory: it is in the kernel's
    /// socket buffer, or UCX has completed the operation (a rendezvous completes when the peer has fetched it).
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send_tracked(&self, frame: impl Into<Frame>) -> Result<Sent, SendError> {
        let (done, sent) = completion();
        self.push(Outgoing { frame: frame.into(), done: Some(done) })?;
        Ok(sent)
    }

    /// Sends, waiting for room if there is none.
    ///
    /// # Errors
    /// The connection's end, or [`ErrorKind::Limit`] for a frame that is too large; the frame is dropped then.
    ///
    /// # Cancel safety
    /// If the future is dropped before it is ready, the frame was not sent.
    pub async fn send_wait(&self, frame: impl Into<Frame>) -> Result<()> {
        let mut frame = frame.into();
        loop {
            match self.send(frame) {
                Ok(()) => return Ok(()),
                Err(SendError::Full(back)) => frame = back,
                Err(SendError::Closed(_, error) | SendError::TooLarge(_, error)) => return Err(error),
            }
            self.ready().await?;
        }
    }

    /// Waits until the send queue has room. It may be full again when it is used: try and wait in a loop.
    ///
    /// # Errors
    /// The connection's end.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn ready(&self) -> Result<()> {
        let shared = self.shared();
        let check = || match shared.end() {
            Some(end) => Some(Err(end.clone())),
            None => shared.queue.has_room().then_some(Ok(())),
        };
        std::future::poll_fn(|cx| shared.wait(cx, check)).await
    }

    /// Waits until the connection is open.
    ///
    /// # Errors
    /// Why it could not be opened, or that it has ended since.
    ///
    /// # Cancel safety
    /// May be dropped at any time; the connection goes on opening.
    pub async fn opened(&self) -> Result<()> {
        let shared = self.shared();
        let check = || match (shared.end(), shared.info.get()) {
            (Some(end), _) => Some(Err(end.clone())),
            (None, Some(_)) => Some(Ok(())),
            (None, None) => None,
        };
        std::future::poll_fn(|cx| shared.wait(cx, check)).await
    }

    /// Waits for the connection's end and says why it ended.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn closed(&self) -> Error {
        let shared = self.shared();
        std::future::poll_fn(|cx| shared.wait(cx, || shared.end().cloned())).await
    }

    /// Closes in an orderly way: no further frame is taken, what is queued is sent, the peer is told, and its answer is
    /// waited for, all within [`ConnectionConfig::linger`].
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] if the deadline passed with frames unsent, or the error that ended the connection first.
    ///
    /// # Cancel safety
    /// Once polled, the close goes on without the future.
    pub async fn close(&self) -> Result<()> {
        self.shared().want_close(CloseWish::Graceful);
        let end = self.closed().await;
        match end.kind() {
            ErrorKind::Closed | ErrorKind::PeerClosed => Ok(()),
            _ => Err(end),
        }
    }

    /// Ends the connection now. Frames in the queue and on their way are lost; each pending operation ends with an error.
    pub fn abort(&self) {
        self.shared().want_close(CloseWish::Abort);
    }

    /// What is known of the connection; `None` until it is open.
    pub fn info(&self) -> Option<&ConnectionInfo> {
        self.shared().info.get()
    }

    /// What it runs over; `None` until it is open.
    pub fn transport(&self) -> Option<&Transport> {
        self.info().map(|info| &info.transport)
    }

    /// Why it does not run over UCX although it might have; `None` if it does, was not asked to, or is not open.
    pub fn fallback_reason(&self) -> Option<&FallbackReason> {
        self.info()?.fallback_reason.as_ref()
    }

    /// Whether it is open: no end was seen, and no close was asked for.
    pub fn is_open(&self) -> bool {
        self.shared().phase() == Phase::Open
    }

    /// The terminal error; `None` while it lives.
    pub fn error(&self) -> Option<&Error> {
        self.shared().end()
    }

    /// Its counters.
    pub fn stats(&self) -> ConnectionStats {
        self.shared().counters.snapshot()
    }

    /// Frames and bytes in the send queue.
    pub fn queued(&self) -> (usize, u64) {
        (self.shared().queue.len(), self.shared().queue.bytes())
    }

    /// The connection as a file descriptor, for event loops of any kind.
    ///
    /// It is the write end of a pipe, non-blocking and close-on-exec. It becomes writable when the connection is open and
    /// not before; `EPOLLERR` means that the connection has ended; closing the descriptor (with its duplicates)
    /// closes the connection. It is never readable and nothing may be written to it. Each call makes a pipe of its own.
    ///
    /// # Errors
    /// Of the operating system (descriptors); the connection's end if it has ended.
    pub fn readiness_fd(&self) -> Result<OwnedFd> {
        let shared = self.shared();
        if let Some(end) = shared.end() {
            return Err(end.clone());
        }
        let (inner, outer) = ReadyPipe::new().map_err(|e| Error::from_io("readiness pipe", &e))?;
        shared.dispatcher.command(driver::Command::Pipe { shared: shared.clone(), pipe: inner });
        Ok(outer)
    }

    fn push(&self, outgoing: Outgoing) -> Result<(), SendError> {
        let shared = self.shared();
        let len = outgoing.frame.len();
        if let Some(error) = too_large(shared, &outgoing.frame, len) {
            return Err(SendError::TooLarge(outgoing.frame, error));
        }
        let outgoing = match driver::send_at_once(shared, outgoing, len) {
            Ok(()) => return Ok(()),
            Err(outgoing) => outgoing,
        };
        self.enqueue(outgoing, len)
    }

    fn enqueue(&self, outgoing: Outgoing, len: u64) -> Result<(), SendError> {
        let shared = self.shared();
        match shared.queue.push(outgoing, len) {
            Ok(()) => {
                shared.announce();
                Ok(())
            }
            Err(PushError::Full(out)) => Err(SendError::Full(out.into_frame())),
            Err(PushError::Closed(out)) => {
                let end = shared.end().cloned();
                let end = end.unwrap_or_else(|| Error::new(ErrorKind::Closed, "the connection is being closed"));
                Err(SendError::Closed(out.into_frame(), end))
            }
        }
    }
}

#[inline]
fn too_large(shared: &Shared, frame: &Frame, len: u64) -> Option<Error> {
    let info = shared.info.get()?;
    let (head, max_head) = (frame.head.len(), info.max_head);
    if len <= info.max_message && head <= max_head as usize {
        return None;
    }
    Some(Error::new(
        ErrorKind::Limit,
        format!(
            "frame of {len} bytes (head {head}) is larger than the agreed {} (head {max_head}): raise max_message on both sides",
            info.max_message
        ),
    ))
}

impl Outgoing {
    /// The frame, for giving it back: its completion is disarmed.
    fn into_frame(mut self) -> Frame {
        if let Some(done) = self.done.take() {
            done.forget();
        }
        self.frame
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = self.shared();
        f.debug_struct("Connection")
            .field("key", &shared.key())
            .field("phase", &shared.phase())
            .field("transport", &self.transport())
            .finish_non_exhaustive()
    }
}

struct CompletionState {
    result: OnceLock<Result<()>>,
    waker: AtomicWaker,
}

/// The dispatcher's side of [`Sent`]: completes exactly once, at the latest when it is dropped.
pub(crate) struct Completion(Option<Arc<CompletionState>>);

impl Completion {
    pub(crate) fn complete(mut self, result: Result<()>) {
        self.set(result);
    }

    fn forget(mut self) {
        self.0 = None;
    }

    fn set(&mut self, result: Result<()>) {
        if let Some(state) = self.0.take() {
            let _ = state.result.set(result);
            state.waker.wake();
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        self.set(Err(Error::new(ErrorKind::Closed, "the connection ended before the frame was sent")));
    }
}

fn completion() -> (Completion, Sent) {
    let state = Arc::new(CompletionState { result: OnceLock::new(), waker: AtomicWaker::new() });
    (Completion(Some(state.clone())), Sent(state))
}

/// Future of [`Sender::send_tracked`]. Dropping it changes nothing: the frame is still sent.
#[must_use = "futures do nothing unless awaited"]
pub struct Sent(Arc<CompletionState>);

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sent").field(&self.0.result.get()).finish()
    }
}

impl Future for Sent {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.0.result.get() {
            return Poll::Ready(result.clone());
        }
        self.0.waker.register(cx.waker());
        self.0.result.get().map_or(Poll::Pending, |result| Poll::Ready(result.clone()))
    }
}

/// Future of [`crate::Dispatcher::connect`]: the connection when it is open.
///
/// # Cancel safety
/// Dropping it closes the connection.
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Connecting {
    connection: Option<Connection>,
}

impl Connecting {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection: Some(connection) }
    }

    /// The connection while it is still opening: it queues what is sent, and its readiness descriptor tells when it is
    /// open.
    pub fn into_connection(mut self) -> Connection {
        self.connection.take().expect("taken only when the future is ready")
    }

    /// Waits, blocking the calling thread.
    ///
    /// # Errors
    /// Why it could not be opened; [`ErrorKind::Invalid`] on the dispatcher's own thread.
    pub fn blocking(self) -> Result<Connection> {
        let dispatcher = self.connection.as_ref().map(|c| c.shared().dispatcher.clone());
        driver::block_elsewhere(&dispatcher.expect("not ready yet"), self)?
    }
}

impl Future for Connecting {
    type Output = Result<Connection>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let connection = self.connection.as_ref().expect("polled after it was ready");
        let opened = std::pin::pin!(connection.opened()).poll(cx);
        opened.map(|result| result.map(|()| self.connection.take().expect("checked above")))
    }
}
