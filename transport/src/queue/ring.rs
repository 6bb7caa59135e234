//! Which connections have something to do: the ready ring and each connection's flag for it.
//!
//! A sender pushes its value to the connection's queue, then calls [`Announce::announce`], and if
//! that says so, puts the connection's token on the ring. The dispatcher takes a token, calls
//! [`Announce::begin_drain`], and then drains the queue. A connection is on the ring at most once,
//! which bounds the ring by the number of connections without a count.

use super::list::{self, Consumer, Producer};
use super::primitive::{AtomicBool, Ordering};
use std::fmt;

/// Whether a connection is on the ready ring. One per connection.
///
/// It promises: a value whose push came before `announce` is seen by the drain that follows the
/// next `begin_drain`, and if no such drain is on its way already, `announce` asks for one.
#[derive(Debug)]
pub struct Announce(AtomicBool);

impl Announce {
    /// A connection that is not on the ring.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Call after a push. If it returns true, this caller and no other must put the connection on
    /// the ring.
    ///
    /// The dispatcher calls it too, when it stops a drain because its budget is used up and leaves
    /// values behind.
    #[inline]
    #[must_use = "the connection has to be put on the ring"]
    pub fn announce(&self) -> bool {
        // Two read-modify-writes on one flag have an order. If ours comes first, `begin_drain`
        // reads `true` from us (or from a later announcement, which continues our release) and its
        // drain sees our push. If it comes second, we read `false`, and the token is ours.
        // A plain load would be cheaper where the flag is set, but it has no such order.
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// Call with the token in hand, before the drain.
    #[inline]
    pub fn begin_drain(&self) {
        // Synchronizes with the swaps in `announce`; see there for why this is not a store.
        self.0.swap(false, Ordering::AcqRel);
    }
}

impl Default for Announce {
    fn default() -> Self {
        Self::new()
    }
}

/// Both ends of a ready ring.
pub type ReadyRing<T> = (RingSender<T>, RingReceiver<T>);

/// Creates a ready ring: an unbounded lock-free queue of tokens, first in, first out.
#[must_use]
pub fn ready_ring<T>() -> ReadyRing<T> {
    let (producer, consumer) = list::list(());
    (RingSender(producer), RingReceiver(consumer))
}

/// The end of a ready ring that many threads push to. A clone is another handle to the same ring.
pub struct RingSender<T>(Producer<T, ()>);

/// The end of a ready ring that the dispatcher takes tokens from.
///
/// Dropping it drops the tokens that are left; later ones are dropped as they are pushed.
pub struct RingReceiver<T>(Consumer<T, ()>);

impl<T> RingSender<T> {
    /// Puts a token on the ring. Returns false if the receiver is gone; the token is dropped then.
    ///
    /// Lock-free, from any thread. Call `WakeState::notify` afterwards.
    #[inline]
    pub fn push(&self, token: T) -> bool {
        self.0.push(token).is_ok()
    }
}

impl<T> RingReceiver<T> {
    /// Takes the oldest token. `None` if there is none in reach: a sender may be in the middle of a
    /// push, and it has yet to notify.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        self.0.pop()
    }

    /// Whether [`pop`](Self::pop) would return `None`.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> Drop for RingReceiver<T> {
    fn drop(&mut self) {
        // If a token panics as it is dropped, the list's own drop goes on with the rest.
        self.0.seal(|(), token| drop(token));
    }
}

impl<T> Clone for RingSender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for RingSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingSender").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for RingReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingReceiver").field("is_empty", &self.is_empty()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
pub(super) const fn idle_heap<T>() -> usize {
    list::idle_heap::<T, ()>()
}
