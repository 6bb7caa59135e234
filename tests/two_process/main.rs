//! Real processes: negotiation, messages and calls, death, cut links, hostile peers, and connecting that fails.
//!
//! The test binary runs itself as the peers (`peer.rs`), which take commands on stdin and report on stdout. Cut links and
//! unreachable addresses need network namespaces, so this suite needs root and `ip` (iproute2); without them those tests
//! fail. UCX 1.13 must be installed, and the version tests need the wheels that `ci/wheels.sh` fetches.
//!
//! `cargo test --test two_process -- kill` runs the tests with `kill` in their names; the detection times are printed at the end.

#[path = "../util/block_on.rs"]
mod block_on;
#[path = "../util/calls.rs"]
mod calls;
mod connect;
#[path = "../util/counters.rs"]
mod counters;
mod cut;
mod death;
#[path = "../rpc/echo.rs"]
#[allow(unreachable_pub, dead_code, reason = "the RPC suite's, which uses more of it")]
mod echo;
mod far;
#[path = "../util/frames.rs"]
mod frames;
mod guests;
mod halfway;
mod hostile;
mod hosts;
mod negotiation;
mod netns;
mod peer;
mod process;
mod relay;
#[path = "../util/retry.rs"]
mod retry;
mod suite;
mod table;
mod verbs;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// The outcome of a test.
type Outcome = Result<(), libtest_mimic::Failed>;

fn main() -> ExitCode {
    if let Some(status) = far::role() {
        return status;
    }
    if std::env::var_os(process::ROLE).is_some() {
        return peer::main();
    }
    let mut arguments = Arguments::from_args();
    // Most of the time is spent waiting for deadlines of 2.3 s; more at once would make each other late on two cores.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(3).min(3));
    if !arguments.list {
        netns::remove_leftovers();
    }
    let mut trials: Vec<Trial> = Vec::new();
    if std::env::var_os("UCRPC_TEST_RDMA").is_some() {
        // They cut the one link that there is.
        arguments.test_threads = Some(1);
        trials.extend(verbs::trials());
        if far::two_guests() {
            trials.extend(guests::trials());
        }
    } else {
        trials.extend(negotiation::trials());
        trials.extend(death::trials());
        trials.extend(halfway::trials());
        trials.extend(cut::trials());
        trials.extend(hostile::trials());
        trials.extend(connect::trials());
        trials.extend(hosts::trials());
        trials.extend(suite::trials());
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        table::print();
    }
    conclusion.exit_code()
}
