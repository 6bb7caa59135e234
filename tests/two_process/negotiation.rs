//! What two processes agree on, and the reason if it is not UCX.

use std::path::PathBuf;

use libtest_mimic::Trial;
use ucrpc::transport::proto::hello::Message;

use crate::{
    Outcome,
    netns::{Host, Net},
    process::{Env, Line, Peer},
    relay::{self, Relay},
};

/// UCX is not even looked for.
pub(crate) const NO_UCX: (&str, &str) = ("UCRPC_UCX_LIBRARY", "none");
const TCP: (&str, &str) = ("UCX_TLS", "tcp");
const POSIX: (&str, &str) = ("UCX_TLS", "posix");
const SYSV: (&str, &str) = ("UCX_TLS", "sysv");
const MISSING: (&str, &str) = ("UCRPC_UCX_LIBRARY", "/nonexistent/libucp.so.0");

/// The versions of UCX that `ci/wheels.sh` fetches.
const WHEELS: [&str; 3] = ["1.16", "1.19", "1.22"];

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, scheme, env, lane) in [
        ("tcp", "tcp", NO_UCX, "tcp"),
        ("unix", "unix", NO_UCX, "unix"),
        ("ucx-tcp", "ucx", TCP, "ucx (tcp"),
        ("ucx-posix", "ucx", POSIX, "ucx (posix"),
        ("ucx-sysv", "ucx", SYSV, "ucx (sysv"),
        ("ucx-all", "ucx", ("UCX_TLS", "all"), "ucx ("),
        ("auto", "auto", ("UCX_TLS", "all"), "ucx ("),
        ("auto-ipv6", "auto6", TCP, "ucx (tcp"),
    ] {
        trials.push(crate::retry::trial(format!("echo/{name}"), move || echo(scheme, env, lane)));
    }
    for version in WHEELS {
        for env in [TCP, POSIX] {
            let name = format!("echo/wheel-{version}-{}", env.1);
            trials.push(crate::retry::trial(name, move || wheel_echo(version, env)));
        }
        trials.push(crate::retry::trial(format!("fallback/version-{version}"), move || version_differs(version)));
    }
    for case in CASES {
        trials.push(crate::retry::trial(format!("fallback/{}", case.name), || falls_back(case)));
    }
    trials.push(crate::retry::trial("fallback/proof-goes-astray", proof_goes_astray));
    trials.push(crate::retry::trial("fallback/proof-lost-in-the-network", proof_lost));
    trials.push(crate::retry::trial("fallback/loopback-on-two-hosts", only_loopback));
    trials.push(crate::retry::trial("override/client", override_client));
    trials.push(crate::retry::trial("override/server", override_server));
    trials
}

fn echo(scheme: &str, env: (&str, &str), lane: &str) -> Outcome {
    let path = format!("/tmp/ucrpc-two-{}.sock", std::process::id());
    let address = match scheme {
        "unix" => format!("unix://{path}"),
        "auto6" => "auto://[::1]:0".to_owned(),
        scheme => format!("{scheme}://127.0.0.1:0"),
    };
    echo_with(&[env], &address, lane);
    Ok(())
}

fn echo_with(env: Env<'_>, address: &str, lane: &str) {
    let mut server = Peer::start("server", env);
    let address = server.listen(&format!("{address} mode=echo"));
    let mut client = Peer::start("client", env);
    let opened = client.connect(&format!("{address} mode=ping"));
    for line in [opened.clone(), server.expect("accepted")] {
        assert!(line.get("transport").starts_with(lane), "{line:?}");
        assert_eq!(line.get("reason"), "none", "{line:?}");
    }
    while client.expect("echoed").number("count") < 20 {}
    client.say(&format!("close {}", opened.get("id")));
    assert_eq!(client.expect("closed").get("ok"), "true");
    assert_eq!(client.expect("ended").get("kind"), "Closed");
    assert_eq!(server.expect("ended").get("kind"), "PeerClosed");
    for mut peer in [client, server] {
        peer.check_balance();
        peer.quit();
    }
}

