//! A peer that dies while it writes into the shared-memory receive queue that all peers of a process write into: the others come
//! through again.

use std::time::Duration;

use libtest_mimic::Trial;

use crate::{
    Outcome,
    death::{BACKENDS, Backend, PATIENT},
    process::{Line, Peer, now_us},
    table,
};

/// How long new connections may take until it is clear that the queue is blocked, and they go elsewhere.
const BLOCKED: Duration = Duration::from_secs(2);

/// Who the survivor is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Survivor {
    Client,
    Server,
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for backend in BACKENDS.iter().filter(|backend| ["ucx-posix", "ucx-sysv"].contains(&backend.name)) {
        for (survivor, victim) in [(Survivor::Client, "server"), (Survivor::Server, "client")] {
            for (company, others) in [("alone", false), ("among-others", true)] {
                let name = format!("kill/halfway-{victim}-{company}/{}", backend.name);
                trials.push(crate::retry::trial(name, move || dies_halfway(backend, survivor, others)));
            }
        }
    }
    trials.push(crate::retry::trial("kill/halfway-beside-tcp", beside_tcp));
    trials.push(crate::retry::trial("kill/halfway-many-times", many_times));
    trials.push(crate::retry::trial("kill/halfway-end-under-load", ends_under_load));
    trials.push(crate::retry::trial("kill/looks-halfway", looks_like_it));
    trials
}

/// The survivor and another process: one of them listens.
struct Pair<'a> {
    backend: &'a Backend,
    survivor: Survivor,
    address: String,
}

impl Pair<'_> {
    /// Their connection: its id here and there.
    fn connect(&self, here: &mut Peer, there: &mut Peer) -> (String, String) {
        self.connect_in("idle", here, there)
    }

    fn connect_in(&self, mode: &str, here: &mut Peer, there: &mut Peer) -> (String, String) {
        let ask = format!("{} mode={mode} {PATIENT}", self.address);
        let id = |line: &Line| {
            assert!(line.get("transport").starts_with(self.backend.lane), "{line:?}");
            line.get("id").to_owned()
        };
        if self.survivor == Survivor::Client {
            (id(&here.connect(&ask)), id(&there.expect("accepted")))
        } else {
            let there = id(&there.connect(&ask));
            (id(&here.expect("accepted")), there)
        }
    }
}

fn dies_halfway(backend: &Backend, survivor: Survivor, others: bool) -> Outcome {
    let listens = format!("ucx://127.0.0.1:0 mode=idle {PATIENT}");
    let mut here = Peer::start("survivor", backend.env);
    let own = if survivor == Survivor::Server { here.listen(&listens) } else { String::new() };
    let start = |name| {
        // UCX would tell of the signal at length.
        let env: Vec<_> = backend.env.iter().copied().chain([("UCX_HANDLE_ERRORS", "none")]).collect();
        let mut peer = Peer::start(name, &env);
        let address = if survivor == Survivor::Client { peer.listen(&listens) } else { own.clone() };
        (peer, Pair { backend, survivor, address })
    };
    let (mut bystander, bystanders) = start("bystander");
    let (mut victim, victims) = start("victim");
    let before = others.then(|| bystanders.connect(&mut here, &mut bystander));
    let (id, at_victim) = victims.connect(&mut here, &mut victim);

    let since = now_us();
    victim.say(&format!("perish {at_victim}"));
    let ended = here.expect_of("ended", &id);
    table::check("dies while it writes, idle", backend.name, since, &ended);
    assert_eq!(ended.get("kind"), "Reset", "{ended:?}");

    // Whoever connects now, while it is not clear yet, is let in all the same.
    let (again, there) = bystanders.connect(&mut here, &mut bystander);
    let took = Duration::from_micros(now_us() - ended.number("at"));
    assert!(took < BLOCKED, "new connections came to nothing for {took:?}");
    for (peer, id) in [(&mut here, &again), (&mut bystander, &there)] {
        peer.say(&format!("bodies {id} count=20 size=100000"));
        assert_eq!(peer.expect_of("sent", id).get("ok"), "20");
    }
    assert_eq!(here.stat("ucx_blocked_workers"), 1, "the worker was given up for another reason, or not at all");

    if let Some((here_id, there_id)) = before {
        // Nothing that the bystander says arrives on it.
        let lost = here.expect_of("ended", &here_id);
        table::check("another died while it wrote, idle", backend.name, since, &lost);
        assert_eq!(bystander.expect_of("ended", &there_id).get("pending"), "");
    }
    here.say(&format!("abort {again}"));
    for (peer, id) in [(&mut here, &again), (&mut bystander, &there)] {
        assert_eq!(peer.expect_of("ended", id).get("pending"), "");
        peer.check_balance();
    }
    here.quit();
    bystander.quit();
    Ok(())
}

