//! Credit: how many DATA frames and bytes may be in flight in one direction of a connection.
//!
//! Each side grants a window in its hello. A frame takes credit when it is sent and gives it back after the receiving
//! application has consumed it: with a frame that goes the other way anyhow (piggyback), or, when enough has gathered,
//! in a frame of its own (standalone).
//!
//! # Why it can't lock up
//!
//! The receiver may keep back what is consumed while that is less than a quarter of the window in messages *and* in
//! bytes; otherwise every small message would cost a credit frame. A frame that doesn't fit into what is left could
//! then wait for ever: the sender for credit, the receiver for more to return. So the sender may exceed the window in
//! bytes with one frame while so little is in flight that the receiver may be keeping back all of it. The same rule
//! lets a frame pass that is larger than the whole window: it goes when (nearly) nothing else is in flight, so a small
//! window limits memory and not the size of messages, which has a limit of its own. What can be in flight is
//! therefore at most the window, or a quarter of it and one frame.
//!
//! Both sides compute the quarter from the same window, so [`STANDALONE_SHARE`] is part of the protocol.

use super::header::Credit;

/// A receiver returns credit in a frame of its own when one part in this many of the window in messages or bytes has
/// been consumed: late enough to be rare beside the data, early enough that a sender keeps three quarters to go on
/// with. Part of the protocol.
pub const STANDALONE_SHARE: u32 = 4;

/// On a frame that goes anyhow, credit is returned when one part in this many has been consumed: it costs 12 bytes
/// and no frame, so earlier than standalone, but not on every frame.
pub const PIGGYBACK_SHARE: u32 = 8;

/// What a peer did against the rules of credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolViolation {
    /// It gave back more than was in flight.
    #[error(
        "peer returned credit for {} messages and {} bytes with {} messages and {} bytes in flight",
        .returned.messages, .returned.bytes, .in_flight.messages, .in_flight.bytes
    )]
    ReturnedTooMuch {
        /// What it gave back.
        returned: Credit,
        /// What was in flight.
        in_flight: Credit,
    },
    /// It sent more than it had credit for.
    #[error(
        "peer sent {bytes} bytes beyond its credit of {} messages and {} bytes",
        .window.messages, .window.bytes
    )]
    Exceeded {
        /// Bytes of the frame that was too much.
        bytes: u64,
        /// The window that it was granted.
        window: Credit,
    },
}

/// How urgent it is to return credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A frame goes to the peer anyhow: at most one part in [`PIGGYBACK_SHARE`] stays back.
    Piggyback,
    /// A CREDIT frame would have to go: at most one part in [`STANDALONE_SHARE`] stays back.
    Standalone,
}

/// The sender's half.
#[derive(Clone, Debug)]
pub struct SendCredit {
    window: Credit,
    in_flight: Credit,
    may_be_kept: Credit,
}

impl SendCredit {
    /// The window that the peer granted. A window without messages or bytes counts as 1 of them.
    pub fn new(window: Credit) -> Self {
        let window = at_least_one(window);
        Self { window, in_flight: Credit::default(), may_be_kept: share(window, STANDALONE_SHARE) }
    }

    /// Takes credit for a frame of `bytes` (head and body), or returns `false` and changes nothing: then try again
    /// after [`SendCredit::give`].
    ///
    /// A frame that exceeds the window may go only while less than a quarter of it is in flight: see the module.
    #[inline]
    #[must_use = "a frame without credit must not be sent"]
    pub fn try_take(&mut self, bytes: u64) -> bool {
        let after = self.in_flight.bytes.saturating_add(bytes);
        let fits = after <= self.window.bytes && self.in_flight.messages < self.window.messages;
        let goes = fits || below(self.in_flight, self.may_be_kept);
        if goes {
            self.in_flight.messages += 1;
            self.in_flight.bytes = after;
        }
        goes
    }

    /// Takes back what the peer returned.
    ///
    /// # Errors
    /// More than is in flight, or bytes left over without a message: the peer miscounts.
    #[inline]
    pub fn give(&mut self, returned: Credit) -> Result<(), ProtocolViolation> {
        let in_flight = self.in_flight;
        match (in_flight.messages.checked_sub(returned.messages), in_flight.bytes.checked_sub(returned.bytes)) {
            (Some(messages), Some(bytes)) if messages != 0 || bytes == 0 => {
                self.in_flight = Credit { messages, bytes };
                Ok(())
            }
            _ => Err(ProtocolViolation::ReturnedTooMuch { returned, in_flight }),
        }
    }

