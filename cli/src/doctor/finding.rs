//! What the doctor found: findings, and the report that holds them.

use serde::Serialize;

use super::{ask::Ucx, checks, devices, machine::Machine};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; costs little or nothing here.
    Info,
    /// Works, and costs speed or safety.
    Warning,
    /// Something that is asked for, or there, does not work.
    Error,
}

impl Severity {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    /// A name that does not change between releases.
    pub(crate) id: &'static str,
    pub(crate) severity: Severity,
    /// What is the case.
    pub(crate) what: String,
    /// What it costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) costs: Option<String>,
    /// The command or change that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mend: Option<String>,
}

impl Finding {
    pub(crate) fn new(severity: Severity, id: &'static str, what: impl Into<String>) -> Self {
        Self { id, severity, what: what.into(), costs: None, mend: None }
    }

    pub(crate) fn ok(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(Severity::Ok, id, what)
    }

    pub(crate) fn info(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(Severity::Info, id, what)
    }

    pub(crate) fn warning(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(Severity::Warning, id, what)
    }

    pub(crate) fn error(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(Severity::Error, id, what)
    }

    pub(crate) fn costs(mut self, costs: impl Into<String>) -> Self {
        self.costs = Some(costs.into());
        self
    }

    pub(crate) fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

/// How many findings there are of each severity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    pub(crate) error: usize,
    pub(crate) warning: usize,
    pub(crate) info: usize,
    pub(crate) ok: usize,
}

/// All that the doctor has to say; `--json` prints it as it stands.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Of this document: grows when a field changes its meaning or goes away.
    pub(crate) format: u32,
    /// The version of this program.
    pub(crate) ucrpc: &'static str,
    /// Host, kernel, processors.
    pub(crate) machine: String,
    pub(crate) counts: Counts,
    /// Worst first.
    pub(crate) findings: Vec<Finding>,
    pub(crate) ucx: Ucx,
}

impl Report {
    /// Runs every check.
    pub(crate) fn new(machine: &Machine, ucx: Ucx, peer: Option<&str>) -> Self {
        let devices = devices::of(machine);
        let seen = checks::Seen { machine, ucx: &ucx, devices: &devices, peer };
        let mut findings = checks::all(&seen);
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
        let counts = Counts {
            error: count(Severity::Error),
            warning: count(Severity::Warning),
            info: count(Severity::Info),
            ok: count(Severity::Ok),
        };
        Self { format: 1, ucrpc: env!("CARGO_PKG_VERSION"), machine: machine.describe(), counts, findings, ucx }
    }
}
