//! Many senders on one connection: nothing is lost, each keeps its order, `Full` gives the frame back.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Waker},
    thread,
};

use ucrpc::transport::{Connection, ConnectionConfig, Frame, SendError, Sender};

use super::Case;
use crate::{
    bed::Bed,
    tools::{Count, Rng, Sum, block_on, check_numbered, eventually, numbered},
};

pub const CASES: &[Case] = &[
    Case::all("senders", senders),
    Case::all("senders_on_short_queues", senders_on_short_queues),
    Case::all("order_of_mixed_sizes", order_of_mixed_sizes),
    Case::all("ready_wakes", ready_wakes),
    Case::all("send_before_open", send_before_open).and_auto(),
];

/// Sends the frames of one sender; `Full` must give back the frame that was given.
fn send_all(sender: &Sender, id: u32, count: u32, saw_full: &AtomicBool) {
    let mut rng = Rng::new(id.into());
    for number in 0..count {
        let body = [0, 50, 3000, 40_000, 300_000][rng.below(5) as usize];
        let mut frame = numbered(id, number, 8 + rng.below(40) as usize, body);
        loop {
            let (head, body) = (frame.head.as_ptr(), frame.body.len());
            match sender.send(frame) {
                Ok(()) => break,
                Err(SendError::Full(back)) => {
                    assert_eq!((back.head.as_ptr(), back.body.len()), (head, body), "the same frame comes back");
                    saw_full.store(true, Ordering::SeqCst);
                    frame = back;
                }
                Err(other) => panic!("{other:?}"),
            }
            block_on(sender.ready()).unwrap();
        }
    }
}

/// Receives until `count` frames of each of `senders` are here.
fn receive_all(from: &mut Connection, senders: u32, count: u32) {
    let mut next = vec![0; senders as usize];
    for _ in 0..senders * count {
        let (sender, number) = check_numbered(from.recv_blocking().unwrap());
        let expected = &mut next[sender as usize];
        assert_eq!(number, *expected, "sender {sender} out of order");
        *expected += 1;
    }
    assert!(from.try_recv().unwrap().is_none(), "a frame too many");
}

fn run_senders(bed: &Bed, config: &ConnectionConfig, senders: u32, threads: u32, count: u32, late_reader: bool) {
    let (client, mut server) = bed.pair(config);
    let saw_full = AtomicBool::new(false);
    thread::scope(|scope| {
        for first in 0..threads {
            let (client, saw_full) = (client.sender(), &saw_full);
            scope.spawn(move || {
                // Each thread serves its senders one after the other; each has a clone of its own.
                for id in (first..senders).step_by(threads as usize) {
                    send_all(&client.clone(), id, count, saw_full);
                }
            });
        }
        if late_reader {
            eventually("a sender sees Full", || saw_full.load(Ordering::SeqCst));
        }
        receive_all(&mut server, senders, count);
    });
    block_on(client.close()).unwrap();
}

fn senders(bed: &Bed) {
    for (senders, threads, count) in [(1, 1, 400), (2, 2, 200), (8, 4, 60), (64, 8, 12)] {
        run_senders(bed, &ConnectionConfig::default(), senders, threads, count, false);
    }
}

fn senders_on_short_queues(bed: &Bed) {
    let config = ConnectionConfig {
        send_queue_frames: 4,
        send_queue_bytes: 64 << 10,
        recv_window_frames: 8,
        recv_window_bytes: 512 << 10,
        ..ConnectionConfig::default()
    };
    for (senders, threads, count) in [(1, 1, 200), (16, 8, 20)] {
        run_senders(bed, &config, senders, threads, count, true);
    }
}

fn order_of_mixed_sizes(bed: &Bed) {
    let (client, mut server) = bed.pair(&ConnectionConfig::default());
    let count = 1500;
    let sender = client.sender();
    let sending = thread::spawn(move || {
        for i in 0..count {
            // Short ones right behind long ones, so that they would overtake if they could.
            let (head, body) = match i % 5 {
                0 => (20, 0),
                1 => (20, 500_000),
                2 => (20, 9_000),
                3 => (5000, 40_000),
                _ => (9000, 70_000),
            };
            block_on(sender.send_wait(numbered(7, i, head, body))).unwrap();
        }
    });
    for i in 0..count {
        assert_eq!(check_numbered(server.recv_blocking().unwrap()), (7, i));
    }
    sending.join().unwrap();
    drop(client);
}

/// `ready` stays pending while the queue is full, and wakes when it has room.
fn ready_wakes(bed: &Bed) {
    let config = ConnectionConfig { send_queue_frames: 2, recv_window_frames: 2, ..ConnectionConfig::default() };
    let (client, mut server) = bed.pair(&config);
    let mut sent = 0;
    let fill = |sent: &mut u32| loop {
        match client.send(numbered(0, *sent, 8, 100)) {
            Ok(()) => *sent += 1,
            Err(SendError::Full(frame)) => {
                assert_eq!(Sum::of_frame(frame), Sum::of_frame(numbered(0, *sent, 8, 100)));
                break;
            }
            Err(other) => panic!("{other:?}"),
        }
    };
    fill(&mut sent);
    // The dispatcher may still be moving frames out of the queue: go on until the peer's window is used up too.
    // It takes one more out of the queue to find that there is no credit for it.
    while server.stats().frames_received < 2 || client.stats().credit_stalls == 0 || client.queued().0 < 2 {
        thread::yield_now();
        fill(&mut sent);
    }
    let woken = Arc::new(Count::default());
    let waker: Waker = woken.clone().into();
    let mut ready = pin!(client.ready());
    assert!(ready.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    for i in 0..2 {
        assert_eq!(check_numbered(server.recv_blocking().unwrap()), (0, i));
    }
    eventually("the waker of ready() is called", || woken.get() > 0);
    block_on(ready).unwrap();
    for i in 2..sent {
        assert_eq!(check_numbered(server.recv_blocking().unwrap()), (0, i));
    }
}

/// What is sent before the connection is open goes out when it is, in order.
fn send_before_open(bed: &Bed) {
    let mut listener = bed.listen_as(&ConnectionConfig::default());
    let config = ConnectionConfig { send_queue_frames: 100, ..ConnectionConfig::default() };
    let client = bed.client.connect(listener.local_address(), config).into_connection();
    let mut sent = 0;
    while sent < 50 {
        client.send(numbered(0, sent, 30, 3000)).unwrap();
        sent += 1;
    }
    let mut server = listener.accept_blocking().unwrap();
    for i in 0..sent {
        assert_eq!(check_numbered(server.recv_blocking().unwrap()), (0, i));
    }
    // A connection that is closed before it is open still sends what it took.
    let client = bed.client.connect(listener.local_address(), ConnectionConfig::default()).into_connection();
    client.send(Frame::from(&b"last will"[..])).unwrap();
    drop(client);
    let mut server = listener.accept_blocking().unwrap();
    assert_eq!(server.recv_blocking().unwrap().head, "last will");
    assert!(server.recv_blocking().is_err());
}
