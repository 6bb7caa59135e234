//! Handshakes that break the rules.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use ucrpc::transport::proto::{
    header::Credit,
    hello::{self, Fallback, Message, Nak, Ready, Want},
};

use super::{
    Bed,
    raw::{Raw, hello as greeting},
};
use crate::{Outcome, negotiation::NO_UCX};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("hostile/hellos", hellos),
        Trial::test("hostile/hello-prefixes", prefixes),
        Trial::test("hostile/slow-loris", slow_loris),
        Trial::test("hostile/slow-loris-at-the-limit", slow_loris_at_the_limit),
        Trial::test("hostile/slow-loris-gives-way", slow_loris_gives_way),
    ]
}

fn with_length(message: &Message, length: u32) -> Vec<u8> {
    let mut bytes = hello::encode(message);
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// First bytes that must end the handshake.
fn bad_beginnings() -> Vec<(&'static str, Vec<u8>)> {
    let good = Message::ClientHello(greeting(Want::Tcp));
    let edited = |edit: fn(&mut hello::ClientHello)| {
        let mut hello = greeting(Want::Tcp);
        edit(&mut hello);
        hello::encode(&Message::ClientHello(hello))
    };
    let byte = |at: usize, value: u8| {
        let mut bytes = hello::encode(&good);
        bytes[at] = value;
        bytes
    };
    let mut many_fields = b"UCRP\x01\x01\0\0".to_vec();
    many_fields.extend(1040_u32.to_le_bytes());
    many_fields.extend((0..260_u16).flat_map(|n| [(n + 100).to_le_bytes(), [0, 0]].concat()));
    let garbage: Vec<u8> = (0..4000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect();
    vec![
        ("garbage", garbage),
        ("zeroes", vec![0; 100]),
        ("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("another protocol", b"PRPC\0\0\0\x10\0\0\0\x10".to_vec()),
        ("a hello of 4 GiB", with_length(&good, u32::MAX)),
        ("a hello one byte too long", with_length(&good, 8193)),
        ("a field that leaves the hello", with_length(&good, 30)),
        ("too many fields", many_fields),
        ("another major version", byte(4, 9)),
        ("an unknown message", byte(5, 99)),
        ("an unknown wish", byte(16, 77)),
        ("no room for messages", edited(|hello| hello.credit = Credit { messages: 0, bytes: 0 })),
        ("no message fits", edited(|hello| hello.max_message = 0)),
        ("features that nobody has", edited(|hello| hello.required_features = u64::MAX)),
        ("ready before the hello", hello::encode(&Message::Ready(Ready))),
        ("fallback before the hello", hello::encode(&Message::Fallback(Fallback { code: 1, text: "x".to_owned() }))),
        ("nak before the hello", hello::encode(&Message::Nak(Nak { text: "x".to_owned() }))),
        ("reject from a client", hello::encode(&Message::Reject(hello::Reject { code: 1, text: "x".to_owned() }))),
        ("ping before the hello", hello::encode(&Message::Ping(1))),
    ]
}

fn hellos() -> Outcome {
    let mut bed = Bed::new(&[NO_UCX], "tcp", "mode=echo connect_timeout_ms=2000");
    for (what, bytes) in bad_beginnings() {
        let failed = bed.server.stat("handshakes_failed");
        let mut raw = Raw::connect(bed.port());
        raw.write(&bytes);
        raw.finish();
        raw.expect_closed(what);
        let deadline = Instant::now() + Duration::from_secs(10);
        while bed.server.stat("handshakes_failed") == failed {
            assert!(Instant::now() < deadline, "{what} was taken for a handshake");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(!bed.server.has_said("accepted"), "{what} was accepted");
        bed.check_witness();
    }
    bed.finish()
}

/// Every beginning of a good hello, and then the end; at once or after the deadline.
fn prefixes() -> Outcome {
    let mut bed = Bed::new(&[NO_UCX], "tcp", "mode=echo connect_timeout_ms=1500");
    let good = hello::encode(&Message::ClientHello(greeting(Want::Tcp)));
    let before = bed.server.stat("handshakes_failed");
    let mut held = Vec::new();
    for len in 0..good.len() {
        let mut raw = Raw::connect(bed.port());
        raw.write(&good[..len]);
        if len % 2 == 0 {
            raw.finish();
            raw.expect_closed("half a hello");
        } else {
            held.push(raw);
        }
    }
    bed.check_witness();
    for mut raw in held {
        raw.expect_closed("half a hello and silence");
    }
    assert_eq!(bed.server.stat("handshakes_failed") - before, good.len() as u64);
    bed.finish()
}

/// One byte a time does not keep a handshake alive, and many of them don't keep others out.
fn slow_loris() -> Outcome {
    const MANY: usize = 300;
    let mut bed = Bed::new(&[NO_UCX], "tcp", "mode=echo connect_timeout_ms=2000");
    let good = hello::encode(&Message::ClientHello(greeting(Want::Tcp)));
    let start = Instant::now();
    let mut lorises: Vec<Raw> = (0..MANY).map(|_| Raw::connect(bed.port())).collect();
    let address = bed.address.clone();
    for byte in &good[..3] {
        for raw in &mut lorises {
            raw.write(&[*byte]);
        }
        let opened = bed.witness.connect(&address);
        bed.witness.say(&format!("abort {}", opened.get("id")));
        std::thread::sleep(Duration::from_millis(400));
    }
    assert!(start.elapsed() < Duration::from_secs(60));
    for raw in &mut lorises {
        raw.expect_closed("slow loris");
    }
    assert!(start.elapsed() >= Duration::from_secs(2), "closed before the deadline");
    for _ in 0..3 {
        bed.server.expect("ended");
    }
    bed.finish()
}

/// When handshakes fill the listener up, it accepts again as their deadlines pass.
fn slow_loris_at_the_limit() -> Outcome {
    let mut bed = Bed::new(&[NO_UCX], "tcp", "mode=echo connect_timeout_ms=500 max_handshakes=8");
    let mut lorises: Vec<Raw> = (0..24).map(|_| Raw::connect(bed.port())).collect();
    for raw in &mut lorises {
        raw.write(b"UCR");
    }
    let address = bed.address.clone();
    // Behind 24 others, 8 at a time for half a second each.
    let opened = bed.witness.connect(&format!("{address} connect_timeout_ms=15000"));
    assert!(opened.number("ms") >= 500, "the listener did not pause: {opened:?}");
    assert!(bed.server.stat("accept_pauses") > 0);
    for raw in &mut lorises {
        raw.expect_closed("slow loris");
    }
    bed.witness.say(&format!("abort {}", opened.get("id")));
    bed.server.expect("ended");
    bed.finish()
}

/// They don't keep a newcomer out until their deadlines: the oldest give way.
fn slow_loris_gives_way() -> Outcome {
    let mut bed = Bed::new(&[NO_UCX], "tcp", "mode=echo connect_timeout_ms=60000 max_handshakes=8");
    let mut lorises: Vec<Raw> = (0..24).map(|_| Raw::connect(bed.port())).collect();
    for raw in &mut lorises {
        raw.write(b"UCR");
    }
    let address = bed.address.clone();
    // Behind 24 others, 8 at a time for a second each.
    let opened = bed.witness.connect(&format!("{address} connect_timeout_ms=30000"));
    println!("open after {} ms", opened.get("ms"));
    assert!(opened.number("ms") < 15_000, "{opened:?}");
    for raw in lorises.iter_mut().take(8) {
        raw.expect_closed("the oldest");
    }
    bed.witness.say(&format!("abort {}", opened.get("id")));
    bed.server.expect("ended");
    drop(lorises);
    let deadline = Instant::now() + Duration::from_secs(10);
    while bed.server.stat("handshakes") > 0 {
        assert!(Instant::now() < deadline, "handshakes stay after their sockets");
        std::thread::sleep(Duration::from_millis(5));
    }
    bed.finish()
}
