//! `ucrpc perf client`.

use std::{io::BufRead, time::Duration};

use tokio::sync::mpsc;
use ucrpc::{Address, Dispatcher, transport::ucx_report};

use super::{
    Format, Mode, Wait, address, dispatcher, idle,
    point::Point,
    session::{Load, Session},
    size,
};
use crate::{
    Done,
    exit::{Exit, Failure},
    out, plot, process, units,
};

pub(crate) const HELP: &str = "\
Examples:
  ucrpc perf client --addr node7:7471                               # UCX if both sides have it, else TCP and why
  ucrpc perf client --addr ucx://node7:7471 --size 64,4k,64k,1M --wait busy --pin 2 --svg perf.svg
  ucrpc perf client --addr tcp://node7:7471 --depth 64 --conns 8 --json
  ucrpc perf client --addr node7:7471 --rate 20k --seconds 30       # open loop: latency at a load that you choose
  ucrpc perf client --addr node7:7471 --mode pingpong               # the transport alone, below RPC
  ucrpc perf client --addr node7:7471 --idle 1000 --json            # memory of idle connections, both sides

calls/s counts round trips; MB/s is payload in one direction, 10^6 bytes. CPU is in seconds per 100 000 calls, of this
process and of the server's, all threads; waiting busy uses all of a core. With --rate, latency counts from when a call was due
(no coordinated omission), and this process spins between calls. --idle counts memory against a server that was just started:
what it freed earlier it need not take again.";

/// Arguments of `perf client`.
#[derive(clap::Args)]
pub(crate) struct Client {
    /// The server
    #[arg(long, value_name = "ADDR", default_value = "auto://127.0.0.1:7471", value_parser = address)]
    addr: Address,
    /// Bytes of payload: 64, 4k, 1M, or several of them
    #[arg(long, value_name = "N[,N..]", value_delimiter = ',', default_value = "64", value_parser = size)]
    size: Vec<usize>,
    /// What is measured
    #[arg(long, value_enum, default_value = "echo")]
    mode: Mode,
    /// Calls or messages under way at once on each connection
    #[arg(long, value_name = "D", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    depth: u32,
    /// Connections
    #[arg(long, value_name = "C", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    conns: u32,
    /// How long each size is measured
    #[arg(long, value_name = "S", default_value = "5", value_parser = units::seconds)]
    seconds: Duration,
    /// How long it runs before that, not counted
    #[arg(long, value_name = "W", default_value = "0.5", value_parser = units::seconds)]
    warmup: Duration,
    /// Calls per second, whatever the server does (open loop)
    #[arg(long, value_name = "R", value_parser = units::rate)]
    rate: Option<f64>,
    /// How this side waits
    #[arg(long, value_enum, default_value_t)]
    wait: Wait,
    /// The CPU to pin this side to
    #[arg(long, value_name = "CPU")]
    pin: Option<usize>,
    /// How long a call, or connecting, may take
    #[arg(long, value_name = "S", default_value = "5", value_parser = units::seconds)]
    timeout: Duration,
    /// Opens N connections, leaves them idle for --seconds, and reports the memory of each on both sides
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=60_000), conflicts_with_all = ["rate", "svg", "csv"])]
    idle: Option<u32>,
    #[command(flatten)]
    format: Format,
    /// Reads what to measure from standard input, for `perf compare`
    #[arg(long, hide = true)]
    child: bool,
}

