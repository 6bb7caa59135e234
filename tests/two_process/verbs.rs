//! Faults of the RDMA path, in a guest of `cargo xtask rdma-vm`: `UCRPC_TEST_RDMA=1` runs these instead of the rest.
//!
//! In one guest the server has `rxe0`, the client `rxe1`, and between them is a real link that `rdma-vm-link` shapes and cuts. The
//! control connection goes over `lo` and stays whole, so what is noticed here is noticed on the RDMA path itself. In two guests each
//! has an `rxe0`, the tests and the clients are in the second, and the control connection is cut with the rest.

use std::{process::Command, time::Duration};

use libtest_mimic::Trial;

use crate::{
    Outcome, far,
    process::{Env, Line, Peer, now_us},
    suite,
};

/// UCX notices a lost peer in 2 s over RC and 3.5 s over UD (our defaults for Soft-RoCE), idle one keepalive interval later; and a
/// guest without KVM runs everything ten times slower.
pub(crate) const NOTICED: Duration = Duration::from_secs(15);

/// Connecting is not what is measured.
pub(crate) const PATIENT: &str = "connect_timeout_ms=60000 prove_timeout_ms=59000";
/// Where it fails on purpose, the proof must be given up some time.
pub(crate) const SOON_GIVEN_UP: &str = "connect_timeout_ms=60000 prove_timeout_ms=8000";

pub(crate) const SERVER: &str = "10.77.0.1";

pub(crate) struct Verbs {
    pub(crate) name: &'static str,
    pub(crate) tls: (&'static str, &'static str),
    pub(crate) lane: &'static str,
}

pub(crate) const BACKENDS: &[Verbs] = &[
    Verbs { name: "ucx-rc", tls: ("UCX_TLS", "rc"), lane: "rc_verbs/rxe" },
    Verbs { name: "ucx-ud", tls: ("UCX_TLS", "ud_verbs"), lane: "ud_verbs/rxe" },
];

/// The server's device.
const ON_RXE0: (&str, &str) = ("UCX_NET_DEVICES", "rxe0:1");

/// The client's interface and device.
pub(crate) fn own() -> (&'static str, &'static str) {
    if far::two_guests() { ("eth0", "rxe0") } else { ("eth1", "rxe1") }
}

/// The client's device, for UCX.
pub(crate) fn on_own() -> (&'static str, &'static str) {
    ("UCX_NET_DEVICES", if far::two_guests() { "rxe0:1" } else { "rxe1:1" })
}

/// Where the suites' trials run: from one end of the link to the other.
fn path(backend: &Verbs) -> suite::Path {
    suite::Path {
        name: backend.name,
        listen: format!("ucx://{SERVER}"),
        server: vec![backend.tls, ON_RXE0],
        client: vec![backend.tls, on_own()],
        over: backend.lane,
        options: PATIENT,
        noticed: NOTICED,
        start_server,
    }
}

pub(crate) fn trials() -> Vec<Trial> {
    let room = if far::two_guests() { "guests" } else { "verbs" };
    let mut trials: Vec<_> = BACKENDS.iter().flat_map(|backend| suite::trials_over(room, &path(backend))).collect();
    let mut add = |name: String, run: Box<dyn Fn() -> Outcome + Send>| trials.push(crate::retry::trial(name, run));
    for backend in BACKENDS {
        for mode in ["idle", "load"] {
            add(format!("verbs/cut-{mode}/{}", backend.name), Box::new(move || cut(backend, mode)));
        }
        add(format!("verbs/loss-and-delay/{}", backend.name), Box::new(move || loss_and_delay(backend)));
        add(format!("verbs/killed/{}", backend.name), Box::new(move || killed(backend)));
        add(format!("verbs/wrong-gid/{}", backend.name), Box::new(move || wrong_gid(backend)));
        add(format!("verbs/missing-device/{}", backend.name), Box::new(move || missing_device(backend)));
        add(format!("verbs/memlock/{}", backend.name), Box::new(move || memlock(backend)));
    }
    for backend in BACKENDS {
        // Between two guests a link ends otherwise: `guests/unplugged`.
        if !far::two_guests() {
            add(format!("verbs/blocked/{}", backend.name), Box::new(move || blocked(backend)));
            add(format!("verbs/link-down/{}", backend.name), Box::new(move || link_down(backend)));
        }
        add(format!("verbs/removed-device/{}", backend.name), Box::new(move || removed_in_use(backend)));
    }
    for backend in BACKENDS {
        add(format!("verbs/rdmacm/{}", backend.name), Box::new(move || rdmacm(backend)));
    }
    trials
}

