//! `ucrpc`: benchmarks, load, diagnosis and calls from the command line.
//!
//! Results go to stdout, all else to stderr. [`exit`] says how the program ends.

#![forbid(unsafe_code)]

mod call;
mod compare;
mod doctor;
mod exit;
mod out;
mod perf;
mod plot;
mod press;
mod process;
mod shell;
mod units;

use std::{io::IsTerminal, process::ExitCode};

use clap::{ArgAction, Parser, Subcommand};
use exit::Failure;
use tracing_subscriber::EnvFilter;

/// RPC over UCX (RDMA, shared memory, TCP) with a plain TCP fallback: the tools
#[derive(Parser)]
#[command(name = "ucrpc", version, propagate_version = true, after_help = exit::HELP, after_long_help = exit::HELP)]
struct Cli {
    /// Says more on stderr: -v what is done, -vv details, -vvv everything. RUST_LOG is finer
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures latency, throughput and memory
    #[command(subcommand)]
    Perf(perf::Perf),
    /// Loads a service at a rate that you choose, and shows its latencies live
    #[command(after_help = press::HELP)]
    Press(Box<press::Press>),
    /// Calls a method once: JSON in, JSON out
    #[command(after_help = call::HELP)]
    Call(call::Args),
    /// Finds what is missing or misconfigured for UCX and RDMA, what it costs, and how to mend it
    #[command(after_help = doctor::HELP)]
    Doctor(doctor::Args),
    /// Prints a shell's completion script
    #[command(after_help = shell::COMPLETIONS_HELP)]
    Completions(shell::Completions),
    /// Prints the manual page, or writes those of all commands into a directory
    Man(shell::Man),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.verbose);
    let done = match &cli.command {
        Command::Perf(perf::Perf::Server(args)) => perf::server(args),
        Command::Perf(perf::Perf::Client(args)) => perf::client(args),
        Command::Perf(perf::Perf::Compare(args)) => compare::run(args),
        Command::Perf(perf::Perf::Control(args)) => compare::control(args),
        Command::Press(args) => press::run(args),
        Command::Call(args) => call::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => shell::completions(args),
        Command::Man(args) => shell::man(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn log_to_stderr(verbose: u8) {
    let level = ["error", "info", "debug", "trace"][usize::from(verbose.min(3))];
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}

/// What a command returns.
type Done = Result<(), Failure>;
