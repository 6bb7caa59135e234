//! tonic and tarpc, from `benches/peers`: a package of its own, measured if it was built.

use std::{path::PathBuf, process::Command, time::Duration};

use crate::echo::Load;
use crate::util::{
    CLIENT_CPU, SERVER_CPU,
    process::{self, Figures, Mode},
};

fn program() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/peers/target/release/ucrpc-peers");
    std::env::var_os("UCRPC_PEERS").map_or(here, PathBuf::from)
}

/// Where they are, for the report's head.
pub(crate) fn describe() -> String {
    let program = program();
    if program.exists() {
        program.display().to_string()
    } else {
        "NOT BUILT, no rows of theirs: cargo build --release --manifest-path benches/peers/Cargo.toml".to_owned()
    }
}

/// Their names, if they can be run.
pub(crate) fn found() -> &'static [&'static str] {
    if program().exists() { &["tonic", "tarpc"] } else { &[] }
}

/// Runs `ping` or `rate` in two processes.
pub(crate) fn measure(mode: Mode, what: &str, peer: &str, load: Load, time: Duration) -> Result<Figures, String> {
    let command = |cpu: usize, words: &[&str]| -> Command {
        let mut command = process::command(&program().to_string_lossy());
        command.args(words).env("UCRPC_BENCH_CPU", mode.cpu(cpu).to_string());
        command
    };
    let ([size, connections, outstanding], millis) = (load.words(), time.as_millis().to_string());
    process::run_pair(command(SERVER_CPU, &["serve", peer]), |address| {
        command(CLIENT_CPU, &[what, peer, address, &size, &millis, &connections, &outstanding])
    })
}
