//! `ucrpc doctor`: what RDMA and UCX would need on this machine, what is missing, and what to do about it.
//!
//! [`machine::Machine`] is all that is read of the system, below a root that a test can plant. What UCX has to say is asked in a child
//! process ([`ask`], [`probe`]), since a setting that UCX does not survive must not end the doctor. [`checks`] turn both into
//! [`finding::Finding`]s; they do nothing else and can be tested without the system.

mod ask;
mod checks;
mod devices;
mod finding;
mod machine;
mod print;
mod probe;

use std::{io::Write, path::PathBuf};

use finding::{Report, Severity};
use machine::Machine;

use crate::{
    Done,
    exit::{Exit, Failure},
};

pub(crate) const HELP: &str = "\
Examples:
  ucrpc doctor                          what is wrong here, what it costs, how to mend it
  ucrpc doctor --all                    also what is well, and UCX's settings
  ucrpc doctor --peer node7:8000        which lanes a connection to that server gets, and why
  ucrpc doctor --json | jq '.findings[] | select(.severity == \"error\")'

Exit codes:
  0  no finding that is an error (with --strict: nor a warning)
  1  the doctor itself failed
  2  the command line makes no sense
  6  there are errors (with --strict: or warnings)

No UCX on the machine is a warning: programs go on over TCP. It is an error where UCX was asked for by
UCRPC_TRANSPORT=ucx or UCRPC_UCX_LIBRARY.";

/// Arguments of `ucrpc doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Connects to this ucrpc server too, and says which lanes it gets and why
    #[arg(long, value_name = "ADDR")]
    peer: Option<String>,
    /// One JSON document on stdout in place of the text
    #[arg(long)]
    json: bool,
    /// Warnings count as errors for the exit code
    #[arg(long)]
    strict: bool,
    /// Shows also what is well, and the settings that UCX runs with
    #[arg(long)]
    all: bool,
    /// Does not try each transport alone to find out why UCX passed it over
    #[arg(long)]
    quick: bool,
    /// Reads /sys, /proc and /dev below this directory
    #[arg(long, hide = true, value_name = "DIR")]
    sysroot: Option<PathBuf>,
    /// Answers for UCX, as the child process that a doctor starts
    #[arg(long, hide = true)]
    probe: bool,
}

/// Examines the machine and prints the findings.
pub(crate) fn run(args: &Args) -> Done {
    if args.probe {
        return probe::answer(args.peer.as_deref());
    }
    let machine = Machine::new(args.sysroot.clone());
    let ucx = ask::ucx(&machine, args.peer.as_deref(), args.quick)?;
    let report = Report::new(&machine, ucx, args.peer.as_deref());
    let text = if args.json {
        serde_json::to_string_pretty(&report).map_err(|e| Failure::new(Exit::Failed, e.to_string()))? + "\n"
    } else {
        print::text(&report, args.all)
    };
    std::io::stdout().write_all(text.as_bytes())?;
    let bad = if args.strict { Severity::Warning } else { Severity::Error };
    match report.findings.iter().filter(|finding| finding.severity >= bad).count() {
        0 => Ok(()),
        1 => Err(Failure::new(Exit::Bad, "1 finding needs mending")),
        count => Err(Failure::new(Exit::Bad, format!("{count} findings need mending"))),
    }
}
