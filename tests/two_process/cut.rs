//! A cut link between two hosts: both learn of it, and reconnecting works when it is whole again.

use std::time::Duration;

use libtest_mimic::Trial;

use crate::{
    Outcome,
    death::{BACKENDS, Backend, PATIENT},
    netns::{Host, Net},
    process::{Peer, now_us},
    table,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cut {
    /// Both ends still see their link; no packet arrives.
    Silent,
    /// One end loses its carrier.
    LinkDown,
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for backend in BACKENDS.iter().filter(|b| ["tcp", "ucx-tcp"].contains(&b.name)) {
        for (cut, how) in [(Cut::Silent, "dropped"), (Cut::LinkDown, "down")] {
            for mode in ["idle", "load"] {
                for v6 in [false, true] {
                    let name = format!("cut/{how}-{mode}-ipv{}/{}", if v6 { 6 } else { 4 }, backend.name);
                    trials.push(crate::retry::trial(name, move || run(backend, cut, mode, v6)));
                }
            }
        }
    }
    trials
}

fn run(backend: &Backend, cut: Cut, mode: &str, v6: bool) -> Outcome {
    let net = Net::new();
    net.only(v6);
    let mut env = backend.env.to_vec();
    env.push(("UCX_NET_DEVICES", "eth0"));
    let mut server = Peer::start_in(Some(&net.host(Host::A)), "server", &env);
    let host = Net::address(Host::A, v6);
    let host = if v6 { format!("[{host}]") } else { host.to_string() };
    let address = server.listen(&format!("{}://{host}:0 mode={mode} {PATIENT}", backend.scheme));
    let mut client = Peer::start_in(Some(&net.host(Host::B)), "client", &env);
    let opened = client.connect(&format!("{address} mode={mode} {PATIENT}"));
    assert!(opened.get("transport").starts_with(backend.lane), "{opened:?}");
    let accepted = server.expect("accepted");
    if mode == "load" {
        std::thread::sleep(Duration::from_millis(300));
    }
    let since = now_us();
    set(&net, cut, true);
    for (peer, id) in [(&mut client, opened.get("id")), (&mut server, accepted.get("id"))] {
        let ended = peer.expect_of("ended", id);
        let failure = if cut == Cut::Silent { "packets dropped" } else { "link down" };
        table::check(&format!("{failure}, {mode}"), backend.name, since, &ended);
        assert!(["Reset", "TimedOut", "Unreachable"].contains(&ended.get("kind")), "{ended:?}");
        assert_eq!(ended.get("pending"), "", "operations did not end: {ended:?}");
        assert!(mode == "idle" || ended.number("frames") > 0, "no load: {ended:?}");
    }
    client.check_balance();
    server.check_balance();
    set(&net, cut, false);
    // The first packets find the neighbours anew.
    let again = client.ask(&format!("connect {address} mode={mode} {PATIENT}"), "connected");
    // A server that is no more says so here.
    server.stat("connections");
    assert_eq!(again.get("ok"), "true", "{again:?}");
    assert!(again.get("transport").starts_with(backend.lane), "{again:?}");
    client.say(&format!("abort {}", again.get("id")));
    client.expect("ended");
    server.expect("ended");
    client.check_balance();
    server.check_balance();
    client.quit();
    server.quit();
    Ok(())
}

fn set(net: &Net, cut: Cut, on: bool) {
    match cut {
        Cut::Silent => net.drop_packets(0, on),
        Cut::LinkDown => net.link_down(0, on),
    }
}
