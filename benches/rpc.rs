//! Unary echo between two processes on loopback, beside its controls in the same rounds: bare blocking sockets, bare tokio, the
//! transport's own ping-pong, `ucx_perftest`; tonic and tarpc where `benches/peers` was built.
//!
//! `cargo bench --bench rpc -- [--rounds N] [--millis N] [FILTER..]`

#[path = "rpc/bare_tokio.rs"]
mod bare_tokio;
#[path = "rpc/echo.rs"]
mod echo;
#[path = "rpc/peers.rs"]
mod peers;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod util;

use std::time::Duration;

use echo::Load;
use util::{
    Options, machine,
    ours::{self, TCP, UCX_POSIX, UNIX, Way},
    perftest,
    process::Mode,
    raw::{self, Wait},
    report::{self, Bar, Row},
    size_name,
};

const SIZES: [usize; 4] = [64, 4 << 10, 64 << 10, 1 << 20];
const P50: (&str, &str) = ("p50", "us");
const RATE: (&str, &str) = ("rate", "/s");

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--role", "rpc", rest @ ..] => return echo::run(rest),
        ["--role", "tokio", rest @ ..] => return bare_tokio::run(rest),
        _ if util::run_role() => return,
        _ => {}
    }
    let options = Options::from_args();
    machine::print_header("rpc: unary echo, two processes", &options);
    println!(
        "modes     sleep: both on one core, asleep when idle; busy: a core each, spinning; 2 cores: a core each, waiting as by default"
    );
    println!("peers     {}", peers::describe());
    let mut rows = Vec::new();
    sleeping(&mut rows, options.time);
    busy(&mut rows, options.time);
    rates(&mut rows, options.time);
    costs(&mut rows, options.time);
    report::run(&mut rows, &options);
}

/// One outstanding, over sockets, everything on one core.
fn sleeping(rows: &mut Vec<Row>, time: Duration) {
    const MODE: Mode = Mode::OneCore;
    for size in SIZES {
        let raw = move || ("raw tcp, blocking", move || raw::measure_in(MODE, "ping", "tcp", Wait::Block, size, time));
        let load = Load { size, ..Load::ONE };
        let row = |what: &str, run, bar| Row::new(format!("sleep {what}, {}", size_name(size)), P50, run, raw(), bar);
        let rpc = |way: Way, what: &'static str| {
            let run = move || echo::measure(MODE, what, way, load, time);
            Box::new(run) as Box<dyn Fn() -> _>
        };
        rows.push(row("tcp", rpc(TCP, "ping"), if size == 64 { Bar::AtMost(1.4) } else { Bar::None }));
        if size > 64 {
            let bar = if size == 1 << 20 { Bar::AtMost(1.15) } else { Bar::None };
            rows.push(row("tcp attachment", rpc(TCP, "attach"), bar));
        }
        rows.push(row("unix", rpc(UNIX, "ping"), Bar::None));
        for peer in peers::found() {
            let run = Box::new(move || peers::measure(MODE, "ping", peer, load, time));
            rows.push(row(peer, run, Bar::None));
        }
    }
}

/// One outstanding, a spinning core each.
fn busy(rows: &mut Vec<Row>, time: Duration) {
    const MODE: Mode = Mode::Spin;
    for size in SIZES {
        for (way, bar) in [(UCX_POSIX, Bar::MoreAtMost(1.0)), (TCP, Bar::None)] {
            let name = format!("busy {}, {}", way.name, size_name(size));
            let what = if size <= 4 << 10 { "ping" } else { "attach" };
            let load = Load { size, ..Load::ONE };
            let control = ("the transport's own", move || ours::measure("ping", way, size, time));
            let bar = if size == 64 { bar } else { Bar::None };
            rows.push(Row::new(name, P50, move || echo::measure(MODE, what, way, load, time), control, bar));
        }
    }
    let load = Load { size: 1 << 20, ..Load::ONE };
    let control = ("ucx_perftest am_lat", move || perftest::measure("ucp_am_lat", "posix", load.size, time));
    let ours = move || echo::measure(MODE, "attach", UCX_POSIX, load, time);
    rows.push(Row::new("busy ucx posix, 1 MiB".to_owned(), P50, ours, control, Bar::AtMost(1.0)));
}

