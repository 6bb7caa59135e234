//! What workers and endpoints are known by.

use std::sync::atomic::{AtomicU32, Ordering};

/// A worker of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct WorkerId(u32);

impl WorkerId {
    /// One that no other worker has.
    pub(super) fn next() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// An endpoint of one worker. It goes stale when the endpoint is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EndpointId {
    pub(super) worker: WorkerId,
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl EndpointId {
    /// The worker that made it.
    #[inline]
    pub(crate) fn worker(self) -> WorkerId {
        self.worker
    }
}
