//! Real UCX. It reads its settings when it is loaded, so every scenario runs in a process of its own, once per transport.

mod closing;
mod cm;
mod curve;
mod death;
mod latency;
mod lost;
mod scenarios;
mod wireup;

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::BytesMut;

use super::{worker::Counters, *};
use crate::{error::Error, frame::RecvBuf};

const SCENARIO: &str = "UCRPC_TEST_UCX_SCENARIO";
const PASSED: &str = "scenario passed:";
/// One scenario, with two cores shared by other work.
const PATIENCE: Duration = Duration::from_secs(120);

/// The process that a scenario runs in.
#[test]
#[ignore = "needs UCRPC_TEST_UCX_SCENARIO: the other tests start it, in processes with UCX settings of their own"]
fn child() {
    let name = std::env::var(SCENARIO).expect("only the other tests start this");
    match name.as_str() {
        "sizes" => scenarios::sizes(),
        "refuse" => scenarios::refuse(),
        "stale" => scenarios::stale_and_invalid(),
        "force_close" => scenarios::force_close(),
        "held" => scenarios::held_descriptors(),
        "parked" => scenarios::parked(),
        "cycles" => scenarios::cycles(),
        "wake" => scenarios::wake(),
        "self" => scenarios::self_connection(),
        "garbage" => scenarios::garbage_addresses(),
        "abrupt" => scenarios::abrupt(),
        "busy_close" => closing::both_give_up(),
        "unread" => closing::a_peer_that_does_not_read(),
        "limited" => closing::time_limit(),
        "unproven" => wireup::unproven(),
        "crowded" => wireup::crowded(),
        "killed" => death::killed_peer(),
        "latency" => latency::ping(),
        "overhead" => latency::overhead(),
        "echo" => latency::echo(),
        "victim" => death::victim(),
        "cm" => cm::accept_and_talk(),
        "cm_reject" => cm::reject(),
        "rejecter" => cm::rejecter(),
        "cm_cycles" => cm::cycles(),
        "rally" => lost::rally_of_two(),
        "curve_accepting" => curve::accepting(),
        "curve_dialling" => curve::dialling(),
        other => panic!("no scenario {other}"),
    }
    println!("{PASSED} {name}");
}

fn command(scenario: &str, tls: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test binary"));
    command
        .args(["--exact", "ucx::tests::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(SCENARIO, scenario)
        .env("UCX_TLS", tls)
        .env("UCX_KEEPALIVE_INTERVAL", "200ms");
    command
}

fn run(scenario: &str, tls: &str) -> String {
    let mut child =
        command(scenario, tls).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the child starts");
    let out = collect(child.stdout.take().expect("piped"));
    let err = collect(child.stderr.take().expect("piped"));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
            break Some(status);
        }
        if started.elapsed() > PATIENCE {
            child.kill().expect("our child");
            child.wait().expect("our child");
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (out, err) = (out.join().expect("reads"), err.join().expect("reads"));
    let passed = status.is_some_and(|status| status.success()) && out.contains(&format!("{PASSED} {scenario}"));
    assert!(passed, "{scenario} over {tls}: {status:?}\n--- stdout\n{out}\n--- stderr\n{err}");
    // UCX reports what was not returned to it.
    for complaint in ["not returned to mpool", "leak", "Assertion", "was not released"] {
        let found = err.lines().chain(out.lines()).find(|line| line.contains("UCX") && line.contains(complaint));
        assert!(found.is_none(), "{scenario} over {tls}: {found:?}");
    }
    out
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        from.read_to_end(&mut text).expect("a pipe");
        String::from_utf8_lossy(&text).into_owned()
    })
}

macro_rules! over {
    ($($name:ident: $scenario:literal over $($tls:literal),+;)*) => {
        $(#[test]
        fn $name() {
            for tls in [$($tls),+] {
                run($scenario, tls);
            }
        })*
    };
}

over! {
    every_size_arrives_intact: "sizes" over "tcp", "posix", "sysv", "all";
    refused_payloads_complete_the_sender: "refuse" over "tcp", "posix", "all";
    misuse_is_answered: "stale" over "tcp", "all";
    a_forced_close_ends_every_operation_once: "force_close" over "tcp", "posix", "sysv", "all";
    held_messages_come_back_from_any_thread: "held" over "tcp", "posix", "sysv";
    a_worker_whose_memory_is_held_is_parked: "parked" over "posix";
    a_thousand_cycles_leave_nothing: "cycles" over "tcp", "posix", "all";
    sleeping_workers_are_woken: "wake" over "tcp", "posix", "sysv", "all";
    a_worker_can_talk_to_itself: "self" over "tcp", "posix", "sysv", "all";
    garbage_addresses_are_refused: "garbage" over "tcp", "posix", "all";
    endpoints_can_be_closed_at_any_time: "abrupt" over "tcp", "posix", "sysv", "all";
    both_sides_may_close_with_data_under_way: "busy_close" over "tcp", "posix", "sysv", "all";
    a_peer_that_does_not_read_is_given_up: "unread" over "tcp";
    sockets_get_a_time_limit: "limited" over "tcp";
    endpoints_can_be_closed_before_their_proof: "unproven" over "tcp", "posix", "sysv", "all";
    a_worker_is_not_used_with_too_many_endpoints_to_close: "crowded" over "tcp";
    a_killed_peer_fails_everything_once: "killed" over "tcp", "posix", "sysv", "all";
    connection_requests_are_accepted: "cm" over "tcp", "all";
    connection_requests_are_rejected: "cm_reject" over "tcp", "all";
    connections_come_and_go: "cm_cycles" over "tcp", "all";
    curves_clients_are_served: "curve_accepting" over "tcp", "all";
    curves_servers_are_dialled: "curve_dialling" over "tcp", "all";
}

