//! The checks. Each looks at what was seen and returns findings; none reads the system past [`Machine`].

mod cpu;
mod environment;
mod lanes;
mod limits;
mod memory;
mod network;
mod rdma;
mod ucx;

use super::{
    ask::{Answer, Ucx},
    devices::Device,
    finding::Finding,
    machine::Machine,
    probe::{Facts, Library},
};

/// What the checks look at.
pub(crate) struct Seen<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) ucx: &'a Ucx,
    pub(crate) devices: &'a [Device],
    /// The peer that was asked about.
    pub(crate) peer: Option<&'a str>,
}

impl Seen<'_> {
    fn answer(&self) -> &Answer {
        &self.ucx.answer
    }

    fn facts(&self) -> Option<&Facts> {
        self.ucx.answer.facts.as_ref()
    }

    fn library(&self) -> Option<&Library> {
        self.facts()?.library.as_ref()
    }

    /// The value of the first of these variables that is set, with its name: aliases of one setting.
    fn env_of<'a>(&'a self, names: &[&'a str]) -> Option<(&'a str, &'a str)> {
        names.iter().find_map(|name| Some((*name, self.machine.env(name)?)))
    }
}

/// Whether a value of UCX's says no.
fn is_no(value: &str) -> bool {
    ["n", "no", "off", "0"].contains(&value.to_ascii_lowercase().as_str())
}

/// Whether a value of UCX's says yes.
fn is_yes(value: &str) -> bool {
    ["y", "yes", "on", "1"].contains(&value.to_ascii_lowercase().as_str())
}

/// All findings.
pub(crate) fn all(seen: &Seen<'_>) -> Vec<Finding> {
    let checks: [fn(&Seen<'_>) -> Vec<Finding>; 8] = [
        ucx::check,
        lanes::check,
        environment::check,
        rdma::check,
        limits::check,
        memory::check,
        cpu::check,
        network::check,
    ];
    checks.iter().flat_map(|check| check(seen)).collect()
}