/// A program of the guest, which must succeed.
pub(crate) fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output().expect("these tests run in a guest");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {text}");
}

/// A program of the other guest, which must succeed.
pub(crate) fn run_far(words: &[&str]) -> String {
    let output = far::command(words).output().expect("own path");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words:?} in the other guest: {text}");
    text
}

/// The link as it should be, whatever happens to the test.
struct Link;

impl Link {
    fn set(to: &str) -> Self {
        run("rdma-vm-link", to);
        if far::two_guests() {
            let words: Vec<&str> = ["rdma-vm-link"].into_iter().chain(to.split(' ')).collect();
            run_far(&words);
        }
        Self
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = Command::new("rdma-vm-link").arg("ok").status();
        if far::two_guests() {
            let _ = far::command(&["rdma-vm-link", "ok"]).status();
        }
    }
}

/// A peer at the server's end.
pub(crate) fn start_server(env: Env<'_>) -> Peer {
    if far::two_guests() { Peer::start_far("server", env) } else { Peer::start("server", env) }
}

pub(crate) fn server(backend: &Verbs, scheme: &str, mode: &str) -> (Peer, String) {
    let mut server = start_server(&[backend.tls, ON_RXE0]);
    let address = server.listen(&format!("{scheme}://{SERVER}:0 mode={mode} {PATIENT}"));
    (server, address)
}

/// Connects, and checks that both sides say the device.
pub(crate) fn connect(
    backend: &Verbs,
    client: &mut Peer,
    server: &mut Peer,
    address: &str,
    mode: &str,
) -> (String, String) {
    let opened = client.connect(&format!("{address} mode={mode} {PATIENT}"));
    let accepted = server.expect("accepted");
    for line in [&opened, &accepted] {
        assert!(line.get("transport").contains(backend.lane), "{line:?}");
        assert_eq!(line.get("reason"), "none", "{line:?}");
    }
    (opened.get("id").to_owned(), accepted.get("id").to_owned())
}

pub(crate) fn check_end(peer: &mut Peer, id: &str, what: &str, since: u64) {
    let ended = peer.expect_of("ended", id);
    let took = Duration::from_micros(ended.number("at").saturating_sub(since));
    let all = Duration::from_micros(ended.number("latest").saturating_sub(ended.number("at")));
    println!("{what}: {} after {took:.1?}, all operations {all:.1?} later; {}", ended.get("text"), ended.get("counts"));
    let lost = Duration::from_micros(ended.number("lost"));
    assert!(took <= NOTICED + lost, "noticed after {took:?}: {ended:?}");
    assert!(["Reset", "TimedOut", "Unreachable"].contains(&ended.get("kind")), "{ended:?}");
    assert_eq!(ended.get("pending"), "", "operations did not end: {ended:?}");
    peer.check_balance_within(20_000);
}

/// Ends a connection in order, and both programs with it.
pub(crate) fn finish(mut client: Peer, mut server: Peer, id: &str) {
    client.say(&format!("abort {id}"));
    client.expect_of("ended", id);
    server.expect("ended");
    client.check_balance_within(20_000);
    server.check_balance_within(20_000);
    client.quit();
    server.quit();
}

fn cut(backend: &Verbs, mode: &str) -> Outcome {
    let (mut server, address) = server(backend, "ucx", mode);
    let mut client = Peer::start("client", &[backend.tls, on_own()]);
    let (id, other) = connect(backend, &mut client, &mut server, &address, mode);
    std::thread::sleep(Duration::from_millis(500));
    let since = now_us();
    let link = Link::set("cut");
    check_end(&mut client, &id, &format!("{}, cut, {mode}, client", backend.name), since);
    check_end(&mut server, &other, &format!("{}, cut, {mode}, server", backend.name), since);
    drop(link);
    let (id, _) = connect(backend, &mut client, &mut server, &address, mode);
    finish(client, server, &id);
    Ok(())
}

