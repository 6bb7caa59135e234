//! A peer that speaks the wire itself, and badly: half frames, single bytes, silence, lies.

use std::{
    io::{ErrorKind as IoError, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ucrpc::transport::{
    Address, Connection, ConnectionConfig, ErrorKind, Frame, Keepalive, Listener,
    proto::{
        control,
        header::{self, Credit, FrameHeader, Kind},
        hello::{self, ClientHello, Decoded, Message, Want},
    },
};

use super::{Case, On};
use crate::{
    bed::Bed,
    tools::{Rng, block_for, block_on, exchange, random_bytes},
};

pub const CASES: &[Case] = &[
    Case::on("dribble", On::Streams, dribble),
    Case::on("random_cuts", On::Streams, random_cuts),
    Case::on("half_frame_then_close", On::Streams, half_frame_then_close),
    Case::on("half_frame_then_silence", On::Streams, half_frame_then_silence),
    Case::on("half_hello", On::Sockets, half_hello),
    Case::on("bad_hellos", On::Sockets, bad_hellos),
    Case::on("bad_frames", On::Streams, bad_frames),
    Case::on("announced_above_limit", On::Streams, announced_above_limit),
];

trait Socket: Read + Write + Send {}
impl<T: Read + Write + Send> Socket for T {}

/// A client without any of our code between it and the socket.
struct Raw {
    socket: Box<dyn Socket>,
    conn: u32,
    generation: u32,
    seq: u32,
}

fn dial(address: &Address) -> Box<dyn Socket> {
    let patience = Some(Duration::from_secs(20));
    match address {
        Address::Unix(path) => {
            let socket = UnixStream::connect(path).expect("connect");
            socket.set_read_timeout(patience).expect("timeout");
            Box::new(socket)
        }
        other => {
            let at = other.host_port().and_then(|hp| hp.literal()).expect("a literal address");
            let socket = TcpStream::connect(at).expect("connect");
            socket.set_read_timeout(patience).expect("timeout");
            socket.set_nodelay(true).expect("nodelay");
            Box::new(socket)
        }
    }
}

fn client_hello() -> Vec<u8> {
    hello::encode(&Message::ClientHello(ClientHello {
        want: Want::Tcp,
        required_features: 0,
        supported_features: 0,
        process_id: [7; 16],
        conn: 11,
        generation: 22,
        max_message: 1 << 20,
        max_head: 1 << 16,
        credit: Credit { messages: 1000, bytes: 1 << 24 },
        ucx: None,
        no_ucx_reason: None,
        keepalive_ms: 0,
        least_endpoint: None,
    }))
}

impl Raw {
    /// Shakes hands; the hello goes out in pieces of `cut` bytes.
    fn open(listener: &mut Listener, cut: usize) -> (Self, Connection) {
        let mut socket = dial(listener.local_address());
        for piece in client_hello().chunks(cut) {
            socket.write_all(piece).expect("hello");
        }
        let mut answer = Vec::new();
        let accept = loop {
            match hello::decode(&answer).expect("an answer") {
                Decoded::Message(Message::Accept(accept), used) => {
                    assert_eq!(used, answer.len());
                    break accept;
                }
                Decoded::Message(other, _) => panic!("{other:?}"),
                Decoded::NeedMore(need) => {
                    let at = answer.len();
                    answer.resize(need, 0);
                    socket.read_exact(&mut answer[at..]).expect("the answer");
                }
            }
        };
        let raw = Self { socket, conn: accept.conn, generation: accept.generation, seq: 0 };
        (raw, listener.accept_blocking().expect("accept"))
    }

    fn frame(&self, header: &FrameHeader, payload: &[u8]) -> Vec<u8> {
        let mut bytes = [0; header::MAX_HEADER];
        let len = header.encode(&mut bytes);
        let prefix = header::encode_prefix(len, payload.len() as u64);
        [&prefix, &bytes[..len], payload].concat()
    }

    fn header(&self, kind: Kind, seq: u32) -> FrameHeader {
        FrameHeader::new(kind, self.conn, self.generation, seq)
    }

    fn data(&mut self, head: &[u8], body: &[u8]) -> Vec<u8> {
        let mut header = self.header(Kind::Data, self.seq);
        header.head_len = Some(head.len() as u32);
        self.seq += 1;
        self.frame(&header, &[head, body].concat())
    }

    /// Reads one frame.
    fn receive(&mut self) -> (FrameHeader, Vec<u8>) {
        let mut prefix = [0; header::PREFIX];
        self.socket.read_exact(&mut prefix).expect("prefix");
        let (header_len, payload_len) = header::decode_prefix(prefix).expect("a prefix");
        let mut bytes = vec![0; header_len + payload_len as usize];
        self.socket.read_exact(&mut bytes).expect("frame");
        let header = header::decode_exact(&bytes[..header_len]).expect("a header");
        assert_eq!((header.conn, header.generation), (11, 22));
        (header, bytes.split_off(header_len))
    }

    /// Reads until the other side ends the stream.
    fn expect_end(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.socket.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), IoError::ConnectionReset, "{error}"),
        }
        rest
    }
}

