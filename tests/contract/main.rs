//! One contract, every backend: each case runs in a process of its own, because UCX reads its settings once per
//! process and a misuse of it aborts.
//!
//! `cargo test --test contract -- ucx-posix` runs one backend; `UCRPC_CHILD=tcp/echo target/debug/deps/contract-*` runs one
//! case in this process, for a debugger. `ci/soak.sh` says which variables make the run longer.

#![allow(unreachable_pub, reason = "nothing is reachable from outside a test binary")]

mod bed;
#[path = "../util/block_on.rs"]
mod block_on;
mod cases;
#[path = "../util/counters.rs"]
mod counters;
#[path = "../util/frames.rs"]
mod frames;
#[path = "../util/retry.rs"]
mod retry;
mod tools;

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed};

use self::{
    bed::{Backend, Bed, backends},
    cases::{Case, On},
};

/// Names the case that a child process runs: `backend/case`.
const CHILD: &str = "UCRPC_CHILD";

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(CHILD) {
        return child(&name);
    }
    let mut arguments = Arguments::from_args();
    // Two cores: more processes at once only make each other's deadlines late.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2).min(2));
    let pairs = backends().iter().flat_map(|b| cases::all().map(move |c| (b, c)));
    let trials = pairs.filter(|(backend, case)| is_for(backend, case)).map(|(backend, case)| {
        let name = format!("{}/{}", backend.name, case.name);
        retry::trial(name.clone(), move || parent(backend, &name))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// The two `auto` backends run what negotiation can change; the rest is the same code as `ucx-all` and `tcp`.
fn is_for(backend: &Backend, case: &Case) -> bool {
    let carrier = match case.on {
        On::All => true,
        On::Streams => backend.is_stream(),
        On::Sockets => backend.is_stream() || backend.is_ucx(),
        On::Verbs => backend.is_verbs(),
    };
    carrier && (case.on_auto || !backend.name.starts_with("auto"))
}

/// Runs a case in a process with the backend's settings.
fn parent(backend: &Backend, name: &str) -> Result<(), Failed> {
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(me);
    command.env(CHILD, name).envs(backend.environment.iter().copied());
    let started = Instant::now();
    let output = command.output().map_err(|e| format!("cannot start a child: {e}"))?;
    if std::env::var_os("UCRPC_TIMES").is_some() {
        eprintln!("{:8.3} s  {name}", started.elapsed().as_secs_f64());
    }
    if output.status.success() {
        return Ok(());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Err(format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr)).into())
}

fn child(name: &str) -> ExitCode {
    let (backend, case) = name.split_once('/').expect("backend/case");
    let backend = backends().iter().find(|b| b.name == backend).expect("a known backend");
    let case = cases::all().find(|c| c.name == case).expect("a known case");
    let longer = tools::soak_seconds().map_or(Duration::ZERO, |soak| soak * 10 + Duration::from_secs(900));
    let patience = Duration::from_secs(120) + longer;
    std::thread::spawn(move || {
        std::thread::sleep(patience);
        eprintln!("the case did not end within {patience:?}");
        std::process::exit(3);
    });
    let bed = Bed::new(backend);
    (case.run)(&bed);
    bed.finish();
    ExitCode::SUCCESS
}
