//! Many connections: at once, and one after the other, with nothing left behind.

use std::{
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ucrpc::transport::{ConnectionConfig, Dispatcher, ErrorKind, ListenConfig, Listener};

use super::Case;
use crate::{
    bed::{Bed, comes_to_rest},
    tools::{Holdings, Rng, block_for, block_on, check_numbered, numbered, random_bytes},
};

pub const CASES: &[Case] = &[
    Case::all("thousand_at_once", thousand_at_once),
    Case::all("neighbours", neighbours).and_auto(),
    Case::all("mutual", mutual).and_auto(),
    Case::all("cycles", cycles),
    Case::all("aborted_cycles", aborted_cycles),
];

/// As many connections as `name` says, or `usual`.
fn number(name: &str, usual: u32) -> u32 {
    std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
}

/// A thousand connections between two dispatchers, all open, all in use; then everything is gone again.
fn thousand_at_once(bed: &Bed) {
    raise_descriptor_limit();
    // In an emulated guest a thousand queue pairs at once do not get the processor within the 2 s that Soft-RoCE waits for an answer.
    let count = number("UCRPC_CONNECTIONS", if bed.backend.is_verbs() { 200 } else { 1000 });
    let config = ConnectionConfig { connect_timeout: Duration::from_secs(60), ..ConnectionConfig::default() };
    // One connection first: what UCX and the pools make once is no leak.
    let mut listener = bed.listen(ListenConfig { connection: config.clone(), ..ListenConfig::default() });
    drop(bed.pair_on(&mut listener, &config));
    comes_to_rest(&bed.server, 1);
    comes_to_rest(&bed.client, 0);
    let before = Holdings::now();
    // Fifty handshakes at a time: the listener's queues have their own tests.
    let mut pairs = Vec::new();
    while pairs.len() < count as usize {
        let dialled: Vec<_> =
            (0..50).map(|_| bed.client.connect(listener.local_address(), config.clone()).into_connection()).collect();
        let mut waiting: Vec<_> = dialled.iter().map(|_| listener.accept_blocking().unwrap()).collect();
        for client in dialled {
            block_on(client.opened()).unwrap();
            pairs.push((client, waiting.pop().unwrap()));
        }
    }
    // Gauges are published now and then, not with every change.
    let deadline = Instant::now() + Duration::from_secs(20);
    while (bed.server.stats().connections, bed.client.stats().connections) != (count.into(), count.into()) {
        assert!(Instant::now() < deadline, "{:?} {:?}", bed.server.stats(), bed.client.stats());
        thread::sleep(Duration::from_millis(1));
    }
    // Who is connected to whom is told by what arrives.
    for round in 0..3 {
        let body = [0, 2000, 40_000][round as usize];
        for (i, (client, _)) in pairs.iter().enumerate() {
            client.send(numbered(i as u32, round, 8, body)).unwrap();
        }
        let mut seen = vec![false; pairs.len()];
        for (_, server) in &mut pairs {
            let frame = block_for(Duration::from_secs(30), server.recv()).expect("a frame").unwrap();
            let (client, number) = check_numbered(frame);
            assert_eq!((number, std::mem::replace(&mut seen[client as usize], true)), (round, false));
            server.send(numbered(client, 100 + round, 8, body)).unwrap();
        }
        for (i, (client, _)) in pairs.iter_mut().enumerate() {
            let frame = block_for(Duration::from_secs(30), client.recv()).expect("an answer").unwrap();
            assert_eq!(check_numbered(frame), (i as u32, 100 + round));
        }
    }
    let most = Holdings::now();
    let each = most.rss.saturating_sub(before.rss) / u64::from(count);
    assert!(each < 1 << 20, "{each} bytes of memory for each connection");
    for (client, _) in &pairs {
        let closing = client.sender();
        drop(thread::spawn(move || block_on(closing.close())).join().unwrap());
    }
    drop(pairs);
    drop(listener);
    bed.rest();
    let expected = Holdings { descriptors: before.descriptors - usize::from(has_socket(bed)), ..before };
    let after = settle(expected);
    assert!(after.descriptors <= expected.descriptors && after.threads == before.threads, "{after:?} after {before:?}");
}

/// The listener's own descriptor is in the count before, and not after.
fn has_socket(bed: &Bed) -> bool {
    bed.backend.is_stream() || bed.backend.is_ucx()
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("the hard limit is allowed");
}

/// Threads and descriptors go a moment after the counters do.
fn settle(target: Holdings) -> Holdings {
    for _ in 0..200 {
        let now = Holdings::now();
        if now.threads <= target.threads && now.descriptors <= target.descriptors {
            return now;
        }
        thread::sleep(Duration::from_millis(10));
    }
    Holdings::now()
}

/// Growth of resident memory per cycle that is no leak of ours: the allocator's and UCX's own, bytes.
const RSS_PER_CYCLE: u64 = 1024;
/// A queue pair's share of a process's memory, bytes; 263 kB are usual.
const RSS_PER_QUEUE_PAIR: u64 = 280 << 10;

/// Queue pairs of `rxe0`, whoever has them; none without the device.
fn queue_pairs(bed: &Bed) -> u64 {
    if !bed.backend.is_verbs() {
        return 0;
    }
    let output = std::process::Command::new("rdma").args(["resource", "show"]).output().expect("this runs in a guest");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("rxe0")).unwrap_or_else(|| panic!("no rxe0 in {text}"));
    let number = line.split_whitespace().skip_while(|word| *word != "qp").nth(1);
    number.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no queue pairs in {line}"))
}

