//! `ucrpc perf compare`: every transport that works on this machine, beside its controls, in interleaved rounds.
//!
//! All processes live for a round and sleep while others are measured; a slice of ours and the slice of its control follow
//! each other within a fraction of a second, and the ratio is the median of the ratios of such neighbours. Absolute figures
//! move with the machine's mood; these ratios move less.

mod child;
mod control;
mod machine;
mod perftest;
mod report;
mod rounds;
mod shm;
mod sockets;
mod ways;

use std::{path::PathBuf, time::Duration};

use crate::{
    Done,
    exit::{Exit, Failure},
    perf::{Wait, size},
    process, units,
};

pub(crate) use self::control::{Control, run as control};
use self::{machine::Machine, rounds::Rounds, ways::Way};

pub(crate) const HELP: &str = "\
Examples:
  ucrpc perf compare --quick                     # well under a minute
  ucrpc perf compare --svg compare.svg           # minutes: figures to publish
  ucrpc perf compare --size 64,64k --only unix,memory --json

Both sides are processes of this machine, pinned to a core each and waiting busy, so that no wake-up is measured. ping-pong and
one-way are frames of the transport; rpc is unary calls, whose bytes are an attachment from 64 KiB on. The controls are
raw sockets, two threads that spin on shared memory, and ucx_perftest with the same UCX_TLS, where it is installed (Debian:
ucx-utils). A ratio below 1 is better than the control in latency, a ratio above 1 in throughput.";

/// Arguments of `perf compare`.
#[derive(clap::Args)]
pub(crate) struct Compare {
    /// Fewer and shorter rounds, for a first look
    #[arg(long)]
    quick: bool,
    /// Bytes of payload
    #[arg(long, value_name = "N[,N..]", value_delimiter = ',', default_value = "64,4k,64k,1M", value_parser = size)]
    size: Vec<usize>,
    /// Rounds; medians are reported [default: 11, quick: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// How long each slice of a round takes [default: 0.1, quick: 0.04]
    #[arg(long, value_name = "S", value_parser = units::seconds)]
    slice: Option<Duration>,
    /// Only transports whose name contains one of these words
    #[arg(long, value_name = "WORD[,WORD..]", value_delimiter = ',')]
    only: Vec<String>,
    /// The CPUs of the server and the client [default: two cores of one socket]
    #[arg(long, value_name = "CPU,CPU", value_delimiter = ',', num_args = 2)]
    cpus: Option<Vec<usize>>,
    /// JSON in place of the table: a line about the machine, then a line for each transport and size
    #[arg(long)]
    json: bool,
    /// Draws latency and throughput over the message's size into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// How both sides are run.
#[derive(Debug, Clone, Copy)]
struct Setup {
    server_cpu: usize,
    client_cpu: usize,
    wait: Wait,
    slice: Duration,
}

/// Measures and reports.
pub(crate) fn run(args: &Compare) -> Done {
    let setup = setup(args)?;
    // Above ordinary work, as far as that is allowed; children inherit it. Not a real-time class: two processes that spin
    // in one would starve the kernel's threads that carry loopback traffic.
    let nice = rustix::process::setpriority_process(None, -10).is_ok();
    let wanted = |way: &Way| args.only.is_empty() || args.only.iter().any(|word| way.name.contains(word.as_str()));
    let ways: Vec<Way> = ways::all().into_iter().filter(wanted).collect();
    if ways.is_empty() {
        let names: Vec<String> = ways::all().into_iter().map(|way| way.name).collect();
        return Err(Failure::usage(format!("no transport is called {}", args.only.join(" or ")))
            .hint(format!("there are: {}", names.join(", "))));
    }
    let count = args.rounds.unwrap_or(if args.quick { 4 } else { 11 }).into();
    let mut rounds = Rounds::start(ways, &args.size, setup);
    let machine = Machine::look(&setup, nice, count, rounds.ucx_version());
    if args.json {
        report::json_head(&machine)?;
    } else {
        report::head(&machine)?;
    }
    rounds.measure(count);
    let results = rounds.finish();
    if args.json {
        report::json(&results)?;
    } else {
        report::table(&results)?;
    }
    if let Some(file) = &args.svg {
        report::draw(file, &machine, &results)?;
    }
    let failed: Vec<&str> = results.ways.iter().filter(|way| way.is_broken).map(|way| way.name.as_str()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Bad, format!("not all was measured: {}", failed.join(", "))))
}

fn setup(args: &Compare) -> Result<Setup, Failure> {
    let slice = args.slice.unwrap_or(Duration::from_millis(if args.quick { 40 } else { 100 }));
    if slice < Duration::from_millis(5) || slice > Duration::from_secs(5) {
        return Err(Failure::usage("--slice takes 0.005 to 5 seconds"));
    }
    let (server_cpu, client_cpu) = match args.cpus.as_deref() {
        Some([server, client]) => (*server, *client),
        _ => machine::two_cpus(),
    };
    let allowed = process::cpus();
    if let Some(cpu) = [server_cpu, client_cpu].into_iter().find(|cpu| !allowed.contains(cpu)) {
        return Err(Failure::usage(format!("this process may not use CPU {cpu}; it may use {allowed:?}")));
    }
    // Two that spin on one core measure the scheduler.
    let wait = if server_cpu == client_cpu { Wait::Event } else { Wait::Busy };
    Ok(Setup { server_cpu, client_cpu, wait, slice })
}
