//! What UCX lent us finds its way back to the worker's thread.
//!
//! Descriptors of received messages may be released only by the thread that drives the worker, but the application drops
//! them wherever it likes. So every drop posts to a lock-free queue, which the worker empties whenever it progresses.

use std::{
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

use crossbeam_queue::SegQueue;
use ucx_sys::{Ucx, ucp_worker_h};

/// A descriptor: the data pointer that UCX gave to the message handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Desc(pub(super) NonNull<u8>);

// SAFETY: only the address travels between threads. It is read as data (immutable until released) by whoever holds the one
// owner of it, and given to UCX only by the worker's thread.
unsafe impl Send for Desc {}
// SAFETY: as above: shared access is reading only.
unsafe impl Sync for Desc {}

/// What comes back.
pub(super) enum Return {
    /// An eager message's data.
    Eager(Desc),
    /// An announcement that nobody fetched: UCX tells the sender that it is done.
    Announced(Desc),
    /// A connection request (its number) that nobody accepted.
    Request(u64),
}

/// The queue, shared by the worker and all that it lent out.
pub(super) struct Returns {
    queue: SegQueue<Return>,
    /// The worker while it lives, to wake it. Also the lock under which it ends.
    worker: Mutex<Option<Signal>>,
}

struct Signal {
    ucx: &'static Ucx,
    worker: ucp_worker_h,
}

// SAFETY: the handle is used for `ucp_worker_signal` only, which any thread may call while the worker lives; the mutex
// around it is taken for the call, and `close` takes it before the worker is destroyed.
unsafe impl Send for Signal {}

impl Returns {
    pub(super) fn new(ucx: &'static Ucx, worker: ucp_worker_h) -> Arc<Self> {
        Arc::new(Self { queue: SegQueue::new(), worker: Mutex::new(Some(Signal { ucx, worker })) })
    }

    /// Next thing that came back.
    #[inline]
    pub(super) fn pop(&self) -> Option<Return> {
        self.queue.pop()
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Posts, and wakes the worker: somebody else waits for this.
    fn push_urgent(&self, item: Return) {
        self.queue.push(item);
        if let Some(signal) = &*self.worker.lock().unwrap_or_else(PoisonError::into_inner) {
            // SAFETY: the worker lives while the lock is held and the option is filled.
            unsafe { signal.ucx.ucp_worker_signal(signal.worker) };
        }
    }

    /// Has the worker reject a connection request with its next progress.
    pub(super) fn post_rejection(&self, number: u64) {
        self.queue.push(Return::Request(number));
    }

    /// Nobody signals the worker from here on.
    pub(super) fn close(&self) {
        *self.worker.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Data of an eager message in UCX's own memory.
pub(super) struct Lent {
    data: Desc,
    len: usize,
    returns: Arc<Returns>,
}

impl Lent {
    /// # Safety
    /// `data` was given to the message handler with `UCP_AM_RECV_ATTR_FLAG_DATA` and `len`, and the handler answers
    /// `UCS_INPROGRESS`. The worker is not destroyed before this value has come back through `returns`.
    pub(super) unsafe fn new(data: NonNull<u8>, len: usize, returns: Arc<Returns>) -> Self {
        Self { data: Desc(data), len, returns }
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: by the contract of `new`, these bytes are readable and unchanged until the descriptor is released, which
        // happens only after this value was dropped.
        unsafe { std::slice::from_raw_parts(self.data.0.as_ptr(), self.len) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.returns.queue.push(Return::Eager(self.data));
    }
}

/// A message whose payload the peer announced: it stays with the peer until it is fetched or refused.
///
/// The peer's send does not complete before that. Dropping it refuses, from any thread.
pub(crate) struct Rendezvous {
    desc: Option<Desc>,
    len: usize,
    returns: Arc<Returns>,
}

impl Rendezvous {
    /// # Safety
    /// As [`Lent::new`], for a message with `UCP_AM_RECV_ATTR_FLAG_RNDV`.
    pub(super) unsafe fn new(desc: NonNull<u8>, len: usize, returns: Arc<Returns>) -> Self {
        Self { desc: Some(Desc(desc)), len, returns }
    }

    /// Bytes announced. The peer chose the number, and nothing was allocated for them.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether it is of this worker.
    pub(super) fn is_of(&self, returns: &Arc<Returns>) -> bool {
        Arc::ptr_eq(&self.returns, returns)
    }

    /// The descriptor; the caller has taken over its one return.
    pub(super) fn into_desc(mut self) -> Desc {
        self.desc.take().expect("taken only here and in drop, each once")
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        if let Some(desc) = self.desc.take() {
            self.returns.push_urgent(Return::Announced(desc));
        }
    }
}

impl std::fmt::Debug for Rendezvous {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rendezvous({} bytes)", self.len)
    }
}

/// A connection request that waits at its worker.
pub(super) struct Ticket {
    pub(super) number: u64,
    pub(super) returns: Arc<Returns>,
}

impl Ticket {
    /// Has the worker reject it.
    pub(super) fn reject(self) {
        self.returns.push_urgent(Return::Request(self.number));
    }

    /// Whether it is of this worker.
    pub(super) fn is_of(&self, returns: &Arc<Returns>) -> bool {
        Arc::ptr_eq(&self.returns, returns)
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket({})", self.number)
    }
}