/// Connects, measures, prints.
pub(crate) fn run(args: &Client) -> Done {
    if args.rate.is_some() && !args.mode.is_unary() {
        return Err(Failure::usage(format!("--rate does not go with --mode {}", args.mode.name()))
            .hint("an open loop times single calls: --mode echo, attachment or oneway"));
    }
    if args.seconds.is_zero() {
        return Err(Failure::usage("--seconds 0 measures nothing"));
    }
    process::raise_files();
    let address = args.addr.clone().with_override()?;
    let local = dispatcher(args.wait, args.pin)?;
    let handle = local.handle().clone();
    local.block_on(async {
        let conns = args.conns as usize;
        let mut session = Session::open(&handle, &address, conns, args.timeout).await?;
        if args.child {
            return obey(&handle, session).await;
        }
        let (transport, reason) = session.transport();
        eprintln!("{} over {transport}", args.addr);
        if let Some(reason) = &reason {
            eprintln!("note: not over ucx: {reason}");
        }
        if let Some(count) = args.idle {
            return idle::run(&handle, &session, &address, count, args).await;
        }
        let points = measure_all(args, &mut session).await?;
        session.close().await?;
        if let Some(file) = &args.format.svg {
            plot::points(file, &points, &args.addr.to_string())?;
        }
        judge(&points)
    })
}

async fn measure_all(args: &Client, session: &mut Session) -> Result<Vec<Point>, Failure> {
    let mut points = Vec::new();
    for size in &args.size {
        let load = Load {
            mode: args.mode,
            size: *size,
            depth: args.depth as usize,
            time: args.seconds,
            warmup: args.warmup,
            rate: args.rate,
        };
        let point = session.measure(&load).await?;
        let first = points.is_empty();
        if args.format.json {
            out::line(&json(&point)?)?;
        } else if args.format.csv {
            if first {
                out::line(&Point::csv_head())?;
            }
            out::line(&point.csv())?;
        } else {
            if first {
                out::line(&Point::row_head())?;
            }
            out::line(&point.row())?;
        }
        points.push(point);
    }
    Ok(points)
}

/// Calls that failed are a result, and not a good one.
fn judge(points: &[Point]) -> Done {
    let errors: u64 = points.iter().map(|point| point.errors).sum();
    let unsent: u64 = points.iter().map(|point| point.unsent).sum();
    if errors == 0 && unsent == 0 {
        return Ok(());
    }
    let count: u64 = points.iter().map(|point| point.count).sum();
    let last = points.iter().rev().find_map(|point| point.last_error.clone()).unwrap_or_default();
    let mut text = format!("{errors} calls failed and {unsent} could not be made, {count} went well");
    if !last.is_empty() {
        text.push_str(&format!("; the last error: {last}"));
    }
    let failure = Failure::new(Exit::Bad, text);
    Err(if unsent > 0 {
        failure.hint("the server does not keep up: lower --rate, or raise --depth or --conns")
    } else {
        failure
    })
}

/// One line.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::new(Exit::Failed, format!("cannot print JSON: {error}")))
}

/// Measures what standard input asks for, a line of JSON each, and answers with a line each. Both sides are quiet between.
async fn obey(dispatcher: &Dispatcher, mut session: Session) -> Done {
    let (tell, mut hear) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                break;
            }
        }
    });
    let (transport, reason) = session.transport();
    // It is loaded already, where it carries the connection.
    let library = if transport.starts_with("ucx") { ucx_report().library.ok() } else { None };
    let version =
        library.map(|library| library.version).map(|(major, minor, patch)| format!("{major}.{minor}.{patch}"));
    out::line(&json(&(transport, reason, version))?)?;
    dispatcher.set_wait_policy(Wait::Event.policy());
    session.stats(Some(Wait::Event)).await?;
    while let Some(line) = hear.recv().await {
        let (load, wait): (Load, Wait) = serde_json::from_str(&line)
            .map_err(|error| Failure::usage(format!("{line} is nothing to measure: {error}")))?;
        dispatcher.set_wait_policy(wait.policy());
        session.stats(Some(wait)).await?;
        let point = session.measure(&load).await?;
        session.stats(Some(Wait::Event)).await?;
        dispatcher.set_wait_policy(Wait::Event.policy());
        out::line(&json(&point)?)?;
    }
    session.close().await
}

impl Client {
    /// How long idle connections are held.
    pub(super) fn hold(&self) -> Duration {
        self.seconds
    }

    /// How long connecting may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether JSON is wanted.
    pub(super) fn is_json(&self) -> bool {
        self.format.json
    }
}
