//! The bounded queue of a connection: any number of senders, one receiver, no lock.
//!
//! The values are in a linked list (`list.rs`). The bound is beside it, in two words of one layout,
//! so that messages, bytes and "closed" change together:
//!
//! ```text
//!   63..40              39..1            0
//!  [messages, 24 bits][bytes, 39 bits][closed]
//! ```
//!
//! `taken` counts what senders took room for, `returned` what the receiver gave back, both for ever
//! and wrapping; their difference is what is in the queue. Carries from one field into the next
//! cancel out in the subtraction, because what is in the queue fits in its fields. Two words rather
//! than one, because only the receiver writes `returned`: a store, not a read-modify-write that
//! passes the senders' cache line back and forth.
//!
//! A sender first takes room and then adds its value; the receiver takes the value out and then
//! gives the room back. So the counts never exceed the limits, they include pushes that are under
//! way, and **closed with a count of zero means that no value will ever come again**.

use super::list::{self, Consumer, Producer};
use super::primitive::{AtomicU64, Ordering};
use std::fmt;

const CLOSED: u64 = 1;
const BYTE: u64 = 1 << 1;
const MESSAGE: u64 = 1 << 40;
/// Half of what the fields hold. A sender that sleeps between its two looks at `taken` for exactly
/// one turn of the counter takes room for a value that may be one too many; it must not overflow.
const MAX_BYTES: u64 = (1 << 38) - 1;
const MAX_MESSAGES: u64 = (1 << 23) - 1;

/// How much a queue holds. A push is accepted if both bounds hold after it.
///
/// There is one exception: an empty queue accepts any value, else a value heavier than `bytes`
/// could never pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most values; counted as at least 1 and at most 8,388,607.
    pub messages: u32,
    /// The largest sum of weights; counted as at most 256 GiB - 1.
    pub bytes: u64,
}

/// Creates a queue that holds up to `limits`.
///
/// A queue takes no memory in advance: it starts with one node, and each value brings its own. A
/// node is the value and 16 bytes, which is meant for values of up to about 100 bytes; box the rare
/// large part of anything bigger.
///
/// ```
/// use ucrpc_transport::queue::{Limits, PushError, bounded};
///
/// let (sender, mut receiver) = bounded(Limits { messages: 2, bytes: 100 });
/// sender.push("head", 60).unwrap();
/// assert_eq!(sender.push("body", 60), Err(PushError::Full("body")));
/// assert_eq!(receiver.pop(), Some("head"));
/// assert!(sender.has_room_for(60));
/// ```
#[must_use]
pub fn bounded<T>(limits: Limits) -> (Sender<T>, Receiver<T>) {
    let (producer, consumer) = list::list(Bound {
        taken: AtomicU64::new(0),
        returned: AtomicU64::new(0),
        max: u64::from(limits.messages).clamp(1, MAX_MESSAGES) * MESSAGE + limits.bytes.min(MAX_BYTES) * BYTE,
    });
    (Sender(producer), Receiver(consumer))
}

/// The end of a queue that many threads push to.
///
/// A clone is another handle to the same queue. Dropping senders, even the last one, does not close
/// the queue.
pub struct Sender<T>(Producer<Entry<T>, Bound>);

/// The end of a queue that takes values out. There is one.
///
/// Dropping it closes the queue and drops every value that is left in it, each exactly once; a push
/// that comes too late gives its value back.
pub struct Receiver<T>(Consumer<Entry<T>, Bound>);

/// Why a value was not accepted. It holds the value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PushError<T> {
    /// The queue has no room for a value of this weight now; it may have when the receiver moves on.
    Full(T),
    /// The queue was closed: it will never accept a value again.
    Closed(T),
}

struct Entry<T> {
    value: T,
    weight: u64,
}

struct Bound {
    /// Senders add to it, and whoever closes sets its lowest bit.
    taken: AtomicU64,
    /// Written by the receiver alone.
    returned: AtomicU64,
    max: u64,
}

const fn messages(state: u64) -> u64 {
    state / MESSAGE
}

const fn bytes(state: u64) -> u64 {
    state % MESSAGE / BYTE
}

