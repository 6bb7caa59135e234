//! The first lines of each report: where and when the figures come from.

use std::{fs, process::Command};

use super::{CLIENT_CPU, Options, SERVER_CPU, perftest, process};

/// Prints the machine, the build and how things are measured.
pub(crate) fn print_header(what: &str, options: &Options) {
    let first = |path: &str| fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or("?").to_owned();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':')).map_or("?", |(_, m)| m.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let command: Vec<String> = std::env::args().collect();
    println!("# {what}");
    println!("cpu       {model}, {cores} cores; server on core {SERVER_CPU}, client on core {CLIENT_CPU}");
    println!("kernel    {}; load average {}", first("/proc/sys/kernel/osrelease"), first("/proc/loadavg"));
    println!("commit    {}", commit());
    println!("ucx       {}", ucx_version());
    println!("command   {}", command.join(" "));
    println!("schedule  {}", process::scheduling());
    println!("rounds    {} of {} ms each, interleaved with their controls", options.rounds, options.time.as_millis());
    println!("controls  ucx_perftest: {}", perftest::describe());
    assert!(cores > CLIENT_CPU, "two cores are needed: a spinning pair on one core measures the scheduler");
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn commit() -> String {
    let Some(hash) = output("git", &["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let changed = output("git", &["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    format!("{hash}{}", if changed { " with local changes" } else { "" })
}

fn ucx_version() -> String {
    let installed = output("ucx_info", &["-v"]);
    let installed = installed.as_deref().and_then(|text| text.lines().next()).unwrap_or("no ucx_info").to_owned();
    match std::env::var("UCRPC_UCX_LIBRARY") {
        Ok(library) => format!("UCRPC_UCX_LIBRARY={library}; the controls use the installed one: {installed}"),
        Err(_) => installed.trim_start_matches("# ").to_owned(),
    }
}
