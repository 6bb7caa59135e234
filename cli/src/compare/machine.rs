//! Where and when figures come from.

use std::{fs, process::Command};

use serde::Serialize;

use super::Setup;
use crate::process;

/// What belongs beside every figure.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) kernel: String,
    /// When the comparison began.
    pub(super) load_average: f64,
    pub(super) server_cpu: usize,
    pub(super) client_cpu: usize,
    pub(super) wait: &'static str,
    pub(super) scheduling: &'static str,
    pub(super) version: &'static str,
    pub(super) commit: &'static str,
    /// What this program loaded, if it could.
    pub(super) ucx: Option<String>,
    pub(super) ucx_perftest: Option<String>,
    pub(super) rounds: usize,
    pub(super) slice_ms: u64,
    pub(super) command: String,
}

impl Machine {
    pub(super) fn look(setup: &Setup, nice: bool, rounds: usize, ucx: Option<String>) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let load = read("/proc/loadavg").split(' ').next().and_then(|text| text.parse().ok());
        Self {
            cpu: model.map_or("unknown", |(_, model)| model.trim()).to_owned(),
            cores: process::cpus().len(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_average: load.unwrap_or(0.0),
            server_cpu: setup.server_cpu,
            client_cpu: setup.client_cpu,
            wait: setup.wait.name(),
            scheduling: if nice { "nice -10" } else { "as started; a better nice value is not allowed here" },
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("UCRPC_COMMIT"),
            ucx,
            ucx_perftest: perftest_version(),
            rounds,
            slice_ms: setup.slice.as_millis() as u64,
            command: command(),
        }
    }

    /// One line for a picture.
    pub(super) fn in_short(&self) -> String {
        let ucx = self.ucx.as_ref().map_or_else(|| "no ucx".to_owned(), |version| format!("ucx {version}"));
        format!(
            "{}, {} cores, Linux {}; ucrpc {} ({}), {ucx}",
            self.cpu, self.cores, self.kernel, self.version, self.commit
        )
    }
}

fn command() -> String {
    let args = std::env::args().skip(1);
    std::iter::once("ucrpc".to_owned()).chain(args).collect::<Vec<_>>().join(" ")
}

/// The version of the installed tools, which need not be that of the library that is loaded.
fn perftest_version() -> Option<String> {
    let output = Command::new("ucx_info").arg("-v").output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `# Version 1.13.1`, or `# Library version: 1.16.0` later.
    let line = text.lines().find(|line| line.to_ascii_lowercase().contains("version"))?;
    line.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned)
}

/// Two CPUs of one socket that are not threads of one core, where there are such; else the first two; else the first twice.
pub(super) fn two_cpus() -> (usize, usize) {
    let cpus = process::cpus();
    let topology = |cpu: usize, what: &str| {
        fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/{what}")).unwrap_or_default()
    };
    let Some(first) = cpus.first().copied() else { return (0, 0) };
    let beside = |cpu: &&usize| {
        topology(**cpu, "physical_package_id") == topology(first, "physical_package_id")
            && topology(**cpu, "core_id") != topology(first, "core_id")
    };
    let second = cpus[1..].iter().find(beside).or_else(|| cpus.get(1));
    (first, second.copied().unwrap_or(first))
}
