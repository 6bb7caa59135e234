//! Counters. Each is written by one thread or rarely, and read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that any thread may read.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. One writer at a time is the rule of the owner; a plain load and store are cheaper than an atomic add.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Adds `n` from any thread.
    #[inline]
    pub(crate) fn add_shared(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets the value.
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value.
    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($(#[$outer:meta])* $public:ident, $shared:ident { $($(#[$doc:meta])* $name:ident,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct $public {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(crate) struct $shared {
            $(pub(crate) $name: Counter,)*
        }

        impl $shared {
            /// A copy of all counters; they are read one by one, not at one instant.
            pub(crate) fn snapshot(&self) -> $public {
                $public { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Counters of one dispatcher.
    DispatcherStats, DispatcherCounters {
        /// Connections that are open or being opened or closed.
        connections,
        /// Those of them that are being opened.
        handshakes,
        /// Listeners.
        listeners,
        /// Registered sources of events: sockets, pipes, the UCX worker, the waker.
        sources,
        /// Timers that wait.
        timers,
        /// Local tasks that are not finished.
        tasks,
        /// UCX operations in flight.
        ucx_inflight,
        /// UCX descriptors held by received bodies.
        ucx_held,
        /// UCX endpoints.
        ucx_endpoints,
        /// UCX workers of this process, of any dispatcher, that were abandoned with their memory because something of
        /// theirs was still in use when their dispatcher ended.
        ucx_parked_workers,
        /// Times that nothing came out of the shared-memory receive queue of a UCX worker any more, as when a peer is killed while it
        /// writes into it, and new connections went to a new worker.
        ucx_blocked_workers,
        /// Turns of the loop.
        turns,
        /// Turns that found work.
        turns_with_work,
        /// Ends of spinning because work came.
        spin_hits,
        /// Sleep rituals begun.
        arms,
        /// Given up because a producer or a task announced work meanwhile.
        arm_queue_busy,
        /// Given up because UCX said busy.
        arm_ucx_busy,
        /// Given up because progress after arming found work.
        arm_progress_found,
        /// Given up because the worker's descriptor was ready already.
        arm_edge_ready,
        /// Given up because a producer came between the last check and the sleep.
        commit_refused,
        /// Sleeps.
        sleeps,
        /// Wake-ups by a socket, pipe or listener.
        wakes_by_io,
        /// Wake-ups by the UCX worker.
        wakes_by_ucx,
        /// Wake-ups by another thread.
        wakes_by_waker,
        /// Wake-ups by a timer.
        wakes_by_timer,
        /// Sleeps that ended by the safety timeout.
        detector_timeouts,
        /// Of these, the ones that found work which nothing had announced: lost wake-ups. Must stay 0.
        wake_detector_hits,
        /// Connections opened over UCX.
        opened_ucx,
        /// Connections opened over TCP.
        opened_tcp,
        /// Connections opened over Unix sockets.
        opened_unix,
        /// Connections opened in memory.
        opened_mem,
        /// Connections that wanted UCX and got TCP.
        fallbacks,
        /// Handshakes that failed.
        handshakes_failed,
        /// Connections that ended in an error.
        failed,
        /// Messages for a connection that is no more: dropped.
        stale_messages,
        /// Bodies that a plan refused.
        refused_bodies,
        /// Times that accepting paused for want of descriptors or room.
        accept_pauses,
    }
}

counters! {
    /// Counters of one connection.
    ConnectionStats, ConnectionCounters {
        /// Data frames sent.
        frames_sent,
        /// Bytes of heads and bodies sent.
        bytes_sent,
        /// Data frames received.
        frames_received,
        /// Bytes of heads and bodies received.
        bytes_received,
        /// Frames sent by rendezvous.
        rendezvous_sent,
        /// Frames received by rendezvous.
        rendezvous_received,
        /// Times that sending stopped for want of credit.
        credit_stalls,
        /// Bodies refused by this side's plan.
        refused,
        /// Bodies that the peer refused.
        refused_by_peer,
        /// Frames that a caller's thread wrote at once.
        written_by_caller,
        /// Last measured round trip of a keepalive ping, microseconds.
        ping_us,
    }
}
