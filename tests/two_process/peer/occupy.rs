//! What a peer does with an open connection until it ends, and the proof that every operation ended with it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender as Tell, channel},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use ucrpc::transport::{Body, Connection, Error, Frame, Result, SendError, Sender, Sent};

use super::{messages, report};
use crate::{block_on::block_on, process::now_us};

/// How long operations that are pending when the connection ends may take to end as well.
const PENDING: Duration = Duration::from_secs(2);
/// The same in a guest without KVM, where a thread on a busy host takes a second to make a frame of a megabyte. The last operation
/// has ended up to 0.2 s after the connection, over RC and UD alike.
const PENDING_IN_A_GUEST: Duration = Duration::from_secs(5);

/// Operations begun and ended.
#[derive(Default)]
struct Tally {
    sends: AtomicU64,
    sends_ok: AtomicU64,
    sends_failed: AtomicU64,
    fetches: AtomicU64,
    fetches_ok: AtomicU64,
    fetches_failed: AtomicU64,
    received: AtomicU64,
    /// Operations of other kinds that are under way, by name.
    pending: Mutex<BTreeMap<&'static str, i64>>,
    latest: AtomicU64,
    stop: AtomicBool,
}

impl Tally {
    /// Counts an operation while it runs.
    fn during<T>(&self, name: &'static str, operation: impl FnOnce() -> T) -> T {
        self.add(name, 1);
        let value = operation();
        self.add(name, -1);
        value
    }

    fn add(&self, name: &'static str, n: i64) {
        *self.pending.lock().expect("not poisoned").entry(name).or_default() += n;
        self.latest.fetch_max(now_us(), Ordering::Relaxed);
    }

    /// What has not ended; empty if all has.
    fn left(&self) -> String {
        let get = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        let sends = get(&self.sends) - get(&self.sends_ok) - get(&self.sends_failed);
        let fetches = get(&self.fetches) - get(&self.fetches_ok) - get(&self.fetches_failed);
        let mut left = Vec::new();
        left.extend((sends > 0).then(|| format!("{sends} sends")));
        left.extend((fetches > 0).then(|| format!("{fetches} fetches")));
        let pending = self.pending.lock().expect("not poisoned");
        left.extend(pending.iter().filter(|(_, n)| **n != 0).map(|(name, n)| format!("{n} {name}")));
        left.join(", ")
    }
}

/// Uses a connection until it ends, and reports how that went.
pub(super) fn run(id: u64, connection: Connection, mode: &str, forget: impl FnOnce()) {
    let tally = Arc::new(Tally::default());
    let sender = connection.sender();
    // One operation of each kind that may be pending on any connection.
    let (end_at, ended) = channel();
    spawn(&tally, "closed", {
        let sender = sender.clone();
        move |_| drop(end_at.send((block_on(sender.closed()), now_us())))
    });
    match mode {
        "echo" => spawn(&tally, "recv", move |tally| echo(connection, tally)),
        "load" => load(connection, &tally),
        "ping" => ping(id, connection, &tally),
        "flood" => flood(connection, &tally),
        "sizes" => check(&tally, connection, move |connection| messages::sizes(id, connection)),
        "deliver" => check(&tally, connection, move |connection| messages::deliver(id, connection)),
        "collect" => check(&tally, connection, move |connection| messages::collect(id, connection)),
        // Nobody reads, but the connection stays until it ends.
        "deaf" => spawn(&tally, "deaf", {
            let sender = sender.clone();
            move |_| {
                block_on(sender.closed());
                drop(connection);
            }
        }),
        "idle" => spawn(&tally, "recv", move |tally| receive(connection, tally, false)),
        other => panic!("unknown mode {other:?}"),
    }
    let (end, at): (Error, u64) = ended.recv().expect("the thread sends before it ends");
    tally.stop.store(true, Ordering::Release);
    forget();
    let deadline = Instant::now() + if super::in_a_guest() { PENDING_IN_A_GUEST } else { PENDING };
    while !tally.left().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let stats = sender.stats();
    let counts = format!(
        "sent {} + {} failed, fetched {} + {} failed, received {}, rendezvous {} out {} in",
        tally.sends_ok.load(Ordering::Acquire),
        tally.sends_failed.load(Ordering::Acquire),
        tally.fetches_ok.load(Ordering::Acquire),
        tally.fetches_failed.load(Ordering::Acquire),
        tally.received.load(Ordering::Acquire),
        stats.rendezvous_sent,
        stats.rendezvous_received,
    );
    drop(sender);
    report(
        "ended",
        &[
            ("id", &id),
            ("kind", &format!("{:?}", end.kind())),
            ("at", &at),
            ("lost", &super::late::before(at)),
            ("latest", &tally.latest.load(Ordering::Acquire)),
            ("pending", &tally.left()),
            ("rendezvous", &(stats.rendezvous_sent + stats.rendezvous_received)),
            ("frames", &(stats.frames_sent + stats.frames_received)),
            ("counts", &counts),
            ("text", &end),
        ],
    );
}

