//! Connecting and listening that fail: the right kind of error, in time, and another try where there is one.

use libtest_mimic::Trial;

use crate::{
    Outcome,
    negotiation::NO_UCX,
    netns::{Host, Net},
    process::{Line, Peer},
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        crate::retry::trial("connect/refused", refused),
        crate::retry::trial("connect/unreachable", unreachable),
        crate::retry::trial("connect/unknown-name", unknown_name),
        crate::retry::trial("connect/timeout", timeout),
        crate::retry::trial("connect/several-addresses", several_addresses),
        crate::retry::trial("connect/an-address-that-drops", an_address_that_drops),
        crate::retry::trial("listen/errors", listen_errors),
        crate::retry::trial("listen/no-descriptors", no_descriptors),
    ]
}

fn fails(peer: &mut Peer, connect: &str, kind: &str, text: &str) -> Line {
    let line = peer.ask(&format!("connect {connect}"), "connected");
    assert_eq!((line.get("ok"), line.get("kind")), ("false", kind), "{connect}: {line:?}");
    println!("{connect}: {} after {} ms", line.get("text"), line.get("ms"));
    assert!(line.get("text").contains(text), "{connect}: {line:?}");
    peer.check_balance();
    line
}

fn refused() -> Outcome {
    let port = {
        // Bound and not listened on: nobody else gets it, and it refuses.
        let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
        let socket = socket.expect("a socket");
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        rustix::net::bind(&socket, &any).expect("bind");
        let bound = rustix::net::getsockname(&socket).expect("bound");
        let port = std::net::SocketAddr::try_from(bound).expect("an IPv4 address").port();
        (port, socket)
    };
    let (port, _socket) = port;
    let mut client = Peer::start("client", &[("UCX_TLS", "tcp")]);
    for scheme in ["tcp", "ucx", "auto"] {
        let line = fails(&mut client, &format!("{scheme}://127.0.0.1:{port}"), "Refused", "");
        assert!(line.number("ms") < 1000, "{line:?}");
    }
    fails(&mut client, "unix:///tmp/ucrpc-nobody-listens-here.sock", "Refused", "");
    fails(&mut client, "mem://nobody", "Refused", "nobody listens");
    client.quit();
    Ok(())
}

fn unreachable() -> Outcome {
    let net = Net::new();
    let mut client = Peer::start_in(Some(&net.host(Host::A)), "client", &[NO_UCX]);
    for address in ["tcp://192.0.2.1:80", "tcp://[2001:db8::1]:80"] {
        let line = fails(&mut client, address, "Unreachable", "");
        assert!(line.number("ms") < 1000, "{line:?}");
    }
    // A host of our own network that does not exist: found out by asking for its hardware address.
    fails(&mut client, "tcp://10.77.0.99:80 connect_timeout_ms=15000", "Unreachable", "");
    client.quit();
    Ok(())
}

fn unknown_name() -> Outcome {
    let net = Net::new();
    net.hosts_file(Host::A, "127.0.0.1 localhost\n");
    let mut client = Peer::start_in(Some(&net.host(Host::A)), "client", &[NO_UCX]);
    fails(&mut client, "tcp://no-such-host.invalid:80", "Unreachable", "no-such-host.invalid");
    client.quit();
    Ok(())
}

/// Packets that are dropped on the way: the deadline is the only thing that ends it.
fn timeout() -> Outcome {
    let net = Net::new();
    net.know_neighbour(0);
    net.drop_packets(0, true);
    let mut client = Peer::start_in(Some(&net.host(Host::A)), "client", &[NO_UCX]);
    for (scheme, ms) in [("tcp", 300), ("auto", 1500)] {
        let line = fails(&mut client, &format!("{scheme}://10.77.0.2:80 connect_timeout_ms={ms}"), "TimedOut", "");
        assert!((ms..ms + 2000).contains(&line.number("ms")), "{line:?}");
    }
    client.quit();
    Ok(())
}

/// The first address of a name refuses, or does not exist, and another works.
fn several_addresses() -> Outcome {
    let net = Net::new();
    // 127.0.0.2 refuses, 192.0.2.1 has no route, 127.0.0.1 works.
    net.hosts_file(Host::A, "127.0.0.1 localhost\n127.0.0.2 two\n127.0.0.1 two\n192.0.2.1 three\n127.0.0.2 three\n127.0.0.1 three\n127.0.0.2 none\n127.0.0.3 none\n");
    let host = net.host(Host::A);
    let mut server = Peer::start_in(Some(&host), "server", &[("UCX_TLS", "tcp")]);
    let address = server.listen("auto://127.0.0.1:0 mode=echo");
    let port = address.rsplit_once(':').expect("a port").1.to_owned();
    let mut client = Peer::start_in(Some(&host), "client", &[("UCX_TLS", "tcp")]);
    for name in ["two", "three"] {
        for scheme in ["tcp", "auto"] {
            let line = client.connect(&format!("{scheme}://{name}:{port} mode=ping"));
            client.expect_of("echoed", line.get("id"));
            client.say(&format!("close {}", line.get("id")));
            assert_eq!(client.expect("closed").get("ok"), "true");
            client.expect("ended");
        }
    }
    fails(&mut client, &format!("tcp://none:{port}"), "Refused", "");
    client.check_balance();
    client.quit();
    server.check_balance();
    server.quit();
    Ok(())
}

