//! `ucrpc perf`: latency, throughput and memory of RPC and of the transport below it.

mod client;
mod closed;
mod idle;
mod open;
mod point;
mod run;
mod schedule;
mod server;
mod service;
mod session;
mod streams;
mod wire;

use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use ucrpc::{Address, DispatcherConfig, LocalDispatcher, WaitPolicy};

pub(crate) use self::{
    client::{Client, json, run as client},
    open::{Drive, drive},
    point::Point,
    run::{Run, Tally},
    schedule::Schedule,
    server::{Server, end_with_stdin, run as server},
    session::{Load, connect},
};
use crate::{
    compare::Compare,
    exit::{Exit, Failure},
    units,
};

/// Commands of `perf`.
#[derive(clap::Subcommand)]
pub(crate) enum Perf {
    /// Serves benchmarks until it is stopped
    #[command(after_help = server::HELP)]
    Server(Server),
    /// Measures calls to a server: percentiles, rates, CPU of both sides
    #[command(after_help = client::HELP)]
    Client(Box<Client>),
    /// Measures every transport that works on this machine, beside controls, and starts both sides itself
    #[command(after_help = crate::compare::HELP)]
    Compare(Compare),
    /// A control of `perf compare`, as a process of its own
    #[command(hide = true)]
    Control(crate::compare::Control),
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Unary calls; request and response carry the bytes in their message
    Echo,
    /// Unary calls; request and response carry the bytes as attachment, which no side copies
    Attachment,
    /// Unary calls whose request carries the bytes and whose response is empty
    Oneway,
    /// Messages there and back on one stream for each connection
    Stream,
    /// Below RPC: frames of the transport, there and back
    Pingpong,
    /// Below RPC: frames of the transport, one way, as fast as they go
    Send,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Attachment => "attachment",
            Self::Oneway => "oneway",
            Self::Stream => "stream",
            Self::Pingpong => "pingpong",
            Self::Send => "send",
        }
    }

    /// Each message is a call of its own: an open loop can time it.
    pub(crate) fn is_unary(self) -> bool {
        matches!(self, Self::Echo | Self::Attachment | Self::Oneway)
    }
}

/// How a side waits when it has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wait {
    /// Never sleeps: lowest latency, one core fully used
    Busy,
    /// Spins for 50 us, then sleeps
    #[default]
    Adaptive,
    /// Sleeps at once: least CPU
    Event,
}

impl Wait {
    pub(crate) fn policy(self) -> WaitPolicy {
        match self {
            Self::Busy => WaitPolicy::Busy,
            Self::Adaptive => WaitPolicy::default(),
            Self::Event => WaitPolicy::Event,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Adaptive => "adaptive",
            Self::Event => "event",
        }
    }
}

/// In what form results are printed.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Format {
    /// One JSON object on one line for each point, and nothing else, on stdout
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Comma separated values on stdout: a line of names, a line for each point
    #[arg(long)]
    pub(crate) csv: bool,
    /// Draws latency and throughput over the message's size into this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

/// A dispatcher on this thread.
pub(crate) fn dispatcher(wait: Wait, pin: Option<usize>) -> Result<LocalDispatcher, Failure> {
    let config = DispatcherConfig { wait: wait.policy(), pin, ..DispatcherConfig::default() };
    LocalDispatcher::new(config).map_err(|error| match pin {
        Some(cpu) => Failure::new(Exit::Failed, format!("cannot start on CPU {cpu}: {error}"))
            .hint("--pin takes a CPU that this process may use: see taskset -p $$"),
        None => error.into(),
    })
}

/// Reads an address of the command line.
pub(crate) fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|error: ucrpc::transport::Error| error.to_string())
}

/// Reads a size, at least one byte: messages are told apart from their end by it.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    units::size(text).and_then(|size| if size == 0 { Err("at least 1 byte".to_owned()) } else { Ok(size) })
}
