//! Deadlines: points in time here, remaining milliseconds on the wire.

use std::time::{Duration, Instant};

/// When a caller stops waiting, or never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No deadline.
    pub const NEVER: Self = Self(None);

    /// The deadline at `instant`.
    pub const fn at(instant: Instant) -> Self {
        Self(Some(instant))
    }

    /// The deadline `timeout` after `now`; a timeout too long for the clock is none.
    pub fn after(now: Instant, timeout: Duration) -> Self {
        Self(now.checked_add(timeout))
    }

    /// The deadline of a request that came at `received`. Zero and less mean none, as brpc's clients have it.
    pub fn from_wire(timeout_ms: Option<i32>, received: Instant) -> Self {
        match timeout_ms.and_then(|ms| u64::try_from(ms).ok()) {
            None | Some(0) => Self::NEVER,
            Some(ms) => Self::after(received, Duration::from_millis(ms)),
        }
    }

    /// The time left for the wire: whole milliseconds, rounded up, at least 1 while any time is left. `Ok(None)` if there is
    /// no deadline.
    ///
    /// # Errors
    ///
    /// If the deadline passed: there is no call to send any more.
    pub fn to_wire(self, now: Instant) -> Result<Option<i32>, Expired> {
        match self.remaining(now) {
            None => Ok(None),
            Some(Duration::ZERO) => Err(Expired),
            Some(left) => Ok(Some(i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX).max(1))),
        }
    }

    /// The point in time, unless there is no deadline.
    pub fn instant(self) -> Option<Instant> {
        self.0
    }

    /// The time left: zero if it passed, `None` if there is no deadline.
    pub fn remaining(self, now: Instant) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(now))
    }

    /// Whether it passed.
    pub fn is_expired(self, now: Instant) -> bool {
        self.0.is_some_and(|at| at <= now)
    }

    /// The earlier of two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Self(Some(a.min(b))),
            (a, b) => Self(a.or(b)),
        }
    }
}

/// A deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("deadline has passed")]
pub struct Expired;

impl From<Expired> for crate::Status {
    fn from(_: Expired) -> Self {
        Self::new(crate::Code::ERPCTIMEDOUT, "deadline has passed")
    }
}
