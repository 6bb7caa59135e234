use std::{collections::VecDeque, sync::mpsc, thread};

use bytes::Bytes;

use super::*;
use crate::{
    error::ErrorKind,
    memory::{AlignedBuf, Pool, PoolConfig, Purpose},
};

const SIZES: [usize; 25] = [
    0,
    1,
    8,
    63,
    64,
    91,
    92,
    93,
    1000,
    2047,
    2048,
    2049,
    4095,
    4096,
    8100,
    8191,
    8192,
    8193,
    8256,
    16_384,
    65_535,
    65_536,
    65_537,
    262_144,
    1 << 20,
];
const HEADERS: [usize; 6] = [0, 1, 16, 64, 65, MAX_AM_HEADER];

/// Every size, as copy, eager and rendezvous, with every header length, at every alignment of the target.
pub(super) fn sizes() {
    let mut pair = Pair::proven();
    println!("lanes: {}", pair.group.workers[0].endpoint_info(pair.ab));
    assert!(!pair.group.workers[0].endpoint_info(pair.ab).is_empty());
    let pool = Pool::new(&PoolConfig::default());
    pool.set_registrar(std::sync::Arc::new(Context::get().expect("UCX")));
    let mut seed = 0;
    for size in SIZES {
        for header_len in HEADERS {
            seed += 1;
            let (header, data) = (pattern(header_len, seed), pattern(size, seed + 1000));
            // Copied, in two parts.
            let (first, second) = data.split_at(size / 3);
            let sent = pair.group.workers[0].send_copy(pair.ab, &header, [first, second], seed).expect("sends");
            let got = pair.group.message(1);
            assert!(got.0 == header && got.1 == data, "copy of {size}, header {header_len}");
            drop(got);
            settle(&mut pair, sent, seed);
            // Eager without a copy of ours.
            let payload = Payload::Bytes(Bytes::from(data.clone()));
            let sent = pair.group.workers[0].send_owned(pair.ab, &header, payload, Mode::Eager, seed).expect("sends");
            let got = pair.group.message(1);
            assert!(got.0 == header && got.1 == data, "eager of {size}, header {header_len}");
            drop(got);
            settle(&mut pair, sent, seed);
            // Rendezvous, from a pool buffer.
            let mut buf = pool.get(size, Purpose::Send).expect("quota");
            buf.copy_from_slice(&data);
            let sent = pair.group.workers[0]
                .send_owned(pair.ab, &header, Payload::Pool(buf), Mode::Rendezvous, seed)
                .expect("sends");
            let (got, rndv) = pair.group.announcement(1);
            assert!(got == header && rndv.len() == size, "announced {} of {size}, header {header_len}", rndv.len());
            let into = match seed % 3 {
                0 => RecvBuf::Pool(pool.get(size + 5, Purpose::Receive).expect("quota")),
                1 => RecvBuf::Aligned(AlignedBuf::new(size, 4096)),
                _ => target(size),
            };
            pair.group.workers[1].fetch(rndv, into, seed).expect("fetches");
            let mut ends = (false, sent == Sent::Done);
            pair.group.until("a rendezvous", |index, event| {
                match event {
                    Event::FetchDone { token, buf, result } if index == 1 && token == seed => {
                        result.expect("fetches");
                        assert!(buf.as_slice()[..size] == data, "rendezvous of {size}");
                        ends.0 = true;
                    }
                    Event::SendDone { token, result } if index == 0 && token == seed => {
                        result.expect("sends");
                        ends.1 = true;
                    }
                    other => panic!("unexpected at {index}: {other:?}"),
                }
                (ends == (true, true)).then_some(())
            });
        }
    }
    pair.group.spin(10);
    for worker in &pair.group.workers {
        assert_eq!(worker.inflight(), Counters { endpoints: 1, ..Counters::default() });
    }
    pair.end();
    assert_eq!((pool.stats().send_in_use, pool.stats().receive_in_use), (0, 0));
}

