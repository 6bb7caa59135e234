//! The calls in flight on one connection: callers put them in, the connection's reader completes them.
//!
//! An attempt is in exactly one state, under one lock: waiting, done, or gone. So it ends exactly once, whatever comes
//! first: its response, its caller's giving up, or the connection's end.

use std::task::{Context, Waker};
use std::time::Instant;

use bytes::Bytes;
use ucrpc_transport::Frame;

use crate::Status;
use crate::alarm::GRAIN;
use crate::call::Decoded;

/// Bits of a correlation id that are a place in the table; those above count the channel's attempts.
const PLACE_BITS: u32 = 20;

/// Attempts in flight on one connection.
pub(super) const MAX_CALLS: usize = 1 << PLACE_BITS;

/// What came for an attempt.
#[derive(Debug)]
pub(super) enum Answer {
    /// Ready to use.
    Decoded(Result<Decoded, Status>),
    /// With compression or a checksum: decoded where the caller runs.
    Packed(Frame),
    /// The same, from inside a stream.
    PackedBytes(Bytes),
    /// The connection ended.
    Lost(Status),
}

enum Slot {
    /// The next free place.
    Free(usize),
    Waiting {
        id: i64,
        waker: Option<Waker>,
        /// When its caller wants to be woken, if nothing comes.
        wake_at: Option<Instant>,
    },
    Done {
        id: i64,
        answer: Answer,
        /// Bytes of the frame that brought it.
        bytes: u64,
    },
}

pub(super) struct Calls {
    slots: Vec<Slot>,
    free: usize,
    /// Attempts that wait.
    waiting: usize,
    /// When the timer is to look at the table.
    pub(super) armed: Option<Instant>,
    end: Option<Status>,
}

/// An attempt that was put in.
pub(super) struct Entered {
    pub(super) id: i64,
    /// The timer has to be moved to an earlier point in time.
    pub(super) rearm: bool,
}

/// What a look at an attempt finds.
pub(super) enum Polled {
    Answer(Answer, u64),
    /// The time to be woken at has come, and no answer.
    Due,
    Pending {
        /// The timer has to be moved to an earlier point in time.
        rearm: bool,
    },
}

const NO_FREE: usize = usize::MAX;

impl Calls {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), free: NO_FREE, waiting: 0, armed: None, end: None }
    }

    /// Puts an attempt in. `number` is the channel's count of attempts.
    pub(super) fn enter(&mut self, number: u64, wake_at: Option<Instant>) -> Result<Entered, Option<Status>> {
        if let Some(end) = &self.end {
            return Err(Some(end.clone()));
        }
        let place = match self.free {
            NO_FREE if self.slots.len() >= MAX_CALLS => return Err(None),
            NO_FREE => {
                self.slots.push(Slot::Free(NO_FREE));
                self.slots.len() - 1
            }
            place => place,
        };
        if let Slot::Free(next) = self.slots[place] {
            self.free = next;
        }
        // Never negative, never zero, and no two attempts of a channel share it within 2^43 of them.
        let number = (number & ((1 << (63 - PLACE_BITS)) - 1)).max(1);
        let id = (number << PLACE_BITS | place as u64) as i64;
        self.slots[place] = Slot::Waiting { id, waker: None, wake_at };
        self.waiting += 1;
        Ok(Entered { id, rearm: self.arm(wake_at) })
    }

    fn arm(&mut self, at: Option<Instant>) -> bool {
        let Some(at) = at else { return false };
        let earlier = self.armed.is_none_or(|armed| at < armed);
        if earlier {
            self.armed = Some(at);
        }
        earlier
    }

    fn place(id: i64) -> usize {
        id as usize & (MAX_CALLS - 1)
    }

    /// Whether an attempt waits for this id.
    fn is_waiting(&self, id: i64) -> bool {
        matches!(self.slots.get(Self::place(id)), Some(Slot::Waiting { id: own, .. }) if *own == id)
    }

    /// Completes an attempt and says whom to wake. If none waits for this id, the answer comes back.
    pub(super) fn complete(&mut self, id: i64, answer: Answer, bytes: u64) -> Result<Option<Waker>, Answer> {
        if !self.is_waiting(id) {
            return Err(answer);
        }
        self.waiting -= 1;
        match std::mem::replace(&mut self.slots[Self::place(id)], Slot::Done { id, answer, bytes }) {
            Slot::Waiting { waker, .. } => Ok(waker),
            Slot::Free(_) | Slot::Done { .. } => Ok(None),
        }
    }

    /// Takes an attempt's answer out, or notes whom to wake, at the latest at `wake_at`.
    pub(super) fn poll(&mut self, id: i64, wake_at: Option<Instant>, cx: &Context<'_>) -> Polled {
        let place = Self::place(id);
        match &mut self.slots[place] {
            Slot::Waiting { id: own, waker, wake_at: at } if *own == id => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                // The timer clears the time when it has come: only then the clock is looked at.
                if let (None, Some(wake_at)) = (*at, wake_at)
                    && wake_at <= Instant::now()
                {
                    return Polled::Due;
                }
                if *at == wake_at {
                    return Polled::Pending { rearm: false };
                }
                *at = wake_at;
                Polled::Pending { rearm: self.arm(wake_at) }
            }
            slot @ Slot::Done { .. } => {
                let before = std::mem::replace(slot, Slot::Free(self.free));
                self.free = place;
                match before {
                    Slot::Done { answer, bytes, .. } => Polled::Answer(answer, bytes),
                    Slot::Free(_) | Slot::Waiting { .. } => Polled::Pending { rearm: false },
                }
            }
            Slot::Free(_) | Slot::Waiting { .. } => Polled::Pending { rearm: false },
        }
    }

    /// Takes an attempt out that nobody waits for any more; true if its answer had not come.
    pub(super) fn leave(&mut self, id: i64) -> bool {
        let place = Self::place(id);
        let was_waiting = match self.slots.get(place) {
            Some(Slot::Waiting { id: own, .. }) if *own == id => true,
            Some(Slot::Done { id: own, .. }) if *own == id => false,
            _ => return false,
        };
        // What it held is dropped by the caller of this, at the latest: nothing in it takes this lock.
        self.slots[place] = Slot::Free(self.free);
        self.free = place;
        self.waiting -= usize::from(was_waiting);
        was_waiting
    }

    /// Wakes the callers whose time has come, and sets the timer to the next one.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Waker> {
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        for slot in &mut self.slots {
            let Slot::Waiting { waker, wake_at, .. } = slot else { continue };
            match *wake_at {
                Some(at) if at <= now => {
                    *wake_at = None;
                    due.extend(waker.take());
                }
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {}
            }
        }
        self.armed = next.map(|at| at.max(now + GRAIN));
        due
    }

    /// Ends the table: every attempt that waits is lost, none can be put in any more.
    pub(super) fn end(&mut self, status: Status) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for slot in &mut self.slots {
            if let Slot::Waiting { id, waker, .. } = slot {
                let (id, waker) = (*id, waker.take());
                wakers.extend(waker);
                *slot = Slot::Done { id, answer: Answer::Lost(status.clone()), bytes: 0 };
            }
        }
        self.waiting = 0;
        self.armed = None;
        self.end = Some(status);
        wakers
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }
}
