//! Two network namespaces with a switch between them, for links that break.
//!
//! The switch is a bridge in a third namespace: taking it down drops every packet silently while both ends still see
//! their link, and taking a port of it down takes the link down. That needs root and `ip`, and no netfilter.

use std::{
    net::IpAddr,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

/// Names of our namespaces begin with this, then the process and a number.
const PREFIX: &str = "ucrpc-test-";

fn try_ip(args: &str) -> Output {
    Command::new("ip").args(args.split_whitespace()).output().expect("this test needs ip (package iproute2)")
}

fn ip(args: &str) {
    let output = try_ip(args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "this test needs root and network namespaces: ip {args}: {text}");
}

/// Removes namespaces of test processes that are no more.
pub(crate) fn remove_leftovers() {
    let Ok(output) = Command::new("ip").args(["netns", "list"]).output() else { return };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some(name) = line.split_whitespace().next().filter(|name| name.starts_with(PREFIX)) else { continue };
        let process = name[PREFIX.len()..].split('-').next().unwrap_or_default();
        if !std::path::Path::new("/proc").join(process).exists() {
            remove(name);
        }
    }
}

fn remove(name: &str) {
    // A namespace that is gone already is what is wanted.
    let _ = try_ip(&format!("netns del {name}"));
    let _ = std::fs::remove_dir_all(format!("/etc/netns/{name}"));
}

/// Two hosts, each a namespace, with two networks between them: `eth0`, and `eth1` for UCX alone.
pub(crate) struct Net {
    name: String,
}

/// An end of the network.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    A,
    B,
}

impl Net {
    /// Builds it.
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let net = Self { name };
        let (a, b, switch) = (net.host(Host::A), net.host(Host::B), net.switch());
        for namespace in [&a, &b, &switch] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        for link in 0..2 {
            ip(&format!("-n {switch} link add br{link} type bridge"));
            for (port, namespace, number) in [("a", &a, 1), ("b", &b, 2)] {
                ip(&format!("-n {switch} link add {port}{link} type veth peer name eth{link} netns {namespace}"));
                ip(&format!("-n {switch} link set {port}{link} master br{link} up"));
                ip(&format!("-n {namespace} addr add 10.77.{link}.{number}/24 dev eth{link}"));
                ip(&format!("-n {namespace} addr add fd77:{link}::{number}/64 dev eth{link} nodad"));
                ip(&format!("-n {namespace} link set eth{link} up"));
            }
            ip(&format!("-n {switch} link set br{link} up"));
        }
        net
    }

    /// The namespace of a host.
    pub(crate) fn host(&self, host: Host) -> String {
        format!("{}-{}", self.name, if host == Host::A { "a" } else { "b" })
    }

    fn switch(&self) -> String {
        format!("{}-s", self.name)
    }

    /// The address of a host on `eth0`.
    pub(crate) fn address(host: Host, v6: bool) -> IpAddr {
        let number = if host == Host::A { 1 } else { 2 };
        let text = if v6 { format!("fd77:0::{number}") } else { format!("10.77.0.{number}") };
        text.parse().expect("an address")
    }

    /// Takes away the addresses of one kind, so that only the other is left.
    pub(crate) fn only(&self, v6: bool) {
        for host in [Host::A, Host::B] {
            for link in 0..2 {
                let family = if v6 { "-4" } else { "-6" };
                ip(&format!("{family} -n {} addr flush dev eth{link}", self.host(host)));
            }
        }
    }

    /// Drops all packets of a network silently, or none.
    pub(crate) fn drop_packets(&self, link: u32, drop: bool) {
        ip(&format!("-n {} link set br{link} {}", self.switch(), if drop { "down" } else { "up" }));
    }

    /// Takes the link between host A and the switch down, or up.
    pub(crate) fn link_down(&self, link: u32, down: bool) {
        ip(&format!("-n {} link set a{link} {}", self.switch(), if down { "down" } else { "up" }));
    }

    /// Tells each host the hardware address of the other for ever, so that a silent network is no "host unreachable".
    pub(crate) fn know_neighbour(&self, link: u32) {
        for (host, other, number) in [(Host::A, Host::B, 2), (Host::B, Host::A, 1)] {
            let output = try_ip(&format!("-n {} -o link show eth{link}", self.host(other)));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let mac = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
            let (mac, host) = (mac.expect("a hardware address"), self.host(host));
            ip(&format!("-n {host} neigh replace 10.77.{link}.{number} lladdr {mac} dev eth{link} nud permanent"));
        }
    }

    /// Sets the MTU of a network: of both ends, and of the switch between them.
    pub(crate) fn set_mtu(&self, link: u32, mtu: u32) {
        for (port, host) in [("a", Host::A), ("b", Host::B)] {
            ip(&format!("-n {} link set eth{link} mtu {mtu}", self.host(host)));
            ip(&format!("-n {} link set {port}{link} mtu {mtu}", self.switch()));
        }
        ip(&format!("-n {} link set br{link} mtu {mtu}", self.switch()));
    }

    /// Has a host send what it has to say to the other's address on `eth0` by another link.
    pub(crate) fn answer_by(&self, host: Host, link: u32) {
        let (own, other) = if host == Host::A { (1, 2) } else { (2, 1) };
        for host in [Host::A, Host::B] {
            let filter = "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done";
            let output = Command::new("ip").args(["netns", "exec", &self.host(host), "sh", "-c", filter]).output();
            assert!(output.is_ok_and(|o| o.status.success()), "rp_filter");
        }
        ip(&format!("-n {} route add 10.77.0.{other}/32 dev eth{link} src 10.77.0.{own}", self.host(host)));
    }

    /// Packets that a host has sent by a link.
    pub(crate) fn packets_sent(&self, host: Host, link: u32) -> u64 {
        let path = format!("/sys/class/net/eth{link}/statistics/tx_packets");
        let output = try_ip(&format!("netns exec {} cat {path}", self.host(host)));
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
    }

    /// Gives a host an `/etc/hosts` of its own.
    pub(crate) fn hosts_file(&self, host: Host, text: &str) {
        let folder = format!("/etc/netns/{}", self.host(host));
        std::fs::create_dir_all(&folder).expect("this test needs root");
        std::fs::write(format!("{folder}/hosts"), text).expect("write");
        std::fs::write(format!("{folder}/resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
            .expect("write");
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in [self.host(Host::A), self.host(Host::B), self.switch()] {
            remove(&name);
        }
    }
}