const BOTH: &Backend =
    &Backend { name: "ucx-posix,tcp", env: &[("UCX_TLS", "posix,tcp")], scheme: "ucx", lane: "ucx (posix" };
const TCP: &Backend = &Backend { name: "ucx-tcp", env: &[("UCX_TLS", "tcp")], scheme: "ucx", lane: "ucx (tcp" };
const CM: &Backend = &Backend { lane: "ucx (cm+tcp", ..*TCP };

/// A listener that receives over shared memory and over tcp, and a process that speaks tcp to it.
struct Mixed {
    here: Peer,
    address: String,
    other: Peer,
}

impl Mixed {
    fn new() -> Self {
        let mut here = Peer::start("survivor", BOTH.env);
        let address = here.listen(&format!("ucx://127.0.0.1:0 mode=idle {PATIENT}"));
        Self { here, address, other: Peer::start("over tcp", TCP.env) }
    }

    /// A connection over tcp: its ids here and there.
    fn connect(&mut self, backend: &Backend, address: &str) -> (String, String) {
        let pair = Pair { backend, survivor: Survivor::Server, address: address.to_owned() };
        pair.connect(&mut self.here, &mut self.other)
    }

    /// Another process, and a connection over tcp to it with frames of all sizes under way both ways.
    fn load(&mut self) -> (Peer, String, String) {
        let address = self.here.listen(&format!("ucx://127.0.0.1:0 mode=load {PATIENT}"));
        let pair = Pair { backend: TCP, survivor: Survivor::Server, address };
        let mut loaded = Peer::start("loaded", TCP.env);
        let (here, there) = pair.connect_in("load", &mut self.here, &mut loaded);
        (loaded, here, there)
    }

