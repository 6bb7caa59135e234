//! The receiver decides first: where a body goes, before its bytes move.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use atomic_waker::AtomicWaker;
use bytes::Bytes;

use crate::{Error, ErrorKind, Result, connection, driver::Command, frame::RecvBuf, memory::Purpose};

/// What is known of a frame when its body is announced.
#[derive(Debug)]
#[non_exhaustive]
pub struct Announcement<'a> {
    /// The whole head.
    pub head: &'a Bytes,
    /// Bytes of the body; above zero, at most the connection's limit.
    pub body_len: u64,
}

/// Where an announced body goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum RecvPlan {
    /// Into a buffer of the dispatcher's pool (the default without a planner).
    Pool,
    /// Into this memory, which must be at least as long as the body. It comes back as [`crate::Body::Buf`].
    Into(RecvBuf),
    /// Deliver the frame now with [`crate::Body::Pending`]; the application fetches or refuses the body itself.
    /// On TCP, later frames of this connection wait for that.
    Later,
    /// Don't receive it. The body is thrown away as it comes (over rendezvous it never moves), and the frame is
    /// counted as refused and not delivered.
    Refuse(Cow<'static, str>),
}

/// Chooses a [`RecvPlan`] for every frame that has a body.
///
/// It runs on the dispatcher's thread between two messages: it must not block. A panic ends the connection.
pub trait Planner: Send + Sync + 'static {
    /// Decides about one announced body.
    fn plan(&self, announcement: &Announcement<'_>) -> RecvPlan;

    /// Whether it has nothing to decide just now: short bodies then take the quicker way of connections without a planner.
    /// Long ones are asked about all the same. Called often: it should only read an atomic.
    fn is_idle(&self) -> bool {
        false
    }
}

impl<F> Planner for F
where
    F: Fn(&Announcement<'_>) -> RecvPlan + Send + Sync + 'static,
{
    fn plan(&self, announcement: &Announcement<'_>) -> RecvPlan {
        self(announcement)
    }
}

/// Names an announced body within its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PendingId(pub(crate) u32);

/// A body that the peer announced and that has not been fetched: see [`RecvPlan::Later`].
///
/// Dropping it refuses the body. Until it is fetched or refused the peer's memory stays occupied, and on TCP the
/// connection's later frames wait.
#[must_use = "dropping it refuses the body"]
pub struct PendingBody {
    len: u64,
    id: PendingId,
    /// `None` once it was decided.
    shared: Option<Arc<connection::Shared>>,
}

impl PendingBody {
    pub(crate) fn new(len: u64, id: PendingId, shared: Arc<connection::Shared>) -> Self {
        Self { len, id, shared: Some(shared) }
    }

    /// Bytes announced.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: an empty body is not announced.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fetches it into `buf`, which comes back holding exactly the body.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if `buf` is too short (the body is refused then), or the connection's end.
    ///
    /// # Cancel safety
    /// Dropping the future detaches it: the transfer goes on, and the buffer is freed when it is complete.
    pub fn fetch(mut self, buf: RecvBuf) -> Fetch {
        if (buf.len() as u64) < self.len {
            let text = format!("a buffer of {} bytes can't take a body of {}", buf.len(), self.len);
            return Fetch(FetchState::Failed(Some(Error::new(ErrorKind::Invalid, text))));
        }
        self.start(Some(buf))
    }

    /// Fetches it into a buffer of the dispatcher's pool.
    ///
    /// # Errors
    /// As [`PendingBody::fetch`]; [`ErrorKind::Limit`] if the pool's quota is used up (the body is refused then).
    ///
    /// # Cancel safety
    /// As [`PendingBody::fetch`].
    pub fn fetch_pooled(mut self) -> Fetch {
        let Some(shared) = &self.shared else { return Fetch(FetchState::Failed(None)) };
        match shared.dispatcher.pool.get(self.len as usize, Purpose::Receive) {
            Ok(buf) => self.start(Some(RecvBuf::Pool(buf))),
            Err(error) => Fetch(FetchState::Failed(Some(Error::new(ErrorKind::Limit, error.to_string())))),
        }
    }

    /// Refuses it: it never moves over rendezvous, and is thrown away elsewhere.
    pub fn refuse(self) {}

    fn start(&mut self, buf: Option<RecvBuf>) -> Fetch {
        let cell = Arc::new(FetchCell { result: Mutex::new(None), waker: AtomicWaker::new() });
        let mut reply = FetchReply { buf, cell: Some(cell.clone()) };
        let Some(shared) = self.shared.take() else { return Fetch(FetchState::Failed(None)) };
        match shared.key() {
            Some(connection) => shared.dispatcher.command(Command::Fetch { connection, id: self.id, reply }),
            None => reply.fail(Error::new(ErrorKind::Closed, "the connection is not open")),
        }
        Fetch(FetchState::Waiting(cell))
    }
}

impl Drop for PendingBody {
    fn drop(&mut self) {
        drop(self.start(None));
    }
}

impl fmt::Debug for PendingBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingBody({} bytes)", self.len)
    }
}

struct FetchCell {
    result: Mutex<Option<Result<RecvBuf>>>,
    waker: AtomicWaker,
}

/// The dispatcher's side of [`Fetch`]: answers exactly once, at the latest when it is dropped.
pub(crate) struct FetchReply {
    /// Where the body goes; `None` refuses it.
    pub(crate) buf: Option<RecvBuf>,
    cell: Option<Arc<FetchCell>>,
}

impl FetchReply {
    pub(crate) fn complete(mut self, result: Result<RecvBuf>) {
        self.set(result);
    }

    /// Answers with an error, and lives on without anybody to tell.
    pub(crate) fn fail(&mut self, error: Error) {
        self.set(Err(error));
    }

    fn set(&mut self, result: Result<RecvBuf>) {
        if let Some(cell) = self.cell.take() {
            *cell.result.lock().unwrap_or_else(|e| e.into_inner()) = Some(result);
            cell.waker.wake();
        }
    }
}

impl Drop for FetchReply {
    fn drop(&mut self) {
        self.set(Err(Error::new(ErrorKind::Closed, "the connection ended before the body was fetched")));
    }
}

enum FetchState {
    Waiting(Arc<FetchCell>),
    Failed(Option<Error>),
}

/// Future of [`PendingBody::fetch`].
#[must_use = "futures do nothing unless awaited"]
pub struct Fetch(FetchState);

impl Future for Fetch {
    type Output = Result<RecvBuf>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            FetchState::Failed(error) => {
                let decided = || Error::new(ErrorKind::Invalid, "the body was fetched or refused before");
                Poll::Ready(Err(error.take().unwrap_or_else(decided)))
            }
            FetchState::Waiting(cell) => {
                cell.waker.register(cx.waker());
                let result = cell.result.lock().unwrap_or_else(|e| e.into_inner()).take();
                result.map_or(Poll::Pending, Poll::Ready)
            }
        }
    }
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fetch")
    }
}
