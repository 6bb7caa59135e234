//! The stall watchdog: when a connection has something to move and nothing moves, it says which side is to blame.
//!
//! It looks when the connection's timer fires, so about once per keepalive interval, and never at connections without one. Over mem
//! and in a foreign protocol there are no pings, and so no timer: there it is set while something waits.

use std::time::Instant;

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
    /// Sees to it that there is another look if something waits, where no heartbeat does.
    pub(super) fn plan_look(&mut self, now: Instant) {
        let Some(keepalive) = self.config.keepalive else { return };
        if self.session.liveness.is_some()
            || self.look_at.is_some()
            || self.shared.phase() != crate::connection::Phase::Open
        {
            return;
        }
        // What waited at the last look is to be seen moving.
        let Progress { queued, delivered, .. } = self.progress;
        if queued || delivered || !self.queue.is_empty() || !self.deliver.is_empty() || self.shared.stall().is_some() {
            self.look_at = now.checked_add(keepalive.interval);
        }
    }

    /// Compares with the last look: what waited then, waits now and has not moved in between is stalled.
    pub(super) fn watch(&mut self, link: &mut Link) {
        use std::sync::atomic::Ordering::Relaxed;
        self.look_at = None;
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
