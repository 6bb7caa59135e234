//! `cargo xtask test`: sets up, runs the steps, sums up.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use crate::{
    need::{self, Need},
    report,
    steps::{STEPS, Step},
};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
#[command(after_help = after_help())]
pub(crate) struct Args {
    /// Only what a change should pass before it is committed
    #[arg(long)]
    quick: bool,
    /// The long checks too
    #[arg(long, conflicts_with = "quick")]
    all: bool,
    /// Only the checks over RDMA, all of them: the step `rdma`
    #[arg(long, conflicts_with_all = ["quick", "all", "steps"])]
    rdma: bool,
    /// Where no guest can be run, go on without the checks over RDMA; the summary says so
    #[arg(long)]
    allow_no_rdma: bool,
    /// Installs nothing
    #[arg(long)]
    no_install: bool,
    /// The steps to run; all, if none is named
    #[arg(value_name = "STEP", value_parser = STEPS.iter().map(|s| s.name).collect::<Vec<_>>())]
    steps: Vec<String>,
}

fn after_help() -> String {
    let row = |s: &Step| {
        format!(
            "  {:<9} {}{}\n",
            s.name,
            s.about,
            if s.quick {
                " (quick)"
            } else if s.long {
                " (--all)"
            } else {
                ""
            }
        )
    };
    format!("Steps:\n{}", STEPS.iter().map(row).collect::<String>())
}

enum Outcome {
    Passed,
    Failed(String),
    /// It could not run, for want of these.
    Missing(Vec<Need>),
}

struct Done {
    step: &'static Step,
    outcome: Outcome,
    results: Vec<String>,
    took: Duration,
    /// The whole is complete without it.
    optional: bool,
}

/// The step that runs in a guest. That it cannot run is a failure, unless it is allowed: a check over RDMA that is left out
/// must not look like one that passed.
const RDMA: &str = "rdma";

pub(crate) fn run(args: &Args) -> Result<ExitCode, String> {
    let chosen = |s: &&Step| match args.steps.is_empty() {
        true if args.rdma => s.name == RDMA,
        true => (!args.quick || s.quick) && (!s.long || args.all),
        false => args.steps.iter().any(|n| n == s.name),
    };
    let steps: Vec<&'static Step> = STEPS.iter().filter(chosen).collect();
    if !args.no_install {
        let needs: Vec<Need> = steps.iter().flat_map(|s| s.needs.iter().chain(s.wants)).copied().collect();
        need::install(&needs);
    }
    let started = Instant::now();
    let done: Vec<Done> = steps.into_iter().map(|step| one(step, args)).collect();
    sum_up(&done, started.elapsed());
    let failed = done.iter().any(|d| matches!(d.outcome, Outcome::Failed(_)));
    let incomplete = done.iter().any(|d| matches!(d.outcome, Outcome::Missing(_)) && !d.optional);
    Ok(match (failed, incomplete) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(2),
        (false, false) => ExitCode::SUCCESS,
    })
}

fn one(step: &'static Step, args: &Args) -> Done {
    println!("\n== {}: {}", step.name, step.about);
    for want in step.wants.iter().filter(|w| !w.is_met()) {
        println!("-- some of it may fail without: {}", want.remedy());
    }
    let missing: Vec<Need> = step.needs.iter().filter(|n| !n.is_met()).copied().collect();
    let (started, mut results) = (Instant::now(), Vec::new());
    let outcome = if missing.is_empty() {
        let thorough = args.all || args.rdma || !args.steps.is_empty();
        let lines = if thorough && !step.thorough.is_empty() { step.thorough } else { step.lines };
        let failure = lines.iter().find_map(|line| match line.run() {
            Ok(mut lines) => {
                results.append(&mut lines);
                None
            }
            Err(error) => Some(error),
        });
        failure.map_or(Outcome::Passed, Outcome::Failed)
    } else if step.name == RDMA && !args.allow_no_rdma {
        let remedies: Vec<_> = missing.iter().map(|n| n.remedy()).collect();
        Outcome::Failed(format!("no guest here; --allow-no-rdma goes on without; {}", remedies.join("; ")))
    } else {
        Outcome::Missing(missing)
    };
    let optional = step.optional || (step.name == RDMA && args.allow_no_rdma);
    Done { step, outcome, results, took: started.elapsed(), optional }
}

fn sum_up(done: &[Done], took: Duration) {
    println!("\n== summary");
    for step in done {
        step.results.iter().for_each(|line| println!("{:<8} {line}", step.step.name));
    }
    println!();
    let rows: Vec<Vec<String>> = done.iter().map(row).collect();
    report::table(&["step", "result", "time", "note"], &rows, &[2]);
    println!("\n{} steps in {} s", done.len(), took.as_secs());
}

fn row(done: &Done) -> Vec<String> {
    let (result, note) = match &done.outcome {
        Outcome::Passed => ("ok", String::new()),
        Outcome::Failed(line) => ("FAILED", line.clone()),
        Outcome::Missing(needs) => {
            let remedies: Vec<_> = needs.iter().map(|n| n.remedy()).collect();
            let result = if done.optional { "not run" } else { "MISSING" };
            (result, remedies.join("; "))
        }
    };
    vec![done.step.name.to_owned(), result.to_owned(), format!("{} s", done.took.as_secs()), note]
}
