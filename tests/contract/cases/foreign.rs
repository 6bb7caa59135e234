//! Protocols that bring their own framing, over the same sockets and the same port.

use std::{borrow::Cow, sync::Arc, thread, time::Duration};

use bytes::{Bytes, BytesMut};
use ucrpc::transport::{
    Announcement, Body, Connection, ConnectionConfig, ErrorKind, Frame, RecvBuf, RecvPlan, SendError,
    framing::{Cut, Detect, Framer},
};

use super::{Case, On};
use crate::{
    bed::Bed,
    tools::{block_for, block_on, exchange, random_bytes},
};

pub const CASES: &[Case] = &[
    Case::on("foreign_echo", On::Streams, foreign_echo),
    Case::on("foreign_limits", On::Streams, foreign_limits),
    Case::on("two_protocols", On::Streams, two_protocols),
    Case::on("foreign_planner", On::Streams, foreign_planner),
    Case::on("foreign_reader_stops", On::Streams, foreign_reader_stops),
    Case::on("foreign_close", On::Streams, foreign_close),
];

/// `TOY!`, two little-endian lengths, head, body. The head that the application sees includes those 12 bytes.
struct Toy;

const START: usize = 12;

impl Framer for Toy {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn detect(&self, first: &[u8]) -> Detect {
        let known = first.len().min(4);
        match first[..known] == b"TOY!"[..known] {
            true if known == 4 => Detect::Yes,
            true => Detect::NeedMore,
            false => Detect::No,
        }
    }

    fn cut(&self, bytes: &[u8]) -> Cut {
        if self.detect(bytes) == Detect::No {
            return Cut::Bad(Cow::Borrowed("not a toy"));
        }
        let Some(lengths) = bytes.get(4..START) else { return Cut::NeedMore(START) };
        let word = |at: usize| u32::from_le_bytes(lengths[at..at + 4].try_into().expect("four bytes"));
        Cut::Frame { head: START + word(0) as usize, body: word(4).into() }
    }
}

fn toy(head: &[u8], body: impl Into<Body>) -> Frame {
    let body = body.into();
    let mut start = b"TOY!".to_vec();
    start.extend_from_slice(&(head.len() as u32).to_le_bytes());
    start.extend_from_slice(&(body.len() as u32).to_le_bytes());
    start.extend_from_slice(head);
    Frame::new(start, body)
}

fn with_toy() -> ConnectionConfig {
    ConnectionConfig { framer: Some(Arc::new(Toy)), ..ConnectionConfig::default() }
}

/// A connection that speaks toy at both ends. A first frame is needed: by it the server knows the protocol.
fn pair(bed: &Bed, client: &ConnectionConfig, server: &ConnectionConfig) -> (Connection, Connection) {
    let mut listener = bed.listen_as(server);
    let client = bed.client.connect(listener.local_address(), client.clone()).blocking().unwrap();
    client.send(toy(b"hi", Bytes::new())).unwrap();
    let mut server = listener.accept_blocking().unwrap();
    assert_eq!(server.recv_blocking().unwrap().head[START..], *b"hi");
    for end in [&client, &server] {
        assert_eq!(end.info().unwrap().framing, Some("toy"));
    }
    (client, server)
}

fn foreign_echo(bed: &Bed) {
    let (mut client, mut server) = pair(bed, &with_toy(), &with_toy());
    for (i, len) in [0, 1, 500, 4096, 16_383, 16_384, 16_385, 100_000, 1 << 20, 9 << 20].into_iter().enumerate() {
        for head in [0, 1, 5000, 100_000] {
            let frame = || toy(&random_bytes(!(i as u64), head), random_bytes(i as u64, len));
            let expected = frame();
            client.send(frame()).unwrap();
            let got = server.recv_blocking().unwrap();
            assert_eq!(got.head, expected.head);
            server.send(got).unwrap();
            let got = client.recv_blocking().unwrap();
            assert_eq!(got.head, expected.head);
            assert_eq!(got.body.into_bytes(), expected.body.into_bytes());
        }
    }
    let sender = client.sender();
    let many = thread::spawn(move || {
        for i in 0..20_000_u32 {
            block_on(sender.send_wait(toy(&i.to_le_bytes(), vec![7; i as usize % 50]))).unwrap();
        }
    });
    for i in 0..20_000_u32 {
        let frame = server.recv_blocking().unwrap();
        assert_eq!((&frame.head[START..], frame.body.len()), (&i.to_le_bytes()[..], u64::from(i) % 50));
    }
    many.join().unwrap();
}

fn foreign_limits(bed: &Bed) {
    let limited = ConnectionConfig { max_message: 50_000, max_head: 1000, ..with_toy() };
    for (head, body) in [(1000, 10), (10, 50_001)] {
        let (client, mut server) = pair(bed, &with_toy(), &limited);
        client.send(toy(&vec![1; 988], vec![2; 49_000])).unwrap();
        assert_eq!(server.recv_blocking().unwrap().body.len(), 49_000);
        client.send(toy(&vec![1; head], vec![2; body])).unwrap();
        assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::Limit, "head {head} body {body}");
        block_for(Duration::from_secs(10), client.closed()).expect("the peer hears of it");
    }
    let (client, mut server) = pair(bed, &with_toy(), &with_toy());
    client.send(&b"no toy"[..]).unwrap();
    let error = server.recv_blocking().unwrap_err();
    assert!(error.kind() == ErrorKind::Protocol && error.text().contains("not a toy"), "{error}");
}

