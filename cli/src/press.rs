//! `ucrpc press`: load at a fixed rate, with a ramp, and live percentiles.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use serde::Serialize;
use ucrpc::{
    Address, Channel, Dispatcher, Status,
    rpc::{
        call::{CallOptions, Deadline, MethodName},
        client::{RawCall, RawCaller},
    },
    transport::spawn_local,
};

use crate::{
    Done, call,
    exit::{Exit, Failure},
    out::{self, Progress},
    perf::{self, Drive, Run, Schedule, Tally, Wait, json},
    process, units,
};

pub(crate) const HELP: &str = "\
Examples:
  ucrpc press node7:7471 --rate 20k --seconds 30                      # the Echo of `ucrpc perf server`
  ucrpc press node7:8000 demo.Echo/Say --proto demo.proto --data '{\"text\": \"hello\"}' --rate 500 --ramp 10
  ucrpc press tcp://node7:8000 demo.Echo/Say --raw request.bin --rate 5k --json

Latency counts from when a call was due, not from when there was room
to make it. The ramp starts at a tenth of the rate and is not counted in the summary.";

/// What is called without a method's name.
const OWN_ECHO: &str = "ucrpc.perf.Perf/Echo";

/// Arguments of `press`.
#[derive(clap::Args)]
pub(crate) struct Press {
    /// The server
    #[arg(value_name = "ADDR", value_parser = perf::address)]
    addr: Address,
    /// package.Service/Method
    #[arg(default_value = OWN_ECHO, value_parser = method)]
    method: (String, String),
    /// The request as JSON; needs --proto
    #[arg(short, long, value_name = "JSON", requires = "proto")]
    data: Option<String>,
    /// The .proto file that declares the method; may be repeated
    #[arg(short, long, value_name = "FILE", conflicts_with = "raw")]
    proto: Vec<PathBuf>,
    /// Where imports of .proto files are looked for; may be repeated
    #[arg(short = 'I', long = "include", value_name = "DIR", requires = "proto")]
    include: Vec<PathBuf>,
    /// The request as serialized bytes from a file; without it and --proto the request is empty
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
    /// File whose bytes go with each request as its attachment
    #[arg(long, value_name = "FILE")]
    attachment: Option<PathBuf>,
    /// Bytes of attachment made up for each request: 64, 4k, 1M
    #[arg(long, value_name = "N", value_parser = units::size, conflicts_with = "attachment")]
    size: Option<usize>,
    /// Calls per second
    #[arg(long, value_name = "R", value_parser = units::rate)]
    rate: f64,
    /// How long the rate grows from a tenth to all of it, not counted
    #[arg(long, value_name = "S", default_value = "0", value_parser = units::seconds)]
    ramp: Duration,
    /// How long it stays there
    #[arg(long, value_name = "S", default_value = "10", value_parser = units::seconds)]
    seconds: Duration,
    /// Connections
    #[arg(long, value_name = "C", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    conns: u32,
    /// Calls under way at once on each connection; those that are due beyond it wait, and are late
    #[arg(long, value_name = "D", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    depth: u32,
    /// How long a call, or connecting, may take
    #[arg(long, value_name = "S", default_value = "5", value_parser = units::seconds)]
    timeout: Duration,
    /// How this side waits
    #[arg(long, value_enum, default_value_t)]
    wait: Wait,
    /// The CPU to pin this side to
    #[arg(long, value_name = "CPU")]
    pin: Option<usize>,
    /// One line of JSON on stdout in place of the summary
    #[arg(long)]
    json: bool,
}

/// Reads `package.Service/Method`.
fn method(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((service, method)) if !service.is_empty() && !method.is_empty() && !method.contains('/') => {
            Ok((service.to_owned(), method.to_owned()))
        }
        _ => Err(format!("{text:?} is no method: write package.Service/Method")),
    }
}

