//! Whether the ports of the RDMA devices that UCX uses are still up.
//!
//! UCX looks at the ports when it starts, and then no more. A connection that is made over a port that is down has its proof
//! time out; and on Soft-RoCE, where sending then fails at once, UCX aborts the process (`ud_verbs.c`: a completion with an
//! error is fatal to it). So who is about to make one asks here.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long an answer is good for. The kernel may have to ask the device, which takes some of them a millisecond.
const FRESH: Duration = Duration::from_millis(100);

/// The ports in use, and the last look at them.
#[derive(Debug)]
pub(super) struct Ports {
    /// A port, such as `mlx5_0:1`, and the file that tells its state.
    states: Vec<(String, PathBuf)>,
    last: Mutex<Option<(Instant, Option<String>)>>,
}

impl Ports {
    /// Those of `devices` that are ports of RDMA devices, by the system below `root`.
    pub(super) fn new(root: &Path, devices: impl Iterator<Item = String>) -> Self {
        let mut states: Vec<_> = devices
            .filter_map(|device| {
                let (name, port) = device.split_once(':')?;
                let state = root.join("sys/class/infiniband").join(name).join("ports").join(port).join("state");
                state.exists().then_some((device, state))
            })
            .collect();
        states.sort();
        states.dedup();
        Self { states, last: Mutex::new(None) }
    }

    /// What is wrong with the first port that is not up; `None` if all are, or there is none.
    pub(super) fn trouble(&self, now: Instant) -> Option<String> {
        if self.states.is_empty() {
            return None;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((at, answer)) if now.saturating_duration_since(*at) < FRESH => answer.clone(),
            _ => {
                let answer = self.look();
                *last = Some((now, answer.clone()));
                answer
            }
        }
    }

    fn look(&self) -> Option<String> {
        self.states.iter().find_map(|(port, state)| match std::fs::read_to_string(state) {
            // `4: ACTIVE`, or `5: ACTIVE_DEFER`.
            Ok(text) if text.contains("ACTIVE") => None,
            Ok(text) => {
                let state = text.trim().rsplit(' ').next().unwrap_or_default().to_ascii_lowercase();
                Some(format!("the rdma port {port} is {state}"))
            }
            Err(_) => Some(format!("the rdma port {port} is gone")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_goes_down_is_noticed_and_one_that_comes_back_as_well() {
        let root = std::env::temp_dir().join(format!("ucrpc-ports-{}", std::process::id()));
        let port = root.join("sys/class/infiniband/mlx5_0/ports/1");
        std::fs::create_dir_all(&port).expect("temporary folder");
        let write = |state: &str| std::fs::write(port.join("state"), state).expect("temporary folder");
        write("4: ACTIVE\n");
        let devices = ["memory", "lo", "eth0:1", "mlx5_0:1", "mlx5_0:1", "mlx5_1:1"];
        let ports = Ports::new(&root, devices.into_iter().map(str::to_owned));
        assert_eq!(ports.states.len(), 1, "{ports:?}");
        let start = Instant::now();
        let mut now = start;
        let mut next = |state: &str| {
            write(state);
            now += FRESH;
            ports.trouble(now)
        };
        assert_eq!(next("4: ACTIVE\n"), None);
        assert_eq!(next("1: DOWN\n").as_deref(), Some("the rdma port mlx5_0:1 is down"));
        assert_eq!(next("5: ACTIVE_DEFER\n"), None);
        // What was just seen is not looked at again.
        write("1: DOWN\n");
        assert_eq!(ports.trouble(start + 3 * FRESH + FRESH / 2), None);
        std::fs::remove_dir_all(&root).expect("temporary folder");
        assert_eq!(ports.trouble(start + 4 * FRESH).as_deref(), Some("the rdma port mlx5_0:1 is gone"));
        assert_eq!(Ports::new(&root, ["mlx5_0:1".to_owned()].into_iter()).trouble(start), None);
    }
}