/// One port: who speaks ucrpc and who speaks toy is told apart by the first bytes.
fn two_protocols(bed: &Bed) {
    let mut listener = bed.listen_as(&with_toy());
    for round in 0..10_u8 {
        let plain = ConnectionConfig::default();
        let (client, mut server) = bed.pair_on(&mut listener, &plain);
        assert_eq!(server.info().unwrap().framing, None);
        exchange(&client, &mut server, Bytes::from(vec![round]), random_bytes(2, 70_000));
        let client = bed.client.connect(listener.local_address(), with_toy()).blocking().unwrap();
        client.send(toy(&[round], random_bytes(3, 70_000))).unwrap();
        let mut server = listener.accept_blocking().unwrap();
        assert_eq!(server.info().unwrap().framing, Some("toy"));
        let frame = server.recv_blocking().unwrap();
        assert_eq!((frame.head[START], frame.body.into_bytes().unwrap()), (round, random_bytes(3, 70_000)));
        block_on(client.close()).unwrap();
    }
}

fn foreign_planner(bed: &Bed) {
    let plan = |a: &Announcement<'_>| match a.head[START] {
        0 => RecvPlan::Into(RecvBuf::Bytes(BytesMut::zeroed(a.body_len as usize))),
        1 => RecvPlan::Later,
        2 => RecvPlan::Refuse("two".into()),
        _ => RecvPlan::Pool,
    };
    let server = ConnectionConfig { planner: Some(Arc::new(plan)), ..with_toy() };
    let (client, mut server) = pair(bed, &with_toy(), &server);
    for (i, len) in [10, 20_000, 400_000].into_iter().enumerate() {
        let body = random_bytes(i as u64, len);
        for how in 0..4 {
            client.send(toy(&[how], body.clone())).unwrap();
        }
        let Body::Buf(buf) = server.recv_blocking().unwrap().body else { panic!("into") };
        assert_eq!(buf.as_slice(), body);
        let Body::Pending(pending) = server.recv_blocking().unwrap().body else { panic!("later") };
        assert_eq!(block_on(pending.fetch_pooled()).unwrap().as_slice(), body);
        let pool = server.recv_blocking().unwrap();
        assert_eq!((pool.head[START], pool.body.into_bytes().unwrap()), (3, body));
    }
    assert_eq!(server.stats().refused, 3);
    assert_eq!(client.stats().refused_by_peer, 0, "nothing of ours goes into a foreign stream");
}

/// Without credit the kernel's buffers stop the sender: it still sees `Full`, and memory stays bounded on both sides.
fn foreign_reader_stops(bed: &Bed) {
    let config = ConnectionConfig {
        recv_window_bytes: 1 << 20,
        recv_window_frames: 500,
        send_queue_bytes: 1 << 20,
        send_queue_frames: 500,
        ..with_toy()
    };
    for body in [100_000, 10] {
        let (client, mut server) = pair(bed, &config, &config);
        let mut sent = 0_u32;
        loop {
            match client.send(toy(&sent.to_le_bytes(), vec![5; body])) {
                Ok(()) => sent += 1,
                Err(SendError::Full(_)) => {
                    if block_for(Duration::from_millis(300), client.ready()).is_none() {
                        break;
                    }
                }
                Err(other) => panic!("{other:?}"),
            }
            assert!(u64::from(sent) * (body as u64 + 20) < 64 << 20, "a sender that is never told to stop");
        }
        let waiting = server.stats().frames_received - 1;
        // What one read brought in beyond the window is at most the dispatcher's buffer full.
        assert!(waiting <= 500 + (256 << 10) / (body as u64 + 16), "{waiting} frames received, nobody reads");
        for i in 0..sent {
            let frame = block_for(Duration::from_secs(10), server.recv()).expect("reading goes on").unwrap();
            assert_eq!((&frame.head[START..], frame.body.len()), (&i.to_le_bytes()[..], body as u64));
        }
        block_on(client.close()).unwrap();
    }
}

/// A foreign protocol has no goodbye: closing ends the stream after everything that was sent.
fn foreign_close(bed: &Bed) {
    let (client, mut server) = pair(bed, &with_toy(), &with_toy());
    for i in 0..50_u32 {
        client.send(toy(&i.to_le_bytes(), vec![1; 200_000])).unwrap();
    }
    let sender = client.sender();
    let closing = thread::spawn(move || block_on(sender.close()));
    for i in 0..50_u32 {
        assert_eq!(server.recv_blocking().unwrap().head[START..], i.to_le_bytes());
    }
    assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
    closing.join().unwrap().unwrap();
}