/// What was found.
#[derive(Serialize)]
struct Summary {
    method: String,
    rate: f64,
    ramp_s: f64,
    seconds: f64,
    count: u64,
    errors: u64,
    unsent: u64,
    /// How often each error came.
    error_texts: BTreeMap<String, u64>,
    calls_s: f64,
    p50_us: Option<f64>,
    p90_us: Option<f64>,
    p99_us: Option<f64>,
    p999_us: Option<f64>,
    max_us: Option<f64>,
    cpu_s: f64,
    transport: String,
    fallback_reason: Option<String>,
}

type Errors = Rc<std::cell::RefCell<BTreeMap<String, u64>>>;

/// Presses and sums up.
pub(crate) fn run(args: &Press) -> Done {
    let read = |file: &PathBuf| {
        std::fs::read(file)
            .map(Bytes::from)
            .map_err(|e| Failure::new(Exit::Usage, format!("cannot read {}: {e}", file.display())))
    };
    if args.seconds.is_zero() {
        return Err(Failure::usage("--seconds 0 measures nothing"));
    }
    let (method, message) = if args.proto.is_empty() {
        (args.method.clone(), args.raw.as_ref().map(read).transpose()?.unwrap_or_default())
    } else {
        let name = (args.method.0.as_str(), args.method.1.as_str());
        call::serialize(&args.proto, &args.include, name, args.data.as_deref().unwrap_or("{}"))?
    };
    let made_up = args.size.map(|size| Bytes::from(vec![7; size]));
    let attachment = args.attachment.as_ref().map(read).transpose()?.or(made_up).unwrap_or_default();
    process::raise_files();
    let address = args.addr.clone().with_override()?;
    let local = perf::dispatcher(args.wait, args.pin)?;
    let handle = local.handle().clone();
    local.block_on(async {
        let mut channels = Vec::new();
        for _ in 0..args.conns {
            channels.push(perf::connect(&handle, &address, args.timeout).await?);
        }
        let infos: Vec<_> = channels.iter().flat_map(Channel::connection_infos).collect();
        let transport = infos.first().map(|info| info.transport.to_string()).unwrap_or_default();
        let reason = infos.iter().find_map(|info| info.fallback_reason.as_ref()).map(ToString::to_string);
        eprintln!("{} over {transport}", args.addr);
        if let Some(reason) = &reason {
            eprintln!("note: not over ucx: {reason}");
        }
        let target = Target {
            names: method.0.len() + method.1.len(),
            method: MethodName::new(method.0, method.1),
            message,
            attachment,
            timeout: args.timeout,
            channels,
            errors: Errors::default(),
        };
        if !args.ramp.is_zero() {
            let progress = Progress::over(args.ramp, "ramp");
            let start = Instant::now();
            let schedule = Schedule::ramped(start, args.rate, args.ramp, Duration::ZERO);
            press(args, &handle, &target, schedule, Run::begin_live(args.ramp, progress)).await?;
            target.errors.borrow_mut().clear();
        }
        let cpu = process::cpu_time();
        let run = Run::begin_live(args.seconds, Progress::over(args.seconds, ""));
        let schedule = Schedule::fixed(run.start(), args.rate, args.seconds);
        let tally = press(args, &handle, &target, schedule, run).await?;
        let cpu = process::cpu_time() - cpu;
        sum_up(args, &summary(args, &target, &tally, cpu, (transport, reason)))
    })
}

/// What is called.
#[derive(Clone)]
struct Target {
    method: MethodName,
    /// Bytes of it.
    names: usize,
    message: Bytes,
    attachment: Bytes,
    timeout: Duration,
    channels: Vec<Channel>,
    errors: Errors,
}