    /// What was sent and has not come back.
    pub fn in_flight(&self) -> Credit {
        self.in_flight
    }

    /// The window.
    pub fn window(&self) -> Credit {
        self.window
    }
}

/// The receiver's half.
#[derive(Clone, Debug)]
pub struct RecvCredit {
    window: Credit,
    /// Arrived and not returned yet.
    outstanding: Credit,
    /// Of those, consumed: what the next return says.
    consumed: Credit,
    /// No outstanding frame is longer.
    longest: u64,
    piggyback: Credit,
    standalone: Credit,
}

impl RecvCredit {
    /// The window that this side granted. A window without messages or bytes counts as 1 of them.
    pub fn new(granted: Credit) -> Self {
        let window = at_least_one(granted);
        Self {
            window,
            outstanding: Credit::default(),
            consumed: Credit::default(),
            longest: 0,
            piggyback: share(window, PIGGYBACK_SHARE),
            standalone: share(window, STANDALONE_SHARE),
        }
    }

    /// Counts a DATA frame of `bytes` that the peer sent, when it is announced: before memory is taken for it. Frames
    /// need not come in send order.
    ///
    /// # Errors
    /// The peer had no credit for it. Never a false alarm: of an obedient peer's outstanding frames all but the last
    /// one sent were within a limit, and that one is no longer than the longest.
    #[inline]
    pub fn on_arrival(&mut self, bytes: u64) -> Result<(), ProtocolViolation> {
        let after = self.outstanding.bytes.saturating_add(bytes);
        let longest = self.longest.max(bytes);
        let fits = after <= self.window.bytes && self.outstanding.messages < self.window.messages;
        let others = Credit { messages: self.outstanding.messages, bytes: after - longest };
        if !fits && !below(others, self.standalone) {
            return Err(ProtocolViolation::Exceeded { bytes, window: self.window });
        }
        self.outstanding.messages += 1;
        self.outstanding.bytes = after;
        self.longest = longest;
        Ok(())
    }

    /// Counts a frame that has arrived and is out of the way: taken by the application, refused or dropped. After
    /// this, [`RecvCredit::take_return`] must be called with [`Urgency::Standalone`] before the dispatcher sleeps.
    #[inline]
    pub fn on_consumed(&mut self, bytes: u64) {
        self.on_consumed_many(Credit { messages: 1, bytes });
    }

    /// Counts several frames at once, as [`RecvCredit::on_consumed`].
    #[inline]
    pub fn on_consumed_many(&mut self, frames: Credit) {
        let held = self.held();
        debug_assert!(frames.messages <= held.messages, "consumed a frame that never arrived");
        debug_assert!(frames.bytes <= held.bytes, "consumed more than arrived");
        // A miscount of ours must not become the peer's violation.
        self.consumed.messages += frames.messages.min(held.messages);
        self.consumed.bytes += frames.bytes.min(held.bytes);
    }

    /// What to return now, if it is worth it: all that is consumed, once.
    #[inline]
    #[must_use = "credit that is taken and not sent is lost"]
    pub fn take_return(&mut self, urgency: Urgency) -> Option<Credit> {
        let enough = match urgency {
            Urgency::Piggyback => self.piggyback,
            Urgency::Standalone => self.standalone,
        };
        if below(self.consumed, enough) {
            return None;
        }
        let returned = std::mem::take(&mut self.consumed);
        self.outstanding.messages -= returned.messages;
        self.outstanding.bytes -= returned.bytes;
        self.longest = self.longest.min(self.outstanding.bytes);
        Some(returned)
    }

    /// What has arrived and was not consumed.
    pub fn held(&self) -> Credit {
        Credit {
            messages: self.outstanding.messages - self.consumed.messages,
            bytes: self.outstanding.bytes - self.consumed.bytes,
        }
    }
}

fn at_least_one(window: Credit) -> Credit {
    Credit { messages: window.messages.max(1), bytes: window.bytes.max(1) }
}