/// `message` may have taken the end of the send already; here only what is outstanding counts.
fn settle(pair: &mut Pair, sent: Sent, token: u64) {
    if sent == Sent::Pending && pair.group.workers[0].inflight().sends > 0 {
        pair.group.send_done(0, token).expect("sends");
    }
}

fn announce(pair: &mut Pair, data: &[u8], token: u64) -> Rendezvous {
    let payload = Payload::Bytes(Bytes::copy_from_slice(data));
    let sent = pair.group.workers[0].send_owned(pair.ab, b"head", payload, Mode::Rendezvous, token).expect("sends");
    assert_eq!(sent, Sent::Pending);
    pair.group.announcement(1).1
}

/// Refused, dropped here, dropped on another thread, too small a target, fetched by the wrong worker: always one end.
pub(super) fn refuse() {
    let mut pair = Pair::proven();
    let data = pattern(1 << 20, 5);
    for (token, how) in [(1, "refuse"), (2, "drop"), (3, "thread"), (4, "small"), (5, "wrong worker")] {
        let rndv = announce(&mut pair, &data, token);
        assert_eq!(pair.group.workers[1].inflight().announced, 1);
        pair.group.spin(100);
        assert_eq!(pair.group.workers[0].inflight().sends, 1, "the sender waits for the decision");
        match how {
            "refuse" => pair.group.workers[1].refuse(rndv),
            "drop" => drop(rndv),
            "thread" => thread::spawn(move || drop(rndv)).join().expect("drops"),
            "small" => {
                let (error, buf) = pair.group.workers[1].fetch(rndv, target((1 << 20) - 1), 9).expect_err("too small");
                assert_eq!((error.kind(), buf.len()), (ErrorKind::Limit, (1 << 20) - 1));
            }
            _ => {
                let (error, _) = pair.group.workers[0].fetch(rndv, target(1 << 20), 9).expect_err("not its own");
                assert_eq!(error.kind(), ErrorKind::Invalid);
            }
        }
        pair.group.send_done(0, token).expect(how);
        assert_eq!(pair.group.workers[1].inflight().announced, 0, "{how}");
    }
    // An announcement wakes nobody but its own worker, also when it is dropped while that one sleeps.
    let rndv = announce(&mut pair, &data, 6);
    while pair.group.workers[1].arm().expect("arms") == Armed::Busy {
        pair.group.workers[1].progress();
    }
    let fd = pair.group.workers[1].event_fd();
    let dropper = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        drop(rndv);
    });
    assert!(readable(fd, 5000), "the drop wakes the worker");
    dropper.join().expect("drops");
    pair.group.send_done(0, 6).expect("completes");
    pair.end();
}

fn readable(fd: std::os::fd::BorrowedFd<'_>, timeout_ms: i32) -> bool {
    let mut poll = libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(&fd), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&mut poll, 1, timeout_ms) == 1 }
}

pub(super) fn stale_and_invalid() {
    let mut pair = Pair::proven();
    let worker = &mut pair.group.workers[0];
    let long = vec![0; MAX_AM_HEADER + 1];
    assert_eq!(worker.send_copy(pair.ab, &long, [b"", b""], 1).expect_err("too long").kind(), ErrorKind::Limit);
    let old = pair.ab;
    worker.close(old);
    worker.close(old);
    assert_eq!(worker.send_copy(old, b"h", [b"", b""], 1).expect_err("stale").kind(), ErrorKind::Closed);
    assert_eq!(worker.endpoint_info(old), "");
    while pair.group.workers[0].inflight() != Counters::default() {
        pair.group.spin(1);
    }
    // The place is used again, and the old id still means nothing.
    let address = pair.group.workers[1].address().to_vec();
    let worker = &mut pair.group.workers[0];
    let new = worker.connect(&address).expect("connects");
    assert_ne!(new, old);
    let payload = Payload::Bytes(Bytes::from_static(b"x"));
    assert_eq!(worker.send_owned(old, b"h", payload, Mode::Eager, 1).expect_err("stale").kind(), ErrorKind::Closed);
    worker.close(old);
    assert_eq!(worker.inflight().endpoints, 1);
    let _ = worker.send_copy(new, b"new", [b"", b""], 1).expect("sends");
    let got = pair.group.until("the message of the new endpoint", |index, event| match event {
        Event::Message { header, .. } if index == 1 => Some(header.to_vec()),
        _ => None,
    });
    assert_eq!(got, b"new");
    // An address is what it is, or nothing.
    for bad in [&[][..], &[0x0f; 60], &vec![0; 5000], &address[..address.len() - 1]] {
        let error = pair.group.workers[0].connect(bad).expect_err("no address");
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    }
    assert_eq!(pair.group.workers[0].inflight().endpoints, 1);
    pair.ab = new;
    pair.end();
}