impl Target {
    fn call(&self, index: u64) -> impl Future<Output = Result<(), Status>> + use<> {
        let mut options = CallOptions::default();
        options.attachment = self.attachment.clone().into();
        options.deadline = Deadline::after(Instant::now(), self.timeout);
        let message = ucrpc::rpc::wire::MessageBuf::copy_from_slice(&self.message, self.names);
        let channel = &self.channels[index as usize % self.channels.len()];
        let call = channel.call(RawCall { method: self.method.clone(), message, options: Box::new(options) });
        let errors = self.errors.clone();
        async move {
            let result = call.await;
            if let Err(status) = &result {
                *errors.borrow_mut().entry(status.to_string()).or_default() += 1;
            }
            result.map(drop)
        }
    }
}

async fn press(
    args: &Press,
    dispatcher: &Dispatcher,
    target: &Target,
    schedule: Schedule,
    run: Rc<Run>,
) -> Result<Tally, Failure> {
    let (shown, clock) = (Rc::downgrade(&run), dispatcher.clone());
    spawn_local(async move {
        loop {
            clock.sleep_until(Instant::now() + Duration::from_secs(1)).await;
            let Some(run) = shown.upgrade() else { break };
            if let Some(recent) = run.take_recent() {
                run.say(live(&recent, schedule.rate_at(Instant::now())));
            }
        }
    })?;
    let open = Drive {
        dispatcher: dispatcher.clone(),
        schedule,
        limit: args.depth as usize * target.channels.len(),
        grace: args.timeout,
        run: run.clone(),
    };
    let target = target.clone();
    perf::drive(&open, move |index| target.call(index)).await?;
    run.finish()
}

/// The last second, beside the bar.
fn live(recent: &Histogram<u64>, rate: f64) -> String {
    let us = |percentile| units::number(recent.value_at_percentile(percentile) as f64 / 1e3);
    let (done, due) = (units::rate_name(recent.len() as f64), units::rate_name(rate));
    format!("{done}/s of {due}/s, p50 {} us, p99 {} us, p99.9 {} us", us(50.0), us(99.0), us(99.9))
}

fn summary(
    args: &Press,
    target: &Target,
    tally: &Tally,
    cpu: Duration,
    (transport, fallback_reason): (String, Option<String>),
) -> Summary {
    let seconds = tally.elapsed.as_secs_f64();
    Summary {
        method: format!("{}/{}", target.method.service, target.method.method),
        rate: args.rate,
        ramp_s: args.ramp.as_secs_f64(),
        seconds,
        count: tally.count,
        errors: tally.errors,
        unsent: tally.unsent,
        error_texts: target.errors.take(),
        calls_s: if seconds > 0.0 { tally.count as f64 / seconds } else { 0.0 },
        p50_us: tally.percentile(50.0),
        p90_us: tally.percentile(90.0),
        p99_us: tally.percentile(99.0),
        p999_us: tally.percentile(99.9),
        max_us: tally.max(),
        cpu_s: cpu.as_secs_f64(),
        transport,
        fallback_reason,
    }
}

fn sum_up(args: &Press, summary: &Summary) -> Done {
    if args.json {
        out::line(&json(summary)?)?;
    } else {
        let us = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), units::number);
        out::line(&format!("{} over {}", summary.method, summary.transport))?;
        out::line(&format!(
            "{:.1} s at {}/s: {} calls, {}/s, {} errors, {} not made",
            summary.seconds,
            units::rate_name(summary.rate),
            summary.count,
            units::rate_name(summary.calls_s),
            summary.errors,
            summary.unsent
        ))?;
        out::line(&format!(
            "latency us: p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
            us(summary.p50_us),
            us(summary.p90_us),
            us(summary.p99_us),
            us(summary.p999_us),
            us(summary.max_us)
        ))?;
        for (text, count) in &summary.error_texts {
            out::line(&format!("{count} times: {text}"))?;
        }
    }
    if summary.errors + summary.unsent == 0 {
        return Ok(());
    }
    let (errors, unsent) = (summary.errors, summary.unsent);
    let failure = Failure::new(Exit::Bad, format!("{errors} calls failed and {unsent} could not be made"));
    Err(if unsent > 0 { failure.hint("the server does not keep up with this rate") } else { failure })
}
