//! The contract's and the RPC suite's promises where the two ends are two processes, or two machines: nothing is shared but the path.
//!
//! Here over TCP, and UCX over tcp and shared memory; in a guest of `cargo xtask rdma-vm` over verbs, and between two guests if there are two.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::{
    Outcome,
    negotiation::NO_UCX,
    process::{Env, Line, Peer, SOON},
};

/// What carries a connection, and where its two ends are.
#[derive(Clone)]
pub(crate) struct Path {
    pub(crate) name: &'static str,
    /// The server's address, without its port.
    pub(crate) listen: String,
    pub(crate) server: Vec<(&'static str, &'static str)>,
    pub(crate) client: Vec<(&'static str, &'static str)>,
    /// What both ends must say that they run over.
    pub(crate) over: &'static str,
    /// What every address is followed by: deadlines.
    pub(crate) options: &'static str,
    /// How soon a client hears that its server was killed.
    pub(crate) noticed: Duration,
    pub(crate) start_server: fn(Env<'_>) -> Peer,
}

/// Both ends on this host.
fn here(name: &'static str, scheme: &str, settings: Env<'static>, over: &'static str) -> Path {
    Path {
        name,
        listen: format!("{scheme}://127.0.0.1"),
        server: settings.to_vec(),
        client: settings.to_vec(),
        over,
        options: "",
        noticed: Duration::from_secs(5),
        start_server: |env| Peer::start("server", env),
    }
}

pub(crate) fn trials() -> Vec<Trial> {
    let paths = [
        here("tcp", "auto", &[NO_UCX], "tcp"),
        here("ucx-tcp", "ucx", &[("UCX_TLS", "tcp")], "tcp/"),
        here("ucx-posix", "ucx", &[("UCX_TLS", "posix")], "posix"),
        here("ucx-all", "ucx", &[], "ucx"),
    ];
    paths.iter().flat_map(|path| trials_over("suite", path)).collect()
}

/// The trials over one path; their names begin with `room`.
pub(crate) fn trials_over(room: &str, path: &Path) -> Vec<Trial> {
    type Run = fn(&Path) -> Outcome;
    const ALL: &[(&str, Run)] =
        &[("sizes", sizes), ("delivery", delivery), ("calls", calls), ("ended-calls", ended_calls)];
    let trial = |(name, run): &(&str, Run)| {
        let (run, path) = (*run, path.clone());
        crate::retry::trial(format!("{room}/{name}/{}", path.name), move || run(&path))
    };
    ALL.iter().map(trial).collect()
}

impl Path {
    fn check(&self, line: &Line) {
        assert!(line.get("transport").contains(self.over), "not over {}: {line:?}", self.over);
    }

    fn server(&self) -> Peer {
        (self.start_server)(&self.server)
    }

    fn client(&self) -> Peer {
        Peer::start("client", &self.client)
    }

    fn listen(&self, server: &mut Peer, mode: &str) -> String {
        server.listen(&format!("{}:0 mode={mode} {}", self.listen, self.options))
    }