/// Closing with everything in flight: eager in the queues, announcements undecided, fetches under way.
pub(super) fn force_close() {
    for round in 0..10 {
        let mut pair = Pair::proven();
        let mut tokens = Vec::new();
        let mut ends = Ends::default();
        for token in 0..300_u64 {
            let data = Bytes::from(pattern(if token % 3 == 0 { 100_000 } else { 4000 }, token));
            let mode = if token % 3 == 0 { Mode::Rendezvous } else { Mode::Eager };
            let sent =
                pair.group.workers[0].send_owned(pair.ab, b"bulk", Payload::Bytes(data), mode, token).expect("sends");
            if sent == Sent::Pending {
                tokens.push(token);
            }
        }
        assert!(tokens.len() >= 100);
        // The other side starts some fetches and holds some messages.
        let (mut held, mut undecided, mut fetches) = (VecDeque::new(), Vec::new(), Vec::new());
        for _ in 0..20 * round {
            pair.group.workers[1].progress();
            pair.group.workers[0].progress();
            while let Some(event) = pair.group.workers[1].poll_event() {
                match event {
                    Event::Message { data, .. } => held.push_back(data),
                    Event::Announced { rndv, .. } if undecided.len() < 5 => undecided.push(rndv),
                    Event::Announced { rndv, .. } => {
                        let token = fetches.len() as u64;
                        pair.group.workers[1].fetch(rndv, target(100_000), token).expect("fetches");
                        fetches.push(token);
                    }
                    Event::FetchDone { token, .. } => ends.note(token + 1000, false),
                    other => panic!("unexpected: {other:?}"),
                }
            }
        }
        pair.group.workers[0].close(pair.ab);
        pair.group.workers[1].close(pair.ba);
        drop((held, undecided));
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            for worker in &mut pair.group.workers {
                worker.progress();
                while let Some(event) = worker.poll_event() {
                    match event {
                        Event::SendDone { token, result } => ends.note(token, result.is_err()),
                        Event::FetchDone { token, result, .. } => ends.note(token + 1000, result.is_err()),
                        Event::Message { .. } | Event::Announced { .. } => {}
                        other => panic!("unexpected: {other:?}"),
                    }
                }
            }
            let left: Vec<_> = pair.group.workers.iter().map(Worker::inflight).collect();
            if left.iter().all(|left| *left == Counters::default()) {
                break;
            }
            assert!(Instant::now() < deadline, "round {round}: {left:?}");
        }
        tokens.extend(fetches.iter().map(|token| token + 1000));
        ends.assert_exactly(&tokens);
        // Over tcp a close waits until what was sent is out, and this peer takes it.
        let drains = std::env::var("UCX_TLS").expect("set for scenarios") == "tcp";
        assert!(round > 0 || drains || ends.failed > 0, "nothing was in flight");
        pair.group.end();
    }
}

