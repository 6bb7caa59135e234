//! Delivery in send order, although frames complete out of order.
//!
//! UCX calls the receiver in send order, but the data of a rendezvous arrives later than the small frames behind it.
//! Whatever completed too early is parked here until its turn comes.

use std::{collections::VecDeque, mem};

/// The largest window, in frames: sequence numbers wrap, so "ahead" and "behind" must stay apart.
pub const MAX_WINDOW: u32 = 1 << 30;

/// Slots that are kept allocated while nothing is parked.
const KEPT_SLOTS: usize = 64;

/// A sequence number that can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// A frame with this number has been delivered, skipped or parked already.
    #[error("frame {seq} came twice")]
    Duplicate {
        /// The number.
        seq: u32,
    },
    /// The number is further ahead than the sender may be.
    #[error("frame {seq} is {ahead} ahead of its turn, at most {window} is allowed")]
    OutsideWindow {
        /// The number.
        seq: u32,
        /// Its distance from the next frame to deliver.
        ahead: u32,
        /// The window.
        window: u32,
    },
}

#[derive(Debug, Default)]
enum Slot<T> {
    #[default]
    Empty,
    Parked(T),
    Skipped,
}

/// Puts values into the order of their sequence numbers, which start at 0 and wrap.
///
/// Memory: one slot per frame between the next one to deliver and the furthest one parked, so a peer can make it take
/// the window times the size of `T`, at most. The window is the number of messages that the peer has credit for.
#[derive(Debug)]
pub struct Reorder<T> {
    expected: u32,
    window: u32,
    /// Slot `i` is for `expected + i`. Not empty only while something is parked or skipped ahead of its turn, or
    /// until [`Reorder::pop`] has returned `None`.
    slots: VecDeque<Slot<T>>,
}

impl<T> Reorder<T> {
    /// Expects frame 0 first. A frame may be ahead of its turn by less than `max_pending` frames (1 to
    /// [`MAX_WINDOW`]; other values are moved there).
    pub fn new(max_pending: u32) -> Self {
        Self::starting_at(0, max_pending)
    }

    /// As [`Reorder::new`], with another first number.
    pub fn starting_at(first: u32, max_pending: u32) -> Self {
        Self { expected: first, window: max_pending.clamp(1, MAX_WINDOW), slots: VecDeque::new() }
    }

    /// The number of the next frame to deliver: also how many have been delivered or skipped, wrapping.
    pub fn expected(&self) -> u32 {
        self.expected
    }

    /// Whether nothing waits for its turn.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes `seq` as delivered, without storage, if it is the next one and nothing is parked. If it returns `false`
    /// nothing has changed: use [`Reorder::insert`] and [`Reorder::pop`].
    #[inline]
    #[must_use = "if it is false the frame still has to be inserted"]
    pub fn accept_in_order(&mut self, seq: u32) -> bool {
        let in_order = seq == self.expected && self.slots.is_empty();
        self.expected = self.expected.wrapping_add(u32::from(in_order));
        in_order
    }

    /// Parks a frame until [`Reorder::pop`] returns it.
    ///
    /// # Errors
    /// A number that came before or is too far ahead. The value is dropped.
    pub fn insert(&mut self, seq: u32, value: T) -> Result<(), OrderError> {
        *self.slot(seq)? = Slot::Parked(value);
        Ok(())
    }

    /// Notes that `seq` will never be delivered (it was refused), so that its successors don't wait for it. Call
    /// [`Reorder::pop`] after it.
    ///
    /// # Errors
    /// As [`Reorder::insert`].
    pub fn skip(&mut self, seq: u32) -> Result<(), OrderError> {
        if !self.accept_in_order(seq) {
            *self.slot(seq)? = Slot::Skipped;
        }
        Ok(())
    }

