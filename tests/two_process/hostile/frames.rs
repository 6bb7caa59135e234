//! Frames that break the rules, on a connection that is open over TCP.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use ucrpc::transport::proto::{
    control,
    header::{Credit, FrameHeader, HeadPlace, Kind},
    hello::{self, Message, Want},
};

use super::{
    Bed,
    raw::{Raw, frame, hello as greeting},
};
use crate::{Outcome, negotiation::NO_UCX};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("hostile/frames", frames),
        Trial::test("hostile/ping-flood", ping_flood),
        Trial::test("hostile/half-a-large-frame", half_a_large_frame),
    ]
}

/// The prefix of a frame, whatever it says.
fn prefix(header_len: u8, payload: u64) -> [u8; 8] {
    (u64::from(header_len) << 56 | payload & ((1 << 56) - 1)).to_le_bytes()
}

type Attack = fn(&mut Raw);

/// What ends a connection, and how.
const ATTACKS: &[(&str, &str, Attack)] = &[
    ("no header", "Protocol", |raw| raw.write(&prefix(0, 100))),
    ("a header of 255 bytes", "Protocol", |raw| raw.write(&prefix(255, 100))),
    ("a header of 17 bytes", "Protocol", |raw| raw.write(&[&prefix(17, 100)[..], &[1; 17]].concat())),
    ("all ones", "Protocol", |raw| raw.write(&[0xff; 64])),
    ("a second hello", "Protocol", |raw| raw.write(&hello::encode(&Message::ClientHello(greeting(Want::Tcp))))),
    ("a payload of 2^56 - 1 bytes", "Limit", |raw| {
        let mut bytes = frame(&raw.header(Kind::Data, 0), b"");
        bytes[..8].copy_from_slice(&prefix(16, u64::MAX));
        raw.write(&bytes);
    }),
    ("a payload one byte above the limit", "Limit", |raw| {
        let mut header = raw.header(Kind::Data, 0);
        header.head_len = Some(10);
        let mut bytes = frame(&header, b"");
        bytes[..8].copy_from_slice(&prefix(20, (1 << 20) + 1));
        raw.write(&bytes);
    }),
    ("a head one byte above the limit", "Limit", |raw| {
        let mut header = raw.header(Kind::Data, 0);
        header.head_len = Some((64 << 10) + 1);
        let mut bytes = frame(&header, b"");
        bytes[..8].copy_from_slice(&prefix(20, 1 << 20));
        raw.write(&bytes);
    }),
    ("a frame that is all head and above the limit", "Limit", |raw| {
        let mut bytes = frame(&raw.header(Kind::Data, 0), b"");
        bytes[..8].copy_from_slice(&prefix(16, (64 << 10) + 1));
        raw.write(&bytes);
    }),
    ("a head longer than its frame", "Protocol", |raw| {
        let mut header = raw.header(Kind::Data, 0);
        header.head_len = Some(11);
        raw.frame(&header, &[0; 10]);
    }),
    ("another generation", "Protocol", |raw| {
        let mut header = raw.header(Kind::Data, 0);
        header.generation ^= 1;
        raw.frame(&header, b"x");
    }),
    ("another connection", "Protocol", |raw| {
        let mut header = raw.header(Kind::Data, 0);
        header.conn ^= 1;
        raw.frame(&header, b"x");
    }),
    ("an unknown kind", "Protocol", |raw| {
        let mut bytes = frame(&raw.header(Kind::Data, 0), b"x");
        bytes[8] = 77;
        raw.write(&bytes);
    }),
    ("unknown flags", "Protocol", |raw| {
        let mut bytes = frame(&raw.header(Kind::Data, 0), b"x");
        bytes[9] = 0x80;
        raw.write(&bytes);
    }),
    ("reserved bytes", "Protocol", |raw| {
        let mut bytes = frame(&raw.header(Kind::Data, 0), b"x");
        bytes[10] = 1;
        raw.write(&bytes);
    }),
    ("a number out of order", "Protocol", |raw| {
        let header = raw.header(Kind::Data, 5);
        raw.frame(&header, b"x");
    }),
    ("the same number twice", "Protocol", |raw| {
        let header = raw.header(Kind::Data, 0);
        raw.frame(&header, b"x");
        raw.frame(&header, b"x");
    }),
    ("prove on an open connection", "Protocol", |raw| {
        let header = raw.header(Kind::Prove, 0);
        raw.frame(&header, b"");
    }),
    ("proved on an open connection", "Protocol", |raw| {
        let header = raw.header(Kind::Proved, 0);
        raw.frame(&header, b"");
    }),
    ("a head before its body, which streams don't have", "Protocol", |raw| {
        let header = raw.header(Kind::Head, 0);
        raw.frame(&header, b"head");
    }),
    ("a body whose head did not come", "Protocol", |raw| {
        let mut header = raw.header(Kind::Data, 0);
        header.place = HeadPlace::Before;
        header.head_len = Some(4);
        raw.frame(&header, b"body");
    }),
    ("an inline head, which streams don't have", "Protocol", |raw| {
        let mut header = raw.header(Kind::Data, 0);
        header.place = HeadPlace::InHeader;
        header.head_len = Some(4);
        raw.frame(&header, b"body");
    }),
    ("credit that was never used", "Protocol", |raw| {
        let mut header = raw.header(Kind::Credit, 0);
        header.credit = Some(Credit { messages: 1, bytes: 1 });
        raw.frame(&header, b"");
    }),
    ("all the credit of the world", "Protocol", |raw| {
        let mut header = raw.header(Kind::Credit, 0);
        header.credit = Some(Credit { messages: u32::MAX, bytes: u64::MAX });
        raw.frame(&header, b"");
    }),
    ("a ping of 3 bytes", "Protocol", |raw| {
        let header = raw.header(Kind::Ping, 0);
        raw.frame(&header, b"abc");
    }),
    ("a ping of a megabyte", "Limit Protocol", |raw| {
        let header = raw.header(Kind::Ping, 0);
        raw.frame(&header, &vec![0; 1 << 20]);
    }),
    ("a refusal of nothing", "Protocol", |raw| {
        let header = raw.header(Kind::Refused, 0);
        raw.frame(&header, b"a");
    }),
    ("data after goodbye", "Protocol PeerClosed", |raw| {
        let goodbye = raw.header(Kind::Goodbye, 0);
        raw.frame(&goodbye, b"");
        let header = raw.header(Kind::Data, 0);
        raw.frame(&header, b"x");
        raw.finish();
    }),
    ("a goodbye that counts wrong", "Protocol Reset TimedOut", |raw| {
        let goodbye = raw.header(Kind::Goodbye, 9);
        raw.frame(&goodbye, b"");
        raw.finish();
    }),
    ("an answer to no goodbye", "Protocol Reset", |raw| {
        let ack = raw.header(Kind::GoodbyeAck, 0);
        raw.frame(&ack, b"");
        raw.finish();
    }),
    ("more frames than the window has", "Protocol Limit", |raw| {
        let bytes: Vec<u8> = (0..100).flat_map(|seq| frame(&raw.header(Kind::Data, seq), b"x")).collect();
        raw.write(&bytes);
    }),
    ("more bytes than the window has", "Protocol Limit", |raw| {
        let body = vec![0; 60 << 10];
        let bytes: Vec<u8> = (0..7).flat_map(|seq| frame(&raw.header(Kind::Data, seq), &body)).collect();
        raw.write(&bytes);
    }),
    ("a frame that ends in the middle", "Reset", |raw| {
        let bytes = frame(&raw.header(Kind::Data, 0), &[0; 1000]);
        raw.write(&bytes[..500]);
        raw.finish();
    }),
];