/// What the link loses is sent again, and nothing above notices.
fn loss_and_delay(backend: &Verbs) -> Outcome {
    let (mut server, address) = server(backend, "ucx", "echo");
    let mut client = Peer::start("client", &[backend.tls, on_own()]);
    let (id, _) = connect(backend, &mut client, &mut server, &address, "ping");
    for shape in ["loss 1", "delay 20"] {
        let link = Link::set(shape);
        let since = now_us();
        let mut counts = Vec::new();
        while now_us() - since < 2_000_000 || counts.len() < 3 {
            let line = client.expect_of("echoed", &id);
            if line.number("at") > since {
                counts.push(line.number("count"));
            }
        }
        println!("{}, {shape}: {} echoes", backend.name, counts[counts.len() - 1] - counts[0]);
        drop(link);
    }
    finish(client, server, &id);
    Ok(())
}

fn killed(backend: &Verbs) -> Outcome {
    let (mut server, address) = server(backend, "ucx", "load");
    let mut client = Peer::start("client", &[backend.tls, on_own()]);
    let (_, other) = connect(backend, &mut client, &mut server, &address, "load");
    std::thread::sleep(Duration::from_millis(500));
    let since = client.kill();
    check_end(&mut server, &other, &format!("{}, client killed", backend.name), since);
    let mut client = Peer::start("client", &[backend.tls, on_own()]);
    let (id, _) = connect(backend, &mut client, &mut server, &address, "load");
    finish(client, server, &id);
    Ok(())
}

/// A client whose verbs do not work is served over TCP, knows why, and gets an error where it asks for UCX.
fn falls_back(backend: &Verbs, mut client: Peer, what: &str) -> Line {
    let (server, address) = server(backend, "auto", "echo");
    let place = address.split_once("://").expect("a scheme").1.to_owned();
    let line = client.connect(&format!("auto://{place} mode=ping {SOON_GIVEN_UP}"));
    println!("{}, {what}: {} because {}", backend.name, line.get("transport"), line.get("text"));
    assert_eq!(line.get("transport"), "tcp", "{line:?}");
    assert_ne!(line.get("reason"), "none", "{line:?}");
    client.expect_of("echoed", line.get("id"));
    let refused = client.ask(&format!("connect ucx://{place} {SOON_GIVEN_UP}"), "connected");
    assert_eq!(refused.get("ok"), "false", "{refused:?}");
    client.say(&format!("abort {}", line.get("id")));
    client.expect_of("ended", line.get("id"));
    client.check_balance_within(20_000);
    client.quit();
    // Others are served over RDMA as before.
    let mut well = Peer::start("client", &[backend.tls, on_own()]);
    let opened = well.connect(&format!("auto://{place} mode=ping {PATIENT}"));
    assert!(opened.get("transport").contains(backend.lane), "{opened:?}");
    well.expect_of("echoed", opened.get("id"));
    well.quit();
    drop(server);
    line
}

fn wrong_gid(backend: &Verbs) -> Outcome {
    let client = Peer::start("client", &[backend.tls, on_own(), ("UCX_IB_GID_INDEX", "9")]);
    falls_back(backend, client, "wrong gid");
    Ok(())
}

