//! Runs the command lines of a step.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// A program and its arguments, to be run in the workspace's root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    pub(crate) env: &'static [(&'static str, &'static str)],
    pub(crate) words: &'static [&'static str],
}

impl Line {
    fn text(&self) -> String {
        let env = self.env.iter().map(|(name, value)| {
            if value.contains(' ') { format!("{name}=\"{value}\" ") } else { format!("{name}={value} ") }
        });
        env.collect::<String>() + &self.words.join(" ")
    }

    /// Runs it. Its output goes on to ours; the lines that begin with `test result:` or `rdma:` are also returned.
    pub(crate) fn run(&self) -> Result<Vec<String>, String> {
        println!("$ {}", self.text());
        let (program, arguments) = self.words.split_first().ok_or("an empty command line")?;
        let mut command = Command::new(program);
        command.args(arguments).envs(self.env.iter().copied()).current_dir(root());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // What cargo tells a program about the package that it runs for is wrong for the cargo that it starts.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&*name);
            }
        }
        let mut child = command.spawn().map_err(|e| format!("cannot start {program}: {e}"))?;
        let out = child.stdout.take().ok_or("no pipe from the child")?;
        let mut results = Vec::new();
        for line in BufReader::new(out).split(b'\n') {
            let line = line.map_err(|e| format!("reading from {program}: {e}"))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            if line.starts_with("test result:") || line.starts_with("rdma:") {
                results.push(line.into_owned());
            }
        }
        let status = child.wait().map_err(|e| format!("waiting for {program}: {e}"))?;
        if status.success() { Ok(results) } else { Err(format!("{} ({status})", self.text())) }
    }
}
