//! The transports that are compared.

use std::{fs, path::Path};

/// The control that a transport is measured against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Control {
    /// A bare TCP socket.
    Tcp,
    /// A bare Unix socket.
    Unix,
    /// `ucx_perftest` with the transport's own settings.
    Perftest,
}

/// A transport.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) name: String,
    /// What the server listens on.
    pub(crate) listen: String,
    /// Environment of both sides, and of `ucx_perftest`.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) control: Control,
    /// What a connection's own description of its transport starts with, and one of the words that it contains.
    expected: (&'static str, Vec<String>),
}

impl Way {
    fn stream(name: &str, listen: String, control: Control) -> Self {
        let expected = (if control == Control::Unix { "unix" } else { "tcp" }, Vec::new());
        Self { name: name.to_owned(), listen, env: Vec::new(), control, expected }
    }

    fn ucx(name: String, env: &[(&str, &str)], lanes: &[&str]) -> Self {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let lanes = lanes.iter().map(|lane| (*lane).to_owned()).collect();
        // auto, so that a connection that is not UCX says why.
        let listen = "auto://127.0.0.1:0".to_owned();
        Self { name, listen, env, control: Control::Perftest, expected: ("ucx", lanes) }
    }

    /// Whether UCX carries it.
    pub(crate) fn is_ucx(&self) -> bool {
        self.expected.0 == "ucx"
    }

    /// What a connection says that it runs over, if it is not what was asked for: in words.
    pub(crate) fn mismatch(&self, transport: &str, reason: Option<&str>) -> Option<String> {
        let (kind, lanes) = &self.expected;
        let fits = transport.starts_with(kind)
            && (lanes.is_empty() || lanes.iter().any(|lane| transport.contains(lane.as_str())));
        if fits {
            return None;
        }
        let forced = match std::env::var("UCRPC_TRANSPORT") {
            Ok(value) if !value.is_empty() => Some(format!("UCRPC_TRANSPORT={value} is set")),
            _ => None,
        };
        let why = reason.map(str::to_owned).or(forced);
        let why = why.unwrap_or_else(|| "no reason was given; see ucrpc doctor".to_owned());
        Some(format!("asked for {} and got {transport}: {why}", self.name))
    }
}

/// All that may work on this machine.
pub(crate) fn all() -> Vec<Way> {
    let socket = std::env::temp_dir().join(format!("ucrpc-compare-{}.sock", std::process::id()));
    let mut ways = vec![
        Way::stream("tcp", "tcp://127.0.0.1:0".to_owned(), Control::Tcp),
        Way::stream("unix", format!("unix://{}", socket.display()), Control::Unix),
        Way::ucx("ucx over tcp".to_owned(), &[("UCX_TLS", "tcp")], &["tcp"]),
        Way::ucx("ucx over shared memory".to_owned(), &[("UCX_TLS", "posix")], &["posix"]),
    ];
    for device in rdma_devices(Path::new("/sys/class/infiniband")) {
        let env = [("UCX_TLS", "ib"), ("UCX_NET_DEVICES", device.as_str())];
        ways.push(Way::ucx(format!("ucx over {device}"), &env, &["rc_", "ud_", "dc_"]));
    }
    ways
}

/// Ports of RDMA devices that are up: `mlx5_0:1`.
fn rdma_devices(root: &Path) -> Vec<String> {
    let entries = |path: &Path| {
        let mut names: Vec<String> = fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let mut found = Vec::new();
    for device in entries(root) {
        let ports = root.join(&device).join("ports");
        for port in entries(&ports) {
            // `4: ACTIVE`
            let state = fs::read_to_string(ports.join(&port).join("state")).unwrap_or_default();
            if state.contains("ACTIVE") {
                found.push(format!("{device}:{port}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_ports_that_are_up() {
        let dir = tempfile::tempdir().expect("a directory");
        for (port, state) in [("mlx5_0/ports/1", "4: ACTIVE\n"), ("mlx5_0/ports/2", "1: DOWN\n")] {
            let path = dir.path().join(port);
            fs::create_dir_all(&path).expect("a directory");
            fs::write(path.join("state"), state).expect("a file");
        }
        assert_eq!(rdma_devices(dir.path()), ["mlx5_0:1"]);
        assert!(rdma_devices(Path::new("/nowhere")).is_empty());
    }

    #[test]
    fn a_transport_that_was_not_asked_for_is_said() {
        let ways = all();
        let shm = ways.iter().find(|way| way.name.contains("memory")).expect("it is there");
        assert_eq!(shm.mismatch("ucx (posix)", None), None);
        let said = shm.mismatch("ucx (tcp/lo)", None).expect("it is another one");
        assert!(said.starts_with("asked for ucx over shared memory and got ucx (tcp/lo)"), "{said}");
        let said = shm.mismatch("tcp", Some("no ucx library on this side")).expect("it is another one");
        assert!(said.ends_with("got tcp: no ucx library on this side"), "{said}");
    }
}
