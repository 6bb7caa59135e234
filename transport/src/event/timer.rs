//! Timers of one dispatcher: a sorted map, cheap to read, exact to cancel.

use std::{collections::BTreeMap, time::Instant};

/// Names one armed timer. It is needed to cancel it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerId {
    at: Instant,
    number: u64,
}

impl TimerId {
    /// The name of a timer from its parts.
    pub(crate) fn new(at: Instant, number: u64) -> Self {
        Self { at, number }
    }

    /// What tells it from others that are due at the same time: never 0.
    pub(crate) fn number(self) -> u64 {
        self.number
    }

    /// When it is due.
    pub(crate) fn at(self) -> Instant {
        self.at
    }
}

/// Timers that carry a `T`.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    due: BTreeMap<TimerId, T>,
    number: u64,
}

impl<T> Timers<T> {
    pub(crate) fn new() -> Self {
        Self { due: BTreeMap::new(), number: 0 }
    }

    /// Arms a timer.
    pub(crate) fn insert(&mut self, at: Instant, what: T) -> TimerId {
        self.number += 1;
        let id = TimerId { at, number: self.number };
        self.due.insert(id, what);
        id
    }

    /// Takes a timer back; `None` if it is gone already.
    pub(crate) fn cancel(&mut self, id: TimerId) -> Option<T> {
        self.due.remove(&id)
    }

    /// The earliest due time.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.first_key_value().map(|(id, _)| id.at)
    }

    /// Takes one timer that is due at `now`.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<T> {
        (self.next()? <= now).then(|| self.due.pop_first()).flatten().map(|(_, what)| what)
    }

    /// All that wait, in order.
    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.due.into_values()
    }

    pub(crate) fn len(&self) -> usize {
        self.due.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timers_fire_in_order_of_time_then_age_and_cancel_exactly() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::new();
        timers.insert(at(5), "late");
        timers.insert(at(1), "first");
        timers.insert(at(1), "second");
        let gone = timers.insert(at(2), "cancelled");
        assert_eq!((timers.cancel(gone), timers.cancel(gone)), (Some("cancelled"), None));
        assert_eq!((timers.next(), timers.pop(start)), (Some(at(1)), None));
        assert_eq!((timers.pop(at(4)), timers.pop(at(4)), timers.pop(at(4))), (Some("first"), Some("second"), None));
        assert_eq!((timers.len(), timers.pop(at(5)), timers.len()), (1, Some("late"), 0));
    }
}
