//! `ucrpc doctor` finds what is planted: really, where this machine can have it, else below a planted root.
//!
//! Each test runs the binary twice, without the misconfiguration and with it: what is found must be absent before.

mod machine;
mod planted;
mod real;

use std::process::{Command, Output};

use serde_json::Value;

/// What a run said.
struct Said {
    code: Option<i32>,
    report: Value,
}

impl Said {
    fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("{e}: {text}\n{}", String::from_utf8_lossy(&output.stderr)));
        Self { code: output.status.code(), report }
    }

    fn findings(&self) -> &[Value] {
        self.report["findings"].as_array().expect("a list")
    }

    /// The finding with this name and severity.
    fn find(&self, id: &str, severity: &str) -> Option<&Value> {
        self.findings().iter().find(|f| f["id"] == id && f["severity"] == severity)
    }

    /// As [`Self::find`]; it must be there, and say what it costs and what mends it.
    #[track_caller]
    fn expect(&self, id: &str, severity: &str) -> String {
        let all = || serde_json::to_string_pretty(self.findings()).expect("JSON");
        let finding = self.find(id, severity).unwrap_or_else(|| panic!("no {severity} {id} in {}", all()));
        for field in ["what", "costs", "mend"] {
            assert!(finding[field].as_str().is_some_and(|text| text.len() > 5), "{field} of {finding}");
        }
        assert_eq!(self.code, Some(if self.count("error") > 0 { 6 } else { 0 }), "{}", all());
        finding.to_string()
    }

    fn count(&self, severity: &str) -> u64 {
        self.report["counts"][severity].as_u64().expect("a number")
    }
}

/// The binary, with an environment that sets nothing of UCX's or ours.
fn doctor() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_ucrpc")), &["doctor", "--json"])
}

/// The binary, started by another program, as `unshare`.
fn doctor_under(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    clean(command, &[env!("CARGO_BIN_EXE_ucrpc"), "doctor", "--json"])
}

fn clean(mut command: Command, arguments: &[&str]) -> Command {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("UCX_") || name.starts_with("UCRPC_") {
            command.env_remove(&*name);
        }
    }
    command.args(arguments);
    command
}

#[track_caller]
fn run(mut command: Command) -> Said {
    Said::of(&command.output().expect("it runs"))
}
