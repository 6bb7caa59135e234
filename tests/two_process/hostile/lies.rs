//! Lies in a negotiation of UCX: worker addresses that are none, proofs that never were, limits that were not granted.

use std::{net::SocketAddr, time::Duration};

use libtest_mimic::Trial;
use ucrpc::transport::proto::hello::{ClientHello, Fallback, Message, Ready, Transport, Want};

use super::{Bed, raw::Raw};
use crate::{
    Outcome,
    process::{Env, Peer},
    relay::{self, Relay, read_message},
};

const TCP: Env<'static> = &[("UCX_TLS", "tcp")];
const POSIX: Env<'static> = &[("UCX_TLS", "posix")];
const PLAIN: Env<'static> = &[("UCRPC_UCX_LIBRARY", "none")];

pub(super) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, env) in [("tcp", TCP), ("posix", POSIX)] {
        trials.push(Trial::test(format!("hostile/worker-addresses/{name}"), move || worker_addresses(env)));
        trials.push(Trial::test(format!("hostile/proofs/{name}"), move || proofs(env)));
        trials.push(Trial::test(format!("hostile/dead-worker/{name}"), move || dead_worker(env)));
        trials.push(Trial::test(format!("hostile/stale-after-abort/{name}"), move || stale_after_abort(env)));
    }
    for (name, env) in [("tcp", PLAIN), ("ucx-tcp", TCP), ("ucx-posix", POSIX)] {
        trials.push(Trial::test(format!("hostile/too-large/{name}"), move || too_large(env)));
        trials.push(Trial::test(format!("hostile/overrun/{name}"), move || overrun(env)));
    }
    trials
}

fn port(bed: &Bed) -> SocketAddr {
    bed.port().parse().expect("an address")
}

/// A hello that a real client has sent, with the worker address of that client, which lives.
fn real_hello(bed: &mut Bed) -> ClientHello {
    let relay = Relay::start(port(bed), relay::honest, relay::honest);
    let opened = bed.witness.connect(&format!("ucx://{}", relay.address()));
    bed.server.expect("accepted");
    bed.witness.say(&format!("abort {}", opened.get("id")));
    bed.witness.expect_of("ended", opened.get("id"));
    bed.server.expect("ended");
    relay.hello()
}

/// Bytes that no UCX has made, and some that one has.
fn addresses(real: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for n in 0..60 {
        let len = 1 + random() as usize % 300;
        all.push((format!("random {n}"), (0..len).map(|_| random() as u8).collect()));
    }
    all.extend((1..real.len()).map(|len| (format!("cut to {len}"), real[..len].to_vec())));
    all.push(("zeroes".to_owned(), vec![0; 4096]));
    all.push(("ones".to_owned(), vec![0xff; 4096]));
    all.push(("longer".to_owned(), [real, &[0; 100]].concat()));
    all.push(("twice".to_owned(), [real, real].concat()));
    all.push(("huge".to_owned(), real.iter().copied().cycle().take(4096).collect()));
    all
}

fn worker_addresses(env: Env<'static>) -> Outcome {
    let mut bed = Bed::new(env, "ucx", "mode=echo connect_timeout_ms=2000");
    let real = real_hello(&mut bed);
    let address = real.ucx.as_ref().expect("a ucx client").worker_address.clone();
    for (n, (what, bytes)) in addresses(&address).into_iter().enumerate() {
        let mut hello = real.clone();
        hello.want = if n % 3 == 0 { Want::Ucx } else { Want::Auto };
        hello.ucx.as_mut().expect("a ucx client").worker_address = bytes;
        let mut raw = Raw::connect(bed.port());
        raw.say(&Message::ClientHello(hello));
        match read_message(&mut raw.stream) {
            Some((Message::Accept(accept), _)) => {
                assert_eq!(accept.transport, Transport::Tcp, "{what} was taken for a worker address");
                assert!(accept.fallback.is_some(), "{what}: no reason");
                let accepted = bed.server.expect("accepted");
                assert_eq!(accepted.get("transport"), "tcp");
                raw.finish();
                bed.server.expect("ended");
            }
            Some((Message::Reject(reject), _)) => assert_eq!(reject.code, 4, "{what}: {}", reject.text),
            other => panic!("{what}: {other:?}"),
        }
        if n % 20 == 0 {
            bed.check_witness();
        }
    }
    bed.finish()
}