/// The first address of a name drops all packets: the second is tried long before the time is over.
fn an_address_that_drops() -> Outcome {
    let net = Net::new();
    net.hosts_file(Host::A, "127.0.0.1 localhost\n10.77.0.2 two\n10.77.1.2 two\n10.77.0.2 late\n10.77.1.99 late\n");
    let mut server = Peer::start_in(Some(&net.host(Host::B)), "server", &[NO_UCX]);
    let address = server.listen("auto://0.0.0.0:0 mode=echo");
    let port = address.rsplit_once(':').expect("a port").1.to_owned();
    net.know_neighbour(0);
    net.drop_packets(0, true);
    let mut client = Peer::start_in(Some(&net.host(Host::A)), "client", &[NO_UCX]);
    for (scheme, timeout) in [("tcp", 5000), ("auto", 5000), ("tcp", 400)] {
        let line = client.connect(&format!("{scheme}://two:{port} mode=ping connect_timeout_ms={timeout}"));
        println!("{scheme}, {timeout} ms at most: open after {} ms", line.get("ms"));
        assert!(line.number("ms") >= timeout.min(400) / 2 - 50, "the first address was not tried: {line:?}");
        assert!(line.number("ms") < 2000, "{line:?}");
        client.expect_of("echoed", line.get("id"));
        client.say(&format!("close {}", line.get("id")));
        assert_eq!(client.expect("closed").get("ok"), "true");
        client.expect("ended");
    }
    // One drops, the other does not exist: nothing is left to wait for but the deadline.
    let line = fails(&mut client, &format!("tcp://late:{port} connect_timeout_ms=1000"), "TimedOut", "");
    assert!((1000..3000).contains(&line.number("ms")), "{line:?}");
    client.check_balance();
    client.quit();
    server.check_balance();
    server.quit();
    Ok(())
}

fn listen_errors() -> Outcome {
    let mut server = Peer::start("server", &[NO_UCX]);
    let used = server.listen("tcp://127.0.0.1:0 mode=echo");
    let path = format!("/tmp/ucrpc-listen-{}.sock", std::process::id());
    server.listen(&format!("unix://{path} mode=echo"));
    for (address, kind, text) in [
        (used.as_str(), "Invalid", "in use"),
        ("tcp://192.0.2.1:0", "Invalid", "Cannot assign"),
        (&format!("unix://{path}"), "Invalid", "listens there"),
        ("unix:///nonexistent-folder/x.sock", "Invalid", "No such file"),
        ("tcp://no-such-host.invalid:0", "Unreachable", "no-such-host.invalid"),
        ("tcp://127.0.0.1", "Invalid", "port"),
        ("http://127.0.0.1:80", "Invalid", "scheme"),
    ] {
        let line = server.ask(&format!("listen {address}"), "listening");
        println!("{address}: {}", line.get("text"));
        assert_eq!((line.get("ok"), line.get("kind")), ("false", kind), "{address}: {line:?}");
        assert!(line.get("text").contains(text), "{address}: {line:?}");
    }
    // The listener that was there first still works.
    let mut client = Peer::start("client", &[NO_UCX]);
    client.connect(&format!("{used} mode=ping"));
    client.expect("echoed");
    client.quit();
    let _ = std::fs::remove_file(path);
    Ok(())
}

/// A server that has no descriptors left pauses, without spinning, and goes on when it has some.
fn no_descriptors() -> Outcome {
    const MANY: usize = 12;
    let mut server = Peer::start("server", &[NO_UCX]);
    let address = server.listen("tcp://127.0.0.1:0 mode=echo");
    let mut client = Peer::start("client", &[NO_UCX]);
    server.ask("fds more=3", "fds");
    for _ in 0..MANY {
        client.say(&format!("connect {address} mode=ping connect_timeout_ms=20000"));
    }
    client.expect("connected");
    let deadline = std::time::Instant::now() + *crate::process::SOON;
    while server.stat("accept_pauses") == 0 {
        assert!(std::time::Instant::now() < deadline, "the server never ran out of descriptors");
    }
    // It waits between its tries.
    let pauses = server.stat("accept_pauses");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let more = server.stat("accept_pauses") - pauses;
    assert!((1..=15).contains(&more), "{more} tries in half a second");
    // Who is in already is served.
    let now = crate::process::now_us();
    while client.expect("echoed").number("at") < now {}
    server.ask("fds more=0", "fds");
    for _ in 1..MANY {
        assert_eq!(client.expect("connected").get("ok"), "true");
    }
    for _ in 0..MANY {
        server.expect("accepted");
    }
    client.quit();
    for _ in 0..MANY {
        server.expect("ended");
    }
    server.check_balance();
    server.quit();
    Ok(())
}
