//! When a call is tried again, and how long to wait in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::Status;

/// Waiting times that grow: after the `n`th failure in a row, `first * 2^(n-1)`, at most `max`, of which a random part of
/// up to `jitter` is taken off so that many clients don't come back at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// The longest.
    pub max: Duration,
    /// From 0 (none) to 1.
    pub jitter: f64,
}

impl Backoff {
    /// How long to wait after `failures` failures in a row.
    pub fn delay(&self, failures: u32) -> Duration {
        let doubled = self.first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        let whole = doubled.min(self.max);
        whole.mul_f64(1.0 - self.jitter.clamp(0.0, 1.0) * fastrand::f64())
    }
}

/// Which failures are worth another attempt.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum RetryOn {
    /// None.
    Never,
    /// Those where the handler surely did not run: no connection, the request did not leave this process, or the server
    /// refused the call (stopping, at its limit). Safe for every method. The default.
    #[default]
    NotStarted,
    /// Those and every other [retryable](crate::Code::is_retryable) one, such as a connection that broke: the handler may run twice. For
    /// methods that may. This is brpc's default.
    Retryable,
    /// Those that the function says yes to; of a call that may have run, too.
    When(Arc<dyn Fn(&Status) -> bool + Send + Sync>),
}

impl std::fmt::Debug for RetryOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Never => "Never",
            Self::NotStarted => "NotStarted",
            Self::Retryable => "Retryable",
            Self::When(_) => "When",
        })
    }
}

impl RetryOn {
    /// Whether to try again after `status`; `not_started` says that the handler surely did not run.
    pub(super) fn covers(&self, status: &Status, not_started: bool) -> bool {
        match self {
            Self::Never => false,
            Self::NotStarted => not_started,
            Self::Retryable => not_started || status.is_retryable(),
            Self::When(when) => when(status),
        }
    }
}

/// How calls are tried again.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Attempts in all, the first one included. Default: 4, as brpc's 3 retries.
    pub max_attempts: u32,
    /// After which failures. Default: those where the handler surely did not run.
    pub on: RetryOn,
    /// How long to wait before an attempt. Default: 2 ms doubling up to 100 ms, half of it random.
    pub backoff: Backoff,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        let backoff = Backoff { first: Duration::from_millis(2), max: Duration::from_millis(100), jitter: 0.5 };
        Self { max_attempts: 4, on: RetryOn::default(), backoff }
    }
}

/// Bounds what retries and hedges may add to a channel's load: each call earns a part of one, each extra attempt spends
/// a whole one. When the servers are in trouble, most calls fail, and this keeps retries from making it worse.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetConfig {
    /// Extra attempts that each call earns. Default: 0.2.
    pub per_call: f64,
    /// Extra attempts that can be saved up, and are there at the start. Default: 20.
    pub burst: u32,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { per_call: 0.2, burst: 20 }
    }
}

/// Parts of a token.
const PARTS: i64 = 1000;

/// The budget of a channel.
#[derive(Debug)]
pub(super) struct Budget {
    parts: AtomicI64,
    per_call: i64,
    max: i64,
}

impl Budget {
    pub(super) fn new(config: BudgetConfig) -> Self {
        let max = i64::from(config.burst) * PARTS;
        let per_call = (config.per_call.clamp(0.0, 1000.0) * PARTS as f64) as i64;
        Self { parts: AtomicI64::new(max), per_call, max }
    }

    /// A call begins.
    #[inline]
    pub(super) fn earn(&self) {
        // At the top there is nothing to write: the usual case costs a load.
        let parts = self.parts.load(Ordering::Relaxed);
        if parts < self.max {
            let more = self.per_call.min(self.max - parts);
            self.parts.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// Takes an extra attempt, if there is one.
    pub(super) fn spend(&self) -> bool {
        let take = |parts: i64| (parts >= PARTS).then(|| parts - PARTS);
        self.parts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_gives_no_more_than_its_burst_and_what_calls_earned() {
        let budget = Budget::new(BudgetConfig { per_call: 0.25, burst: 3 });
        assert_eq!((0..10).filter(|_| budget.spend()).count(), 3);
        (0..8).for_each(|_| budget.earn());
        assert_eq!((0..10).filter(|_| budget.spend()).count(), 2);
        (0..1000).for_each(|_| budget.earn());
        assert_eq!((0..10).filter(|_| budget.spend()).count(), 3, "no more is saved than the burst");
    }

    #[test]
    fn backoff_doubles_up_to_its_end_and_jitter_only_shortens() {
        let ms = Duration::from_millis;
        let exact = Backoff { first: ms(10), max: ms(100), jitter: 0.0 };
        let delays: Vec<_> = [1, 2, 3, 4, 5, 40, u32::MAX].map(|n| exact.delay(n).as_millis()).to_vec();
        assert_eq!(delays, [10, 20, 40, 80, 100, 100, 100]);
        let random = Backoff { jitter: 0.5, ..exact };
        for _ in 0..1000 {
            let delay = random.delay(3);
            assert!(delay > ms(19) && delay <= ms(40), "{delay:?}");
        }
    }
}
