//! When the calls of an open loop are due: at a fixed rate, with a ramp before it.

use std::time::{Duration, Instant};

/// A schedule. Call `i` is due at a time that depends on nothing but `i`: how the server does changes nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    start: Instant,
    /// Calls per second at the start of the ramp.
    from: f64,
    /// Calls per second after the ramp.
    rate: f64,
    ramp: Duration,
    /// The ramp included.
    total: Duration,
}

impl Schedule {
    /// `rate` calls per second for `total`.
    pub(crate) fn fixed(start: Instant, rate: f64, total: Duration) -> Self {
        Self { start, from: rate, rate, ramp: Duration::ZERO, total }
    }

    /// The rate grows evenly from a tenth to `rate` over `ramp`, and stays there for `hold`.
    pub(crate) fn ramped(start: Instant, rate: f64, ramp: Duration, hold: Duration) -> Self {
        Self { start, from: rate / 10.0, rate, ramp, total: ramp + hold }
    }

    /// When call `index` is due; `None` after the last one.
    pub(crate) fn at(&self, index: u64) -> Option<Instant> {
        let (n, ramp) = (index as f64, self.ramp.as_secs_f64());
        let in_ramp = (self.from + self.rate) / 2.0 * ramp;
        let seconds = if n < in_ramp {
            // n = from * t + growth * t^2 / 2, for t.
            let growth = (self.rate - self.from) / ramp;
            ((self.from * self.from + 2.0 * growth * n).sqrt() - self.from) / growth
        } else {
            ramp + (n - in_ramp) / self.rate
        };
        (seconds < self.total.as_secs_f64()).then(|| self.start + Duration::from_secs_f64(seconds))
    }

    /// Calls per second that are due at `now`.
    pub(crate) fn rate_at(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.start).as_secs_f64();
        let ramp = self.ramp.as_secs_f64();
        if passed < ramp { self.from + (self.rate - self.from) * passed / ramp } else { self.rate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_rate_is_even() {
        let start = Instant::now();
        let schedule = Schedule::fixed(start, 1000.0, Duration::from_secs(1));
        assert_eq!(schedule.at(0), Some(start));
        assert_eq!(schedule.at(500), Some(start + Duration::from_millis(500)));
        assert_eq!(schedule.at(1000), None);
    }

    #[test]
    fn a_ramp_grows_evenly() {
        let start = Instant::now();
        let schedule = Schedule::ramped(start, 1000.0, Duration::from_secs(2), Duration::from_secs(1));
        // (100 + 1000) / 2 * 2 s calls in the ramp, 1000 after it.
        let count = (0..).take_while(|i| schedule.at(*i).is_some()).count();
        assert!((2099..=2101).contains(&count), "{count}");
        let due = |i| schedule.at(i).map(|at| (at - start).as_secs_f64()).unwrap_or_default();
        assert!((due(1100) - 2.0).abs() < 1e-6);
        // One second into the ramp the rate is 550: 100 + 450 / 2 = 325 calls have been due.
        assert!((due(325) - 1.0).abs() < 1e-6);
        assert!((1..2100).all(|i| due(i) > due(i - 1)), "in order");
        assert!((schedule.rate_at(start + Duration::from_secs(1)) - 550.0).abs() < 1e-6);
    }
}
