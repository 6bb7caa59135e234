//! Runs the program, and servers for it.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The program, with an environment that chooses no transport.
pub(crate) fn ucrpc(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ucrpc"));
    command.args(args).env_remove("UCRPC_TRANSPORT").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    run_with(args, &[])
}

/// Runs it to its end in an environment.
pub(crate) fn run_with(args: &[&str], env: &[(&str, &str)]) -> Output {
    let child = ucrpc(args).envs(env.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    finish(child.expect("it starts"))
}

/// Waits for its end; one that does not come is a failure.
pub(crate) fn finish(mut child: Child) -> Output {
    let deadline = Instant::now() + Duration::from_secs(120);
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.expect("it is piped").read_to_end(&mut bytes).expect("it can be read");
            bytes
        })
    };
    let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let status = loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            break status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: stdout.join().expect("read"), stderr: stderr.join().expect("read") }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// It ended well; its lines on stdout.
pub(crate) fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}: {}", output.status, stderr(output));
    stdout(output).lines().map(str::to_owned).collect()
}

/// It ended well, and each line on stdout is JSON.
pub(crate) fn json(output: &Output) -> Vec<Value> {
    lines(output).iter().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

pub(crate) fn number(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or_else(|| panic!("{field} is no number in {value}"))
}

/// `ucrpc perf server`, until it is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start(listen: &str) -> Self {
        Self::start_with(&["--listen", listen], &[])
    }

    pub(crate) fn start_with(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = ucrpc(&["perf", "server"]);
        command.args(args).envs(env.iter().copied()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("listening ").unwrap_or_else(|| panic!("it says {line:?}")).to_owned();
        Self { child, address }
    }

    /// The same place over another transport.
    pub(crate) fn over(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address.split_once("://").expect("an address").1)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is there");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