    /// The next frame, if it is there. Call it until it returns `None`.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        while let Some(slot) = self.slots.front_mut() {
            let value = match mem::take(slot) {
                Slot::Empty => return None,
                Slot::Parked(value) => Some(value),
                Slot::Skipped => None,
            };
            self.slots.pop_front();
            self.expected = self.expected.wrapping_add(1);
            if value.is_some() {
                return value;
            }
        }
        self.slots.shrink_to(KEPT_SLOTS);
        None
    }

    fn slot(&mut self, seq: u32) -> Result<&mut Slot<T>, OrderError> {
        let ahead = seq.wrapping_sub(self.expected);
        if ahead >= self.window {
            let behind = ahead >= 1 << 31;
            return Err(if behind {
                OrderError::Duplicate { seq }
            } else {
                OrderError::OutsideWindow { seq, ahead, window: self.window }
            });
        }
        let at = ahead as usize;
        if at >= self.slots.len() {
            self.slots.resize_with(at + 1, Slot::default);
        }
        match &mut self.slots[at] {
            slot @ Slot::Empty => Ok(slot),
            _ => Err(OrderError::Duplicate { seq }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    fn drain(order: &mut Reorder<u32>) -> Vec<u32> {
        std::iter::from_fn(|| order.pop()).collect()
    }

    #[test]
    fn in_order_needs_no_storage() {
        let mut order = Reorder::<u32>::new(4);
        for seq in 0..1000 {
            assert!(order.accept_in_order(seq));
        }
        assert_eq!(order.slots.capacity(), 0);
        assert_eq!(order.expected(), 1000);
        assert!(!order.accept_in_order(999));
        assert!(!order.accept_in_order(1001));
        assert_eq!(order.expected(), 1000);
    }

    #[test]
    fn late_frames_hold_up_early_ones() {
        let mut order = Reorder::new(8);
        order.insert(1, 1).unwrap();
        order.insert(3, 3).unwrap();
        assert_eq!(drain(&mut order), []);
        assert!(!order.accept_in_order(0), "others wait behind it");
        order.insert(0, 0).unwrap();
        assert_eq!(drain(&mut order), [0, 1]);
        order.skip(2).unwrap();
        assert_eq!(drain(&mut order), [3]);
        assert!(order.is_empty());
        assert!(order.accept_in_order(4));
    }

    #[test]
    fn wraps_around() {
        let mut order = Reorder::starting_at(u32::MAX - 1, 4);
        order.insert(0, 0).unwrap();
        order.insert(u32::MAX, u32::MAX).unwrap();
        assert_eq!(order.insert(u32::MAX - 2, 9), Err(OrderError::Duplicate { seq: u32::MAX - 2 }));
        assert_eq!(order.insert(2, 9), Err(OrderError::OutsideWindow { seq: 2, ahead: 4, window: 4 }));
        order.insert(u32::MAX - 1, u32::MAX - 1).unwrap();
        assert_eq!(drain(&mut order), [u32::MAX - 1, u32::MAX, 0]);
        assert_eq!(order.expected(), 1);
        let mut order = Reorder::<()>::starting_at(u32::MAX, 1);
        assert!(order.accept_in_order(u32::MAX));
        assert!(order.accept_in_order(0));
    }

    #[test]
    fn duplicates_of_every_sort() {
        let mut order = Reorder::new(8);
        assert!(order.accept_in_order(0));
        assert_eq!(order.insert(0, 0), Err(OrderError::Duplicate { seq: 0 }));
        order.insert(3, 3).unwrap();
        order.skip(2).unwrap();
        for seq in [2, 3] {
            assert_eq!(order.insert(seq, 0), Err(OrderError::Duplicate { seq }));
            assert_eq!(order.skip(seq), Err(OrderError::Duplicate { seq }));
        }
        order.insert(1, 1).unwrap();
        assert_eq!(drain(&mut order), [1, 3]);
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let mut order = Reorder::new(1000);
        assert!(order.insert(1000, 0).is_err());
        assert_eq!(order.slots.capacity(), 0, "checked before memory is taken");
        order.insert(999, 999).unwrap();
        (0..999).for_each(|seq| order.skip(seq).unwrap());
        assert_eq!(drain(&mut order), [999]);
        assert!(order.slots.capacity() <= KEPT_SLOTS);
    }

    #[test]
    fn parked_values_are_dropped_with_it() {
        let value = Rc::new(());
        let mut order = Reorder::new(8);
        order.insert(1, value.clone()).unwrap();
        assert!(order.insert(1, value.clone()).is_err());
        assert_eq!(Rc::strong_count(&value), 2);
        drop(order);
        assert_eq!(Rc::strong_count(&value), 1);
    }

    proptest! {
        /// Frames complete in an arbitrary order within the window; some are skipped.
        #[test]
        fn always_in_order(first in any::<u32>(), window in 1u32..20, picks in prop::collection::vec(any::<(u8, bool)>(), 1..400)) {
            let mut order = Reorder::starting_at(first, window);
            let mut open: Vec<u32> = Vec::new();
            let (mut sent, mut delivered, mut skipped) = (first, Vec::new(), Vec::new());
            for (pick, skip) in picks {
                while open.len() < 6 && sent.wrapping_sub(order.expected()) < window {
                    open.push(sent);
                    sent = sent.wrapping_add(1);
                }
                let seq = open.remove(usize::from(pick) % open.len());
                if skip && pick % 4 == 0 {
                    order.skip(seq).unwrap();
                    skipped.push(seq);
                } else if order.accept_in_order(seq) {
                    delivered.push(seq);
                } else {
                    order.insert(seq, seq).unwrap();
                }
                delivered.extend(std::iter::from_fn(|| order.pop()));
            }
            for seq in open {
                order.insert(seq, seq).unwrap();
            }
            delivered.extend(std::iter::from_fn(|| order.pop()));
            let expected: Vec<u32> = (0..sent.wrapping_sub(first)).map(|i| first.wrapping_add(i))
                .filter(|seq| !skipped.contains(seq)).collect();
            prop_assert_eq!(delivered, expected);
            prop_assert!(order.is_empty());
            prop_assert_eq!(order.expected(), sent);
        }

        #[test]
        fn arbitrary_numbers_never_panic(numbers in prop::collection::vec((0u32..40, 0u8..4), 0..100)) {
            let mut order = Reorder::starting_at(u32::MAX - 10, 16);
            for (n, what) in numbers {
                let seq = (u32::MAX - 20).wrapping_add(n);
                match what {
                    0 => drop(order.insert(seq, n)),
                    1 => drop(order.skip(seq)),
                    2 => { let _ = order.accept_in_order(seq); }
                    _ => drop(order.pop()),
                }
                prop_assert!(order.slots.len() <= 16);
            }
        }
    }
}
