//! Every size arrives whole, whichever way it takes inside.

use std::{thread, time::Duration};

use bytes::Bytes;
use ucrpc::transport::{Body, ConnectionConfig, ErrorKind, Frame, Keepalive, SendError};

use super::Case;
use crate::{
    bed::Bed,
    tools::{Rng, block_on, check_numbered, exchange, numbered, random_bytes, sizes_around},
};

pub const CASES: &[Case] = &[
    Case::all("echo", echo).and_auto(),
    Case::all("body_sizes", body_sizes).and_auto(),
    Case::all("head_sizes", head_sizes),
    Case::all("heads_and_bodies", heads_and_bodies),
    Case::all("rendezvous_from", rendezvous_from),
    Case::all("segments", segments),
    Case::all("largest", largest).and_auto(),
    Case::all("both_directions", both_directions).and_auto(),
];

fn echo(bed: &Bed) {
    let (mut client, mut server) = bed.pair(&ConnectionConfig::default());
    for i in 0..1000_u32 {
        client.send(i.to_le_bytes().to_vec()).unwrap();
        let frame = server.recv_blocking().unwrap();
        assert_eq!(frame.head, i.to_le_bytes().as_slice());
        server.send(frame).unwrap();
        assert_eq!(client.recv_blocking().unwrap().head, i.to_le_bytes().as_slice());
    }
    assert_eq!((client.stats().frames_sent, client.stats().frames_received), (1000, 1000));
    block_on(client.close()).unwrap();
    assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
}

fn body_sizes(bed: &Bed) {
    let (mut client, mut server) = bed.pair(&ConnectionConfig::default());
    for (i, len) in sizes_around(8 << 20).into_iter().enumerate() {
        let body = random_bytes(i as u64, len);
        exchange(&client, &mut server, Bytes::new(), body.clone());
        exchange(&server.sender(), &mut client, Bytes::from_static(b"head"), body);
    }
}

fn head_sizes(bed: &Bed) {
    let config = ConnectionConfig { max_head: (1 << 20) + 1, ..ConnectionConfig::default() };
    let (mut client, mut server) = bed.pair(&config);
    for (i, len) in sizes_around(1 << 20).into_iter().enumerate() {
        let head = random_bytes(i as u64, len);
        exchange(&client, &mut server, head.clone(), Body::Empty);
        exchange(&server.sender(), &mut client, head.clone(), Bytes::from_static(b"x"));
        // The sum of both is what is compared with some thresholds.
        exchange(&client, &mut server, head.slice(..len / 3), head.slice(len / 3..));
    }
}

/// All combinations of heads and bodies on either side of what makes them travel apart.
fn heads_and_bodies(bed: &Bed) {
    let (mut client, mut server) = bed.pair(&ConnectionConfig::default());
    let sizes = [0, 1, 991, 992, 993, 4095, 8191, 8192, 8193, 20_000, 40_000, 262_144, 300_001, 1 << 20];
    let sender = client.sender();
    let make = move |i: usize, j: usize| (random_bytes(i as u64, sizes[i]), random_bytes(!(j as u64), sizes[j]));
    let pairs = || (0..sizes.len()).flat_map(|i| (0..sizes.len()).map(move |j| (i, j)));
    thread::scope(|scope| {
        scope.spawn(|| {
            for (i, j) in pairs() {
                let (head, body) = make(i, j);
                block_on(sender.send_wait(Frame::new(head, body))).unwrap();
            }
        });
        for (i, j) in pairs() {
            let (head, body) = make(i, j);
            let frame = server.recv_blocking().unwrap();
            assert_eq!(frame.head, head, "head {} body {}", sizes[i], sizes[j]);
            assert_eq!(frame.body.into_bytes().unwrap(), body, "head {} body {}", sizes[i], sizes[j]);
        }
    });
    exchange(&server.sender(), &mut client, random_bytes(1, 1 << 20), random_bytes(2, 1 << 20));
}