/// The library of a UCX from the wheels.
fn wheel(version: &str) -> String {
    let cache = || {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
        cache.join("ucrpc/ucx")
    };
    let folder = std::env::var_os("UCRPC_UCX_WHEELS").map_or_else(cache, PathBuf::from);
    let library = folder.join(version).join("libucx/lib/libucp.so.0");
    assert!(library.exists(), "{} is missing: run ci/wheels.sh", library.display());
    library.to_str().expect("utf-8").to_owned()
}

fn wheel_echo(version: &str, env: (&str, &str)) -> Outcome {
    let library = wheel(version);
    let lane = format!("ucx ({}", env.1);
    echo_with(&[("UCRPC_UCX_LIBRARY", &library), env], "ucx://127.0.0.1:0", &lane);
    Ok(())
}

/// Two sides that can't use UCX together, and what each must say.
struct Case {
    name: &'static str,
    server: Env<'static>,
    client: Env<'static>,
    listen: &'static str,
    /// Reason and part of its text, at the client and at the server.
    client_says: (&'static str, &'static str),
    server_says: (&'static str, &'static str),
}

const CASES: &[Case] = &[
    Case {
        name: "client-switched-off",
        server: &[TCP],
        client: &[NO_UCX],
        listen: "",
        client_says: ("Disabled", "UCRPC_UCX_LIBRARY=none"),
        server_says: ("PeerHasNone", "UCRPC_UCX_LIBRARY=none"),
    },
    Case {
        name: "client-without-library",
        server: &[TCP],
        client: &[MISSING],
        listen: "",
        client_says: ("NoLibrary", "/nonexistent/libucp.so.0"),
        server_says: ("PeerHasNone", "/nonexistent/libucp.so.0"),
    },
    Case {
        name: "server-switched-off",
        server: &[NO_UCX],
        client: &[TCP],
        listen: "",
        client_says: ("PeerHasNone", "UCRPC_UCX_LIBRARY=none"),
        server_says: ("Disabled", "UCRPC_UCX_LIBRARY=none"),
    },
    Case {
        name: "server-without-library",
        server: &[MISSING],
        client: &[TCP],
        listen: "",
        client_says: ("PeerHasNone", "/nonexistent/libucp.so.0"),
        server_says: ("NoLibrary", "/nonexistent/libucp.so.0"),
    },
    Case {
        name: "listener-without-ucx",
        server: &[TCP],
        client: &[TCP],
        listen: "ucx=false",
        client_says: ("PeerHasNone", "switched off"),
        server_says: ("Disabled", ""),
    },
    Case {
        name: "no-common-transport",
        server: &[TCP],
        client: &[POSIX],
        listen: "",
        client_says: ("Unreachable", ""),
        server_says: ("Unreachable", ""),
    },
    Case {
        name: "fifo-size-differs",
        server: &[("UCX_TLS", "posix"), ("UCX_POSIX_FIFO_SIZE", "128")],
        client: &[POSIX],
        listen: "",
        client_says: ("SettingsMismatch", "POSIX_FIFO_SIZE=128"),
        server_says: ("SettingsMismatch", "POSIX_FIFO_SIZE=128"),
    },
    Case {
        name: "segment-size-differs",
        server: &[("UCX_TLS", "sysv")],
        client: &[("UCX_TLS", "sysv"), ("UCX_SYSV_SEG_SIZE", "4k")],
        listen: "",
        client_says: ("SettingsMismatch", "SYSV_SEG_SIZE=4k"),
        server_says: ("SettingsMismatch", "SYSV_SEG_SIZE=4k"),
    },
];

fn falls_back(case: &Case) -> Outcome {
    let mut server = Peer::start("server", case.server);
    let address = server.listen(&format!("auto://127.0.0.1:0 mode=echo {}", case.listen));
    let mut client = Peer::start("client", case.client);
    check_fallback(&mut server, &mut client, &address, case.client_says, case.server_says);
    check_demand(&mut server, &mut client, &address, case.client_says.0);
    finish(server, client);
    Ok(())
}