/// Many outstanding, 64 B.
fn rates(rows: &mut Vec<Row>, time: Duration) {
    for (name, load) in [("64 on 1", Load::MANY), ("8 on 8", Load::WIDE)] {
        for (mode, where_) in [(Mode::OneCore, "sleep"), (Mode::TwoCores, "2 cores")] {
            let tokio = move || ("bare tokio", move || bare_tokio::measure(mode, load, time));
            let bar = if load.connections == 1 { Bar::AtLeast(0.65) } else { Bar::None };
            let ours = move || echo::measure(mode, "rate", TCP, load, time);
            rows.push(Row::new(format!("{where_} tcp, {name}"), RATE, ours, tokio(), bar));
            for peer in peers::found() {
                let run = move || peers::measure(mode, "rate", peer, load, time);
                rows.push(Row::new(format!("{where_} {peer}, {name}"), RATE, run, tokio(), Bar::None));
            }
        }
    }
    let ours = move || echo::measure(Mode::Spin, "rate", UCX_POSIX, Load::MANY, time);
    let perftest = ("ucx_perftest am_bw / 2", move || {
        // A call is two messages, it sends one.
        let mut figures = perftest::measure("ucp_am_bw", "posix", 64, time)?;
        figures.entry("rate".to_owned()).and_modify(|rate| *rate /= 2.0);
        Ok(figures)
    });
    rows.push(Row::new("busy ucx posix, 64 on 1".to_owned(), RATE, ours, perftest, Bar::AtLeast(0.4)));
    let own = ("the transport's own", move || ours::measure("window", UCX_POSIX, 64, time));
    rows.push(Row::new("busy ucx posix, 64 on 1".to_owned(), RATE, ours, own, Bar::None));
    let million = ("1.5 million", || Ok([("rate".to_owned(), 1.5e6)].into()));
    rows.push(Row::new("busy ucx posix, 64 on 1".to_owned(), RATE, ours, million, Bar::AtLeast(1.0)));
    let ours = move || echo::measure(Mode::Spin, "rate", TCP, Load::MANY, time);
    let own = ("the transport's own", move || ours::measure("window", TCP, 64, time));
    rows.push(Row::new("busy tcp, 64 on 1".to_owned(), RATE, ours, own, Bar::None));
}

/// Processor time of calls, memory of idle connections: absolute figures, beside one second and one KiB.
fn costs(rows: &mut Vec<Row>, time: Duration) {
    for side in ["client", "server"] {
        let ours = move || echo::measure(Mode::TwoCores, "rate", TCP, Load::MANY, time);
        let one = ("1 s per 100,000 calls", move || Ok([(side.to_owned(), 1.0)].into()));
        rows.push(Row::new(format!("2 cores tcp cpu, {side}"), (side, "s"), ours, one, Bar::AtMost(0.12)));
    }
    for (way, bar) in [(TCP, 4.0), (UCX_POSIX, 16.0)] {
        // Memory that two processes share, and that each connection maps, counts once. As resident it counts each time.
        for (what, bar) in [("idle", Bar::AtMost(bar)), ("resident", Bar::None)] {
            let load = Load { connections: 1000, ..Load::ONE };
            let ours = move || echo::measure(Mode::TwoCores, "idle", way, load, time);
            let one = ("1 KiB per connection", move || Ok([(what.to_owned(), 1.0)].into()));
            rows.push(Row::new(format!("idle {}, server, {what}", way.name), (what, "KiB"), ours, one, bar));
        }
    }
}