    /// Connects; the ids at both ends.
    fn connect(&self, client: &mut Peer, server: &mut Peer, address: &str, mode: &str) -> (String, String) {
        let opened = client.connect(&format!("{address} mode={mode} {}", self.options));
        let accepted = server.expect("accepted");
        self.check(&opened);
        self.check(&accepted);
        (opened.get("id").to_owned(), accepted.get("id").to_owned())
    }
}

/// Nothing is left in either process, and both end well.
fn rest(mut client: Peer, mut server: Peer) {
    client.check_balance_within(20_000);
    server.check_balance_within(20_000);
    client.quit();
    server.quit();
}

/// The client has closed a connection: both ends say so, and what used it there has ended, not panicked.
fn closed(client: &mut Peer, id: &str, server: &mut Peer, other: &str) {
    for (ended, kind) in [(client.expect_of("ended", id), "Closed"), (server.expect_of("ended", other), "PeerClosed")] {
        assert_eq!((ended.get("kind"), ended.get("pending")), (kind, ""), "{ended:?}");
    }
}

/// Heads and bodies of every size where something changes inside come back as they were sent.
fn sizes(path: &Path) -> Outcome {
    let (mut server, mut client) = (path.server(), path.client());
    let address = path.listen(&mut server, "echo");
    let (id, other) = path.connect(&mut client, &mut server, &address, "sizes");
    let checked = client.expect_of("checked", &id);
    println!("{}: {} frames came back whole in {} ms", path.name, checked.get("count"), checked.get("ms"));
    client.say(&format!("close {id}"));
    closed(&mut client, &id, &mut server, &other);
    rest(client, server);
    Ok(())
}

/// Four senders fill the queue of one connection before its reader begins, and close it: everything arrives, each sender's frames in
/// order.
fn delivery(path: &Path) -> Outcome {
    let (mut server, mut client) = (path.server(), path.client());
    let address = path.listen(&mut server, "collect window_bytes=2097152");
    let (id, other) = path.connect(&mut client, &mut server, &address, "deliver queue_bytes=1048576");
    client.expect_of("full", &id);
    server.say("read");
    let sent = client.expect_of("delivered", &id);
    client.say(&format!("close {id}"));
    let collected = server.expect_of("collected", &other);
    println!(
        "{}: sent {} frames, {} times there was no room; {} arrived",
        path.name,
        sent.get("count"),
        sent.get("full"),
        collected.get("count")
    );
    assert_eq!(collected.get("count"), sent.get("count"));
    closed(&mut client, &id, &mut server, &other);
    rest(client, server);
    Ok(())
}

fn serve(path: &Path, server: &mut Peer, at: &str) -> String {
    server.ask(&format!("serve {at} {}", path.options), "serving").get("addr").to_owned()
}

/// The RPC suite's checks of payloads, sizes, failures and streams; and what a client gives up, the server's handler hears of.
fn calls(path: &Path) -> Outcome {
    let (mut server, mut client) = (path.server(), path.client());
    let address = serve(path, &mut server, &format!("{}:0", path.listen));
    for check in ["payloads", "sizes", "failures", "stream"] {
        client.say(&format!("calls {address} check={check} {}", path.options));
        let called = client.expect_within("called", *SOON * 2);
        assert_eq!(called.get("ok"), "true", "{check}: {called:?}\n{}", client.log());
        println!("{}: {check} over {} in {} ms", path.name, called.get("transport"), called.get("ms"));
        path.check(&called);
    }
    let before = server.ask("served", "served");
    client.say(&format!("calls {address} check=given-up {}", path.options));
    let called = client.expect("called");
    assert_eq!(called.get("ok"), "true", "{called:?}\n{}", client.log());
    // Two calls were given up: one was dropped, one ran out of time.
    let dropped = before.number("dropped") + 2;
    let deadline = Instant::now() + *SOON;
    loop {
        let served = server.ask("served", "served");
        if served.number("running") == 0 && served.number("dropped") == dropped {
            assert_eq!(served.number("started"), served.number("ended") + dropped, "{served:?}");
            break;
        }
        assert!(Instant::now() < deadline, "handlers of calls that were given up go on: {served:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    server.ask("unserve", "unserved");
    rest(client, server);
    Ok(())
}

/// The server is killed with calls under way: each ends, in time and with an error, and when there is a server again calls go again,
/// over the same transport.
fn ended_calls(path: &Path) -> Outcome {
    let (mut first, mut client) = (path.server(), path.client());
    let address = serve(path, &mut first, &format!("{}:0", path.listen));
    client.say(&format!("storm {address} {}", path.options));
    path.check(&client.expect("calls-well"));
    std::thread::sleep(Duration::from_millis(500));
    let since = first.kill();
    drop(first);
    let failed = client.expect("calls-fail");
    let noticed = Duration::from_micros(failed.number("at").saturating_sub(since));
    let mut second = path.server();
    let again = serve(path, &mut second, &address);
    assert_eq!(again, address);
    let well = client.expect("calls-well");
    path.check(&well);
    client.say("calm");
    let done = client.expect("calm");
    println!(
        "{}: server killed: {} after {noticed:.1?}; again {} ms later; {} calls went well, {} failed, the longest took {} ms",
        path.name,
        failed.get("text"),
        well.number("at").saturating_sub(failed.number("at")) / 1000,
        done.get("well"),
        done.get("failed"),
        done.get("longest_ms"),
    );
    assert!(noticed <= path.noticed, "noticed after {noticed:?}");
    assert_eq!(done.get("strange"), "", "errors of another kind: {done:?}");
    assert!(done.number("longest_ms") < 30_000, "{done:?}");
    second.ask("unserve", "unserved");
    rest(client, second);
    Ok(())
}