    /// A process blocks the receive queue, and the worker is given up for it, the `nth` time.
    fn block(&mut self, nth: u64) {
        let mut victim = Peer::start("victim", &[BOTH.env, &[("UCX_HANDLE_ERRORS", "none")]].concat());
        let pair = Pair { backend: BOTH, survivor: Survivor::Server, address: self.address.clone() };
        let (id, at_victim) = pair.connect(&mut self.here, &mut victim);
        victim.say(&format!("perish {at_victim}"));
        self.here.expect_of("ended", &id);
        let deadline = now_us() + BLOCKED.as_micros() as u64;
        while self.here.stat("ucx_blocked_workers") < nth {
            assert!(now_us() < deadline, "the worker is not given up");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Bodies go both ways.
    fn use_it(&mut self, (id, there): &(String, String)) {
        for (peer, id) in [(&mut self.here, id), (&mut self.other, there)] {
            peer.say(&format!("bodies {id} count=20 size=100000"));
            assert_eq!(peer.expect_of("sent", id).get("ok"), "20");
        }
    }

    /// Ends what is left, all of which still lives.
    fn finish(mut self, ids: &[(String, String)]) {
        assert!(!self.here.has_said("ended"), "a connection over tcp has ended: {}", self.here.log());
        for (id, _) in ids {
            self.here.say(&format!("abort {id}"));
            self.here.expect_of("ended", id);
        }
        self.here.check_balance();
        self.here.quit();
    }
}

/// The blocked worker's connections over other transports go on, and its listeners of UCX's connection manager listen again.
fn beside_tcp() -> Outcome {
    let mut mixed = Mixed::new();
    let cm = mixed.here.listen(&format!("ucx+cm://127.0.0.1:0 mode=idle {PATIENT}"));
    let address = mixed.address.clone();
    let before = mixed.connect(TCP, &address);
    mixed.block(1);
    let knocked = mixed.connect(CM, &cm);
    mixed.use_it(&knocked);
    // Longer than it takes until those over shared memory end.
    for _ in 0..4 {
        mixed.use_it(&before);
        std::thread::sleep(Duration::from_millis(800));
    }
    mixed.finish(&[before, knocked]);
    Ok(())
}

/// Sends that wait for a dead peer look like a blocked queue. Others that say nothing by themselves are not ended for that.
fn looks_like_it() -> Outcome {
    const POSIX: &Backend =
        &Backend { name: "ucx-posix", env: &[("UCX_TLS", "posix")], scheme: "ucx", lane: "ucx (posix" };
    let mut here = Peer::start("survivor", POSIX.env);
    let mut silent = Peer::start("silent", POSIX.env);
    let address = silent.listen(&format!("ucx://127.0.0.1:0 mode=idle keepalive=off {PATIENT}"));
    let pair = Pair { backend: POSIX, survivor: Survivor::Client, address: format!("{address} keepalive=off") };
    let (id, there) = pair.connect(&mut here, &mut silent);
    let mut victim = Peer::start("victim", POSIX.env);
    let address = victim.listen(&format!("ucx://127.0.0.1:0 mode=idle {PATIENT}"));
    let pair = Pair { backend: POSIX, survivor: Survivor::Client, address };
    let (victims, _) = pair.connect(&mut here, &mut victim);
    // It does not read, so its queue fills; and as it does not write either, it can't block ours.
    victim.stop();
    here.say(&format!("bodies {victims} count=1000 size=4000"));
    std::thread::sleep(Duration::from_millis(300));
    victim.kill();
    here.expect_of("ended", &victims);
    assert_ne!(here.expect_of("sent", &victims).get("ok"), "1000");
    // Longer than silence is suffered.
    std::thread::sleep(Duration::from_secs(4));
    assert!(!here.has_said("ended"), "a healthy connection was ended: {}", here.log());
    for (peer, id) in [(&mut here, &id), (&mut silent, &there)] {
        peer.say(&format!("bodies {id} count=20 size=100000"));
        assert_eq!(peer.expect_of("sent", id).get("ok"), "20");
    }
    // Else the sends that wait say nothing about it.
    assert_eq!(here.stat("ucx_blocked_workers"), 1);
    here.say(&format!("abort {id}"));
    here.expect_of("ended", &id);
    here.check_balance();
    here.quit();
    silent.check_balance();
    silent.quit();
    Ok(())
}

/// A process whose worker was given up ends in order, with large bodies under way over tcp.
fn ends_under_load() -> Outcome {
    let mut mixed = Mixed::new();
    let (mut loaded, _, there) = mixed.load();
    mixed.block(1);
    std::thread::sleep(Duration::from_millis(300));
    mixed.here.quit();
    let ended = loaded.expect_of("ended", &there);
    assert_eq!(ended.get("pending"), "");
    loaded.check_balance();
    loaded.quit();
    assert!(ended.number("rendezvous") > 0, "no rendezvous: {ended:?}");
    Ok(())
}

/// Workers that were given up don't pile up: one goes when there are too many, and what used it ends, whatever it was doing.
fn many_times() -> Outcome {
    const KEPT: usize = 8;
    let mut mixed = Mixed::new();
    let address = mixed.address.clone();
    let mut connections = Vec::new();
    let (_loaded, first, _) = mixed.load();
    mixed.block(1);
    for nth in 2..=KEPT + 1 {
        connections.push(mixed.connect(TCP, &address));
        mixed.block(nth as u64);
    }
    let ended = mixed.here.expect_of("ended", &first);
    assert_eq!((ended.get("kind"), ended.get("pending")), ("Reset", ""), "{ended:?}");
    assert!(ended.number("rendezvous") > 0, "no rendezvous: {ended:?}");
    for connection in &connections {
        mixed.use_it(connection);
    }
    mixed.finish(&connections);
    Ok(())
}