/// `auto://` goes on as TCP, works, and both sides say why.
fn check_fallback(
    server: &mut Peer,
    client: &mut Peer,
    address: &str,
    client_says: (&str, &str),
    server_says: (&str, &str),
) {
    let auto = address.replacen("ucx://", "auto://", 1);
    let before = (client.stat("fallbacks"), server.stat("fallbacks"));
    let opened = client.connect(&format!("{auto} mode=ping"));
    let accepted = server.expect("accepted");
    for (line, (reason, text), who) in [(&opened, client_says, "client"), (&accepted, server_says, "server")] {
        println!("{who}: {} because {}", line.get("transport"), line.get("text"));
        assert_eq!(line.get("transport"), "tcp", "{who}: {line:?}");
        assert_eq!(line.get("reason"), reason, "{who}: {line:?}");
        assert!(line.get("text").contains(text), "{who}: {line:?}");
    }
    while client.expect("echoed").number("count") < 5 {}
    assert_eq!((client.stat("fallbacks"), server.stat("fallbacks")), (before.0 + 1, before.1 + 1));
    close(server, client, &opened);
}

fn close(server: &mut Peer, client: &mut Peer, opened: &Line) {
    client.say(&format!("close {}", opened.get("id")));
    assert_eq!(client.expect("closed").get("ok"), "true");
    client.expect("ended");
    server.expect("ended");
}

/// `ucx://` to the same server is an error that names the reason, and comes in time.
fn check_demand(server: &mut Peer, client: &mut Peer, address: &str, reason: &str) {
    let line = client.ask(&format!("connect {}", address.replacen("auto://", "ucx://", 1)), "connected");
    assert_eq!(line.get("ok"), "false", "{line:?}");
    assert_eq!(line.get("kind"), "NoUcx", "{line:?}");
    println!("ucx://: {} ({reason})", line.get("text"));
    assert!(line.number("ms") < 4000, "{line:?}");
    client.check_balance();
    server.check_balance();
    assert!(!server.has_said("accepted"), "the server must not open what the client gave up");
}

fn finish(mut server: Peer, mut client: Peer) {
    client.check_balance();
    server.check_balance();
    client.quit();
    server.quit();
}

fn version_differs(version: &str) -> Outcome {
    let library = wheel(version);
    let other = &[("UCRPC_UCX_LIBRARY", library.as_str()), TCP];
    let ours: &[_] = &[TCP];
    for (server_env, client_env) in [(ours, &other[..]), (other, ours)] {
        let mut server = Peer::start("server", server_env);
        let address = server.listen("auto://127.0.0.1:0 mode=echo");
        let mut client = Peer::start("client", client_env);
        let (here, there) = (format!("{version}."), "1.13.");
        let words = |ours: &str, theirs: &str| format!("ucx versions differ: {ours}|{theirs}");
        let line = client.connect(&format!("{address} mode=ping"));
        let accepted = server.expect("accepted");
        let newer_client = std::ptr::eq(client_env, &other[..]);
        for (line, newer) in [(&line, newer_client), (&accepted, !newer_client)] {
            println!("{}", line.get("text"));
            assert_eq!((line.get("transport"), line.get("reason")), ("tcp", "VersionMismatch"), "{line:?}");
            let (mine, theirs) = if newer { (here.as_str(), there) } else { (there, here.as_str()) };
            let (first, second) = line.get("text").split_once(" here, ").expect("two versions");
            assert!(first.contains(mine) && second.starts_with(theirs), "{line:?} is not {}", words(mine, theirs));
        }
        close(&mut server, &mut client, &line);
        check_demand(&mut server, &mut client, &address, "VersionMismatch");
        finish(server, client);
    }
    Ok(())
}

