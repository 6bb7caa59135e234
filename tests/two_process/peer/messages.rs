//! Frames that are checked at the other end of a connection.

use std::{
    sync::{
        Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use ucrpc::transport::{Connection, ErrorKind, Frame, SendError, Sender};

use super::report;
use crate::{
    block_on::block_on,
    frames::{Rng, Sum, check_numbered, numbered, random_bytes, sizes_around},
};

/// Whether [`collect`] may begin to read.
static READ: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

const SENDERS: u32 = 4;
const FRAMES_OF_EACH: u32 = 100;

/// Echoes heads and bodies of many sizes through the peer, and checks what comes back.
pub(super) fn sizes(id: u64, connection: &mut Connection) {
    let (start, mut count) = (Instant::now(), 0);
    let bodies = sizes_around(1 << 20).into_iter().map(|size| (9, size));
    let heads = sizes_around(32 << 10).into_iter().map(|size| (size, 100));
    for (head, body) in bodies.chain(heads) {
        let frame = Frame::new(random_bytes(count, head), random_bytes(!count, body));
        let sum = Sum::of(&random_bytes(count, head), &random_bytes(!count, body));
        block_on(connection.send_wait(frame)).expect("send");
        assert_eq!(Sum::of_frame(connection.recv_blocking().expect("receive")), sum, "{head} + {body} bytes");
        count += 1;
    }
    report("checked", &[("id", &id), ("count", &count), ("ms", &start.elapsed().as_millis())]);
    // Whoever reads on sees the end.
    assert!(connection.recv_blocking().is_err(), "a frame too many");
}

/// Several threads send as much as goes.
pub(super) fn deliver(id: u64, connection: &mut Connection) {
    let full = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for number in 0..SENDERS {
            let (sender, full) = (connection.sender(), &full);
            scope.spawn(move || send_all(id, &sender, number, full));
        }
    });
    let count = SENDERS * FRAMES_OF_EACH;
    report("delivered", &[("id", &id), ("count", &count), ("full", &full.load(Ordering::Relaxed))]);
    assert!(connection.recv_blocking().is_err(), "nobody sends to this end");
}

fn send_all(connection: u64, sender: &Sender, id: u32, full: &AtomicU64) {
    let mut rng = Rng::new(id.into());
    for number in 0..FRAMES_OF_EACH {
        let body = [0, 50, 3000, 40_000, 300_000][rng.below(5) as usize];
        let mut frame = numbered(id, number, 8 + rng.below(40) as usize, body);
        while let Err(error) = sender.send(frame) {
            let SendError::Full(back) = error else { panic!("{error:?}") };
            if full.fetch_add(1, Ordering::Relaxed) == 0 {
                report("full", &[("id", &connection)]);
            }
            frame = back;
            block_on(sender.ready()).expect("still open");
        }
    }
}

/// Lets [`collect`] begin.
pub(super) fn read() {
    *READ.0.lock().expect("not poisoned") = true;
    READ.1.notify_all();
}

/// Begins to read when it is told to, checks what comes, and reports how much it was when the connection ends.
pub(super) fn collect(id: u64, connection: &mut Connection) {
    drop(READ.1.wait_while(READ.0.lock().expect("not poisoned"), |read| !*read).expect("not poisoned"));
    let mut next = [0; SENDERS as usize];
    let end = loop {
        match connection.recv_blocking() {
            Ok(frame) => {
                let (sender, number) = check_numbered(frame);
                assert_eq!(number, next[sender as usize], "sender {sender} out of order");
                next[sender as usize] += 1;
            }
            Err(end) => break end,
        }
    };
    assert_eq!(end.kind(), ErrorKind::PeerClosed, "{end}");
    report("collected", &[("id", &id), ("count", &next.iter().sum::<u32>())]);
}