fn frames() -> Outcome {
    // Nobody reads there, so no credit comes back.
    let limits = "mode=deaf max_message=1048576 max_head=65536 window_frames=8 window_bytes=262144";
    let mut bed = Bed::new(&[NO_UCX], "tcp", limits);
    for (what, kinds, attack) in ATTACKS {
        let failed = bed.server.stat("failed");
        let mut raw = Raw::open(bed.port());
        bed.server.expect("accepted");
        attack(&mut raw);
        let kinds: Vec<_> = kinds.split(' ').collect();
        let ended = bed.expect_end(what, &kinds);
        raw.expect_closed(what);
        if ended.get("kind") != "PeerClosed" {
            assert_eq!(bed.server.stat("failed"), failed + 1, "{what}");
        }
        bed.check_witness();
    }
    bed.finish()
}

/// Pings are answered, but the answers of one who does not read them don't pile up.
fn ping_flood() -> Outcome {
    let mut bed = Bed::new(&[NO_UCX], "tcp", "mode=echo");
    let before = bed.server.stat("rss_kb");
    let mut raw = Raw::open(bed.port());
    bed.server.expect("accepted");
    raw.stream.set_write_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    let ping = frame(&raw.header(Kind::Ping, 0), &control::encode_ping(1));
    let many: Vec<u8> = ping.iter().copied().cycle().take(ping.len() * 10_000).collect();
    let start = Instant::now();
    // 64 MB, or until the server has had enough.
    for _ in 0..200 {
        use std::io::Write;
        if raw.stream.write_all(&many).is_err() || start.elapsed() > Duration::from_secs(15) {
            break;
        }
    }
    bed.check_witness();
    let grown = bed.server.stat("peak_kb").saturating_sub(before);
    println!("the server grew by {grown} KiB");
    assert!(grown < 24 << 10, "the server kept {grown} KiB of answers");
    drop(raw);
    bed.server.expect("ended");
    bed.finish()
}

/// A frame that is announced and does not come is given up like any silent peer, and gives its memory back.
fn half_a_large_frame() -> Outcome {
    let mut bed = Bed::new(&[NO_UCX], "tcp", "mode=echo");
    let mut raws = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::open(bed.port());
        bed.server.expect("accepted");
        let mut header: FrameHeader = raw.header(Kind::Data, 0);
        header.head_len = Some(0);
        let mut bytes = frame(&header, b"");
        bytes[..8].copy_from_slice(&prefix(20, 16 << 20));
        raw.write(&bytes);
        raws.push(raw);
    }
    for _ in 0..20 {
        bed.expect_end("half a frame", &["TimedOut"]);
    }
    for raw in &mut raws {
        raw.expect_closed("half a frame");
    }
    bed.finish()
}