/// All kinds of frames, cut by `cut`: everything arrives as if it had come whole, pings are answered.
fn in_pieces(bed: &Bed, listener: &mut Listener, sizes: &[usize], mut cut: impl FnMut() -> usize, between: Duration) {
    let first = cut();
    let (mut raw, mut server) = Raw::open(listener, first);
    let mut bytes = Vec::new();
    for (i, size) in sizes.iter().enumerate() {
        let (head, body) = (random_bytes(i as u64, size / 3), random_bytes(!(i as u64), *size));
        bytes.extend(raw.data(&head, &body));
        bytes.extend(raw.frame(&raw.header(Kind::Ping, 0), &control::encode_ping(i as u64)));
        let mut credit = raw.header(Kind::Credit, 0);
        credit.credit = Some(Credit { messages: 0, bytes: 0 });
        bytes.extend(raw.frame(&credit, &[]));
    }
    bytes.extend(raw.frame(&raw.header(Kind::Goodbye, raw.seq), &[]));
    let (mut rest, mut pongs) = (&bytes[..], 0);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(cut().min(rest.len()));
        raw.socket.write_all(now).expect("write");
        rest = later;
        if !between.is_zero() {
            std::thread::sleep(between);
        }
    }
    for (i, size) in sizes.iter().enumerate() {
        let frame = block_for(Duration::from_secs(20), server.recv()).expect("a frame").unwrap();
        assert_eq!(frame.head, random_bytes(i as u64, size / 3), "head {i}");
        assert_eq!(frame.body.into_bytes().unwrap(), random_bytes(!(i as u64), *size), "body {i}");
    }
    assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
    loop {
        let (header, payload) = raw.receive();
        match header.kind {
            Kind::Pong => {
                assert_eq!(control::decode_ping(&payload).unwrap(), pongs);
                pongs += 1;
            }
            Kind::Credit | Kind::Ping => {}
            Kind::GoodbyeAck => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pongs, sizes.len() as u64);
    assert!(raw.expect_end().is_empty());
    let _ = bed;
}

/// Everything byte by byte, so that the kernel hands over one at a time.
fn dribble(bed: &Bed) {
    let mut listener = bed.listen_as(&ConnectionConfig::default());
    in_pieces(bed, &mut listener, &[0, 1, 60, 300, 0], || 1, Duration::from_micros(50));
    in_pieces(bed, &mut listener, &[20_000], || 1, Duration::ZERO);
}

fn random_cuts(bed: &Bed) {
    let mut listener = bed.listen_as(&ConnectionConfig::default());
    let sizes = [0, 3, 500, 4000, 16_383, 16_384, 40_000, 0, 300_000, 1_000_000, 5];
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let largest = [3000, 100, 70_000][seed as usize % 3];
        let between = Duration::from_micros(if seed % 3 == 1 { 0 } else { 20 });
        in_pieces(bed, &mut listener, &sizes, || 1 + rng.below(largest) as usize, between);
    }
}