/// The threshold of rendezvous can be set, from nothing to never.
fn rendezvous_from(bed: &Bed) {
    for from in [1, 9_000, 100_000, u64::MAX] {
        let config = ConnectionConfig { rendezvous_from: Some(from), ..ConnectionConfig::default() };
        let (client, mut server) = bed.pair(&config);
        let sizes = [1, 8191, 8192, 8193, 8999, 9000, 9001, 99_999, 100_000, 100_001, 1 << 20];
        for (i, len) in sizes.into_iter().enumerate() {
            exchange(&client, &mut server, Bytes::from_static(b"h"), random_bytes(i as u64, len));
            exchange(&client, &mut server, random_bytes(i as u64, len), random_bytes(!(i as u64), len));
        }
        if bed.backend.is_ucx() {
            let (sent, received) = (client.stats().rendezvous_sent, server.stats().rendezvous_received);
            assert_eq!((sent > 0, received), (from != u64::MAX, sent), "rendezvous from {from}");
        }
        block_on(client.close()).unwrap();
    }
}

fn segments(bed: &Bed) {
    let (client, mut server) = bed.pair(&ConnectionConfig::default());
    let piece = |i: u64, len: usize| random_bytes(i, len);
    let many = |count: u64, len: usize| (0..count).map(|i| piece(i, len)).collect::<Vec<_>>();
    let bodies = [
        vec![],
        vec![Bytes::new()],
        vec![Bytes::new(), piece(1, 5), Bytes::new()],
        vec![piece(1, 100_000)],
        vec![piece(1, 1), piece(2, 300_000), piece(3, 3)],
        many(63, 100),
        many(64, 1000),
        // More pieces than one system call takes.
        many(2000, 33),
        many(1100, 1024),
    ];
    for body in bodies {
        exchange(&client, &mut server, Bytes::from_static(b"pieces"), body.clone());
        exchange(&client, &mut server, random_bytes(9, 5000), body);
    }
}

/// One message may take longer than the default signs of life on a machine that does much else.
fn patient() -> ConnectionConfig {
    let keepalive = Keepalive { deadline: Duration::from_secs(60), ..Keepalive::default() };
    ConnectionConfig { keepalive: Some(keepalive), max_message: 256 << 20, ..ConnectionConfig::default() }
}

fn largest(bed: &Bed) {
    let (mut client, mut server) = bed.pair(&patient());
    let body = random_bytes(3, 256 << 20);
    let sum = crc32c::crc32c(&body);
    for to_server in [true, false] {
        let frame = Frame::new(Bytes::new(), body.clone());
        let (from, to) = if to_server { (client.sender(), &mut server) } else { (server.sender(), &mut client) };
        from.send(frame).unwrap();
        let got = to.recv_blocking();
        let got = got.unwrap_or_else(|error| panic!("{error}; the sender's end: {}", block_on(from.closed())));
        let got = got.body.into_bytes().unwrap();
        assert_eq!((got.len(), crc32c::crc32c(&got)), (256 << 20, sum));
    }
    let Err(SendError::TooLarge(back, error)) = client.send(Frame::new(vec![1], body)) else { panic!("too large") };
    assert_eq!((back.len(), error.kind()), ((256 << 20) + 1, ErrorKind::Limit));
    drop(back);
    exchange(&client, &mut server, Bytes::from_static(b"still open"), Body::Empty);
}

fn both_directions(bed: &Bed) {
    let (mut client, mut server) = bed.pair(&ConnectionConfig::default());
    let count = 600;
    thread::scope(|scope| {
        for (id, end) in [&mut client, &mut server].into_iter().enumerate() {
            let (id, sender) = (id as u32, end.sender());
            scope.spawn(move || {
                let mut rng = Rng::new(id.into());
                for i in 0..count {
                    let body = [0, 100, 10_000, 400_000][rng.below(4) as usize];
                    let frame = numbered(id, i, rng.below(3000) as usize, rng.below(body + 1) as usize);
                    block_on(sender.send_wait(frame)).unwrap();
                }
            });
            scope.spawn(move || {
                for i in 0..count {
                    assert_eq!(check_numbered(end.recv_blocking().unwrap()), (1 - id, i));
                }
            });
        }
    });
    for end in [&client, &server] {
        assert_eq!((end.stats().frames_sent, end.stats().frames_received), (count.into(), count.into()));
    }
}