/// One part in `parts` of a window, at least 1 of each.
fn share(window: Credit, parts: u32) -> Credit {
    at_least_one(Credit { messages: window.messages / parts, bytes: window.bytes / u64::from(parts) })
}

/// Whether both are less.
#[inline]
fn below(credit: Credit, limit: Credit) -> bool {
    credit.messages < limit.messages && credit.bytes < limit.bytes
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn credit(messages: u32, bytes: u64) -> Credit {
        Credit { messages, bytes }
    }

    #[test]
    fn the_window_limits_messages_and_bytes() {
        let mut send = SendCredit::new(credit(4, 100));
        assert!(send.try_take(40) && send.try_take(60));
        assert!(!send.try_take(1), "no bytes left");
        assert!(send.try_take(0) && send.try_take(0));
        assert!(!send.try_take(0), "no messages left");
        assert_eq!(send.in_flight(), credit(4, 100));
        send.give(credit(1, 40)).unwrap();
        assert!(send.try_take(40));
    }

    #[test]
    fn a_frame_beyond_the_window_goes_alone() {
        let mut send = SendCredit::new(credit(100, 100));
        assert!(send.try_take(25));
        assert!(!send.try_take(1000), "a quarter is in flight");
        send.give(credit(1, 25)).unwrap();
        assert!(send.try_take(24));
        assert!(send.try_take(1000), "the peer may be keeping back 24");
        assert!(!send.try_take(0) && !send.try_take(1));
        assert_eq!(send.in_flight(), credit(2, 1024));
    }

    #[test]
    fn a_window_of_one_message() {
        let (mut send, mut recv) = (SendCredit::new(credit(1, 1)), RecvCredit::new(credit(1, 1)));
        for bytes in [0, 1, 1000, u64::MAX] {
            assert!(send.try_take(bytes) && !send.try_take(0));
            recv.on_arrival(bytes).unwrap();
            assert_eq!(recv.take_return(Urgency::Standalone), None);
            recv.on_consumed(bytes);
            let back = recv.take_return(Urgency::Standalone).unwrap();
            assert_eq!(back, credit(1, bytes));
            send.give(back).unwrap();
        }
    }

    #[test]
    fn a_peer_that_returns_too_much_is_caught() {
        let mut send = SendCredit::new(credit(10, 100));
        assert!(send.give(credit(1, 0)).is_err());
        assert!(send.give(credit(0, 1)).is_err());
        assert!(send.try_take(10) && send.try_take(0));
        assert!(send.give(credit(3, 0)).is_err());
        assert!(send.give(credit(1, 11)).is_err());
        assert!(send.give(credit(2, 9)).is_err(), "a byte without a message");
        assert_eq!(send.in_flight(), credit(2, 10), "a violation changes nothing");
        send.give(credit(1, 10)).unwrap();
        send.give(credit(1, 0)).unwrap();
    }

    #[test]
    fn a_peer_that_sends_too_much_is_caught() {
        let mut recv = RecvCredit::new(credit(4, 100));
        (0..4).for_each(|_| recv.on_arrival(10).unwrap());
        assert!(recv.on_arrival(0).is_err(), "fifth message");
        let mut recv = RecvCredit::new(credit(40, 100));
        recv.on_arrival(60).unwrap();
        recv.on_arrival(40).unwrap();
        assert!(recv.on_arrival(1).is_err());
        let mut recv = RecvCredit::new(credit(40, 100));
        recv.on_arrival(5000).unwrap();
        assert!(recv.on_arrival(6000).is_err(), "two frames beyond the window");
        assert_eq!(recv.held(), credit(1, 5000));
    }

    #[test]
    fn returns_come_at_their_shares() {
        let mut recv = RecvCredit::new(credit(16, 1 << 20));
        (0..16).for_each(|_| recv.on_arrival(1).unwrap());
        recv.on_consumed(1);
        assert_eq!(recv.take_return(Urgency::Piggyback), None);
        recv.on_consumed(1);
        assert_eq!(recv.take_return(Urgency::Standalone), None);
        assert_eq!(recv.take_return(Urgency::Piggyback), Some(credit(2, 2)));
        assert_eq!(recv.take_return(Urgency::Piggyback), None);
        (0..4).for_each(|_| recv.on_consumed(1));
        assert_eq!(recv.take_return(Urgency::Standalone), Some(credit(4, 4)));
        let mut recv = RecvCredit::new(credit(1000, 800));
        recv.on_arrival(100).unwrap();
        recv.on_consumed(100);
        assert_eq!(recv.take_return(Urgency::Piggyback), Some(credit(1, 100)));
    }

    /// Both halves with queues between them; frames may overtake each other when `shuffled`.
    struct Direction {
        send: SendCredit,
        recv: RecvCredit,
        wire: VecDeque<u64>,
        held: Vec<u64>,
        returns: VecDeque<Credit>,
        window: Credit,
        longest: u64,
    }

    impl Direction {
        fn check(&self) {
            let window = at_least_one(self.window);
            let bound = window.bytes.max(window.bytes / 4 + self.longest);
            assert!(self.send.in_flight().bytes <= bound);
            assert!(self.send.in_flight().messages <= window.messages);
        }

        fn arrive(&mut self, pick: usize) {
            if let Some(bytes) = self.wire.remove(pick % self.wire.len().max(1)) {
                self.recv.on_arrival(bytes).expect("the sender had credit");
                self.held.push(bytes);
            }
        }

        fn consume(&mut self, pick: usize) {
            if !self.held.is_empty() {
                let bytes = self.held.swap_remove(pick % self.held.len());
                self.recv.on_consumed(bytes);
            }
        }

        fn give_back(&mut self, urgency: Urgency) {
            self.returns.extend(self.recv.take_return(urgency));
        }

        fn settle(&mut self) {
            while !self.wire.is_empty() || !self.held.is_empty() {
                self.arrive(0);
                self.consume(0);
            }
            self.give_back(Urgency::Standalone);
            while let Some(credit) = self.returns.pop_front() {
                self.send.give(credit).unwrap();
            }
        }
    }

    proptest! {
        /// Whatever the windows, sizes and schedule: no false alarm, no more in flight than promised, and once all
        /// has been consumed and the standalone return has come, a blocked frame can go.
        #[test]
        fn never_locks_up(
            window in (0u32..20, 0u64..2000),
            sizes in prop::collection::vec(0u64..3000, 1..60),
            schedule in prop::collection::vec((0u8..6, any::<usize>()), 0..400),
            shuffled in any::<bool>(),
        ) {
            let window = credit(window.0, window.1);
            let mut both = Direction {
                send: SendCredit::new(window),
                recv: RecvCredit::new(window),
                wire: VecDeque::new(),
                held: Vec::new(),
                returns: VecDeque::new(),
                window,
                longest: *sizes.iter().max().unwrap(),
            };
            let mut queue: VecDeque<u64> = sizes.into();
            for (step, pick) in schedule {
                match step {
                    0 | 1 => if let Some(&bytes) = queue.front() && both.send.try_take(bytes) {
                        both.wire.extend(queue.pop_front());
                    },
                    2 => both.arrive(if shuffled { pick } else { 0 }),
                    3 => both.consume(pick),
                    4 => both.give_back(if pick % 2 == 0 { Urgency::Piggyback } else { Urgency::Standalone }),
                    _ => if let Some(credit) = both.returns.pop_front() { both.send.give(credit).unwrap() },
                }
                both.check();
            }
            while let Some(bytes) = queue.pop_front() {
                if !both.send.try_take(bytes) {
                    both.settle();
                    prop_assert!(both.send.try_take(bytes), "{bytes} bytes stuck, in flight {:?}", both.send.in_flight());
                }
                both.wire.push_back(bytes);
                both.check();
            }
        }

        #[test]
        fn a_hostile_peer_never_panics(window in any::<(u32, u64)>(), steps in prop::collection::vec(any::<(u32, u64)>(), 0..50)) {
            let mut send = SendCredit::new(credit(window.0, window.1));
            let mut recv = RecvCredit::new(credit(window.0, window.1));
            for (messages, bytes) in steps {
                let _ = send.try_take(bytes);
                let _ = send.give(credit(messages, bytes));
                if recv.on_arrival(bytes).is_ok() && messages % 2 == 0 && bytes <= recv.held().bytes {
                    recv.on_consumed(bytes);
                }
                let _ = recv.take_return(Urgency::Piggyback);
            }
        }
    }
}