/// A relay changes the generation in the server's answer, so that the client's proof names a connection that never was.
fn proof_goes_astray() -> Outcome {
    let mut server = Peer::start("server", &[TCP]);
    let address = server.listen("auto://127.0.0.1:0 mode=echo");
    let port = address.strip_prefix("auto://").expect("auto").parse().expect("an address");
    let stale = |message: &mut Message| {
        if let Message::Accept(accept) = message {
            accept.generation ^= 0x4000_0000;
        }
    };
    let relay = Relay::start(port, relay::honest, stale);
    let mut client = Peer::start("client", &[TCP]);
    let opened = client.connect(&format!("auto://{} prove_timeout_ms=500", relay.address()));
    assert_eq!((opened.get("transport"), opened.get("reason")), ("tcp", "ProofTimedOut"), "{opened:?}");
    let accepted = server.expect("accepted");
    assert_eq!((accepted.get("transport"), accepted.get("reason")), ("tcp", "ProofTimedOut"), "{accepted:?}");
    println!("client: {}; server: {}", opened.get("text"), accepted.get("text"));
    assert!((500..2000).contains(&opened.number("ms")), "{opened:?}");
    assert!(server.stat("stale_messages") > 0, "the proof was seen and dropped");
    client.say(&format!("abort {}", opened.get("id")));
    client.expect("ended");
    server.expect("ended");
    check_demand(&mut server, &mut client, &format!("ucx://{}", relay.address()), "ProofTimedOut");
    finish(server, client);
    Ok(())
}

/// UCX may only use a network that drops everything; the negotiation goes over another. Other connections of the same
/// dispatcher go on meanwhile: nothing waits for UCX's connect.
fn proof_lost() -> Outcome {
    let net = Net::new();
    net.know_neighbour(1);
    net.drop_packets(1, true);
    let env: Env<'_> = &[TCP, ("UCX_NET_DEVICES", "eth1")];
    let mut server = Peer::start_in(Some(&net.host(Host::A)), "server", env);
    let address = server.listen(&format!("auto://{}:0 mode=echo", Net::address(Host::A, false)));
    let mut client = Peer::start_in(Some(&net.host(Host::B)), "client", env);
    let witness = client.connect(&format!("{} mode=ping", address.replacen("auto://", "tcp://", 1)));
    server.expect("accepted");
    let (mut gap, mut last) = (0, 0);
    while client.expect("echoed").number("count") < 2 {}
    client.say(&format!("connect {address}"));
    let opened = loop {
        let line = client.expect_any(&["echoed", "connected"]);
        let at = line.number("at");
        gap = gap.max(at - if last == 0 { at } else { last });
        last = at;
        if line.name == "connected" {
            break line;
        }
    };
    for line in [&opened, &server.expect("accepted")] {
        println!("{}", line.get("text"));
        assert_eq!((line.get("transport"), line.get("reason")), ("tcp", "ProofTimedOut"), "{line:?}");
    }
    assert!((2000..2900).contains(&opened.number("ms")), "{opened:?}");
    assert!(gap < 1_000_000, "another connection stood still for {} ms while ucx connected", gap / 1000);
    close(&mut server, &mut client, &opened);
    close(&mut server, &mut client, &witness);
    let line = client.ask(&format!("connect {}", address.replacen("auto://", "ucx://", 1)), "connected");
    assert_eq!((line.get("ok"), line.get("kind")), ("false", "NoUcx"), "{line:?}");
    // Nobody answers the endpoints that were given up, and they go all the same.
    client.check_balance();
    server.check_balance();
    // The same network, whole again: UCX works, without a new process.
    net.drop_packets(1, false);
    let line = client.connect(&format!("{address} mode=ping connect_timeout_ms=15000 prove_timeout_ms=10000"));
    assert!(line.get("transport").starts_with("ucx (tcp"), "{line:?}");
    let id = line.get("id");
    while client.expect_of("echoed", id).number("count") < 5 {}
    close(&mut server, &mut client, &line);
    client.check_balance();
    server.check_balance();
    finish(server, client);
    Ok(())
}