/// UCX destroys a queue pair of RC when the device says that its last receive is done, which Soft-RoCE does not, and else with its
/// worker: here, when the dispatchers end.
fn queue_pairs_go(bed: &Bed) {
    if bed.backend.is_verbs() {
        bed.client.shutdown();
        bed.server.shutdown();
        // The device has one of its own.
        assert!(queue_pairs(bed) <= 1, "{} queue pairs are left", queue_pairs(bed));
    }
}

fn run_cycles(bed: &Bed, count: u32, cycle: impl Fn(&mut ucrpc::transport::Listener, u32)) {
    raise_descriptor_limit();
    let mut listener = bed.listen_as(&ConnectionConfig::default());
    // Caches fill in the first cycles.
    let warm = (count / 4).min(300);
    for i in 0..warm {
        cycle(&mut listener, i);
    }
    let rest = || {
        comes_to_rest(&bed.server, 1);
        comes_to_rest(&bed.client, 0);
    };
    rest();
    let (before, pairs_before) = (Holdings::now(), queue_pairs(bed));
    for i in 0..count {
        cycle(&mut listener, i);
    }
    rest();
    let pairs = queue_pairs(bed).saturating_sub(pairs_before);
    assert!(pairs <= 2 * u64::from(count), "{pairs} queue pairs more after {count} cycles");
    let after = settle(before);
    let none_more = after.descriptors <= before.descriptors && after.threads <= before.threads;
    assert!(none_more, "{after:?} after {count} cycles, {before:?} before");
    let grown = after.rss.saturating_sub(before.rss);
    let allowed = (8 << 20) + u64::from(count) * RSS_PER_CYCLE + pairs * RSS_PER_QUEUE_PAIR;
    assert!(grown <= allowed, "{grown} bytes of memory more after {count} cycles, {allowed} allowed");
    eprintln!("{}: {count} cycles, {grown} bytes more, {pairs} queue pairs", bed.backend.name);
    drop(listener);
    queue_pairs_go(bed);
}

/// Connect, use, close; everything is back where it was.
fn cycles(bed: &Bed) {
    let usual = if bed.backend.is_ucx() { 400 } else { 2000 };
    let body = random_bytes(1, 50_000);
    run_cycles(bed, number("UCRPC_CYCLES", usual), |listener, i| {
        let (client, mut server) = bed.pair_on(listener, &ConnectionConfig::default());
        client.send(ucrpc::transport::Frame::new(i.to_le_bytes().to_vec(), body.clone())).unwrap();
        let frame = server.recv_blocking().unwrap();
        assert_eq!((frame.head, frame.body.len()), (Bytes::from(i.to_le_bytes().to_vec()), 50_000));
        if i % 2 == 0 {
            block_on(client.close()).unwrap();
            assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
        } else {
            drop(server);
            block_on(client.closed());
        }
    });
}

/// The same with ends that are not orderly.
fn aborted_cycles(bed: &Bed) {
    run_cycles(bed, number("UCRPC_CYCLES", 200), |listener, i| {
        let (client, server) = bed.pair_on(listener, &ConnectionConfig::default());
        for number in 0..5 {
            client.send(numbered(0, number, 8, 40_000)).unwrap();
            server.send(numbered(1, number, 8, 40_000)).unwrap();
        }
        if i % 2 == 0 {
            client.abort()
        } else {
            server.abort()
        }
        block_on(client.closed());
        block_on(server.closed());
    });
}