/// Messages in UCX's memory stay intact under further traffic, and come back from other threads.
pub(super) fn held_descriptors() {
    let mut pair = Pair::proven();
    let mut held = Vec::new();
    let mut most = 0;
    for token in 0..600_u64 {
        let data = pattern(3000 + token as usize, token);
        let sent = pair.group.workers[0].send_copy(pair.ab, b"h", [&data, b""], token).expect("sends");
        let (_, got) = pair.group.message(1);
        settle(&mut pair, sent, token);
        held.push((got, data));
        most = most.max(pair.group.workers[1].inflight().held_descriptors);
    }
    let lends = !std::env::var("UCX_TLS").expect("set for scenarios").contains("tcp");
    assert!(most <= 256, "{most} descriptors lent");
    assert!(!lends || most == 256, "shared memory lends its descriptors, but only {most} were taken");
    assert!(held.iter().all(|(got, data)| got == data), "held data changed");
    let threads: Vec<_> = held
        .chunks(150)
        .map(|chunk| {
            let chunk = chunk.to_vec();
            thread::spawn(move || {
                assert!(chunk.iter().all(|(got, data)| got == data));
                chunk.into_iter().for_each(drop);
            })
        })
        .collect();
    drop(held);
    for thread in threads {
        pair.group.spin(10);
        thread.join().expect("drops");
    }
    pair.group.spin(10);
    assert_eq!(pair.group.workers[1].inflight().held_descriptors, 0);
    pair.end();
}

/// An application that keeps a message longer than the worker: the memory stays, the worker is abandoned.
pub(super) fn parked() {
    let mut pair = Pair::proven();
    let data = pattern(4000, 1);
    let _ = pair.group.workers[0].send_copy(pair.ab, b"h", [&data, b""], 1).expect("sends");
    let (_, got) = pair.group.message(1);
    assert_eq!(pair.group.workers[1].inflight().held_descriptors, 1);
    let receiver = pair.group.workers.pop().expect("two");
    let started = Instant::now();
    assert!(!receiver.shutdown(Instant::now() + Duration::from_millis(100)), "it can't have ended");
    assert!(started.elapsed() >= Duration::from_millis(100));
    assert_eq!(parked_workers(), 1);
    let clone = got.clone();
    assert_eq!(got, data);
    thread::spawn(move || drop(got)).join().expect("drops");
    assert_eq!(clone, data);
    drop(clone);
    // In time it works: the waiting worker sees what another thread drops.
    let mut pair = Pair { group: Group { workers: pair.group.workers }, ..pair };
    let other = Worker::new().expect("UCX");
    let address = other.address().to_vec();
    pair.group.workers.push(other);
    let ep = pair.group.workers[0].connect(&address).expect("connects");
    let _ = pair.group.workers[0].send_copy(ep, b"h", [&data, b""], 1).expect("sends");
    let (_, got) = pair.group.message(1);
    let receiver = pair.group.workers.pop().expect("two");
    let dropper = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        drop(got);
    });
    assert!(receiver.shutdown(Instant::now() + Duration::from_secs(5)));
    dropper.join().expect("drops");
    assert_eq!(parked_workers(), 1);
    pair.group.end();
}

/// Connect, talk, close, again and again: counters at zero and no more descriptors than before.
pub(super) fn cycles() {
    let mut group = Group::of(2);
    let addresses: Vec<Vec<u8>> = group.workers.iter().map(|worker| worker.address().to_vec()).collect();
    let mut fds = 0;
    for cycle in 0..1000_u64 {
        let ab = group.workers[0].connect(&addresses[1]).expect("connects");
        let ba = group.workers[1].connect(&addresses[0]).expect("connects");
        for (from, ep) in [(0, ab), (1, ba)] {
            let sent = group.workers[from].send_copy(ep, b"h", [&cycle.to_le_bytes(), b""], cycle).expect("sends");
            assert_eq!(group.message(1 - from).1, cycle.to_le_bytes()[..]);
            if sent == Sent::Pending && group.workers[from].inflight().sends > 0 {
                group.send_done(from, cycle).expect("sends");
            }
        }
        group.workers[0].close(ab);
        group.workers[1].close(ba);
        group.until_idle();
        if cycle == 20 {
            fds = open_fds();
        }
    }
    group.spin(100);
    let now = open_fds();
    println!("fds after 20 cycles: {fds}, after 1000: {now}");
    assert!(now <= fds + 4, "descriptors leak: {fds} -> {now}");
    group.end();
}

