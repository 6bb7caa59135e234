//! Where the attachments of responses go: memory that callers supplied.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use ucrpc_transport::{Announcement, Planner, RecvBuf, RecvPlan};

use crate::wire::{Limits, Step, parse};

/// The buffers that wait for attachments on one connection, by correlation id.
///
/// A buffer is in here, or the transport has it, or its call: whoever takes it out of the map under its lock. So a call that
/// is dropped while its attachment arrives leaves the buffer to the transport.
pub(super) struct Landings {
    waiting: Mutex<HashMap<i64, RecvBuf>>,
    /// Entries of the map: what the usual case, none, looks at.
    count: AtomicUsize,
    limits: Limits,
    /// What the application's own planner says about everything else.
    otherwise: Option<Arc<dyn Planner>>,
}

impl Landings {
    pub(super) fn new(limits: Limits, otherwise: Option<Arc<dyn Planner>>) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), count: AtomicUsize::new(0), limits, otherwise })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i64, RecvBuf>> {
        self.waiting.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn put(&self, id: i64, buf: RecvBuf) {
        let mut waiting = self.lock();
        waiting.insert(id, buf);
        self.count.store(waiting.len(), Ordering::Release);
    }

    /// Takes a buffer back that nothing came for.
    pub(super) fn take(&self, id: i64) -> Option<RecvBuf> {
        self.take_if(id, |_| true)
    }

    fn take_if(&self, id: i64, wanted: impl FnOnce(&RecvBuf) -> bool) -> Option<RecvBuf> {
        let mut waiting = self.lock();
        if !wanted(waiting.get(&id)?) {
            return None;
        }
        let found = waiting.remove(&id);
        self.count.store(waiting.len(), Ordering::Release);
        found
    }

    /// Copies an attachment that came inside a head, because it is short, to where its caller wants it.
    pub(super) fn copy_in(&self, id: i64, attachment: Bytes) -> Bytes {
        if self.count.load(Ordering::Acquire) == 0 || attachment.is_empty() {
            return attachment;
        }
        match self.take_if(id, |buf| buf.len() >= attachment.len()) {
            Some(mut buf) => {
                buf.truncate(attachment.len());
                buf.as_mut_slice().copy_from_slice(&attachment);
                buf.freeze()
            }
            None => attachment,
        }
    }

    fn find(&self, announced: &Announcement<'_>) -> Option<RecvBuf> {
        let Ok(Step::Prpc(prpc)) = parse(announced.head, &self.limits) else { return None };
        // A body that is the message belongs to nobody's buffer.
        if prpc.meta.response.is_none() || u64::from(prpc.layout.body_len) != announced.body_len {
            return None;
        }
        self.take_if(prpc.meta.correlation_id, |buf| buf.len() as u64 >= announced.body_len)
    }
}

impl Planner for Landings {
    fn is_idle(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0 && self.otherwise.as_ref().is_none_or(|planner| planner.is_idle())
    }

    fn plan(&self, announced: &Announcement<'_>) -> RecvPlan {
        let found = if self.count.load(Ordering::Acquire) == 0 { None } else { self.find(announced) };
        match (found, &self.otherwise) {
            (Some(buf), _) => RecvPlan::Into(buf),
            (None, Some(planner)) => planner.plan(announced),
            (None, None) => RecvPlan::Pool,
        }
    }
}
