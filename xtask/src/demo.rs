//! `cargo xtask demo`: builds the tool and lets it compare the transports that work here.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use crate::{
    need::{self, Need},
    run,
};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Installs nothing
    #[arg(long)]
    no_install: bool,
    /// More for `ucrpc perf compare --quick`, after --: for instance --size 64,4k,1M or --svg compare.svg
    #[arg(last = true)]
    more: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, String> {
    if !args.no_install {
        need::install(&[Need::Ucx, Need::UcxUtils]);
    }
    let program = build()?;
    println!("\n$ ucrpc perf compare --quick {}", args.more.join(" "));
    // The child writes to the same place.
    std::io::stdout().flush().map_err(|e| e.to_string())?;
    let mut command = Command::new(program);
    let status = command.args(["perf", "compare", "--quick"]).args(&args.more).stdin(Stdio::null()).status();
    let status = status.map_err(|e| format!("cannot start ucrpc: {e}"))?;
    for need in [Need::Ucx, Need::UcxUtils].into_iter().filter(|need| !need.is_met()) {
        println!("\nmissing here: {}", need.remedy());
    }
    println!("\nwithout --quick it measures longer: figures to publish");
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the tool and returns its path.
fn build() -> Result<PathBuf, String> {
    let words = ["build", "--release", "-p", "ucrpc-cli", "--bin", "ucrpc", "--message-format=json-render-diagnostics"];
    let mut command = Command::new("cargo");
    command.args(words).current_dir(run::root()).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().map_err(|e| format!("cannot start cargo: {e}"))?;
    if !output.status.success() {
        return Err("ucrpc does not build".to_owned());
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let found = messages.lines().filter(|line| line.contains(r#""name":"ucrpc""#)).find_map(|line| {
        let (_, rest) = line.split_once(r#""executable":""#)?;
        Some(PathBuf::from(rest.split_once('"')?.0))
    });
    found.ok_or_else(|| "cargo does not say where ucrpc is".to_owned())
}
