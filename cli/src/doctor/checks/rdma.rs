//! RDMA devices: whether there are any, whether they may be used, and whether they run at their speed.

use super::{Finding, Seen, is_yes};
use crate::doctor::devices::{Device, Port};

/// What RoCE's headers may take of a frame, as the kernel reckons.
const ROCE_HEADERS: i64 = 96;

pub(super) fn check(seen: &Seen<'_>) -> Vec<Finding> {
    if seen.devices.is_empty() {
        return none(seen);
    }
    let mut found = Vec::new();
    found.extend(verbs(seen));
    found.extend(cm(seen));
    found.extend(soft_roce(seen));
    for device in seen.devices {
        found.extend(used(seen, device));
        found.extend(numa(seen, device));
        found.extend(pcie(seen, device));
        for port in &device.ports {
            found.extend(state(device, port));
            found.extend(gids(seen, device, port));
            found.extend(mtu(seen, device, port));
        }
    }
    found
}

fn none(seen: &Seen<'_>) -> Vec<Finding> {
    let base = "/sys/bus/pci/devices";
    let of_mellanox = |slot: &String| {
        let read = |name: &str| seen.machine.text(&format!("{base}/{slot}/{name}")).unwrap_or_default();
        read("vendor") == "0x15b3" && read("class").starts_with("0x02")
    };
    let cards: Vec<String> = seen.machine.list(base).into_iter().filter(of_mellanox).collect();
    if !cards.is_empty() {
        let what = format!("no RDMA device, but a Mellanox/NVIDIA network card ({})", cards.join(", "));
        return vec![
            Finding::error("rdma-driver", what)
                .costs("the card is used as a plain network interface, or not at all")
                .mend("modprobe mlx5_ib; apt-get install rdma-core"),
        ];
    }
    vec![
        Finding::info("rdma", "no RDMA device")
            .costs("nothing to mend: UCX uses shared memory on one host and TCP between hosts")
            .mend("to try the code path in software (Soft-RoCE): modprobe rdma_rxe && rdma link add rxe0 type rxe netdev eth0"),
    ]
}

/// The device files through which a process reaches the hardware.
fn verbs(seen: &Seen<'_>) -> Option<Finding> {
    let files = seen.machine.list("/dev/infiniband");
    let verbs: Vec<String> = files.into_iter().filter(|name| name.starts_with("uverbs")).collect();
    if verbs.is_empty() {
        return Some(
            Finding::error("rdma-verbs", "there is an RDMA device, but no /dev/infiniband/uverbs*")
                .costs("no process can use the device: UCX goes on with shared memory and TCP, silently")
                .mend("modprobe ib_uverbs; in a container: docker run --device=/dev/infiniband --cap-add=IPC_LOCK"),
        );
    }
    let closed = |name: &&String| {
        let path = seen.machine.path(&format!("/dev/infiniband/{name}"));
        std::fs::File::options().read(true).write(true).open(path).is_err()
    };
    match verbs.iter().find(closed) {
        Some(name) => Some(
            Finding::error("rdma-verbs", format!("/dev/infiniband/{name} cannot be opened"))
                .costs("this user cannot use the device: UCX goes on with shared memory and TCP, silently")
                .mend(format!("chmod a+rw /dev/infiniband/{name}, or apt-get install rdma-core for its udev rules")),
        ),
        None => Some(Finding::ok("rdma-verbs", format!("/dev/infiniband has {}", verbs.join(", ")))),
    }
}

fn cm(seen: &Seen<'_>) -> Option<Finding> {
    (!seen.machine.exists("/dev/infiniband/rdma_cm")).then(|| {
        Finding::info("rdma-cm", "there is no /dev/infiniband/rdma_cm")
            .costs("ucx+cm:// goes over TCP sockets; ucx:// and auto:// do not need it")
            .mend("modprobe rdma_ucm")
    })
}

fn state(device: &Device, port: &Port) -> Option<Finding> {
    let name = format!("{}:{}", device.name, port.number);
    if port.state == "ACTIVE" {
        return Some(Finding::ok("rdma-port", format!("{name} is active, {}", port.rate)));
    }
    let mend = match (&port.interface, port.is_ethernet) {
        (Some(interface), true) => format!("ip link set {interface} up; then the cable and the switch's port"),
        (None, true) => "bring the network interface of the port up; then the cable and the switch's port".to_owned(),
        _ if port.state == "INIT" => "start a subnet manager: systemctl start opensm".to_owned(),
        _ => "the cable and the switch's port".to_owned(),
    };
    Some(
        Finding::error(
            "rdma-port",
            format!("{name} is {}", if port.state.is_empty() { "unknown" } else { &port.state }),
        )
        .costs("UCX leaves the port out: traffic takes another device, or TCP")
        .mend(mend),
    )
}

