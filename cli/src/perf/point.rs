//! A point: what one measurement found, as JSON, CSV and a row of a table.

use serde::{Deserialize, Serialize};

use super::{Mode, run::Tally};
use crate::units;

/// One measurement. Times are in microseconds, CPU in seconds; `null` is what this mode does not measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) mode: Mode,
    /// Bytes of payload in one direction.
    pub(crate) size: usize,
    /// Outstanding on each connection.
    pub(crate) depth: usize,
    pub(crate) conns: usize,
    /// Calls per second that were asked for (open loop).
    pub(crate) rate: Option<f64>,
    pub(crate) seconds: f64,
    /// Calls or messages that went well.
    pub(crate) count: u64,
    pub(crate) errors: u64,
    /// Calls of an open loop that were due and not made; their time counts in the percentiles.
    pub(crate) unsent: u64,
    pub(crate) last_error: Option<String>,
    pub(crate) calls_s: f64,
    /// 10^6 bytes of payload per second, in one direction.
    pub(crate) mb_s: f64,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p90_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
    pub(crate) max_us: Option<f64>,
    /// CPU that this process used, all threads.
    pub(crate) cpu_s: f64,
    /// CPU that the server's process used.
    pub(crate) server_cpu_s: f64,
    pub(crate) cpu_s_per_100k: f64,
    pub(crate) server_cpu_s_per_100k: f64,
    /// What the connections really run over.
    pub(crate) transport: String,
    /// Why they don't run over UCX although they might have.
    pub(crate) fallback_reason: Option<String>,
}

/// What a point is about.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) mode: Mode,
    pub(crate) size: usize,
    pub(crate) depth: usize,
    pub(crate) conns: usize,
    pub(crate) rate: Option<f64>,
    pub(crate) transport: String,
    pub(crate) fallback_reason: Option<String>,
}

impl Point {
    /// Puts together what is known; `cpu` is this side's and the server's, seconds.
    pub(crate) fn new(about: About, tally: &Tally, cpu: (f64, f64)) -> Self {
        let seconds = tally.elapsed.as_secs_f64();
        let per_second = |n: f64| if seconds > 0.0 { n / seconds } else { 0.0 };
        let per_100k = |cpu: f64| if tally.count > 0 { cpu * 1e5 / tally.count as f64 } else { 0.0 };
        let percentile = |p| tally.percentile(p).map(|us| round(us, 3));
        Self {
            mode: about.mode,
            size: about.size,
            depth: about.depth,
            conns: about.conns,
            rate: about.rate,
            seconds: round(seconds, 6),
            count: tally.count,
            errors: tally.errors,
            unsent: tally.unsent,
            last_error: tally.last_error.clone(),
            calls_s: round(per_second(tally.count as f64), 1),
            mb_s: round(per_second(tally.count as f64 * about.size as f64) / 1e6, 3),
            p50_us: percentile(50.0),
            p90_us: percentile(90.0),
            p99_us: percentile(99.0),
            p999_us: percentile(99.9),
            max_us: tally.max().map(|us| round(us, 3)),
            cpu_s: round(cpu.0, 6),
            server_cpu_s: round(cpu.1, 6),
            cpu_s_per_100k: round(per_100k(cpu.0), 4),
            server_cpu_s_per_100k: round(per_100k(cpu.1), 4),
            transport: about.transport,
            fallback_reason: about.fallback_reason,
        }
    }

    /// The first line of CSV.
    pub(crate) fn csv_head() -> String {
        "mode,size,depth,conns,rate,seconds,count,errors,unsent,calls_s,mb_s,p50_us,p90_us,p99_us,p999_us,max_us,cpu_s,\
         server_cpu_s,cpu_s_per_100k,server_cpu_s_per_100k,transport,fallback_reason"
            .to_owned()
    }

    /// A line of CSV.
    pub(crate) fn csv(&self) -> String {
        let maybe = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        [
            self.mode.name().to_owned(),
            self.size.to_string(),
            self.depth.to_string(),
            self.conns.to_string(),
            maybe(self.rate),
            self.seconds.to_string(),
            self.count.to_string(),
            self.errors.to_string(),
            self.unsent.to_string(),
            self.calls_s.to_string(),
            self.mb_s.to_string(),
            maybe(self.p50_us),
            maybe(self.p90_us),
            maybe(self.p99_us),
            maybe(self.p999_us),
            maybe(self.max_us),
            self.cpu_s.to_string(),
            self.server_cpu_s.to_string(),
            self.cpu_s_per_100k.to_string(),
            self.server_cpu_s_per_100k.to_string(),
            quoted(&self.transport),
            quoted(self.fallback_reason.as_deref().unwrap_or_default()),
        ]
        .join(",")
    }

    /// The head of the table for people.
    pub(crate) fn row_head() -> String {
        let names = [
            "size", "calls/s", "MB/s", "p50 us", "p90 us", "p99 us", "p99.9 us", "max us", "cpu s", "server", "errors",
        ];
        row(names.map(str::to_owned))
    }

    /// A row of it. CPU is in seconds per 100 000 calls.
    pub(crate) fn row(&self) -> String {
        let us = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), units::number);
        row([
            units::size_name(self.size),
            units::rate_name(self.calls_s),
            units::number(self.mb_s),
            us(self.p50_us),
            us(self.p90_us),
            us(self.p99_us),
            us(self.p999_us),
            us(self.max_us),
            units::number(self.cpu_s_per_100k),
            units::number(self.server_cpu_s_per_100k),
            self.errors.to_string(),
        ])
    }
}

fn row(cells: [String; 11]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>9}")).collect();
    cells.join(" ")
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}
