//! What the benchmarks share: two processes, each pinned to a core of its own, controls in the same rounds, and a report
//! of ratios. Absolute figures move from machine to machine and from minute to minute; ratios move less.

pub(crate) mod machine;
pub(crate) mod ours;
pub(crate) mod perftest;
pub(crate) mod process;
pub(crate) mod raw;
pub(crate) mod report;
pub(crate) mod sample;

use std::time::Duration;

/// The CPU that servers run on.
pub(crate) const SERVER_CPU: usize = 0;
/// The CPU that clients run on.
pub(crate) const CLIENT_CPU: usize = 1;

/// What the command line asks for.
pub(crate) struct Options {
    /// Interleaved rounds.
    pub(crate) rounds: usize,
    /// Length of each measurement, without its warm-up of a quarter of this.
    pub(crate) time: Duration,
    /// Only rows whose name contains one of these; none means all.
    filters: Vec<String>,
}

impl Options {
    /// Reads `[--rounds N] [--millis N] [FILTER..]`; cargo's own `--bench` is skipped.
    pub(crate) fn from_args() -> Self {
        let mut options = Self { rounds: 5, time: Duration::from_millis(200), filters: Vec::new() };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut number = |what: &str| -> u64 {
                let value = args.next().unwrap_or_default();
                value.parse().unwrap_or_else(|_| panic!("{what} needs a number, not {value:?}"))
            };
            match arg.as_str() {
                "--bench" => {}
                "--rounds" => options.rounds = number("--rounds").max(1) as usize,
                "--millis" => options.time = Duration::from_millis(number("--millis").max(20)),
                _ => options.filters.push(arg),
            }
        }
        options
    }

    /// Whether a row is wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter))
    }
}

/// Runs what a re-executed child was started for. `false` in the benchmark's own process.
pub(crate) fn run_role() -> bool {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((first, rest)) = args.split_first() else { return false };
    if first != "--role" {
        return false;
    }
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    process::end_after(process::LIMIT);
    match rest.as_slice() {
        ["ours", rest @ ..] => ours::run(rest),
        ["raw", rest @ ..] => raw::run(rest),
        other => panic!("no such role: {other:?}"),
    }
    true
}

/// `64`, `4096`, `1048576` as a person writes them.
pub(crate) fn size_name(size: usize) -> String {
    match size {
        n if n >= 1 << 20 && n % (1 << 20) == 0 => format!("{} MiB", n >> 20),
        n if n >= 1 << 10 && n % (1 << 10) == 0 => format!("{} KiB", n >> 10),
        n => format!("{n} B"),
    }
}