fn gids(seen: &Seen<'_>, device: &Device, port: &Port) -> Option<Finding> {
    if !port.is_ethernet {
        return None;
    }
    let name = format!("{}:{}", device.name, port.number);
    if let Some(index) = seen.machine.env("UCX_IB_GID_INDEX").and_then(|value| value.parse::<u32>().ok()) {
        let Some(gid) = port.gids.iter().find(|gid| gid.index == index) else {
            return Some(
                Finding::error("rdma-gid", format!("UCX_IB_GID_INDEX={index}, but {name} has no GID {index}"))
                    .costs("UCX cannot open the port: traffic takes another device, or TCP")
                    .mend(unset_gid(port)),
            );
        };
        if !gid.is_roce_v2 {
            return Some(
                Finding::warning("rdma-gid", format!("UCX_IB_GID_INDEX={index} of {name} is RoCE v1"))
                    .costs("RoCE v1 is not routed, and peers that use v2 cannot be reached")
                    .mend(unset_gid(port)),
            );
        }
    }
    let v2: Vec<_> = port.gids.iter().filter(|gid| gid.is_roce_v2).collect();
    let interface = port.interface.as_deref().unwrap_or("its network interface");
    if v2.is_empty() {
        return Some(
            Finding::error("rdma-gid", format!("{name} has no RoCE v2 GID"))
                .costs("what is left, RoCE v1, is not routed and often not switched: peers are not reached")
                .mend(format!(
                    "ip addr add ADDRESS/PREFIX dev {interface}; cma_roce_mode -d {} -p {} -m 2",
                    device.name, port.number
                )),
        );
    }
    if v2.iter().all(|gid| gid.is_link_local()) {
        return Some(
            Finding::warning("rdma-gid", format!("{name} has only link-local RoCE v2 GIDs"))
                .costs("peers behind a router are not reached")
                .mend(format!("ip addr add ADDRESS/PREFIX dev {interface}")),
        );
    }
    Some(Finding::ok("rdma-gid", format!("{name} has a RoCE v2 GID with a global address")))
}

fn unset_gid(port: &Port) -> String {
    match port.gids.iter().find(|gid| gid.is_roce_v2 && !gid.is_link_local()) {
        Some(gid) => format!("unset UCX_IB_GID_INDEX, or set it to {}", gid.index),
        None => "unset UCX_IB_GID_INDEX".to_owned(),
    }
}

fn mtu(seen: &Seen<'_>, device: &Device, port: &Port) -> Option<Finding> {
    let interface = port.interface.as_ref().filter(|_| port.is_ethernet)?;
    let mtu = seen.machine.number(&format!("/sys/class/net/{interface}/mtu"))?;
    let path = [4096, 2048, 1024, 512, 256].into_iter().find(|path| path + ROCE_HEADERS <= mtu).unwrap_or(256);
    let name = format!("{}:{}", device.name, port.number);
    if path == 4096 {
        return Some(Finding::ok(
            "rdma-mtu",
            format!("{name} can use RDMA packets of 4096 bytes ({interface}: {mtu})"),
        ));
    }
    Some(
        Finding::warning("rdma-mtu", format!("{interface} under {name} has MTU {mtu}: RDMA packets of {path} bytes"))
            .costs(format!("{} times as many packets for large transfers as with 4096 bytes", 4096 / path))
            .mend(format!("ip link set {interface} mtu 9000, on all hosts and switches of that network")),
    )
}

/// Soft-RoCE, and the settings that it needs.
fn soft_roce(seen: &Seen<'_>) -> Vec<Finding> {
    let soft: Vec<&str> = seen.devices.iter().filter(|d| d.is_rxe).map(|d| d.name.as_str()).collect();
    if soft.is_empty() {
        return Vec::new();
    }
    let names = soft.join(", ");
    let mut found = vec![
        Finding::info("soft-roce", format!("{names}: RDMA made by the kernel in software"))
            .costs("slower than TCP on the same interface: for testing the code path, not for speed"),
    ];
    let all = soft.len() == seen.devices.len();
    let check = ["UCX_UD_VERBS_ETH_DGID_CHECK", "UCX_UD_ETH_DGID_CHECK"];
    let bad = match seen.env_of(&check) {
        Some((name, value)) if is_yes(value) => Some(format!("{name}={value}")),
        Some(_) => None,
        // Our default is set where nothing but Soft-RoCE is there.
        None if all => None,
        None => Some("UCX_UD_VERBS_ETH_DGID_CHECK is not n, beside other devices".to_owned()),
    };
    if let Some(what) = bad {
        found.push(
            Finding::error("soft-roce-ud", format!("{what}, and {names} is Soft-RoCE"))
                .costs("Soft-RoCE does not say the address family, so UCX's ud lanes drop every IPv4 packet: connections time out")
                .mend("export UCX_UD_VERBS_ETH_DGID_CHECK=n"),
        );
    }
    let retries = ["UCX_RC_VERBS_RETRY_COUNT", "UCX_RC_RETRY_COUNT"];
    if let Some((name, value)) = seen.env_of(&retries).filter(|(_, value)| *value == "7") {
        found.push(
            Finding::warning("soft-roce-retry", format!("{name}={value}, and {names} is Soft-RoCE"))
                .costs("Soft-RoCE takes 7 for without end: a lost peer is never reported by the lane")
                .mend(format!("export {name}=6")),
        );
    }
    found
}

