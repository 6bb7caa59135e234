//! Ping-pong of frames between two busy-polled processes, next to `ucx_perftest` and bare sockets in the same rounds.
//!
//! `cargo bench --bench latency -- [--rounds N] [--millis N] [FILTER..]`

#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod util;

use util::{
    Options, machine,
    ours::{self, TCP, UCX_POSIX, UCX_TCP, UNIX, Way},
    perftest,
    raw::{self, Wait},
    report::{self, Bar, Row},
    size_name,
};

const SIZES: [usize; 4] = [64, 4 << 10, 64 << 10, 1 << 20];

fn main() {
    if util::run_role() {
        return;
    }
    let options = Options::from_args();
    machine::print_header("latency: round trip of a frame, both sides busy-polling, one core each", &options);
    println!("samples   up to 4 KiB each is the mean of 16 round trips, ucx_perftest's are single ones");
    let mut rows = Vec::new();
    for size in SIZES {
        let bar = match size {
            64 => Bar::AtMost(1.25),
            n if n >= 64 << 10 => Bar::AtMost(1.1),
            _ => Bar::None,
        };
        rows.push(ucx(UCX_POSIX, "posix", size, options.time, bar));
        rows.push(ucx(UCX_TCP, "tcp", size, options.time, bar));
        rows.push(stream(TCP, "tcp", ("raw tcp, spinning", Wait::Spin), size, options.time, Bar::AtMost(1.15)));
        rows.push(stream(TCP, "tcp", ("raw tcp, blocking", Wait::Block), size, options.time, Bar::None));
        rows.push(stream(UNIX, "unix", ("raw unix, spinning", Wait::Spin), size, options.time, Bar::None));
    }
    report::run(&mut rows, &options);
}

fn ucx(way: Way, tls: &'static str, size: usize, time: std::time::Duration, bar: Bar) -> Row {
    let name = format!("{}, {}", way.name, size_name(size));
    let control = ("ucx_perftest am_lat", move || perftest::measure("ucp_am_lat", tls, size, time));
    Row::new(name, ("p50", "us"), move || ours::measure("ping", way, size, time), control, bar)
}

fn stream(
    way: Way,
    family: &'static str,
    (label, wait): (&'static str, Wait),
    size: usize,
    time: std::time::Duration,
    bar: Bar,
) -> Row {
    let name = format!("{}, {}", way.name, size_name(size));
    let control = (label, move || raw::measure("ping", family, wait, size, time));
    Row::new(name, ("p50", "us"), move || ours::measure("ping", way, size, time), control, bar)
}