/// A stream that ends inside a frame, at every kind of place: what came before it is delivered, then a reset.
fn half_frame_then_close(bed: &Bed) {
    let mut listener = bed.listen_as(&ConnectionConfig::default());
    for body in [100, 100_000] {
        for keep in [1, 7, 8, 9, 20, 30, 40, 100, 20_000, 90_000] {
            let (mut raw, mut server) = Raw::open(&mut listener, usize::MAX);
            let mut bytes = raw.data(b"whole", b"frame");
            let half = raw.data(b"half", &random_bytes(1, body));
            if keep >= half.len() {
                continue;
            }
            bytes.extend_from_slice(&half[..keep]);
            raw.socket.write_all(&bytes).expect("write");
            drop(raw);
            assert_eq!(server.recv_blocking().unwrap().head, "whole");
            let error = block_for(Duration::from_secs(10), server.recv()).expect("an end").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Reset, "{keep} bytes of a frame: {error}");
        }
    }
}

/// A peer that stops inside a frame and stays: its silence ends it, whoever else is there is not disturbed.
fn half_frame_then_silence(bed: &Bed) {
    let keepalive = Keepalive { interval: Duration::from_millis(200), deadline: Duration::from_millis(800) };
    let mut listener = bed.listen_as(&ConnectionConfig { keepalive: Some(keepalive), ..ConnectionConfig::default() });
    for keep in [3, 12, 40, 70_000] {
        let (mut raw, mut server) = Raw::open(&mut listener, usize::MAX);
        let half = raw.data(b"half", &random_bytes(1, 100_000));
        raw.socket.write_all(&half[..keep]).expect("write");
        let (client, mut other) = bed.pair_on(&mut listener, &ConnectionConfig::default());
        exchange(&client, &mut other, Bytes::from_static(b"not disturbed"), random_bytes(2, 50_000));
        let started = Instant::now();
        let error = block_for(Duration::from_secs(10), server.recv()).expect("an end").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        exchange(&client, &mut other, Bytes::from_static(b"not disturbed"), random_bytes(3, 50_000));
        // Pings were sent meanwhile, and then the stream was ended.
        raw.expect_end();
    }
}

/// A client that connects and says nothing, or half of a hello.
fn half_hello(bed: &Bed) {
    // A good one must still fit, and an emulated guest takes half a second to connect a queue pair.
    let connect_timeout = Duration::from_millis(if bed.backend.is_verbs() { 2500 } else { 500 });
    let config = ConnectionConfig { connect_timeout, ..ConnectionConfig::default() };
    let mut listener = bed.listen_as(&config);
    let hello = client_hello();
    for keep in [0, 1, 4, 11, 12, 13, hello.len() - 1] {
        for stays in [true, false] {
            let before = bed.server.stats().handshakes_failed;
            let mut socket = dial(listener.local_address());
            socket.write_all(&hello[..keep]).expect("write");
            let held = stays.then_some(socket);
            crate::tools::eventually("the handshake is given up", || bed.server.stats().handshakes_failed > before);
            if let Some(mut socket) = held {
                let mut rest = Vec::new();
                let _ = socket.read_to_end(&mut rest);
            }
        }
    }
    let (client, mut server) = bed.pair_on(&mut listener, &ConnectionConfig::default());
    client.send(&b"still served"[..]).unwrap();
    assert_eq!(server.recv_blocking().unwrap().head, "still served");
}

fn bad_hellos(bed: &Bed) {
    let mut listener = bed.listen_as(&ConnectionConfig::default());
    let good = client_hello();
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let mut too_long = good.clone();
    too_long[8..12].copy_from_slice(&(9000_u32).to_le_bytes());
    let mut huge = good.clone();
    huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let bad = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        random_bytes(1, 5000).to_vec(),
        vec![0; 100],
        changed(3, b'Q'),
        changed(4, 9),
        changed(5, 200),
        changed(5, 4),
        too_long,
        huge,
        good[..12].iter().copied().chain([0xff; 200]).collect(),
    ];
    for (i, bytes) in bad.into_iter().enumerate() {
        let before = bed.server.stats().handshakes_failed;
        let mut socket = dial(listener.local_address());
        // The other side may have given up before all of it is written.
        let _ = socket.write_all(&bytes);
        crate::tools::eventually(&format!("bad hello {i} is given up"), || {
            bed.server.stats().handshakes_failed > before
        });
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
    }
    assert!(listener.try_accept().unwrap().is_none());
    let (client, mut server) = bed.pair_on(&mut listener, &ConnectionConfig::default());
    client.send(&b"still served"[..]).unwrap();
    assert_eq!(server.recv_blocking().unwrap().head, "still served");
}