const fn room(weight: u64) -> u64 {
    MESSAGE + weight * BYTE
}

impl Bound {
    /// Whether a value of `weight` fits beside what is in the queue.
    #[inline]
    const fn admits(&self, state: u64, weight: u64) -> bool {
        let messages_in = messages(state);
        messages_in == 0 || (messages_in < messages(self.max) && bytes(state) + weight <= bytes(self.max))
    }

    /// What is in the queue at one moment, and the closed bit.
    fn load(&self) -> u64 {
        loop {
            // This order: what was returned was taken before, so the difference is never negative.
            // Synchronizes with the store in `give_back`.
            let returned = self.returned.load(Ordering::Acquire);
            // Synchronizes with `close` (who sees the queue closed sees what led to it) and `take`
            // (who sees a value counted sees the room returned before that it relied on).
            let taken = self.taken.load(Ordering::Acquire);
            // With an older `returned`, the queue would look fuller than it ever was.
            if self.returned.load(Ordering::Relaxed) == returned {
                let state = taken.wrapping_sub(returned);
                self.invariants(state);
                return state;
            }
        }
    }

    fn close(&self) {
        // Synchronizes with the loads of `taken` in `load` and `take`.
        self.taken.fetch_or(CLOSED, Ordering::Release);
    }

    /// Takes room for one value, or says why not. `weight` is at most [`MAX_BYTES`].
    #[inline]
    fn take(&self, weight: u64) -> Result<(), PushError<()>> {
        // As in `load`, but an older `returned` is good enough to say yes: there is more room then.
        let mut returned = self.returned.load(Ordering::Acquire);
        loop {
            let taken = self.taken.load(Ordering::Acquire);
            if taken & CLOSED != 0 {
                return Err(PushError::Closed(()));
            }
            if !self.admits(taken.wrapping_sub(returned), weight) {
                let now = self.returned.load(Ordering::Acquire);
                if now == returned {
                    return Err(PushError::Full(()));
                }
                returned = now;
                continue;
            }
            // Synchronizes with the loads of `taken`. The value itself travels by its link.
            let after = taken.wrapping_add(room(weight));
            if self.taken.compare_exchange_weak(taken, after, Ordering::Release, Ordering::Relaxed).is_ok() {
                return Ok(());
            }
        }
    }

    /// Undoes `take` for a value that was not added.
    #[cold]
    fn untake(&self, weight: u64) {
        self.taken.fetch_sub(room(weight), Ordering::Relaxed);
    }

    /// Gives room back. Only the receiver calls this.
    #[inline]
    fn give_back(&self, weight: u64) {
        let returned = self.returned.load(Ordering::Relaxed).wrapping_add(room(weight));
        // Synchronizes with the load in `load`.
        self.returned.store(returned, Ordering::Release);
    }

    /// Both bounds hold, unless a single value is heavier than the bound on bytes.
    #[inline]
    fn invariants(&self, state: u64) {
        debug_assert!(messages(state) <= messages(self.max));
        debug_assert!(bytes(state) <= bytes(self.max) || messages(state) == 1);
        debug_assert!(bytes(state) == 0 || messages(state) > 0);
    }
}

impl<T> Sender<T> {
    /// Adds a value that counts as `weight` bytes (at most 256 GiB - 1 of them).
    ///
    /// Lock-free, from any thread. The values of one thread are popped in the order it pushed them.
    ///
    /// **Announce after the push** (`Announce::announce`, `WakeState::notify`, a waker), never
    /// before: while another thread is in the middle of its push, `pop` cannot reach the values
    /// behind that one; it is that thread's announcement that brings the receiver back to them.
    ///
    /// # Errors
    ///
    /// [`PushError::Full`] if one of the limits would be exceeded, [`PushError::Closed`] if the
    /// queue is closed. Both give the value back.
    #[inline]
    pub fn push(&self, value: T, weight: u64) -> Result<(), PushError<T>> {
        let weight = weight.min(MAX_BYTES);
        match self.0.extra().take(weight) {
            Ok(()) => {}
            Err(PushError::Full(())) => return Err(PushError::Full(value)),
            Err(PushError::Closed(())) => return Err(PushError::Closed(value)),
        }
        self.0.push(Entry { value, weight }).map_err(|Entry { value, weight }| {
            self.0.extra().untake(weight);
            PushError::Closed(value)
        })
    }