impl Group {
    fn until_idle(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            self.spin(1);
            let left: Vec<_> = self.workers.iter().map(Worker::inflight).collect();
            if left.iter().all(|left| *left == Counters::default()) {
                return;
            }
            assert!(Instant::now() < deadline, "{left:?}");
        }
    }
}

/// Two threads that sleep between messages; nobody may sleep past one.
pub(super) fn wake() {
    const ROUNDS: u64 = 2000;
    let (to_a, from_b) = mpsc::channel::<Vec<u8>>();
    let (to_b, from_a) = mpsc::channel::<Vec<u8>>();
    let (done_a, wait_b) = mpsc::channel::<()>();
    let (done_b, wait_a) = mpsc::channel::<()>();
    let run = |out: mpsc::Sender<Vec<u8>>,
               inn: mpsc::Receiver<Vec<u8>>,
               done: mpsc::Sender<()>,
               wait: mpsc::Receiver<()>,
               starts: bool| {
        thread::spawn(move || {
            let mut worker = Worker::new().expect("UCX");
            out.send(worker.address().to_vec()).expect("the other thread lives");
            let ep = worker.connect(&inn.recv().expect("the other thread lives")).expect("connects");
            let mut next = 0_u64;
            let mut sleeps = 0;
            let send = |worker: &mut Worker, number: u64| {
                let body = pattern((number as usize * 37) % 20_000, number);
                let _ = worker.send_copy(ep, &number.to_le_bytes(), [&body, b""], number).expect("sends");
            };
            if starts {
                send(&mut worker, 0);
            }
            while next < ROUNDS {
                while worker.progress() > 0 {}
                let mut worked = false;
                while let Some(event) = worker.poll_event() {
                    worked = true;
                    if let Event::Message { header, data, .. } = event {
                        let number = u64::from_le_bytes(header[..].try_into().expect("eight bytes"));
                        assert!(number == next && data == pattern((number as usize * 37) % 20_000, number));
                        next += 1;
                        if !starts || next < ROUNDS {
                            send(&mut worker, if starts { next } else { number });
                        }
                    }
                }
                if worked || next == ROUNDS || worker.arm().expect("arms") == Armed::Busy {
                    continue;
                }
                // On verbs a completion between the last progress and the arming raises no event.
                if worker.progress() > 0 {
                    continue;
                }
                sleeps += 1;
                assert!(readable(worker.event_fd(), 5000), "slept past a message at {next}");
            }
            done.send(()).expect("the other thread lives");
            // Our last message may still be in a queue of ours.
            while wait.try_recv().is_err() {
                worker.progress();
                while worker.poll_event().is_some() {}
            }
            worker.close(ep);
            assert!(worker.shutdown(Instant::now() + Duration::from_secs(5)));
            sleeps
        })
    };
    let a = run(to_b, from_b, done_a, wait_a, true);
    let b = run(to_a, from_a, done_b, wait_b, false);
    let sleeps = (a.join().expect("a"), b.join().expect("b"));
    println!("sleeps: {sleeps:?} of {ROUNDS}");
    assert!(sleeps.0 + sleeps.1 > 100, "nobody slept: {sleeps:?}");
}

/// What a worker's connection to itself does in peer mode.
pub(super) fn self_connection() {
    let mut group = Group::of(1);
    let address = group.workers[0].address().to_vec();
    let one = group.workers[0].connect(&address);
    let two = group.workers[0].connect(&address);
    println!("connects: {one:?} {two:?}");
    let (one, two) = (one.expect("reaches itself"), two.expect("reaches itself, twice"));
    for (token, ep) in [(1, one), (2, two)] {
        let _ = group.workers[0].send_copy(ep, &[token as u8], [b"to myself", b""], token).expect("sends");
        let (header, data) = group.message(0);
        assert_eq!((&header[..], &data[..]), (&[token as u8][..], &b"to myself"[..]));
        println!("lanes {token}: {}", group.workers[0].endpoint_info(ep));
        let data = pattern(300_000, token);
        let payload = Payload::Bytes(Bytes::from(data.clone()));
        let sent = group.workers[0].send_owned(ep, b"r", payload, Mode::Rendezvous, token).expect("sends");
        assert_eq!(sent, Sent::Pending);
        let (_, rndv) = group.announcement(0);
        group.workers[0].fetch(rndv, target(300_000), 77).expect("fetches");
        let mut left = 2;
        group.until("both ends", |_, event| {
            match event {
                Event::SendDone { result, .. } => result.expect("sends"),
                Event::FetchDone { buf, result, .. } => {
                    result.expect("fetches");
                    assert!(buf.as_slice() == data);
                }
                other => panic!("unexpected: {other:?}"),
            }
            left -= 1;
            (left == 0).then_some(())
        });
    }
    group.workers[0].close(one);
    group.workers[0].close(two);
    group.until_idle();
    group.end();
}

