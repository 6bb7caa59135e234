//! The stall watchdog: when a connection has something to move and nothing moves, it says which side is to blame.
//!
//! It looks when the connection's timer fires, so about once per keepalive interval, and never at connections without one.

use super::{ConnCore, conn::Link};
use crate::connection::Stall;

/// What it saw last time.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    sent: u64,
    consumed: u64,
    /// There was something to send, or to take.
    queued: bool,
    delivered: bool,
}

impl ConnCore {
    /// Compares with the last look: what waited then, waits now and has not moved in between is stalled.
    pub(super) fn watch(&mut self, link: &mut Link) {
        use std::sync::atomic::Ordering::Relaxed;
        let Some(backend) = link.backend() else { return };
        let before = self.progress;
        let now = Progress {
            sent: self.shared.counters.frames_sent.get(),
            consumed: self.shared.consumed_frames.load(Relaxed),
            queued: !self.queue.is_empty() || backend.waits_for_credit(),
            delivered: self.untaken().0 > 0,
        };
        self.progress = now;
        let reader_stands = before.delivered && now.delivered && before.consumed == now.consumed;
        let writer_stands = before.queued && now.queued && before.sent == now.sent;
        let stall = match () {
            () if backend.waits_for_pool() => Some(Stall::Pool),
            () if reader_stands => Some(Stall::Application),
            () if writer_stands && backend.waits_for_credit() => Some(Stall::PeerApplication),
            () if writer_stands => Some(Stall::Path),
            () => None,
        };
        if self.shared.set_stall(stall)
            && let Some(stall) = stall
        {
            tracing::warn!(connection = ?self.key, %stall, "nothing moves");
        }
    }
}
