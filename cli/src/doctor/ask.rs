//! The parent's side: starts children that load UCX, and collects their answers, UCX's log, and how they ended.

use std::{
    io::Read,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    machine::Machine,
    probe::{Facts, Setting},
};
use crate::exit::{Exit, Failure};

/// A child that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of a child's output is kept, bytes.
const MAX_OUTPUT: u64 = 1 << 20;

/// What UCX says, and what it says with one transport alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ucx {
    #[serde(flatten)]
    pub(crate) answer: Answer,
    /// For each transport, whether a connection works with nothing else.
    pub(crate) alone: Vec<Alone>,
}

/// What one child told.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Nothing if it did not get so far.
    pub(crate) facts: Option<Facts>,
    /// What UCX logged, from level `info` up.
    pub(crate) log: Vec<LogLine>,
    /// How it ended, if not well: `killed by signal 11 (SIGSEGV)`, `no answer within 30 s`.
    pub(crate) ended: Option<String>,
}

/// A line of UCX's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogLine {
    /// `ERROR`, `WARN`, `DIAG`, `INFO`.
    pub(crate) level: String,
    pub(crate) text: String,
}

/// A connection with one transport alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Alone {
    pub(crate) transport: String,
    pub(crate) works: bool,
    /// What UCX said if it does not.
    pub(crate) reason: Option<String>,
}

/// Asks UCX; unless `quick`, once more for each transport.
pub(crate) fn ucx(machine: &Machine, peer: Option<&str>, quick: bool) -> Result<Ucx, Failure> {
    if let Some(planted) = planted(machine)? {
        return Ok(planted);
    }
    let mut answer = ask(peer, &[])?;
    if let Some(library) = answer.facts.as_mut().and_then(|facts| facts.library.as_mut()) {
        as_for_a_program(&mut library.settings, machine);
    }
    let mut alone = Vec::new();
    if let Some(facts) = answer.facts.as_ref().filter(|facts| facts.unusable.is_none() && !quick) {
        let mut names: Vec<&str> = facts.resources.iter().filter_map(|r| Some(r.split_once('/')?.0)).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            alone.push(one_alone(name)?);
        }
    }
    Ok(Ucx { answer, alone })
}

/// Where the probe's log settings stand in for ours, puts back what a program would run with.
fn as_for_a_program(settings: &mut [Setting], machine: &Machine) {
    for (name, default) in [("UCX_LOG_FILE", "stderr"), ("UCX_WARN_UNUSED_ENV_VARS", "n")] {
        for setting in settings.iter_mut().filter(|setting| setting.name == name) {
            setting.is_default = machine.env(name).is_none();
            setting.value = machine.env(name).unwrap_or(default).to_owned();
        }
    }
}

/// Below a planted root UCX's answer may be planted, too: builds and devices that this machine does not have.
fn planted(machine: &Machine) -> Result<Option<Ucx>, Failure> {
    let path = machine.path("/ucx.json");
    if machine.is_real() || !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path)?;
    let parsed = serde_json::from_str(&text).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?;
    Ok(Some(parsed))
}

fn one_alone(name: &str) -> Result<Alone, Failure> {
    // RDMA transports connect with the help of another: UCX has names for both together.
    let tls = match name {
        "rc_verbs" => "rc_v",
        "rc_mlx5" => "rc_x",
        "dc_mlx5" => "dc_x",
        "ud_verbs" => "ud_v",
        "ud_mlx5" => "ud_x",
        other => other,
    };
    let answer = ask(None, &[("UCX_TLS", tls)])?;
    let link = answer.facts.as_ref().map(|facts| &facts.loopback);
    let works = link.is_some_and(|link| link.is_ucx());
    // UCX's own error says more than the status that it returns.
    let said = answer.log.iter().rfind(|line| line.level == "ERROR").map(|line| line.text.clone());
    let fallback = link.and_then(|link| link.fallback.as_ref().map(|f| f.text.clone()).or_else(|| link.error.clone()));
    let reason = if works { None } else { said.or(fallback).or(answer.ended) };
    Ok(Alone { transport: name.to_owned(), works, reason })
}

/// Starts this program as a probe and waits for its answer.
fn ask(peer: Option<&str>, env: &[(&str, &str)]) -> Result<Answer, Failure> {
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, format!("cannot start the probe: {error}"));
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["doctor", "--probe"]);
    if let Some(peer) = peer {
        command.args(["--peer", peer]);
    }
    // Whatever the user chose for a program's log, the doctor reads it here.
    command.envs([("UCX_LOG_LEVEL", "info"), ("UCX_LOG_FILE", "stderr"), ("UCX_WARN_UNUSED_ENV_VARS", "y")]);
    // The question is what UCX can do, whatever an override pins; that is a finding of its own.
    command.env_remove("UCX_LOG_FILE_SIZE").env_remove("UCRPC_TRANSPORT").envs(env.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let out = read_all(child.stdout.take());
    let err = read_all(child.stderr.take());
    let status = wait(&mut child)?;
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    let mut log: Vec<LogLine> = err.lines().filter_map(log_line).collect();
    log.dedup();
    let facts = out.lines().rev().find_map(|line| serde_json::from_str(line).ok());
    let ended = match status {
        None => Some(format!("no answer within {} s", PATIENCE.as_secs())),
        Some(status) => ended(status),
    };
    Ok(Answer { facts, log, ended })
}

/// Reads a pipe to its end on a thread of its own, so that neither of two pipes fills up.
fn read_all(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.by_ref().take(MAX_OUTPUT).read_to_end(&mut bytes);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for the end, or ends it after [`PATIENCE`].
fn wait(child: &mut Child) -> Result<Option<ExitStatus>, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn ended(status: ExitStatus) -> Option<String> {
    if status.success() {
        return None;
    }
    let name = |signal| match signal {
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        11 => " (SIGSEGV)",
        _ => "",
    };
    Some(match status.signal() {
        Some(signal) => format!("killed by signal {signal}{}", name(signal)),
        None => status.to_string(),
    })
}

/// A line such as `[1795352074.035289] [host:5858 :0]  ucp_context.c:1849 UCX  INFO  Version 1.13.1 (loaded from ...)`.
fn log_line(line: &str) -> Option<LogLine> {
    let (_, rest) = line.split_once(" UCX ")?;
    let (level, text) = rest.trim_start().split_once(' ')?;
    let known = ["FATAL", "ERROR", "WARN", "DIAG", "INFO"];
    known.contains(&level).then(|| LogLine { level: level.to_owned(), text: text.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_are_read() {
        let line =
            "[1795352077.262015] [vm:6074 :0]     ucp_context.c:1014 UCX  WARN  transport 'bogus' is not available";
        let expected = LogLine { level: "WARN".into(), text: "transport 'bogus' is not available".into() };
        assert_eq!(log_line(line), Some(expected));
        assert_eq!(log_line("ucrpc: something else"), None);
        assert_eq!(log_line("some UCX nonsense here"), None);
    }

    #[test]
    fn ends_are_named() {
        assert_eq!(ended(ExitStatus::from_raw(0)), None);
        assert_eq!(ended(ExitStatus::from_raw(11)).as_deref(), Some("killed by signal 11 (SIGSEGV)"));
    }
}