/// Whether UCX has found the device.
fn used(seen: &Seen<'_>, device: &Device) -> Option<Finding> {
    let facts = seen.facts().filter(|facts| facts.unusable.is_none())?;
    let is_its = |resource: &&String| {
        let on = resource.split_once('/').map_or("", |(_, on)| on);
        on.split(':').next() == Some(device.name.as_str())
    };
    let transports: Vec<&str> = facts.resources.iter().filter(is_its).map(String::as_str).collect();
    if !transports.is_empty() {
        return Some(Finding::ok("rdma-used", format!("UCX can use {}", transports.join(", "))));
    }
    let plugins = facts.library.as_ref().map(|library| library.plugins.as_slice()).unwrap_or_default();
    let has_verbs = plugins.iter().any(|name| name == "ib" || name.starts_with("ib_"));
    let what = format!("UCX does not use {}", device.name);
    let finding = if !has_verbs {
        Finding::error("rdma-used", format!("{what}: this build of UCX has no verbs")).mend(
            "a UCX with verbs: apt-get install libucx0, or the one of the device's vendor; then UCRPC_UCX_LIBRARY",
        )
    } else if let Some((name, value)) = seen.env_of(&["UCX_TLS", "UCX_NET_DEVICES"]) {
        Finding::error("rdma-used", format!("{what}, and {name}={value} may be why")).mend(format!("unset {name}"))
    } else {
        Finding::error("rdma-used", what)
            .mend("UCX_LOG_LEVEL=debug ucrpc doctor --json; the other findings about the device may be the cause")
    };
    Some(finding.costs("traffic between hosts goes over TCP although the device is there"))
}

fn numa(seen: &Seen<'_>, device: &Device) -> Option<Finding> {
    let node = device.node?;
    let near = seen.machine.cpus_of_node(node);
    let allowed = seen.machine.cpus();
    if near.is_empty() || allowed.is_empty() {
        return None;
    }
    let usable = allowed.iter().filter(|cpu| near.contains(cpu)).count();
    if usable == allowed.len() {
        return Some(Finding::ok("numa", format!("all CPUs of this process are near {} (node {node})", device.name)));
    }
    let distance = seen.machine.text(&format!("/sys/devices/system/node/node{node}/distance")).unwrap_or_default();
    let farthest = distance.split_whitespace().filter_map(|d| d.parse::<u32>().ok()).max().unwrap_or(0);
    let what = format!("{usable} of {} CPUs of this process are near {} (node {node})", allowed.len(), device.name);
    let mend =
        format!("numactl --cpunodebind={node} --membind={node} PROGRAM, or DispatcherConfig::pin to one of its CPUs");
    let finding = if usable == 0 { Finding::warning("numa", what) } else { Finding::info("numa", what) };
    Some(
        finding
            .costs(format!("each transfer from a far CPU crosses the interconnect (distance {farthest}, near is 10): latency and bandwidth"))
            .mend(mend),
    )
}

fn pcie(seen: &Seen<'_>, device: &Device) -> Option<Finding> {
    let base = format!("/sys/class/infiniband/{}/device", device.name);
    let read = |name: &str| seen.machine.text(&format!("{base}/{name}"));
    // `16.0 GT/s PCIe`.
    let speed = |text: String| text.split(' ').next()?.parse::<f64>().ok();
    let width = |text: String| text.parse::<f64>().ok();
    let now = (read("current_link_speed").and_then(speed)?, read("current_link_width").and_then(width)?);
    let most = (read("max_link_speed").and_then(speed)?, read("max_link_width").and_then(width)?);
    if now.0 * now.1 >= most.0 * most.1 {
        return Some(Finding::ok("pcie", format!("{} has its full PCIe link", device.name)));
    }
    let what = format!("{} has a PCIe link of {} GT/s x{}, of {} GT/s x{}", device.name, now.0, now.1, most.0, most.1);
    Some(
        Finding::warning("pcie", what)
            .costs(format!(
                "bandwidth to the device is at most {:.0} % of what it can",
                100.0 * now.0 * now.1 / (most.0 * most.1)
            ))
            .mend("another slot; check the slot's width and speed in the firmware's set-up"),
    )
}