    /// The number of values, pushes under way included.
    #[must_use]
    pub fn len(&self) -> usize {
        messages(self.0.extra().load()) as usize
    }

    /// The sum of the weights in bytes, pushes under way included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        bytes(self.0.extra().load())
    }

    /// Whether there is no value and no push under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses every later push. What is in the queue stays, and so does what a push that took its
    /// room before the close still adds.
    pub fn close(&self) {
        self.0.extra().close();
    }

    /// Whether either side closed the queue, or the receiver is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.extra().load() & CLOSED != 0
    }

    /// Whether a push of one byte would not be refused as full now. Also true of a closed queue, so
    /// that whoever waits for room goes on and gets the error.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.has_room_for(1)
    }

    /// Whether a push of `weight` bytes would not be refused as full now.
    ///
    /// This is what to ask before waiting for room: a queue can have room for one byte and refuse
    /// the value at hand. To wait without missing the moment, register with an atomic waker first
    /// and ask then; the receiver's side pops first and wakes then.
    #[must_use]
    pub fn has_room_for(&self, weight: u64) -> bool {
        let bound = self.0.extra();
        let state = bound.load();
        state & CLOSED != 0 || bound.admits(state, weight.min(MAX_BYTES))
    }
}

impl<T> Receiver<T> {
    /// Takes the oldest value and gives its room back.
    ///
    /// `None` means that no value can be reached now, which is not the same as
    /// [`is_empty`](Self::is_empty): a sender may be in the middle of a push, and then even
    /// complete values behind it are out of reach. Do not spin on it: that sender has yet to
    /// announce its value.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let Entry { value, weight } = self.0.pop()?;
        self.0.extra().give_back(weight);
        Some(value)
    }

    /// Refuses every later push; see [`Sender::close`]. The queue is finished when
    /// [`is_empty`](Self::is_empty) says so after this.
    pub fn close(&mut self) {
        self.0.extra().close();
    }

    /// Whether either side closed the queue.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.extra().load() & CLOSED != 0
    }

    /// Whether there is no value and no push under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of values, pushes under way included.
    #[must_use]
    pub fn len(&self) -> usize {
        messages(self.0.extra().load()) as usize
    }

    /// The sum of the weights in bytes, pushes under way included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        bytes(self.0.extra().load())
    }

    /// Compares the counts with what is in the list. Only while no push is under way.
    #[cfg(test)]
    pub(super) fn invariants(&self) {
        let (mut count, mut sum) = (0, 0);
        self.0.inspect(|entry| {
            count += 1;
            sum += entry.weight;
        });
        assert_eq!((self.len(), self.bytes()), (count, sum));
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.extra().close();
        // Not left to the list: the senders' `len` must come down to zero. If a value panics as it is
        // dropped, the list's own drop goes on with the rest.
        let Self(consumer) = self;
        consumer.seal(|bound, Entry { value, weight }| {
            bound.give_back(weight);
            drop(value);
        });
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> PushError<T> {
    /// The value that was not accepted.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(value) | Self::Closed(value) => value,
        }
    }

    /// Whether the queue was full, so that a later push may succeed.
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }
}

impl<T> fmt::Debug for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_full() { "Full(..)" } else { "Closed(..)" })
    }
}

impl<T> fmt::Display for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_full() { "the queue is full" } else { "the queue is closed" })
    }
}

impl<T> std::error::Error for PushError<T> {}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.load();
        f.debug_struct("Queue")
            .field("messages", &messages(state))
            .field("max_messages", &messages(self.max))
            .field("bytes", &bytes(state))
            .field("max_bytes", &bytes(self.max))
            .field("closed", &(state & CLOSED != 0))
            .finish()
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(all(test, not(loom)))]
pub(super) const fn idle_heap<T>() -> usize {
    list::idle_heap::<Entry<T>, Bound>()
}
