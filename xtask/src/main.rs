//! The house's own commands. `cargo xtask test` checks everything, `cargo xtask demo` shows what the transports do on
//! this machine, `cargo xtask bindings` regenerates ucx-sys's bindings.

#![forbid(unsafe_code)]

mod bindings;
mod demo;
mod need;
mod rdma_vm;
mod report;
mod run;
mod steps;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what is missing, where it can, and runs every check; prints a table of the results
    ///
    /// Exit codes: 0 everything passed, 1 something failed, 2 nothing failed but a required step could not run.
    Test(test::Args),
    /// Compares TCP, Unix sockets and UCX between two processes, beside controls, and prints a table (ucrpc perf compare)
    Demo(demo::Args),
    /// Runs a command in a guest that has RDMA devices (Soft-RoCE), on this machine's files
    ///
    /// Exit codes: the command's; 124 out of time, 125 the guest failed, 126 bad usage or something is missing.
    RdmaVm(rdma_vm::Args),
    /// Regenerates ucx-sys/src/bindings.rs from the installed UCX 1.13 headers
    Bindings,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Test(args) => test::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::RdmaVm(args) => rdma_vm::run(&args),
        Command::Bindings => bindings::run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