/// Frames that are not allowed end their connection with what was wrong, and no other.
fn bad_frames(bed: &Bed) {
    let mut listener = bed.listen_as(&ConnectionConfig::default());
    let (client, mut other) = bed.pair_on(&mut listener, &ConnectionConfig::default());
    type Make = fn(&mut Raw) -> Vec<u8>;
    let bad: [(&str, Make); 10] = [
        ("a prefix of garbage", |_| vec![0xff; 8]),
        ("a header of garbage", |_| [&header::encode_prefix(16, 0)[..], &[0xee; 16]].concat()),
        ("another connection's id", |raw| {
            raw.conn ^= 1;
            raw.data(b"x", b"y")
        }),
        ("a stale generation", |raw| {
            raw.generation ^= 1;
            raw.data(b"x", b"y")
        }),
        ("a number left out", |raw| {
            raw.seq += 1;
            raw.data(b"x", b"y")
        }),
        ("a number twice", |raw| {
            let first = raw.data(b"x", b"y");
            raw.seq -= 1;
            [first, raw.data(b"x", b"y")].concat()
        }),
        ("a head longer than the payload", |raw| {
            let mut header = raw.header(Kind::Data, 0);
            header.head_len = Some(100);
            raw.frame(&header, b"short")
        }),
        ("a ping of the wrong length", |raw| raw.frame(&raw.header(Kind::Ping, 0), b"123")),
        ("credit that was never taken", |raw| {
            let mut header = raw.header(Kind::Credit, 0);
            header.credit = Some(Credit { messages: u32::MAX, bytes: u64::MAX });
            raw.frame(&header, &[])
        }),
        ("a kind that belongs to the handshake", |raw| raw.frame(&raw.header(Kind::Proved, 0), &[])),
    ];
    for (what, make) in bad {
        let (mut raw, mut server) = Raw::open(&mut listener, usize::MAX);
        let bytes = make(&mut raw);
        raw.socket.write_all(&bytes).expect("write");
        let error = loop {
            match block_for(Duration::from_secs(10), server.recv()).expect(what) {
                Ok(frame) => assert_eq!(frame.head, "x", "{what}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Protocol, "{what}: {error}");
        raw.expect_end();
        exchange(&client, &mut other, Bytes::from_static(b"not disturbed"), random_bytes(2, 5_000));
    }
}

/// Lengths above the limits end the connection before memory is taken for them.
fn announced_above_limit(bed: &Bed) {
    let config = ConnectionConfig { max_message: 1 << 20, max_head: 1 << 16, ..ConnectionConfig::default() };
    let mut listener = bed.listen_as(&config);
    let rss = crate::tools::Holdings::now().rss;
    for (head, payload) in [(10, (1 << 20) + 1), ((1 << 16) + 1, 1 << 18), (0, header::MAX_PAYLOAD), (5, 1 << 40)] {
        let (mut raw, mut server) = Raw::open(&mut listener, usize::MAX);
        let mut header = raw.header(Kind::Data, 0);
        header.head_len = Some(head);
        let mut bytes = [0; header::MAX_HEADER];
        let len = header.encode(&mut bytes);
        let start = [&header::encode_prefix(len, payload)[..], &bytes[..len], b"first bytes"].concat();
        raw.socket.write_all(&start).expect("write");
        let error = block_for(Duration::from_secs(10), server.recv()).expect("an end").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "head {head} of {payload}: {error}");
        raw.expect_end();
    }
    let grown = crate::tools::Holdings::now().rss.saturating_sub(rss);
    assert!(grown < 16 << 20, "{grown} bytes taken for what was only announced");
    // The limits themselves are allowed.
    let (mut raw, mut server) = Raw::open(&mut listener, usize::MAX);
    let (head, body) = (random_bytes(1, 1 << 16), random_bytes(2, (1 << 20) - (1 << 16)));
    let bytes = raw.data(&head, &body);
    raw.socket.write_all(&bytes).expect("write");
    let frame: Frame = server.recv_blocking().unwrap();
    assert_eq!((frame.head, frame.body.into_bytes().unwrap()), (head, body));
    drop(raw);
    block_on(server.closed());
}
