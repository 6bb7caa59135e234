//! `cargo xtask bindings`: what bindgen makes of the installed headers becomes the committed file.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use crate::{
    need::{self, Need},
    run,
};

const COMMITTED: &str = "ucx-sys/src/bindings.rs";

pub(crate) fn run() -> Result<ExitCode, String> {
    let needs = [Need::UcxHeaders, Need::Libclang, Need::PkgConfig];
    need::install(&needs);
    if let Some(missing) = needs.iter().find(|n| !n.is_met()) {
        return Err(format!("missing: {}", missing.remedy()));
    }
    // The build script's own message names its OUT_DIR; that is the one way cargo offers to learn it.
    let mut command = Command::new("cargo");
    command.args(["build", "-p", "ucx-sys", "--features", "bindgen", "--message-format=json-render-diagnostics"]);
    command.current_dir(run::root()).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().map_err(|e| format!("cannot start cargo: {e}"))?;
    if !output.status.success() {
        return Err("the build with feature bindgen failed".to_owned());
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let generated = messages.lines().filter_map(out_dir).map(|dir| dir.join("bindings.rs")).find(|f| f.is_file());
    let generated = generated.ok_or("the build script left no bindings.rs")?;
    let committed = run::root().join(COMMITTED);
    let read = |path: &PathBuf| fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    if read(&generated)? == read(&committed)? {
        println!("{COMMITTED} is up to date");
        return Ok(ExitCode::SUCCESS);
    }
    fs::copy(&generated, &committed).map_err(|e| format!("{COMMITTED}: {e}"))?;
    println!("{COMMITTED} has changed: look at git diff, and run cargo xtask test bindgen test");
    Ok(ExitCode::SUCCESS)
}

/// `OUT_DIR` of ucx-sys in one of cargo's messages.
fn out_dir(message: &str) -> Option<PathBuf> {
    if !message.contains(r#""reason":"build-script-executed""#) || !message.contains("ucx-sys") {
        return None;
    }
    let (_, rest) = message.split_once(r#""out_dir":""#)?;
    let (dir, _) = rest.split_once('"')?;
    Some(PathBuf::from(dir))
}