/// Shakes hands for UCX and says what a real client would not.
fn proofs(env: Env<'static>) -> Outcome {
    let mut bed = Bed::new(env, "ucx", "mode=echo connect_timeout_ms=1500");
    let real = real_hello(&mut bed);
    let fallback = || Message::Fallback(Fallback { code: 6, text: "no lane".to_owned() });
    let cases: Vec<(&str, Vec<Message>, bool)> = vec![
        ("ready without a proof", vec![Message::Ready(Ready)], false),
        ("a second hello", vec![Message::ClientHello(real.clone())], false),
        ("silence", vec![], false),
        ("nak", vec![Message::Nak(ucrpc::transport::proto::hello::Nak { text: "no".to_owned() })], false),
        ("fallback, then ready", vec![fallback(), Message::Ready(Ready)], true),
        ("fallback twice", vec![fallback(), fallback()], true),
    ];
    for (what, messages, opens) in cases {
        let failed = bed.server.stat("handshakes_failed");
        let mut raw = Raw::connect(bed.port());
        raw.say(&Message::ClientHello(real.clone()));
        match read_message(&mut raw.stream) {
            Some((Message::Accept(accept), _)) => assert_eq!(accept.transport, Transport::Ucx, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
        for message in &messages {
            raw.say(message);
        }
        if opens {
            // After the first fallback it is a TCP connection, and the rest is no frame.
            let accepted = bed.server.expect("accepted");
            assert_eq!((accepted.get("transport"), accepted.get("reason")), ("tcp", "Unreachable"), "{what}");
            bed.expect_end(what, &["Protocol"]);
        }
        raw.expect_closed(what);
        if !opens {
            assert_eq!(bed.server.stat("handshakes_failed"), failed + 1, "{what}");
            assert!(!bed.server.has_said("accepted"), "{what} opened a connection");
        }
        bed.check_witness();
    }
    bed.finish()
}

/// The hello of a client that is dead by now: its worker address leads nowhere, or to nobody.
fn dead_worker(env: Env<'static>) -> Outcome {
    let mut bed = Bed::new(env, "ucx", "mode=echo connect_timeout_ms=1500");
    let relay = Relay::start(port(&bed), relay::honest, relay::honest);
    let mut client = Peer::start("client", env);
    client.connect(&format!("ucx://{}", relay.address()));
    bed.server.expect("accepted");
    client.kill();
    bed.expect_end("killed", &["Reset", "TimedOut"]);
    drop(client);
    for _ in 0..5 {
        let mut raw = Raw::connect(bed.port());
        raw.say(&Message::ClientHello(relay.hello()));
        match read_message(&mut raw.stream) {
            Some((Message::Accept(accept), _)) if accept.transport == Transport::Tcp => {
                bed.server.expect("accepted");
                raw.finish();
                bed.server.expect("ended");
            }
            Some((Message::Reject(reject), _)) => println!("the server refused: {}", reject.text),
            Some((Message::Accept(_), _)) => {
                // UCX may find out that nobody is there, and say so; or the deadline passes.
                while let Some((message, _)) = read_message(&mut raw.stream) {
                    let Message::Fallback(fallback) = message else { panic!("{message:?}") };
                    println!("the server gave up: {}", fallback.text);
                }
            }
            other => panic!("{other:?}"),
        }
        bed.check_witness();
    }
    bed.finish()
}

/// A server ends a loaded connection at once; what the client still sends must not be taken for anything else.
fn stale_after_abort(env: Env<'static>) -> Outcome {
    let mut bed = Bed::new(env, "ucx", "mode=load");
    let mut client = Peer::start("client", env);
    for _ in 0..5 {
        let opened = client.connect(&format!("{} mode=load", bed.address));
        let accepted = bed.server.expect("accepted");
        std::thread::sleep(Duration::from_millis(100));
        bed.server.say(&format!("abort {}", accepted.get("id")));
        let (ours, theirs) = (bed.server.expect("ended"), client.expect_of("ended", opened.get("id")));
        assert_eq!((ours.get("kind"), ours.get("pending")), ("Closed", ""), "{ours:?}");
        assert_eq!(theirs.get("pending"), "", "{theirs:?}");
        client.check_balance();
        bed.check_witness();
    }
    println!("stale messages: {}", bed.server.stat("stale_messages"));
    client.quit();
    bed.finish()
}

/// A client that was told a limit that the server has not: its one large frame is refused before memory is taken for it.
fn too_large(env: Env<'static>) -> Outcome {
    let scheme = if env == PLAIN { "tcp" } else { "ucx" };
    let mut bed = Bed::new(env, scheme, "mode=echo");
    let raise = |message: &mut Message| {
        if let Message::Accept(accept) = message {
            accept.max_message = 1 << 30;
            accept.credit.bytes = 1 << 30;
        }
    };
    let relay = Relay::start(port(&bed), relay::honest, raise);
    let before = bed.server.stat("peak_kb");
    let mut client = Peer::start("client", env);
    client.connect(&format!("{scheme}://{} mode=flood max_message=1073741824", relay.address()));
    bed.server.expect("accepted");
    let ended = bed.expect_end("200 MiB", &["Limit"]);
    client.expect("ended");
    let grown = bed.server.stat("peak_kb").saturating_sub(before);
    println!("{}: the server grew by {grown} KiB", ended.get("text"));
    assert!(grown < 32 << 10, "memory was taken for a frame above the limit: {grown} KiB");
    client.check_balance();
    client.quit();
    bed.finish()
}

/// A client that was told a larger window than the server grants, and a server where nobody reads.
fn overrun(env: Env<'static>) -> Outcome {
    let scheme = if env == PLAIN { "tcp" } else { "ucx" };
    let mut bed = Bed::new(env, scheme, "mode=deaf window_frames=8 window_bytes=1048576");
    let raise = |message: &mut Message| {
        if let Message::Accept(accept) = message {
            accept.credit.messages = 1000;
            accept.credit.bytes = 1 << 30;
        }
    };
    let relay = Relay::start(port(&bed), relay::honest, raise);
    let before = bed.server.stat("peak_kb");
    let mut client = Peer::start("client", env);
    client.connect(&format!("{scheme}://{} mode=load", relay.address()));
    bed.server.expect("accepted");
    bed.expect_end("overrun", &["Protocol", "Limit"]);
    let theirs = client.expect("ended");
    assert_eq!(theirs.get("pending"), "", "{theirs:?}");
    let grown = bed.server.stat("peak_kb").saturating_sub(before);
    assert!(grown < 64 << 10, "the server grew by {grown} KiB");
    client.check_balance();
    client.quit();
    bed.finish()
}