fn spawn(tally: &Arc<Tally>, name: &'static str, work: impl FnOnce(&Tally) + Send + 'static) {
    let tally = tally.clone();
    tally.add(name, 1);
    std::thread::spawn(move || {
        work(&tally);
        tally.add(name, -1);
    });
}

fn check(tally: &Arc<Tally>, mut connection: Connection, work: impl FnOnce(&mut Connection) + Send + 'static) {
    spawn(tally, "check", move |_| work(&mut connection));
}

fn echo(mut connection: Connection, tally: &Tally) {
    while let Ok(frame) = connection.recv_blocking() {
        tally.received.fetch_add(1, Ordering::AcqRel);
        if block_on(connection.send_wait(frame)).is_err() {
            break;
        }
    }
    // The rest of what had arrived.
    while connection.recv_blocking().is_ok() {}
}

/// Receives, and fetches the bodies that the plan left for later.
fn receive(mut connection: Connection, tally: &Tally, fetch: bool) {
    while let Ok(frame) = connection.recv_blocking() {
        tally.received.fetch_add(1, Ordering::AcqRel);
        let Body::Pending(body) = frame.body else { continue };
        if !fetch {
            continue;
        }
        tally.fetches.fetch_add(1, Ordering::AcqRel);
        let counter = match block_on(body.fetch_pooled()) {
            Ok(_) => &tally.fetches_ok,
            Err(_) => &tally.fetches_failed,
        };
        counter.fetch_add(1, Ordering::AcqRel);
    }
}

/// Echoes small and large frames through the peer, checks them, and says how many came back.
fn ping(id: u64, mut connection: Connection, tally: &Arc<Tally>) {
    spawn(tally, "ping", move |_| {
        let mut said = Instant::now();
        for n in 0_u64.. {
            let head = Bytes::from(n.to_le_bytes().to_vec());
            let body = Bytes::from(vec![n as u8; [0, 100, 40_000, 300_000][n as usize % 4]]);
            let sent = block_on(connection.send_wait(Frame::new(head.clone(), body.clone())));
            let Ok(frame) = sent.and_then(|()| connection.recv_blocking()) else { return };
            assert_eq!((frame.head, frame.body.into_bytes().expect("a body")), (head, body), "another frame came back");
            if n == 0 || said.elapsed() > Duration::from_millis(100) {
                said = Instant::now();
                report("echoed", &[("id", &id), ("count", &(n + 1)), ("at", &now_us())]);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// The bodies of a loaded connection: eager and rendezvous on every backend, some fetched later by the application.
const BODIES: [usize; 6] = [0, 100, 5_000, 40_001, 300_006, 1_000_010];

/// Both directions as fast as they go: tracked sends, waiting for room, fetches.
fn load(connection: Connection, tally: &Arc<Tally>) {
    let sender = connection.sender();
    spawn(tally, "recv", move |tally| receive(connection, tally, true));
    let (tell, hear) = channel();
    spawn(tally, "send", move |tally| drop(stream(&sender, tally, &tell)));
    spawn(tally, "sent", move |tally| settle(&hear, tally));
}

/// Waits for every tracked send to end.
fn settle(hear: &Receiver<Sent>, tally: &Tally) {
    for sent in hear {
        let counter = if block_on(sent).is_ok() { &tally.sends_ok } else { &tally.sends_failed };
        counter.fetch_add(1, Ordering::AcqRel);
    }
}

fn stream(sender: &Sender, tally: &Tally, tell: &Tell<Sent>) -> Result<()> {
    for n in 0_usize.. {
        let mut frame = Frame::new(vec![n as u8; 24], vec![n as u8; BODIES[n % BODIES.len()]]);
        loop {
            match sender.send_tracked(frame) {
                Ok(sent) => {
                    tally.sends.fetch_add(1, Ordering::AcqRel);
                    let _ = tell.send(sent);
                    break;
                }
                Err(SendError::Full(back)) => frame = back,
                Err(SendError::Closed(_, error) | SendError::TooLarge(_, error) | SendError::Invalid(_, error)) => {
                    return Err(error);
                }
            }
            tally.during("ready", || block_on(sender.ready()))?;
        }
        if tally.stop.load(Ordering::Acquire) {
            break;
        }
    }
    Ok(())
}

/// Sends one frame that is larger than the other side allows, as if the agreed limit were higher.
fn flood(connection: Connection, tally: &Arc<Tally>) {
    let sender = connection.sender();
    spawn(tally, "recv", move |tally| receive(connection, tally, false));
    spawn(tally, "send", move |_| {
        let size = sender.info().map_or(0, |info| info.max_message.min(200 << 20));
        let body = Bytes::from(vec![7; size as usize - 64]);
        let _ = block_on(sender.send_wait(Frame::new(Bytes::new(), body)));
    });
}