/// Nothing but RoCE is blocked on the way. Both sides fall back, and live on when UCX gives its endpoints up.
///
/// With keepalive RC has a lane of UD on which UCX connects it, and UCX 1.13.1 aborts when such a lane fails (`docs/rdma.md`).
fn blocked(backend: &Verbs) -> Outcome {
    let mut server = Peer::start("server", &[backend.tls, ON_RXE0]);
    let address = server.listen(&format!("auto://{SERVER}:0 mode=echo {PATIENT}"));
    let mut client = Peer::start("client", &[backend.tls, on_own()]);
    // Where they arrive: what the sending side's kernel refuses is an error to rxe, and UCX aborts on that.
    run("nft", "add table inet blocked");
    let open = scopeguard(|| run("nft", "delete table inet blocked"));
    run("nft", "add chain inet blocked c { type filter hook prerouting priority raw ; }");
    run("nft", "add rule inet blocked c udp dport 4791 drop");
    let opened = client.ask(&format!("connect {address} mode=ping {SOON_GIVEN_UP}"), "connected");
    assert_eq!(opened.get("ok"), "true", "{opened:?}\n{}\n{}", client.log(), server.log());
    println!("{}, blocked: {} because {}", backend.name, opened.get("transport"), opened.get("text"));
    assert_eq!(opened.get("transport"), "tcp", "{opened:?}");
    let (since, id) = (now_us(), opened.get("id").to_owned());
    while now_us() - since < 8_000_000 {
        client.expect_of("echoed", &id);
    }
    drop(open);
    let accepted = server.expect("accepted");
    assert_eq!(accepted.get("transport"), "tcp", "{accepted:?}");
    finish(client, server, &id);
    Ok(())
}

fn missing_device(backend: &Verbs) -> Outcome {
    let client = Peer::start("client", &[backend.tls, ("UCX_NET_DEVICES", "rxe9:1")]);
    falls_back(backend, client, "missing device");
    Ok(())
}

