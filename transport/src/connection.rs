//! Connections as the application holds them: handles that push to lock-free queues and wake the dispatcher.
//!
//! Nothing here touches a socket or UCX, but for one case: a future that is polled on the dispatcher's own thread acts on
//! its connections directly (see `driver::current`), and a caller's thread may write to an idle TCP connection itself.

mod connecting;
mod info;
mod sent;
mod shared;

use std::{
    fmt,
    future::Future,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use self::sent::completion;
pub use self::{
    connecting::Connecting,
    info::{ConnectionInfo, Stall, Transport},
    sent::Sent,
};
pub(crate) use self::{
    sent::Completion,
    shared::{CloseWish, DriverHalf, MAX_DELIVERED, NO_RECEIVER, Outgoing, Phase, Shared, pack, unpack},
};
use crate::{
    Body, Error, ErrorKind, FallbackReason, Frame, Result, SendError,
    config::ConnectionConfig,
    dispatcher,
    driver::{self, Here},
    event::pipe::ReadyPipe,
    queue::{self, Limits, PushError},
    stats::ConnectionStats,
};

/// Makes both halves of a connection.
pub(crate) fn new(dispatcher: Arc<dispatcher::Shared>, config: ConnectionConfig) -> (Connection, DriverHalf) {
    let limits = Limits { messages: config.send_queue_frames.max(1), bytes: config.send_queue_bytes.max(1) };
    let (queue_in, queue_out) = queue::bounded(limits);
    // Credit and pausing bound what is delivered; the queue itself needs no second bound.
    let (deliver, receive) = queue::bounded(Limits { messages: MAX_DELIVERED, bytes: u64::MAX });
    let shared = Arc::new(Shared::new(dispatcher, queue_in, &config));
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
        if self.sender.shared().reads_here.load(Ordering::Relaxed) {
            match driver::take_here(self.sender.shared()) {
                Here::Frame(frame) => return Ok(Some(self.taken(frame))),
                Here::Nothing => {}
                Here::Elsewhere => self.read_elsewhere(),
            }
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

    /// Tells the dispatcher that frames are taken on another thread from now on: what it has kept for a reader on its
    /// own comes over.
    #[cold]
    fn read_elsewhere(&self) {
        let shared = self.sender.shared();
        shared.reads_here.store(false, Ordering::Release);
        shared.announce();
    }

    /// Polls for the next frame; what [`Connection::recv`] is made of.
    ///
    /// # Errors
    /// As [`Connection::recv`].
    #[inline]
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame>> {
        if let Some(frame) = self.pop() {
            return Poll::Ready(Ok(frame));
        }
        match driver::poll_here(self.sender.shared(), cx.waker()) {
            Here::Frame(frame) => return Poll::Ready(Ok(self.taken(frame))),
            // The connection can't have ended: that happens on this thread, and takes the inbox away.
            Here::Nothing => return Poll::Pending,
            Here::Elsewhere => {}
        }
        self.sender.shared().reader.register(cx.waker());
        if self.sender.shared().reads_here.load(Ordering::Relaxed) {
            self.read_elsewhere();
        }
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
        Some(self.taken(frame))
    }

    /// Counts a frame that the application gets.
    #[inline]
    fn taken(&mut self, frame: Frame) -> Frame {
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
        frame
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Senders may live on: the peer must not wait for what nobody will take.
        let shared = self.sender.shared();
        shared.consumed_frames.store(NO_RECEIVER, Ordering::Release);
        shared.announce();
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
    /// [`SendError::TooLarge`] above the peer's limit, [`SendError::Invalid`] for a body that was not fetched. The frame
    /// comes back each time.
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
                Err(SendError::Closed(_, error) | SendError::TooLarge(_, error) | SendError::Invalid(_, error)) => {
                    return Err(error);
                }
            }
            let len = frame.len();
            self.room(|| len).await?;
        }
    }

    /// Waits until the send queue has room for a frame as long as the one that was refused last. It may be full again
    /// when it is used: try and wait in a loop.
    ///
    /// # Errors
    /// The connection's end.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn ready(&self) -> Result<()> {
        self.room(|| self.shared().refused_len.load(Ordering::Relaxed)).await
    }

    /// Waits until the send queue has room for a frame of so many bytes. Room for less is not enough: whoever was
    /// refused would be refused again, at once and for ever.
    async fn room(&self, len: impl Fn() -> u64) -> Result<()> {
        let shared = self.shared();
        let check = || match shared.end() {
            Some(end) => Some(Err(end.clone())),
            None => shared.queue.has_room_for(len()).then_some(Ok(())),
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
        if end.kind().is_orderly() { Ok(()) } else { Err(end) }
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

    /// Which side keeps the connection from moving, if something has waited since the keepalive timer last looked
    /// (600 ms by default) and nothing has moved. `None` without a keepalive.
    pub fn stalled(&self) -> Option<Stall> {
        self.shared().stall()
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
        shared.add_pipe(inner)?;
        shared.dispatcher.command(driver::Command::Pipe { shared: shared.clone() });
        Ok(outer)
    }

    fn push(&self, outgoing: Outgoing) -> Result<(), SendError> {
        let shared = self.shared();
        let len = outgoing.frame.len();
        if let Some(error) = too_large(shared, &outgoing.frame, len) {
            return Err(SendError::TooLarge(outgoing.into_frame(), error));
        }
        if matches!(outgoing.frame.body, Body::Pending(_)) {
            let error = Error::new(ErrorKind::Invalid, "a pending body can't be sent: fetch it first");
            return Err(SendError::Invalid(outgoing.into_frame(), error));
        }
        let mut outgoing = Some(outgoing);
        driver::send_at_once(shared, &mut outgoing, len);
        outgoing.map_or(Ok(()), |outgoing| self.enqueue(outgoing, len))
    }

    fn enqueue(&self, outgoing: Outgoing, len: u64) -> Result<(), SendError> {
        let shared = self.shared();
        match shared.queue.push(outgoing, len) {
            Ok(()) => {
                shared.announce();
                Ok(())
            }
            Err(PushError::Full(out)) => {
                shared.refused_len.store(len, Ordering::Relaxed);
                Err(SendError::Full(out.into_frame()))
            }
            Err(PushError::Closed(out)) => {
                let end = shared.end().cloned();
                let end = end.unwrap_or_else(|| Error::new(ErrorKind::Closed, "the connection is being closed"));
                Err(SendError::Closed(out.into_frame(), end))
            }
        }
    }
}

#[inline]
pub(crate) fn too_large(shared: &Shared, frame: &Frame, len: u64) -> Option<Error> {
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
