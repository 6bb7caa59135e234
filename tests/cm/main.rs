//! `ucx+cm://`: the contract of the transport where this wire can keep it, and its own limits.
//!
//! Each case runs in a process of its own, because UCX reads its settings once per process and a misuse of it aborts.
//! `UCRPC_CHILD=ucx-cm-tcp/echo target/debug/deps/cm-*` runs one case in this process, for a debugger.

mod bed;
#[path = "../util/block_on.rs"]
mod block_on;
#[path = "../util/frames.rs"]
#[allow(dead_code, reason = "other suites use more of it")]
mod frames;
#[path = "../util/retry.rs"]
mod retry;

use std::{
    io::Write,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use bytes::Bytes;
use libtest_mimic::{Arguments, Failed};
use ucrpc::transport::{
    Address, ConnectionConfig, DispatcherConfig, ErrorKind, Frame, ListenConfig, LocalDispatcher, SendError,
    framing::{Cut, Detect, Framer},
};

use crate::{
    bed::{Bed, Peer, any_port, at_rest, dispatcher, exchange, peer},
    block_on::block_on,
    frames::random_bytes,
};

const CHILD: &str = "UCRPC_CHILD";

const BACKENDS: [(&str, &[(&str, &str)]); 2] = [("ucx-cm-tcp", &[("UCX_TLS", "tcp")]), ("ucx-cm-all", &[])];

const CASES: &[(&str, fn())] = &[
    ("echo", echo),
    ("sizes", sizes),
    ("order", order),
    ("close_with_data_in_flight", close_with_data_in_flight),
    ("both_close", both_close),
    ("flow", flow),
    ("framer", framer),
    ("killed", killed),
    ("stopped", stopped),
    ("stopped_in_transfer", stopped_in_transfer),
    ("refused", refused),
    ("connect_timeout", connect_timeout),
    ("turned_away", turned_away),
    ("listen", listen),
    ("cycles", cycles),
];

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(CHILD) {
        return child(&name);
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2).min(2));
    let pairs = BACKENDS.iter().flat_map(|b| CASES.iter().map(move |c| (b, c.0)));
    let trials = pairs.map(|((backend, environment), case)| {
        let name = format!("{backend}/{case}");
        // UCX 1.13.1 asserts (async.c:643) when two workers of one process, as both ends are here, reuse a descriptor.
        let aborts = case == "cycles" && std::env::var_os("UCRPC_CM_CYCLES").is_none();
        retry::trial(name.clone(), move || parent(environment, &name)).with_ignored_flag(aborts)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn parent(environment: &[(&str, &str)], name: &str) -> Result<(), Failed> {
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let output = Command::new(me).env(CHILD, name).envs(environment.iter().copied()).output();
    let output = output.map_err(|e| format!("cannot start a child: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Err(format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr)).into())
}

fn child(name: &str) -> ExitCode {
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(150));
        eprintln!("the case did not end in time");
        std::process::exit(3);
    });
    let (_, case) = name.split_once('/').expect("backend/case");
    if case == "peer" {
        peer();
    } else {
        let (_, run) = CASES.iter().find(|(n, _)| *n == case).expect("a known case");
        run();
    }
    ExitCode::SUCCESS
}

fn echo() {
    let bed = Bed::new();
    let (mut client, mut server) = bed.pair();
    for i in 0..1000_u32 {
        client.send(i.to_le_bytes().to_vec()).unwrap();
        let frame = server.recv_blocking().unwrap();
        assert_eq!(frame.head, i.to_le_bytes().as_slice());
        server.send(frame).unwrap();
        assert_eq!(client.recv_blocking().unwrap().head, i.to_le_bytes().as_slice());
    }
    block_on(client.close()).unwrap();
    assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
    bed.finish();
}

/// Sends a frame; it arrives in one piece, because this wire does not know where a head ends.
fn sizes() {
    let bed = Bed::new();
    let config = ConnectionConfig { max_message: 256 << 20, ..ConnectionConfig::default() };
    let (mut client, mut server) = bed.pair_with(config.clone(), config);
    for (i, middle) in
        [0, 1, 64, 512, 1 << 10, 4 << 10, 8 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20].iter().enumerate()
    {
        for len in [middle.max(&1) - 1, *middle, middle + 1] {
            let body = random_bytes(i as u64 + 7, len);
            exchange(&client, &mut server, Bytes::new(), body.clone());
            exchange(&server, &mut client, body.clone(), Bytes::new());
            exchange(&client, &mut server, Bytes::from_static(b"head"), body.clone());
            let (left, right) = (body.slice(..len / 3), body.slice(len / 3..));
            exchange(&server, &mut client, body.slice(..len.min(5000)), vec![left, right]);
        }
    }
    exchange(&client, &mut server, Bytes::from_static(b"largest"), random_bytes(3, (256 << 20) - 7));
    let above = Frame::new(Bytes::from_static(b"12345678"), Bytes::from(vec![0; (256 << 20) - 7]));
    assert!(matches!(client.send(above), Err(SendError::TooLarge(..))));
    drop((client, server));
    bed.finish();
}

/// Small ones overtake large ones on the way; the application does not see it.
fn order() {
    let bed = Bed::new();
    let (client, mut server) = bed.pair();
    let frames = 3000_u64;
    let length = |i: u64| [8, 100, 0, 3000, 40_000, 8, 8, 300_000, 1_000_000, 8][(i.wrapping_mul(i) % 10) as usize];
    let sender = client.sender();
    let sending = std::thread::spawn(move || {
        for i in 0..frames {
            block_on(sender.send_wait(Frame::new(i.to_le_bytes().to_vec(), random_bytes(i, length(i))))).unwrap();
        }
    });
    for i in 0..frames {
        let frame = server.recv_blocking().unwrap();
        assert_eq!(frame.head[..8], i.to_le_bytes());
        assert_eq!(frame.head.slice(8..), random_bytes(i, length(i)), "frame {i}");
    }
    sending.join().unwrap();
    let stats = server.stats();
    assert_eq!(stats.frames_received, frames);
    assert!(stats.rendezvous_received > 0);
    drop((client, server));
    bed.finish();
}

fn close_with_data_in_flight() {
    let bed = Bed::new();
    let (client, mut server) = bed.pair();
    let frames = 500_usize;
    let sender = client.sender();
    let sending = std::thread::spawn(move || {
        for i in 0..frames {
            let body = random_bytes(i as u64, i * 97 % 700_000);
            block_on(sender.send_wait(Frame::new(i.to_le_bytes().to_vec(), body))).unwrap();
        }
        block_on(sender.close())
    });
    for i in 0..frames {
        let frame = server.recv_blocking().unwrap();
        assert_eq!(frame.head[..8], i.to_le_bytes());
        assert_eq!(frame.head.slice(8..), random_bytes(i as u64, i * 97 % 700_000));
    }
    assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
    sending.join().unwrap().unwrap();
    drop(client);
    bed.finish();
}

fn both_close() {
    let bed = Bed::new();
    let mut listener = bed.listen(ListenConfig::default());
    for _ in 0..50 {
        let (client, server) = bed.pair_on(&mut listener, ConnectionConfig::default());
        client.send(&b"last"[..]).unwrap();
        server.send(&b"words"[..]).unwrap();
        let closing = std::thread::spawn(move || block_on(client.close()));
        block_on(server.close()).unwrap();
        closing.join().unwrap().unwrap();
    }
    drop(listener);
    bed.finish();
}

/// A receiver that takes nothing holds its sender up; then everything arrives.
fn flow() {
    let bed = Bed::new();
    let window = 1 << 20;
    let small = ConnectionConfig { recv_window_bytes: window, recv_window_frames: 256, ..ConnectionConfig::default() };
    for len in [0_usize, 16, 3000, 100_000, 2_000_000] {
        let (client, mut server) = bed.pair_with(ConnectionConfig::default(), small.clone());
        let mut sent = 0_u64;
        let mut quiet = Instant::now();
        // Until nothing moves for a while.
        while quiet.elapsed() < Duration::from_millis(700) {
            match client.send(Frame::new(sent.to_le_bytes().to_vec(), random_bytes(sent, len))) {
                Ok(()) => (sent, quiet) = (sent + 1, Instant::now()),
                Err(SendError::Full(_)) => std::thread::sleep(Duration::from_millis(1)),
                Err(other) => panic!("{other:?}"),
            }
        }
        let stats = server.stats();
        println!("{len}: {sent} sent, {} frames, {} bytes received", stats.frames_received, stats.bytes_received);
        assert!(stats.bytes_received <= 2 * window + (2 << 20) + 2 * (len as u64 + 8), "{stats:?}");
        assert!(stats.frames_received <= 256 + 2 * 1024, "{stats:?}");
        assert!(client.is_open() && server.is_open());
        for i in 0..sent {
            let frame = server.recv_blocking().unwrap();
            assert_eq!(frame.head[..8], i.to_le_bytes());
            assert_eq!(frame.head.len(), len + 8);
        }
        block_on(client.close()).unwrap();
    }
    bed.finish();
}

/// Frames of a letter, the head's length and the body's length.
struct Letters;

impl Framer for Letters {
    fn name(&self) -> &'static str {
        "letters"
    }

    fn detect(&self, first: &[u8]) -> Detect {
        if first[0] == b'L' { Detect::Yes } else { Detect::No }
    }

    fn cut(&self, bytes: &[u8]) -> Cut {
        match bytes {
            [b'L', head, body, ..] => Cut::Frame { head: 3 + usize::from(*head), body: u64::from(*body) },
            [b'L', ..] => Cut::NeedMore(3),
            _ => Cut::Bad("no letter".into()),
        }
    }
}