/// Truncated and mangled addresses never reach UCX, or UCX refuses them; nothing crashes.
pub(super) fn garbage_addresses() {
    let mut group = Group::of(2);
    let address = group.workers[1].address().to_vec();
    println!("an address of {} bytes", address.len());
    for len in 0..address.len() {
        let error = group.workers[0].connect(&address[..len]).expect_err("truncated");
        assert_eq!(error.kind(), ErrorKind::Protocol, "{len} bytes: {error}");
    }
    let mut longer = address.clone();
    longer.push(0);
    assert_eq!(group.workers[0].connect(&longer).expect_err("too long").kind(), ErrorKind::Protocol);
    for seed in 0..5000 {
        let garbage = pattern(seed as usize % 600, seed);
        assert!(group.workers[0].connect(&garbage).is_err(), "random bytes {}", hex(&garbage));
    }
    assert_eq!(group.workers[0].inflight().endpoints, 0);
    // The good one still works.
    let ep = group.workers[0].connect(&address).expect("connects");
    let _ = group.workers[0].send_copy(ep, b"fine", [b"", b""], 1).expect("sends");
    assert_eq!(group.message(1).0, b"fine");
    group.workers[0].close(ep);
    group.until_idle();
    group.end();
}

/// Endpoints that are closed before, while and after UCX connects them, also towards a worker that is gone.
pub(super) fn abrupt() {
    let mut group = Group::of(3);
    let addresses: Vec<Vec<u8>> = group.workers.iter().map(|worker| worker.address().to_vec()).collect();
    for turn in 0..400_usize {
        let ab = group.workers[0].connect(&addresses[1]).expect("connects");
        let ba = (turn % 3 == 0).then(|| group.workers[1].connect(&addresses[0]).expect("connects"));
        for token in 0..turn as u64 % 4 {
            let _ = group.workers[0].send_copy(ab, b"h", [b"abrupt", b""], token).expect("sends");
        }
        for _ in 0..turn % 17 {
            group.workers[0].progress();
            if turn % 2 == 0 {
                group.workers[1].progress();
            }
        }
        group.workers[0].close(ab);
        if let Some(ba) = ba {
            group.workers[1].close(ba);
        }
        for worker in &mut group.workers {
            while worker.poll_event().is_some() {}
        }
    }
    group.until_all_zero();
    // The peer goes away before it answers anything.
    let gone = group.workers.pop().expect("three");
    assert!(gone.shutdown(Instant::now() + Duration::from_secs(5)));
    for turn in 0..50 {
        let Ok(ep) = group.workers[0].connect(&addresses[2]) else { continue };
        let sent = group.workers[0].send_copy(ep, b"h", [b"nobody", b""], 1);
        for _ in 0..turn * 10 {
            group.workers[0].progress();
        }
        drop(sent);
        group.workers[0].close(ep);
    }
    group.until_all_zero();
    group.end();
}

impl Group {
    /// As `until_idle`, but throws events away.
    pub(super) fn until_all_zero(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            self.spin(1);
            for worker in &mut self.workers {
                while worker.poll_event().is_some() {}
            }
            let left: Vec<_> = self.workers.iter().map(Worker::inflight).collect();
            if left.iter().all(|left| *left == Counters::default()) {
                return;
            }
            assert!(Instant::now() < deadline, "{left:?}");
        }
    }
}
