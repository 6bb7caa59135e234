//! The RDMA devices, as sysfs describes them.

use super::machine::Machine;

/// An RDMA device.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    /// Its name, `mlx5_0`.
    pub(crate) name: String,
    /// Soft-RoCE: made of a network interface by the kernel.
    pub(crate) is_rxe: bool,
    /// The NUMA node that it is attached to.
    pub(crate) node: Option<i64>,
    pub(crate) ports: Vec<Port>,
}

/// One of its ports.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub(crate) number: String,
    /// `ACTIVE`, `DOWN`, `INIT`, ...
    pub(crate) state: String,
    /// Whether it is Ethernet, so that RoCE's rules hold.
    pub(crate) is_ethernet: bool,
    /// `100 Gb/sec (4X EDR)`.
    pub(crate) rate: String,
    /// The addresses that are set.
    pub(crate) gids: Vec<Gid>,
    /// The network interface under it.
    pub(crate) interface: Option<String>,
}

/// An address of a port.
#[derive(Debug, Clone)]
pub(crate) struct Gid {
    pub(crate) index: u32,
    pub(crate) gid: String,
    pub(crate) is_roce_v2: bool,
}

impl Gid {
    /// `fe80::`, which no router forwards.
    pub(crate) fn is_link_local(&self) -> bool {
        self.gid.starts_with("fe80:")
    }
}

/// The RDMA devices of a machine.
pub(crate) fn of(machine: &Machine) -> Vec<Device> {
    let device = |name: String| {
        let base = format!("/sys/class/infiniband/{name}");
        Device {
            // The kernel gives every rxe device, and no device of hardware, the name of the interface under it.
            is_rxe: machine.exists(&format!("{base}/parent")),
            node: machine.number(&format!("{base}/device/numa_node")).filter(|node| *node >= 0),
            ports: machine
                .list(&format!("{base}/ports"))
                .into_iter()
                .map(|number| port(machine, &base, number))
                .collect(),
            name,
        }
    };
    machine.list("/sys/class/infiniband").into_iter().map(device).collect()
}

fn port(machine: &Machine, base: &str, number: String) -> Port {
    let base = format!("{base}/ports/{number}");
    let read = |name: &str| machine.text(&format!("{base}/{name}")).unwrap_or_default();
    // `4: ACTIVE`.
    let state = read("state");
    let state = state.split_once(": ").map_or(state.as_str(), |(_, word)| word).to_owned();
    let gid = |index: String| {
        let gid = machine.text(&format!("{base}/gids/{index}"))?;
        let is_set = gid.bytes().any(|b| b != b'0' && b != b':');
        let kind = machine.text(&format!("{base}/gid_attrs/types/{index}")).unwrap_or_default();
        is_set.then(|| Some(Gid { index: index.parse().ok()?, gid, is_roce_v2: kind == "RoCE v2" }))?
    };
    let gids: Vec<Gid> = machine.list(&format!("{base}/gids")).into_iter().filter_map(gid).collect();
    let interfaces = machine.list(&format!("{base}/gid_attrs/ndevs"));
    let interface = interfaces.iter().find_map(|index| machine.text(&format!("{base}/gid_attrs/ndevs/{index}")));
    Port { state, is_ethernet: read("link_layer") == "Ethernet", rate: read("rate"), gids, interface, number }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_device_is_read() {
        let root = tempfile::tempdir().expect("a directory");
        let base = root.path().join("sys/class/infiniband/mlx5_0");
        let plant = |path: &str, text: &str| {
            let path = base.join(path);
            std::fs::create_dir_all(path.parent().expect("below the base")).expect("a directory");
            std::fs::write(path, text).expect("a file");
        };
        plant("ports/1/state", "4: ACTIVE\n");
        plant("ports/1/link_layer", "Ethernet\n");
        plant("ports/1/gids/0", "fe80:0000:0000:0000:0000:0000:0000:0001\n");
        plant("ports/1/gid_attrs/types/0", "IB/RoCE v1\n");
        plant("ports/1/gids/3", "0000:0000:0000:0000:0000:ffff:0a00:0001\n");
        plant("ports/1/gid_attrs/types/3", "RoCE v2\n");
        plant("ports/1/gids/4", "0000:0000:0000:0000:0000:0000:0000:0000\n");
        plant("ports/1/gid_attrs/ndevs/0", "eth5\n");
        plant("device/numa_node", "1\n");
        let found = of(&Machine::new(Some(root.path().to_owned())));
        assert_eq!(found.len(), 1);
        let port = &found[0].ports[0];
        assert_eq!((found[0].node, found[0].is_rxe, port.state.as_str()), (Some(1), false, "ACTIVE"));
        assert_eq!(port.gids.iter().map(|g| (g.index, g.is_roce_v2)).collect::<Vec<_>>(), [(0, false), (3, true)]);
        assert!(port.gids[0].is_link_local() && port.interface.as_deref() == Some("eth5"));
    }
}
