//! `kill -9` and SIGSTOP of a peer: the survivor learns of it, everything pending ends, and reconnecting works.

use libtest_mimic::Trial;

use crate::{
    Outcome,
    process::{Env, Peer, now_us},
    table,
};

/// Connecting is not what these tests are about: a busy machine may take its time.
pub(crate) const PATIENT: &str = "connect_timeout_ms=15000 prove_timeout_ms=14000";

/// A backend between two processes.
#[derive(Clone, Copy)]
pub(crate) struct Backend {
    pub(crate) name: &'static str,
    pub(crate) env: Env<'static>,
    pub(crate) scheme: &'static str,
    pub(crate) lane: &'static str,
}

pub(crate) const BACKENDS: &[Backend] = &[
    Backend { name: "tcp", env: &[("UCRPC_UCX_LIBRARY", "none")], scheme: "tcp", lane: "tcp" },
    Backend { name: "unix", env: &[("UCRPC_UCX_LIBRARY", "none")], scheme: "unix", lane: "unix" },
    Backend { name: "ucx-tcp", env: &[("UCX_TLS", "tcp")], scheme: "ucx", lane: "ucx (tcp" },
    Backend { name: "ucx-posix", env: &[("UCX_TLS", "posix")], scheme: "ucx", lane: "ucx (posix" },
    Backend { name: "ucx-sysv", env: &[("UCX_TLS", "sysv")], scheme: "ucx", lane: "ucx (sysv" },
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Client,
    Server,
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for backend in BACKENDS {
        for (victim, who) in [(Victim::Client, "client"), (Victim::Server, "server")] {
            for mode in ["idle", "load"] {
                let name = format!("{who}-{mode}/{}", backend.name);
                trials.push(crate::retry::trial(format!("kill/{name}"), move || kill(backend, victim, mode)));
                trials.push(crate::retry::trial(format!("stop/{name}"), move || stop(backend, victim, mode)));
            }
        }
        trials.push(crate::retry::trial(format!("stop/close-under-way/{}", backend.name), move || {
            close_under_way(backend)
        }));
        trials.push(crate::retry::trial(format!("stop/briefly/{}", backend.name), move || stop_briefly(backend)));
        trials.push(crate::retry::trial(format!("stop/before-the-hello/{}", backend.name), move || {
            stopped_listener(backend)
        }));
    }
    trials
}

/// Two peers with one open connection.
struct Pair {
    backend: &'static Backend,
    mode: &'static str,
    address: String,
    server: Peer,
    client: Peer,
    client_id: String,
    server_id: String,
}

impl Pair {
    fn new(backend: &'static Backend, mode: &'static str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let address = match backend.scheme {
            "unix" => {
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                format!("unix:///tmp/ucrpc-death-{}-{number}.sock", std::process::id())
            }
            scheme => format!("{scheme}://127.0.0.1:0"),
        };
        let mut server = Peer::start("server", backend.env);
        let address = server.listen(&format!("{address} mode={mode} {PATIENT}"));
        let client = Peer::start("client", backend.env);
        let (client_id, server_id) = (String::new(), String::new());
        let mut pair = Self { backend, mode, address, server, client, client_id, server_id };
        pair.connect();
        pair
    }

