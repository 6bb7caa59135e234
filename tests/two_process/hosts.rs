//! Two hosts in network namespaces, as networks really are: MTUs, asymmetric routes, two NICs, wildcard listeners.

use libtest_mimic::Trial;

use crate::{
    Outcome,
    death::PATIENT,
    netns::{Host, Net},
    process::{Env, Line, Peer},
};

struct Way {
    name: &'static str,
    env: Env<'static>,
    scheme: &'static str,
    lane: &'static str,
}

const WAYS: &[Way] = &[
    Way { name: "tcp", env: &[("UCRPC_UCX_LIBRARY", "none")], scheme: "tcp", lane: "tcp" },
    Way { name: "ucx-tcp", env: &[("UCX_TLS", "tcp"), ("UCX_NET_DEVICES", "eth0")], scheme: "ucx", lane: "ucx (tcp" },
];

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for way in WAYS {
        for mtu in [1400, 1500, 9000] {
            for v6 in [false, true] {
                let name = format!("hosts/mtu-{mtu}-ipv{}/{}", if v6 { 6 } else { 4 }, way.name);
                trials.push(crate::retry::trial(name, move || mtu_of(way, mtu, v6)));
            }
        }
        trials.push(crate::retry::trial(format!("hosts/asymmetric/{}", way.name), || asymmetric(way)));
        for listen in ["0.0.0.0", "[::]"] {
            let name = format!("hosts/listen-on-{listen}/{}", way.name);
            trials.push(crate::retry::trial(name, move || wildcard(way, listen)));
        }
    }
    trials.push(crate::retry::trial("hosts/ucx-on-the-other-nic", other_nic));
    trials
}

fn text_of(host: Host, v6: bool) -> String {
    let address = Net::address(host, v6);
    if v6 { format!("[{address}]") } else { address.to_string() }
}

/// Frames of all sizes go back and forth over one connection; its opening line.
fn talk(client: &mut Peer, address: &str, lane: &str) -> Line {
    let opened = client.connect(&format!("{address} mode=ping {PATIENT}"));
    assert!(opened.get("transport").starts_with(lane), "{address}: {opened:?}");
    let id = opened.get("id").to_owned();
    while client.expect_of("echoed", &id).number("count") < 20 {}
    client.say(&format!("close {id}"));
    assert_eq!(client.expect_of("closed", &id).get("ok"), "true");
    client.expect_of("ended", &id);
    opened
}

fn end(mut client: Peer, mut server: Peer) -> Outcome {
    client.check_balance();
    server.check_balance();
    client.quit();
    server.quit();
    Ok(())
}

fn start(net: &Net, way: &Way, listen: &str) -> (Peer, Peer, String) {
    let mut server = Peer::start_in(Some(&net.host(Host::A)), "server", way.env);
    let address = server.listen(&format!("{}://{listen}:0 mode=echo {PATIENT}", way.scheme));
    let client = Peer::start_in(Some(&net.host(Host::B)), "client", way.env);
    let port = address.rsplit_once(':').expect("a port").1.to_owned();
    (client, server, port)
}

fn mtu_of(way: &Way, mtu: u32, v6: bool) -> Outcome {
    let net = Net::new();
    net.only(v6);
    net.set_mtu(0, mtu);
    let host = text_of(Host::A, v6);
    let (mut client, server, port) = start(&net, way, &host);
    talk(&mut client, &format!("{}://{host}:{port}", way.scheme), way.lane);
    end(client, server)
}

/// One way by `eth0`, the other by `eth1`.
fn asymmetric(way: &Way) -> Outcome {
    let net = Net::new();
    net.answer_by(Host::A, 1);
    let host = text_of(Host::A, false);
    let (mut client, server, port) = start(&net, way, &host);
    let before = (net.packets_sent(Host::A, 0), net.packets_sent(Host::A, 1));
    talk(&mut client, &format!("{}://{host}:{port}", way.scheme), way.lane);
    let after = (net.packets_sent(Host::A, 0), net.packets_sent(Host::A, 1));
    assert!(after.1 - before.1 > 100, "the answers went the way they came: {before:?} {after:?}");
    end(client, server)
}

/// A listener on all addresses is reached by each, also by those of another family if it is `[::]`.
fn wildcard(way: &Way, listen: &str) -> Outcome {
    let net = Net::new();
    let (mut client, server, port) = start(&net, way, listen);
    let mut hosts = vec!["10.77.0.1", "10.77.1.1"];
    if listen == "[::]" {
        hosts.extend(["[fd77:0::1]", "[fd77:1::1]"]);
    }
    for host in hosts {
        talk(&mut client, &format!("{}://{host}:{port}", way.scheme), way.lane);
    }
    end(client, server)
}

/// We connect by `eth0`, UCX by `eth1`.
fn other_nic() -> Outcome {
    let env: Env<'_> = &[("UCX_TLS", "tcp"), ("UCX_NET_DEVICES", "eth1"), ("UCX_TCP_CONN_NB", "y")];
    let net = Net::new();
    let way = Way { name: "auto", env: &[], scheme: "auto", lane: "ucx (tcp/eth1" };
    let mut server = Peer::start_in(Some(&net.host(Host::A)), "server", env);
    let address = server.listen(&format!("auto://10.77.0.1:0 mode=echo {PATIENT}"));
    let mut client = Peer::start_in(Some(&net.host(Host::B)), "client", env);
    let before = net.packets_sent(Host::B, 1);
    talk(&mut client, &address, way.lane);
    assert!(net.packets_sent(Host::B, 1) - before > 100, "nothing went by eth1");
    client.quit();
    server.expect("ended");
    server.check_balance();
    server.quit();
    Ok(())
}
