//! Small frames one way, next to `ucx_perftest` and bare sockets in the same rounds.
//!
//! `cargo bench --bench message_rate -- [--rounds N] [--millis N] [FILTER..]`

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

const SIZE: usize = 64;
const FIGURE: (&str, &str) = ("rate", "/s");

fn main() {
    if util::run_role() {
        return;
    }
    let options = Options::from_args();
    machine::print_header("message rate: frames of 64 B one way, both sides busy-polling, one core each", &options);
    let time = options.time;
    let name = |way: Way| format!("{}, {}", way.name, size_name(SIZE));
    let ucx = |way: Way, tls: &'static str| {
        let control = ("ucx_perftest am_bw", move || perftest::measure("ucp_am_bw", tls, SIZE, time));
        Row::new(name(way), FIGURE, move || ours::measure("flood", way, SIZE, time), control, Bar::AtLeast(0.6))
    };
    let stream = |way: Way, family: &'static str, label: &'static str| {
        let control = (label, move || raw::measure("flood", family, Wait::Spin, SIZE, time));
        Row::new(name(way), FIGURE, move || ours::measure("flood", way, SIZE, time), control, Bar::None)
    };
    let mut rows = [
        ucx(UCX_POSIX, "posix"),
        ucx(UCX_TCP, "tcp"),
        stream(TCP, "tcp", "raw tcp, a writev each"),
        stream(UNIX, "unix", "raw unix, a writev each"),
    ];
    report::run(&mut rows, &options);
}