/// Connections that were opened at the same time have nothing to do with each other: the end of some leaves the others.
fn neighbours(bed: &Bed) {
    let config = ConnectionConfig::default();
    let mut listener = bed.listen_as(&config);
    for round in 0..4_u32 {
        let dialled: Vec<_> =
            (0..20).map(|_| bed.client.connect(listener.local_address(), config.clone()).into_connection()).collect();
        let mut pairs = Vec::new();
        for (i, client) in dialled.into_iter().enumerate() {
            client.send(numbered(i as u32, round, 8, 0)).unwrap();
            pairs.push((client, None));
        }
        for _ in 0..pairs.len() {
            let mut server = listener.accept_blocking().unwrap();
            let (i, _) = check_numbered(server.recv_blocking().unwrap());
            pairs[i as usize].1 = Some(server);
        }
        // Large bodies first, so that each side knows all of the other that it ever will.
        for (i, (client, server)) in pairs.iter_mut().enumerate() {
            let server = server.as_mut().unwrap();
            client.send(numbered(i as u32, 1000, 8, 400_000)).unwrap();
            assert_eq!(check_numbered(server.recv_blocking().unwrap()), (i as u32, 1000));
            server.send(numbered(i as u32, 2000, 8, 400_000)).unwrap();
            assert_eq!(check_numbered(client.recv_blocking().unwrap()), (i as u32, 2000));
        }
        let survivors = pairs.split_off(10);
        for (i, (client, server)) in pairs.into_iter().enumerate() {
            match i % 3 {
                0 => client.abort(),
                1 => server.as_ref().unwrap().abort(),
                _ => block_on(client.close()).unwrap(),
            }
        }
        // Longer than UCX and we take to look after a peer.
        thread::sleep(Duration::from_millis(1500));
        for (i, (mut client, server)) in survivors.into_iter().enumerate() {
            let (i, mut server) = (i as u32 + 10, server.unwrap());
            client.send(numbered(i, 1, 8, 400_000)).unwrap();
            assert_eq!(check_numbered(server.recv_blocking().unwrap()), (i, 1));
            server.send(numbered(i, 2, 8, 400_000)).unwrap();
            assert_eq!(check_numbered(client.recv_blocking().unwrap()), (i, 2));
        }
    }
}

/// Both sides dial each other at once, give some of it up, and close some: whose connection is whose stays clear.
fn mutual(bed: &Bed) {
    let config = ConnectionConfig::default();
    let mut to_server = bed.listen_as(&config);
    let mut to_client = bed.client.listen(&bed.backend.address(), ListenConfig::default()).unwrap();
    let mut rng = Rng::new(11);
    for round in 0..15_u32 {
        let dial =
            |from: &Dispatcher, to: &Listener| from.connect(to.local_address(), config.clone()).into_connection();
        let (mut there, mut back) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            there.push(dial(&bed.client, &to_server));
            back.push(dial(&bed.server, &to_client));
            if rng.below(3) == 0 {
                drop(dial(&bed.client, &to_server));
            }
            if rng.below(3) == 0 {
                drop(dial(&bed.server, &to_client));
            }
        }
        for (dialled, listener) in [(there, &mut to_server), (back, &mut to_client)] {
            for (i, client) in dialled.iter().enumerate() {
                client.send(numbered(i as u32, round, 8, 0)).unwrap();
            }
            let mut answered = 0;
            let mut accepted = Vec::new();
            while answered < dialled.len() {
                let mut server = block_for(Duration::from_secs(10), listener.accept()).expect("open").unwrap();
                // Those that were given up say nothing.
                if let Ok(frame) = server.recv_blocking() {
                    let (i, _) = check_numbered(frame);
                    accepted.push((i as usize, server));
                    answered += 1;
                }
            }
            let mut dialled: Vec<_> = dialled.into_iter().map(Some).collect();
            for (n, (i, mut server)) in accepted.into_iter().enumerate() {
                let mut client = dialled[i].take().unwrap();
                bed.backend.check(&client);
                client.send(numbered(1, 1, 8, 400_000)).unwrap();
                assert_eq!(check_numbered(server.recv_blocking().unwrap()), (1, 1));
                server.send(numbered(2, 2, 8, 400_000)).unwrap();
                assert_eq!(check_numbered(client.recv_blocking().unwrap()), (2, 2));
                if n % 2 == 0 { client.abort() } else { server.abort() }
            }
        }
    }
}