/// One message may hold several frames; what is no whole frame ends its own connection only.
fn framer() {
    let bed = Bed::new();
    let config = ConnectionConfig { framer: Some(std::sync::Arc::new(Letters)), ..ConnectionConfig::default() };
    let mut listener = bed.listen(ListenConfig { connection: config, ..ListenConfig::default() });
    let (bad, mut bad_server) = bed.pair_on(&mut listener, ConnectionConfig::default());
    let (client, mut server) = bed.pair_on(&mut listener, ConnectionConfig::default());
    assert_eq!(server.info().unwrap().framing, Some("letters"));
    client.send(&b"L\x01\x02abbL\x00\x00L\x02\x00cc"[..]).unwrap();
    client.send(Frame::new(&b"L\x00\x04"[..], Bytes::from_static(b"body"))).unwrap();
    for (head, body) in [("L\x01\x02a", "bb"), ("L\x00\x00", ""), ("L\x02\x00cc", ""), ("L\x00\x04", "body")] {
        let frame = server.recv_blocking().unwrap();
        assert_eq!((&frame.head[..], frame.body.into_bytes().unwrap()), (head.as_bytes(), Bytes::from(body)));
    }
    for bytes in [&b"L\x01\x01a"[..], &b"L\x01"[..], &b"L\x00\x00x"[..], &b"x"[..]] {
        let (one, mut other) = bed.pair_on(&mut listener, ConnectionConfig::default());
        one.send(bytes).unwrap();
        let end = loop {
            match other.recv_blocking() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(end.kind(), ErrorKind::Protocol, "{end}");
        assert_eq!(block_on(one.closed()).kind(), ErrorKind::Reset);
    }
    bad.send(&b"L\x00\x00"[..]).unwrap();
    assert_eq!(bad_server.recv_blocking().unwrap().head.len(), 3, "others are not touched");
    drop((bad, bad_server, client, server, listener));
    bed.finish();
}

fn killed() {
    let mut peer = Peer::start();
    let client = dispatcher("client");
    let mut connection = client.connect(&peer.address, ConnectionConfig::default()).blocking().unwrap();
    connection.send(&b"alive"[..]).unwrap();
    assert_eq!(connection.recv_blocking().unwrap().head, "alive");
    peer.child.kill().unwrap();
    peer.child.wait().unwrap();
    let start = Instant::now();
    let end = block_on(connection.closed());
    assert_eq!(end.kind(), ErrorKind::Reset, "{end}");
    assert!(end.text().contains("does not tell"), "{end}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    drop(connection);
    at_rest(&client);
    client.shutdown();
}

fn stopped() {
    let peer = Peer::start();
    let client = dispatcher("client");
    let connection = client.connect(&peer.address, ConnectionConfig::default()).blocking().unwrap();
    // Pings keep an idle connection alive.
    std::thread::sleep(Duration::from_secs(4));
    assert!(connection.is_open(), "{:?}", connection.error());
    peer.signal(rustix::process::Signal::STOP);
    let start = Instant::now();
    let end = block_on(connection.closed());
    assert_eq!(end.kind(), ErrorKind::TimedOut, "{end}");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    peer.signal(rustix::process::Signal::CONT);
    drop(connection);
    at_rest(&client);
    client.shutdown();
}

/// With frames of a megabyte under way both ways: the same deadline.
fn stopped_in_transfer() {
    let peer = Peer::start();
    let client = dispatcher("client");
    let mut connection = client.connect(&peer.address, ConnectionConfig::default()).blocking().unwrap();
    let sender = connection.sender();
    let body = random_bytes(1, 1 << 20);
    let sending = std::thread::spawn(move || {
        loop {
            match sender.send(Frame { head: Bytes::new(), body: body.clone().into() }) {
                Ok(_) => {}
                Err(SendError::Full(_)) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => break,
            }
        }
    });
    for _ in 0..20 {
        assert_eq!(connection.recv_blocking().unwrap().head.len(), 1 << 20);
    }
    peer.signal(rustix::process::Signal::STOP);
    let start = Instant::now();
    let end = loop {
        match connection.recv_blocking() {
            Ok(_) => {}
            Err(end) => break end,
        }
    };
    assert_eq!(end.kind(), ErrorKind::TimedOut, "{end}");
    assert!(start.elapsed() < Duration::from_millis(3500), "{:?}", start.elapsed());
    sending.join().unwrap();
    // It is dead to us; its process may go as well.
    drop(peer);
    drop(connection);
    at_rest(&client);
    client.shutdown();
}

fn refused() {
    let client = dispatcher("client");
    // Bound and not listening: nobody else can take it meanwhile.
    let taken = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&taken, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let at: std::net::SocketAddr = rustix::net::getsockname(&taken).unwrap().try_into().unwrap();
    let address: Address = format!("ucx+cm://{at}").parse().unwrap();
    let start = Instant::now();
    let error = client.connect(&address, ConnectionConfig::default()).blocking().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(start.elapsed() < Duration::from_secs(3));
    at_rest(&client);
    client.shutdown();
}

fn connect_timeout() {
    let client = dispatcher("client");
    // It accepts, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = format!("ucx+cm://{}", silent.local_addr().unwrap()).parse().unwrap();
    let config = ConnectionConfig { connect_timeout: Duration::from_millis(300), ..ConnectionConfig::default() };
    let start = Instant::now();
    let error = client.connect(&address, config).blocking().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!((300..3000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    drop(silent);
    at_rest(&client);
    client.shutdown();
}

fn turned_away() {
    let bed = Bed::new();
    let mut listener = bed.listen(ListenConfig { accept_queue: 2, ..ListenConfig::default() });
    let mut open = Vec::new();
    for _ in 0..2 {
        let connecting = bed.client.connect(listener.local_address(), ConnectionConfig::default());
        open.push(connecting.blocking().unwrap());
    }
    for _ in 0..30 {
        let connecting = bed.client.connect(listener.local_address(), ConnectionConfig::default());
        let error = connecting.blocking().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    }
    let mut first = listener.accept_blocking().unwrap();
    let connecting = bed.client.connect(listener.local_address(), ConnectionConfig::default());
    open.push(connecting.blocking().unwrap());
    open[0].send(&b"x"[..]).unwrap();
    assert_eq!(first.recv_blocking().unwrap().head, "x");
    drop((listener, open, first));
    bed.finish();
}

fn listen() {
    let bed = Bed::new();
    let listener = bed.listen(ListenConfig::default());
    let address = listener.local_address().clone();
    assert_ne!(address.host_port().unwrap().port, 0);
    let taken = bed.client.listen(&address, ListenConfig::default()).unwrap_err();
    println!("taken: {taken}");
    let foreign = bed.client.listen(&"ucx+cm://192.0.2.1:0".parse().unwrap(), ListenConfig::default()).unwrap_err();
    println!("not ours: {foreign}");
    drop(listener);
    // On a dispatcher of this thread: before it runs, and while it does.
    let local = LocalDispatcher::new(DispatcherConfig::default()).unwrap();
    let handle = local.handle();
    let mut before = handle.listen(&any_port(), ListenConfig::default()).unwrap();
    local.block_on(async {
        let inside = handle.listen(&any_port(), ListenConfig::default()).unwrap();
        assert_ne!(inside.local_address(), before.local_address());
        let client = bed.client.connect(before.local_address(), ConnectionConfig::default()).into_connection();
        client.send(&b"hello"[..]).unwrap();
        assert_eq!(before.accept().await.unwrap().recv().await.unwrap().head, "hello");
    });
    drop(before);
    drop(local);
    assert_eq!(handle.listen(&any_port(), ListenConfig::default()).unwrap_err().kind(), ErrorKind::Stopped);
    bed.finish();
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn cycles() {
    let bed = Bed::new();
    let mut listener = bed.listen(ListenConfig::default());
    let settle = || {
        let deadline = Instant::now() + Duration::from_secs(10);
        while bed.server.stats().ucx_endpoints + bed.client.stats().ucx_endpoints > 0 {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_micros(200));
        }
        open_fds()
    };
    let mut after_some = 0;
    for cycle in 0..1000 {
        let (client, mut server) = bed.pair_on(&mut listener, ConnectionConfig::default());
        client.send(&b"hello"[..]).unwrap();
        assert_eq!(server.recv_blocking().unwrap().head, "hello");
        if cycle % 2 == 0 {
            block_on(client.close()).unwrap();
        } else {
            server.abort();
        }
        drop((client, server));
        if cycle == 50 {
            after_some = settle();
        }
    }
    let now = settle();
    println!("descriptors after 50 cycles: {after_some}, after 1000: {now}");
    assert!(now <= after_some + 4, "descriptors leak: {after_some} -> {now}");
    std::io::stdout().flush().unwrap();
    drop(listener);
    bed.finish();
}
