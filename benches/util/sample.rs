//! Timing of round trips and floods, the same for ours and the raw controls.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::process::tell;

/// Up to this size, bytes, a sample is the mean of [`BATCH`] round trips: reading the clock takes 25 ns, a tenth of the
/// fastest round trip.
const BATCHED: usize = 4 << 10;
const BATCH: u32 = 16;

/// Collects round trips of one measurement.
pub(crate) struct RoundTrips {
    histogram: Histogram<u64>,
    batch: u32,
    warm: Instant,
    end: Instant,
}

impl RoundTrips {
    /// Begins with a warm-up of a quarter of `time`, which is not counted.
    pub(crate) fn begin(size: usize, time: Duration) -> Self {
        let histogram = Histogram::new_with_max(60_000_000_000, 3).expect("valid bounds");
        let warm = Instant::now() + time / 4;
        Self { histogram, batch: if size <= BATCHED { BATCH } else { 1 }, warm, end: warm + time }
    }

    /// Round trips of each sample.
    pub(crate) fn batch(&self) -> u32 {
        self.batch
    }

    /// Takes the time of a sample; `false` when it is enough.
    pub(crate) fn record(&mut self, start: Instant, end: Instant) -> bool {
        if end >= self.warm {
            // Tenths of a nanosecond: a batch's mean is finer than the clock.
            let tenths = (end - start).as_nanos() as u64 * 10 / u64::from(self.batch);
            self.histogram.saturating_record(tenths);
        }
        end < self.end
    }

    /// Prints the figures, microseconds.
    pub(crate) fn tell(&self) {
        for (name, percentile) in [("p50", 50.0), ("p99", 99.0), ("p999", 99.9)] {
            tell(name, self.histogram.value_at_percentile(percentile) as f64 / 10_000.0);
        }
        tell("samples", self.histogram.len() as f64);
    }
}

/// When a flood ends: looked at only now and then.
pub(crate) struct Flood {
    start: Instant,
    time: Duration,
    every: u64,
    sent: u64,
}

impl Flood {
    /// Begins now.
    pub(crate) fn begin(size: usize, time: Duration) -> Self {
        let every = if size <= BATCHED { 256 } else { 1 };
        Self { start: Instant::now(), time, every, sent: 0 }
    }

    /// Counts a message; `false` when it was the last one.
    pub(crate) fn count(&mut self) -> bool {
        self.sent += 1;
        !self.sent.is_multiple_of(self.every) || self.start.elapsed() < self.time
    }

    /// Prints messages per second and MB/s (1 MB = 2^20 bytes, as `ucx_perftest` counts). Called when the peer has them all.
    pub(crate) fn tell(&self, size: usize) {
        let seconds = self.start.elapsed().as_secs_f64();
        tell("rate", self.sent as f64 / seconds);
        tell("bandwidth", self.sent as f64 * size as f64 / seconds / f64::from(1 << 20));
    }
}
