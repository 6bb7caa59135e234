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
    /// What has to be said beside its figures.
    pub(crate) caveat: Option<String>,
}

impl Way {
    fn stream(name: &str, listen: String, control: Control) -> Self {
        let expected = (if control == Control::Unix { "unix" } else { "tcp" }, Vec::new());
        Self { name: name.to_owned(), listen, env: Vec::new(), control, expected, caveat: None }
    }

    fn ucx(name: String, env: &[(&str, &str)], lanes: &[&str]) -> Self {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let lanes = lanes.iter().map(|lane| (*lane).to_owned()).collect();
        // auto, so that a connection that is not UCX says why.
        let listen = "auto://127.0.0.1:0".to_owned();
        Self { name, listen, env, control: Control::Perftest, expected: ("ucx", lanes), caveat: None }
    }

    /// Over a port of an RDMA device, by reliable connections (`rc`) or datagrams (`ud`).
    fn rdma(tls: &'static str, port: &Port) -> Self {
        let mut env = vec![("UCX_TLS", tls), ("UCX_NET_DEVICES", port.name.as_str())];
        if !port.is_soft {
            return Self::ucx(format!("ucx {tls} over {}", port.name), &env, &[tls]);
        }
        // Our loader sets it by itself, ucx_perftest does not: without it UD, by which RC connects, receives nothing.
        env.push(("UCX_UD_VERBS_ETH_DGID_CHECK", "n"));
        let way = Self::ucx(format!("ucx {tls} over {} (Soft-RoCE)", port.name), &env, &[tls]);
        let caveat =
            format!("{} is Soft-RoCE: the kernel moves the bytes; that says nothing about RDMA hardware", port.name);
        Self { caveat: Some(caveat), ..way }
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
    for port in rdma_ports(Path::new("/sys/class/infiniband")) {
        ways.extend(["rc", "ud"].map(|tls| Way::rdma(tls, &port)));
    }
    ways
}

/// A port of an RDMA device.
#[derive(Debug, PartialEq, Eq)]
struct Port {
    /// `mlx5_0:1`
    name: String,
    /// Of a device that the kernel makes of a network interface.
    is_soft: bool,
}

/// Ports of RDMA devices that are up.
fn rdma_ports(root: &Path) -> Vec<Port> {
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
                // The kernel gives every rxe device, and no device of hardware, the name of the interface under it.
                let is_soft = root.join(&device).join("parent").exists();
                found.push(Port { name: format!("{device}:{port}"), is_soft });
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
        let hard = Port { name: "mlx5_0:1".to_owned(), is_soft: false };
        assert_eq!(rdma_ports(dir.path()), [hard]);
        assert!(rdma_ports(Path::new("/nowhere")).is_empty());
    }

    #[test]
    fn soft_roce_is_called_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let port = dir.path().join("rxe0/ports/1");
        fs::create_dir_all(&port).expect("a directory");
        fs::write(port.join("state"), "4: ACTIVE\n").expect("a file");
        fs::write(dir.path().join("rxe0/parent"), "eth0\n").expect("a file");
        let ports = rdma_ports(dir.path());
        let way = Way::rdma("rc", &ports[0]);
        assert_eq!(way.name, "ucx rc over rxe0:1 (Soft-RoCE)");
        assert!(way.caveat.as_ref().is_some_and(|text| text.contains("says nothing about RDMA hardware")), "{way:?}");
        assert_eq!(way.mismatch("ucx (rc_verbs/rxe0:1+ud_verbs/rxe0:1)", None), None);
        let hard = Way::rdma("ud", &Port { name: "mlx5_0:1".to_owned(), is_soft: false });
        assert_eq!((hard.name.as_str(), hard.caveat), ("ucx ud over mlx5_0:1", None));
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
