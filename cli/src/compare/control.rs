//! The controls: what the machine does without us.

use std::{
    io::{self, BufRead},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{shm, sockets};
use crate::{
    Done,
    exit::{Exit, Failure},
    out, perf, process,
};

/// A control's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The side that answers.
    Server,
    /// The side that measures.
    Client,
}

/// What carries a control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A bare TCP socket.
    Tcp,
    /// A bare Unix socket.
    Unix,
    /// Memory that two threads share.
    Shm,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Shm => "shm",
        }
    }
}

/// Arguments of a control.
#[derive(clap::Args)]
pub(crate) struct Control {
    #[arg(value_enum)]
    kind: Kind,
    #[arg(value_enum)]
    part: Part,
    /// Its CPU
    #[arg(long)]
    pin: usize,
    /// The CPU of the other thread, for shared memory
    #[arg(long)]
    peer_pin: Option<usize>,
    /// Where the server is
    #[arg(long)]
    addr: Option<String>,
}

/// What is asked of a control: a line of JSON.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) one_way: bool,
    pub(crate) size: usize,
    pub(crate) time: Duration,
    /// Spins; else it sleeps in the kernel.
    pub(crate) spin: bool,
}

/// What it answers.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Of a round trip.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    /// 10^6 bytes per second, one way.
    pub(crate) mb_s: Option<f64>,
}

/// Plays its part until standard input ends.
pub(crate) fn run(args: &Control) -> Done {
    process::pin(args.pin).map_err(io::Error::from)?;
    let failed = |error: io::Error| Failure::new(Exit::Failed, format!("{} control: {error}", args.kind.name()));
    match (args.kind, args.part) {
        (Kind::Shm, _) => {
            let peer = args.peer_pin.unwrap_or(args.pin);
            let (measurer, _peer) = shm::pair(peer, peer == args.pin);
            serve_asks(|ask| Ok(measurer.measure(ask))).map_err(failed)
        }
        (kind, Part::Server) => {
            perf::end_with_stdin();
            sockets::serve(kind, out::line).map_err(failed)
        }
        (kind, Part::Client) => {
            let mut client =
                sockets::Client::connect(kind, args.addr.as_deref().unwrap_or_default()).map_err(failed)?;
            serve_asks(|ask| client.measure(ask)).map_err(failed)
        }
    }
}

fn serve_asks(mut measure: impl FnMut(&Ask) -> io::Result<Answer>) -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        let ask: Ask = serde_json::from_str(&line?)?;
        out::line(&serde_json::to_string(&measure(&ask)?)?)?;
    }
    Ok(())
}

/// Times round trips for a while, after a warm-up of a quarter of it; `trip` is told whether it is the last one.
pub(crate) fn round_trips(time: Duration, mut trip: impl FnMut(bool) -> io::Result<()>) -> io::Result<Answer> {
    let mut latencies = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).map_err(io::Error::other)?;
    let begin = Instant::now();
    let (warm, end) = (begin + time / 4, begin + time / 4 + time);
    let mut start = begin;
    loop {
        let last = start >= end;
        trip(last)?;
        let now = Instant::now();
        if last {
            break;
        }
        if start >= warm {
            latencies.saturating_record((now - start).as_nanos() as u64);
        }
        start = now;
    }
    let us = |percentile| (!latencies.is_empty()).then(|| latencies.value_at_percentile(percentile) as f64 / 1e3);
    Ok(Answer { p50_us: us(50.0), p99_us: us(99.0), mb_s: None })
}