    /// Opens the connection, again and again the same way.
    fn connect(&mut self) {
        let opened = self.client.connect(&format!("{} mode={} {PATIENT}", self.address, self.mode));
        let accepted = self.server.expect("accepted");
        for line in [&opened, &accepted] {
            assert!(line.get("transport").starts_with(self.backend.lane), "{line:?}");
        }
        (self.client_id, self.server_id) = (opened.get("id").to_owned(), accepted.get("id").to_owned());
        if self.mode == "load" {
            // The load has started everywhere when the queues are full; that takes a moment.
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
    }

    /// The survivor reports the end of its connection, in time and with nothing left.
    fn check_survivor(&mut self, victim: Victim, failure: &str, since: u64) {
        let (peer, id) = match victim {
            Victim::Client => (&mut self.server, &self.server_id),
            Victim::Server => (&mut self.client, &self.client_id),
        };
        let ended = peer.expect_of("ended", id);
        table::check(&format!("{failure}, {}", self.mode), self.backend.name, since, &ended);
        assert!(["Reset", "TimedOut"].contains(&ended.get("kind")), "{ended:?}");
        assert_eq!(ended.get("pending"), "", "operations did not end: {ended:?}");
        if self.mode == "load" {
            assert!(ended.number("frames") > 0, "no load: {ended:?}");
            if self.backend.scheme == "ucx" {
                assert!(ended.number("rendezvous") > 0, "no rendezvous: {ended:?}");
            }
        }
        peer.check_balance();
    }

    /// Replaces the dead one and connects again.
    fn revive(&mut self, victim: Victim) {
        match victim {
            Victim::Client => self.client = Peer::start("client", self.backend.env),
            Victim::Server => {
                self.server = Peer::start("server", self.backend.env);
                let again = self.server.listen(&format!("{} mode={} {PATIENT}", self.address, self.mode));
                assert_eq!(again, self.address, "the same port");
            }
        }
        self.connect();
    }

    /// An orderly end.
    fn finish(mut self) {
        let (client, server) = (&mut self.client, &mut self.server);
        client.say(&format!("abort {}", self.client_id));
        for (peer, id) in [(client, &self.client_id), (server, &self.server_id)] {
            let ended = peer.expect_of("ended", id);
            assert_eq!(ended.get("pending"), "", "{ended:?}");
            peer.check_balance();
        }
        self.client.quit();
        self.server.quit();
    }
}

fn kill(backend: &'static Backend, victim: Victim, mode: &'static str) -> Outcome {
    let mut pair = Pair::new(backend, mode);
    for _ in 0..3 {
        let since = match victim {
            Victim::Client => pair.client.kill(),
            Victim::Server => pair.server.kill(),
        };
        pair.check_survivor(victim, "kill -9", since);
        pair.revive(victim);
    }
    pair.finish();
    Ok(())
}

fn stop(backend: &'static Backend, victim: Victim, mode: &'static str) -> Outcome {
    let mut pair = Pair::new(backend, mode);
    let stopped = if victim == Victim::Client { &pair.client } else { &pair.server };
    let since = stopped.stop();
    pair.check_survivor(victim, "SIGSTOP", since);
    // The one that was stopped goes on and learns that it was given up.
    let (peer, id) = match victim {
        Victim::Client => (&mut pair.client, &pair.client_id),
        Victim::Server => (&mut pair.server, &pair.server_id),
    };
    let since = peer.go_on();
    let ended = peer.expect_of("ended", id);
    table::check_continued(&format!("SIGCONT after being given up, {mode}"), backend.name, since, &ended);
    assert_eq!(ended.get("pending"), "", "{ended:?}");
    peer.check_balance();
    pair.connect();
    pair.finish();
    Ok(())
}

/// A close that waits for a stopped peer ends as well.
fn close_under_way(backend: &'static Backend) -> Outcome {
    let mut pair = Pair::new(backend, "load");
    let since = pair.server.stop();
    pair.client.say(&format!("close {}", pair.client_id));
    let closed = pair.client.expect_of("closed", &pair.client_id);
    assert_eq!(closed.get("ok"), "false", "frames were lost, and the close must say so: {closed:?}");
    assert!(["Reset", "TimedOut"].contains(&closed.get("kind")), "{closed:?}");
    pair.check_survivor(Victim::Server, "SIGSTOP while closing", since);
    Ok(())
}

/// A stop that is shorter than the keepalive's deadline costs nothing.
fn stop_briefly(backend: &'static Backend) -> Outcome {
    let mut pair = Pair::new(backend, "load");
    for _ in 0..2 {
        pair.server.stop();
        std::thread::sleep(std::time::Duration::from_millis(1200));
        pair.server.go_on();
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert!(!pair.client.has_said("ended"), "a peer that hesitated was given up:\n{}", pair.client.log());
        assert!(!pair.server.has_said("ended"), "{}", pair.server.log());
    }
    pair.finish();
    Ok(())
}

/// The kernel completes connections to a stopped server; the hello is never answered.
fn stopped_listener(backend: &'static Backend) -> Outcome {
    let mut pair = Pair::new(backend, "idle");
    let Pair { server, client, address, .. } = &mut pair;
    server.stop();
    let start = now_us();
    let line = client.ask(&format!("connect {address} connect_timeout_ms=800"), "connected");
    assert_eq!((line.get("ok"), line.get("kind")), ("false", "TimedOut"), "{line:?}");
    let took = line.number("at") - start;
    assert!((800_000..2_000_000).contains(&took), "{line:?}");
    server.go_on();
    client.connect(address);
    Ok(())
}