/// UCX has nothing but the loopback device, on each of two hosts: it connects to the wrong one.
fn only_loopback() -> Outcome {
    let net = Net::new();
    let env: Env<'_> = &[TCP, ("UCX_NET_DEVICES", "lo")];
    let mut server = Peer::start_in(Some(&net.host(Host::A)), "server", env);
    let address = server.listen(&format!("auto://{}:0 mode=echo", Net::address(Host::A, false)));
    let mut client = Peer::start_in(Some(&net.host(Host::B)), "client", env);
    let line = client.connect(&format!("{address} mode=ping"));
    let accepted = server.expect("accepted");
    for line in [&line, &accepted] {
        println!("{}", line.get("text"));
        assert_eq!(line.get("transport"), "tcp", "{line:?}");
        assert!(["Unreachable", "Failed", "ProofTimedOut"].contains(&line.get("reason")), "{line:?}");
    }
    assert_eq!(line.get("reason"), accepted.get("reason"));
    assert!(line.number("ms") < 4000);
    close(&mut server, &mut client, &line);
    check_demand(&mut server, &mut client, &address, accepted.get("reason"));
    finish(server, client);
    Ok(())
}

/// `UCRPC_TRANSPORT` at the client.
fn override_client() -> Outcome {
    let mut server = Peer::start("server", &[TCP]);
    let auto = server.listen("auto://127.0.0.1:0 mode=echo");
    let mut bare = Peer::start("server", &[NO_UCX]);
    let without = bare.listen("auto://127.0.0.1:0 mode=echo");
    for (value, address, transport, kind) in [
        ("tcp", &auto, "tcp", ""),
        ("ucx", &auto, "ucx (tcp", ""),
        ("auto", &auto, "ucx (tcp", ""),
        ("", &auto, "ucx (tcp", ""),
        ("auto", &without, "tcp", ""),
        ("ucx", &without, "", "NoUcx"),
        ("ucx", &auto.replacen("auto", "tcp", 1), "tcp", ""),
        ("tcp", &auto.replacen("auto", "ucx", 1), "ucx (tcp", ""),
        ("rdma", &auto, "", "Invalid"),
        ("TCP", &auto, "", "Invalid"),
    ] {
        let mut client = Peer::start("client", &[TCP, ("UCRPC_TRANSPORT", value)]);
        let line = client.ask(&format!("connect {address}"), "connected");
        let text = format!("UCRPC_TRANSPORT={value} {address}: {line:?}");
        if kind.is_empty() {
            assert_eq!(line.get("ok"), "true", "{text}");
            assert!(line.get("transport").starts_with(transport), "{text}");
            if value == "tcp" {
                assert_eq!(line.get("reason"), "none", "tcp was wanted: {text}");
            }
        } else {
            assert_eq!((line.get("ok"), line.get("kind")), ("false", kind), "{text}");
            assert!(kind != "Invalid" || line.get("text").contains("UCRPC_TRANSPORT"), "{text}");
        }
        client.quit();
    }
    Ok(())
}

/// `UCRPC_TRANSPORT` at the server: it holds for `auto://` addresses to listen on as well.
fn override_server() -> Outcome {
    for (value, scheme, transport, kind) in [
        ("tcp", "auto", "tcp", ""),
        ("tcp", "ucx", "", "NoUcx"),
        ("ucx", "auto", "ucx (tcp", ""),
        ("ucx", "tcp", "", "NoUcx"),
        ("auto", "auto", "ucx (tcp", ""),
    ] {
        let mut server = Peer::start("server", &[TCP, ("UCRPC_TRANSPORT", value)]);
        let address = server.listen("auto://127.0.0.1:0 mode=echo");
        let (_, port) = address.split_once("://").expect("an address");
        let mut client = Peer::start("client", &[TCP]);
        let line = client.ask(&format!("connect {scheme}://{port}"), "connected");
        let text = format!("UCRPC_TRANSPORT={value}, client {scheme}: {line:?}");
        if kind.is_empty() {
            assert_eq!(line.get("ok"), "true", "{text}");
            assert!(line.get("transport").starts_with(transport), "{text}");
        } else {
            assert_eq!((line.get("ok"), line.get("kind")), ("false", kind), "{text}");
        }
        client.quit();
        server.quit();
    }
    let mut server = Peer::start("server", &[TCP, ("UCRPC_TRANSPORT", "rdma")]);
    let line = server.ask("listen auto://127.0.0.1:0", "listening");
    assert_eq!((line.get("ok"), line.get("kind")), ("false", "Invalid"), "{line:?}");
    server.quit();
    Ok(())
}