/// Bytes that tell a missing, doubled or shifted part.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn target(len: usize) -> RecvBuf {
    RecvBuf::Bytes(BytesMut::zeroed(len))
}

/// Workers that are driven together on this thread.
struct Group {
    workers: Vec<Worker>,
}

/// Two workers with an endpoint to each other.
struct Pair {
    group: Group,
    ab: EndpointId,
    ba: EndpointId,
}

impl Group {
    fn of(count: usize) -> Self {
        Self { workers: (0..count).map(|_| Worker::new().expect("this test needs UCX")).collect() }
    }

    /// Progresses all until `done` is satisfied with an event; `index` says whose event it is.
    fn until<T>(&mut self, what: &str, mut done: impl FnMut(usize, Event) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            for (index, worker) in self.workers.iter_mut().enumerate() {
                worker.progress();
                while let Some(event) = worker.poll_event() {
                    if let Some(found) = done(index, event) {
                        return found;
                    }
                }
            }
        }
        let counters: Vec<_> = self.workers.iter().map(Worker::inflight).collect();
        panic!("timed out: {what}; {counters:?}");
    }

    fn spin(&mut self, turns: usize) {
        for _ in 0..turns {
            self.workers.iter_mut().for_each(|worker| {
                worker.progress();
            });
        }
    }

    fn message(&mut self, at: usize) -> (Vec<u8>, bytes::Bytes) {
        self.until("a message", |index, event| match event {
            Event::Message { header, data, .. } if index == at => Some((header.to_vec(), data)),
            Event::SendDone { result, .. } => {
                result.expect("sending works");
                None
            }
            other => panic!("unexpected at {index}: {other:?}"),
        })
    }

    fn announcement(&mut self, at: usize) -> (Vec<u8>, Rendezvous) {
        self.until("an announcement", |index, event| match event {
            Event::Announced { header, rndv, .. } if index == at => Some((header.to_vec(), rndv)),
            other => panic!("unexpected at {index}: {other:?}"),
        })
    }

    fn send_done(&mut self, at: usize, wanted: u64) -> Result<(), Error> {
        self.until("the end of a send", |index, event| match event {
            Event::SendDone { token, result } if index == at && token == wanted => Some(result),
            other => panic!("unexpected at {index}: {other:?}"),
        })
    }

    /// Ends all workers; nothing may be left of any.
    fn end(self) {
        for worker in self.workers {
            assert!(worker.shutdown(Instant::now() + Duration::from_secs(5)), "a worker was parked");
        }
    }
}

impl Pair {
    fn new() -> Self {
        let mut group = Group::of(2);
        let addresses: Vec<Vec<u8>> = group.workers.iter().map(|worker| worker.address().to_vec()).collect();
        let ab = group.workers[0].connect(&addresses[1]).expect("b is reachable");
        let ba = group.workers[1].connect(&addresses[0]).expect("a is reachable");
        Self { group, ab, ba }
    }

    /// One message each way.
    fn proven() -> Self {
        let mut pair = Self::new();
        let _ = pair.group.workers[0].send_copy(pair.ab, b"ping", [b"", b""], 1).expect("sends");
        assert_eq!(pair.group.message(1).0, b"ping");
        let _ = pair.group.workers[1].send_copy(pair.ba, b"pong", [b"", b""], 2).expect("sends");
        assert_eq!(pair.group.message(0).0, b"pong");
        pair
    }

    fn end(mut self) {
        self.group.workers[0].close(self.ab);
        self.group.workers[1].close(self.ba);
        // Together: a close may wait for connecting, and that for the other side.
        self.group.until_all_zero();
        self.group.end();
    }
}

/// Counts how often each token ended.
#[derive(Default)]
struct Ends {
    ended: HashMap<u64, u32>,
    failed: usize,
}

impl Ends {
    fn note(&mut self, token: u64, failed: bool) {
        *self.ended.entry(token).or_default() += 1;
        self.failed += usize::from(failed);
    }

    fn assert_exactly(&self, tokens: &[u64]) {
        let mut ended: Vec<_> = self.ended.iter().map(|(token, count)| (*token, *count)).collect();
        ended.sort_unstable();
        let mut wanted: Vec<_> = tokens.iter().map(|token| (*token, 1)).collect();
        wanted.sort_unstable();
        assert_eq!(ended, wanted);
    }
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

/// A process of ours that talks over its pipes.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(scenario: &str) -> Self {
        let tls = std::env::var("UCX_TLS").expect("set for scenarios");
        let mut child =
            command(scenario, &tls).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the peer starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the peer listens");
    }

    /// The rest of the next line that starts with `key`.
    fn hear(&mut self, key: &str) -> String {
        let mut line = String::new();
        while self.output.read_line(&mut line).expect("text") > 0 {
            // The test harness prints before us on the same line.
            if let Some((_, rest)) = line.split_once(key) {
                return rest.trim().to_owned();
            }
            line.clear();
        }
        panic!("the peer ended without saying {key}");
    }

    fn kill(mut self) {
        self.child.kill().expect("our child");
        // Reaped: UCX takes a zombie on shared memory for alive.
        self.child.wait().expect("our child");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex")).collect()
}
