//! The RPC suite over every transport: each case runs in a process of its own, because UCX reads its settings once per
//! process and a misuse of it aborts.
//!
//! `cargo test --test rpc -- ucx-posix` runs one backend; `UCRPC_CHILD=tcp/unary target/debug/deps/rpc-*` runs one case in this
//! process, for a debugger.

#![allow(unreachable_pub, reason = "a test program has no public interface")]

mod around;
mod bed;
#[path = "../util/calls.rs"]
mod calls;
mod echo;
mod ending;
mod hostile;
mod proxy;
mod recorded;
mod resilience;
#[path = "../util/retry.rs"]
mod retry;
mod streams;
mod stress;
mod unary;

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed};

use self::bed::{Backend, Case, backends};

/// Names the case that a child process runs: `backend/case`.
const CHILD: &str = "UCRPC_CHILD";

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(CHILD) {
        return child(&name);
    }
    let mut arguments = Arguments::from_args();
    // Two cores: more processes at once only make each other's deadlines late.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2).min(2));
    let everywhere =
        backends().iter().flat_map(|backend| EVERYWHERE.iter().copied().flatten().map(move |case| (backend, case)));
    let raw = backends().iter().filter(|backend| backend.name == "tcp");
    let raw = raw.flat_map(|backend| hostile::CASES.iter().chain(recorded::CASES).map(move |case| (backend, case)));
    // What a proxy can cut. UCX's own traffic does not pass through it; `two_process` cuts its links.
    let sockets = backends().iter().filter(|backend| ["tcp", "unix"].contains(&backend.transport));
    let sockets = sockets.flat_map(|backend| stress::ON_SOCKETS.iter().map(move |case| (backend, case)));
    let trials = everywhere.chain(raw).chain(sockets).map(|(backend, (case, _))| {
        let (backend, name) = (*backend, format!("{}/{case}", backend.name));
        retry::trial(name.clone(), move || parent(&backend, &name))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Cases that hold on every transport.
const EVERYWHERE: &[&[Case]] =
    &[unary::CASES, around::CASES, ending::CASES, streams::CASES, resilience::CASES, stress::CASES];

/// Runs a case in a process with the backend's settings.
fn parent(backend: &Backend, name: &str) -> Result<(), Failed> {
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(me);
    command.env(CHILD, name).envs(backend.environment.iter().copied());
    let output = command.output().map_err(|e| format!("cannot start a child: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Err(format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr)).into())
}

fn child(name: &str) -> ExitCode {
    let (backend, case) = name.split_once('/').expect("backend/case");
    let backend = backends().iter().find(|b| b.name == backend).expect("a known backend");
    let mut cases =
        EVERYWHERE.iter().copied().flatten().chain(hostile::CASES).chain(recorded::CASES).chain(stress::ON_SOCKETS);
    let (_, run) = cases.find(|(n, _)| *n == case).expect("a known case");
    let watchdog = std::time::Duration::from_secs(150);
    std::thread::spawn(move || {
        std::thread::sleep(watchdog);
        eprintln!("the case did not end within {watchdog:?}");
        std::process::exit(3);
    });
    let bed = bed::Bed::new(backend);
    run(&bed);
    bed.finish();
    ExitCode::SUCCESS
}
