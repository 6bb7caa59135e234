//! Sleeping without missing a wake-up: RUNNING, ARMING, ASLEEP in one atomic.
//!
//! ```text
//!            begin_arming            commit_sleep
//!  RUNNING ----------------> ARMING ----------------> ASLEEP
//!     ^                        |                        |
//!     |   notify, wake_up      |                        |
//!     +------------------------+------------------------+   notify (writes the event fd), wake_up
//! ```
//!
//! The dispatcher works until nothing is left and then goes through the ritual:
//!
//! 1. [`begin_arming`](WakeState::begin_arming);
//! 2. arm every source that has to be asked for events (a UCX worker), and make it progress once
//!    more; then look at every queue again. Any work found: [`wake_up`](WakeState::wake_up) and
//!    start over;
//! 3. [`commit_sleep`](WakeState::commit_sleep); if it says false, start over;
//! 4. `epoll_wait`, then [`wake_up`](WakeState::wake_up), then work.
//!
//! **Why nothing is lost.** A producer pushes, passes a fence, and reads the state; the dispatcher
//! writes ARMING, passes a fence, and looks at the queues. One of the fences comes first. If it is
//! the producer's, the dispatcher finds the value in step 2. If it is the dispatcher's, the producer
//! reads ARMING or what came after, and swaps the state to RUNNING: if it took ARMING away, step 3
//! fails; if it took ASLEEP away, it writes the event fd, and step 4 returns.
//!
//! A producer that finds RUNNING has written nothing that others share. Its fence is what it pays.

use super::primitive::{AtomicU8, Ordering, fence};
use crossbeam_utils::CachePadded;
use std::fmt;

const RUNNING: u8 = 0;
const ARMING: u8 = 1;
const ASLEEP: u8 = 2;

/// Whether a dispatcher works or sleeps. One per dispatcher; it has cache lines of its own, because
/// every producer reads it.
///
/// Only [`notify`](Self::notify) is for other threads; everything else is the dispatcher's.
pub struct WakeState(CachePadded<AtomicU8>);

impl WakeState {
    /// A dispatcher that runs.
    #[must_use]
    pub fn new() -> Self {
        Self(CachePadded::new(AtomicU8::new(RUNNING)))
    }

    /// Says that the dispatcher is about to sleep: RUNNING -> ARMING. Look at every queue after it.
    pub fn begin_arming(&self) {
        // A swap, so that every write of the state is a read-modify-write and they form one chain.
        // With a store the order of a late `notify` of the last ritual and this one has to be argued
        // from coherence, and loom, which does not argue that way, reports a lost wake-up.
        let before = self.0.swap(ARMING, Ordering::Relaxed);
        debug_assert_eq!(before, RUNNING);
        // Pairs with the fence in `notify`.
        fence(Ordering::SeqCst);
    }

    /// Goes to sleep: ARMING -> ASLEEP. False if a producer notified in the meantime; the state is
    /// RUNNING then, and there is work: do not sleep.
    #[must_use = "do not sleep if it is false"]
    pub fn commit_sleep(&self) -> bool {
        // `AcqRel` on success is for nobody's data: it keeps the looks at the queues before it.
        // A failure reads RUNNING from the swap in `notify` and sees that producer's push.
        match self.0.compare_exchange(ARMING, ASLEEP, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(state) => {
                debug_assert_eq!(state, RUNNING);
                false
            }
        }
    }

    /// Says that the dispatcher works again: after `epoll_wait`, or when it gives the ritual up
    /// because it found work.
    pub fn wake_up(&self) {
        // Synchronizes with the swap in `notify` that ended the sleep. A producer that still sees
        // the old state writes the event fd once too often, which is harmless.
        self.0.swap(RUNNING, Ordering::Acquire);
    }

    /// Call after a push. If it returns true, the dispatcher sleeps, and this caller and no other
    /// must write its event fd.
    ///
    /// From any thread, the dispatcher's own included.
    #[inline]
    #[must_use = "the event fd has to be written"]
    pub fn notify(&self) -> bool {
        // Pairs with the fence in `begin_arming`.
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) != RUNNING && self.end_sleep()
    }

    #[cold]
    fn end_sleep(&self) -> bool {
        // Synchronizes with `commit_sleep` if that fails, else with `wake_up`. Of several producers
        // one takes ASLEEP away; the others find RUNNING.
        self.0.swap(RUNNING, Ordering::AcqRel) == ASLEEP
    }
}

impl Default for WakeState {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for WakeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.load(Ordering::Relaxed) {
            RUNNING => "WakeState(running)",
            ARMING => "WakeState(arming)",
            _ => "WakeState(asleep)",
        })
    }
}
