//! The connection's queue: what a push and a pop cost, on one thread and between two.
//!
//! `cargo bench --bench queue -- [--rounds N] [--millis N]`

#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod util;

use std::{
    hint::black_box,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use ucrpc::transport::{
    Frame,
    queue::{Limits, Receiver, Sender, bounded},
};
use util::{CLIENT_CPU, Options, SERVER_CPU, machine, process};

const LIMITS: Limits = Limits { messages: 1024, bytes: 1 << 30 };

/// Measures for so long.
type Run = fn(Duration) -> Histogram<u64>;

fn main() {
    let options = Options::from_args();
    machine::print_header("queue: push and pop of a frame", &options);
    process::pin(SERVER_CPU);
    println!();
    let runs: [(&str, Run); 3] = [
        ("one thread, one by one", |time| on_one_thread(1, time)),
        ("one thread, 64 at a time", |time| on_one_thread(64, time)),
        ("two threads, one core each", between_threads),
    ];
    for (name, run) in runs {
        let mut all = Histogram::new_with_max(1_000_000_000, 3).expect("valid bounds");
        for _ in 0..options.rounds {
            all.add(run(options.time)).expect("the same bounds");
        }
        let at = |p: f64| all.value_at_percentile(p) as f64 / 100.0;
        println!("{name:<28} p50 {:.1} ns, p99 {:.1} ns per push and pop", at(50.0), at(99.0));
    }
}

fn frame() -> Frame {
    Frame::from(&b"sixty-four bytes or so"[..])
}

/// Hundredths of a nanosecond per operation, in batches.
fn record(histogram: &mut Histogram<u64>, start: Instant, operations: u64) {
    histogram.saturating_record(start.elapsed().as_nanos() as u64 * 100 / operations);
}

fn on_one_thread(depth: usize, time: Duration) -> Histogram<u64> {
    let mut histogram = Histogram::new_with_max(1_000_000_000, 3).expect("valid bounds");
    let (sender, mut receiver): (Sender<Frame>, Receiver<Frame>) = bounded(LIMITS);
    let end = Instant::now() + time;
    while Instant::now() < end {
        let start = Instant::now();
        for _ in 0..1024 / depth {
            for _ in 0..depth {
                sender.push(frame(), 64).expect("room");
            }
            for _ in 0..depth {
                black_box(receiver.pop()).expect("pushed above");
            }
        }
        record(&mut histogram, start, 1024);
    }
    histogram
}

fn between_threads(time: Duration) -> Histogram<u64> {
    let mut histogram = Histogram::new_with_max(1_000_000_000, 3).expect("valid bounds");
    let (sender, mut receiver): (Sender<Frame>, Receiver<Frame>) = bounded(LIMITS);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            process::pin(CLIENT_CPU);
            while !stop.load(Ordering::Relaxed) {
                if sender.push(frame(), 64).is_err() {
                    std::hint::spin_loop();
                }
            }
        });
        let end = Instant::now() + time;
        while Instant::now() < end {
            let start = Instant::now();
            let mut taken = 0;
            while taken < 1024 {
                match black_box(receiver.pop()) {
                    Some(_) => taken += 1,
                    None => std::hint::spin_loop(),
                }
            }
            record(&mut histogram, start, taken);
        }
        stop.store(true, Ordering::Relaxed);
    });
    histogram
}