/// Verbs pin memory; a process that may not is as good as one without a device.
fn memlock(backend: &Verbs) -> Outcome {
    let limited = ["sh", "-c", r#"ulimit -l 64; exec setpriv --bounding-set=-ipc_lock "$0""#];
    let client = Peer::start_by(&limited, "client", &[backend.tls, on_own()]);
    falls_back(backend, client, "64 KiB of locked memory");
    Ok(())
}

/// The client's interface is switched off, and with it the server's loses its carrier.
fn link_down(backend: &Verbs) -> Outcome {
    // Dropped after the peers: a device that is in use cannot be made anew.
    let up = scopeguard(|| run("rdma-vm-link", "up"));
    let (mut server, address) = server(backend, "auto", "load");
    let mut client = Peer::start("client", &[backend.tls, on_own()]);
    let (id, other) = connect(backend, &mut client, &mut server, &address, "load");
    std::thread::sleep(Duration::from_millis(500));
    let since = now_us();
    run("rdma-vm-link", "down eth1");
    check_end(&mut server, &other, &format!("{}, carrier lost, server", backend.name), since);
    // While its port is down it takes connections over TCP, and says why.
    let mut third = Peer::start("client", &[("UCX_TLS", "tcp")]);
    let opened = third.connect(&format!("{address} mode=idle {PATIENT}"));
    let accepted = server.expect("accepted");
    for line in [&opened, &accepted] {
        assert_eq!((line.get("transport"), line.get("reason")), ("tcp", "Unreachable"), "{line:?}");
        assert!(line.get("text").ends_with("the rdma port rxe0:1 is down"), "{line:?}");
    }
    println!("{}, carrier lost: {} because {}", backend.name, opened.get("transport"), accepted.get("text"));
    third.quit();
    // To Soft-RoCE an interface that is switched off has no route, so that the next send fails at once. UCX 1.13.1 takes that badly
    // if it was a UD packet, and those carry its keepalive over RC too.
    match client.expect_of_or_death("ended", &id) {
        Ok(ended) => {
            println!("{}, switched off, client: {}", backend.name, ended.get("text"));
            assert_eq!(ended.get("pending"), "", "operations did not end: {ended:?}");
            let place = address.split_once("://").expect("a scheme").1;
            let again = client.ask(&format!("connect ucx://{place} {SOON_GIVEN_UP}"), "connected");
            assert!(again.get("text").ends_with("the rdma port rxe1:1 is down"), "{again:?}");
        }
        Err(log) => {
            let last = log.lines().find(|line| line.contains("Fatal:")).unwrap_or_else(|| panic!("not by UCX: {log}"));
            println!("{}, switched off, client: UCX aborts: {last}", backend.name);
            assert!(last.contains("ud_verbs.c"), "{log}");
        }
    }
    drop(client);
    server.quit();
    drop(up);
    let (mut server, address) = self::server(backend, "ucx", "load");
    let mut client = Peer::start("client", &[backend.tls, on_own()]);
    let (id, _) = connect(backend, &mut client, &mut server, &address, "load");
    finish(client, server, &id);
    Ok(())
}

/// The device goes away between two runs of a client, and comes back.
fn removed_device(backend: &Verbs) -> Outcome {
    let (interface, device) = own();
    run("rdma", &format!("link delete {device}"));
    let back = scopeguard(|| add_device(device, interface));
    let (server, address) = server(backend, "auto", "echo");
    let mut gone = Peer::start("client", &[backend.tls, on_own()]);
    let line = gone.connect(&format!("{address} mode=ping {SOON_GIVEN_UP}"));
    println!("{}, removed device: {} because {}", backend.name, line.get("transport"), line.get("text"));
    assert_eq!(line.get("transport"), "tcp", "{line:?}");
    gone.expect_of("echoed", line.get("id"));
    gone.quit();
    drop(back);
    let mut client = Peer::start("client", &[backend.tls, on_own()]);
    let opened = client.connect(&format!("{address} mode=ping {PATIENT}"));
    assert!(opened.get("transport").contains(backend.lane), "{opened:?}");
    client.quit();
    drop(server);
    Ok(())
}

/// The device is taken away while a process uses it: rxe lets it go only when that process ends, and serves it until then.
fn removed_in_use(backend: &Verbs) -> Outcome {
    let (interface, device) = own();
    // Whatever happens to this test, the next ones need the device. Dropped after the peers, which keep the old one.
    let back = scopeguard(|| add_device(device, interface));
    let (mut server, address) = server(backend, "auto", "echo");
    let mut client = Peer::start("client", &[backend.tls, on_own()]);
    let (id, other) = connect(backend, &mut client, &mut server, &address, "ping");
    client.expect_of("echoed", &id);
    let mut removal =
        Command::new("rdma").args(["link", "delete", device]).spawn().expect("these tests run in a guest");
    std::thread::sleep(Duration::from_secs(2));
    let asked = now_us();
    while client.expect_of("echoed", &id).number("at") < asked {}
    assert!(removal.try_wait().expect("a child").is_none(), "the device is gone");
    client.say(&format!("abort {id}"));
    client.expect_of("ended", &id);
    server.expect_of("ended", &other);
    client.check_balance_within(20_000);
    client.quit();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while removal.try_wait().expect("a child").is_none() {
        assert!(std::time::Instant::now() < deadline, "nobody has the device open, and it is still there");
        std::thread::sleep(Duration::from_millis(100));
    }
    server.check_balance_within(20_000);
    server.quit();
    // And without a device, and with it again.
    drop(back);
    removed_device(backend)
}

/// Makes the device again, when the old one is gone.
fn add_device(device: &str, interface: &str) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let words = ["link", "add", device, "type", "rxe", "netdev", interface];
    while !Command::new("rdma").args(words).output().expect("these tests run in a guest").status.success() {
        assert!(std::time::Instant::now() < deadline, "{device} cannot be made again");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Runs something when it goes out of scope.
pub(crate) fn scopeguard(work: impl FnMut()) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(work)
}

/// UCX's own connection manager over the RDMA one.
fn rdmacm(backend: &Verbs) -> Outcome {
    const CM: (&str, &str) = ("UCX_SOCKADDR_TLS_PRIORITY", "rdmacm");
    let mut server = start_server(&[backend.tls, ON_RXE0, CM]);
    let address = server.listen(&format!("ucx+cm://{SERVER}:0 mode=echo {PATIENT}"));
    let source = ("UCX_RDMA_CM_SOURCE_ADDRESS", "10.77.0.2");
    let mut client = Peer::start("client", &[backend.tls, on_own(), CM, source]);
    let (id, _) = connect(backend, &mut client, &mut server, &address, "ping");
    client.expect_of("echoed", &id);
    finish(client, server, &id);
    Ok(())
}
