//! What a peer can do to us that none of our own would: the tests speak the bytes themselves.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use ucrpc_transport::{
    Address, Connection, ConnectionConfig, Dispatcher, DispatcherConfig, ErrorKind, Frame,
    framing::{Cut, Detect, Framer},
    proto::{
        control,
        header::{Credit, FrameHeader, Kind, MAX_HEADER, encode_prefix},
        hello::{self, Accept, ClientHello, Decoded, Message, Transport},
    },
};

fn dispatcher() -> Dispatcher {
    Dispatcher::spawn(DispatcherConfig { ucx: false, ..DispatcherConfig::default() }).expect("dispatcher")
}

/// A quiet client: nothing that the test does not ask for is on the wire.
fn config() -> ConnectionConfig {
    ConnectionConfig { keepalive: None, max_message: 1 << 30, ..ConnectionConfig::default() }
}

/// Connects to a listener of this test, which answers the hello with a large window.
fn native(dispatcher: &Dispatcher, config: ConnectionConfig) -> (Connection, TcpStream, ClientHello) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address: Address = format!("tcp://{}", listener.local_addr().expect("address")).parse().expect("address");
    let connecting = dispatcher.connect(&address, config);
    let (mut stream, _) = listener.accept().expect("accept");
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    let hello = loop {
        let got = stream.read(&mut buffer).expect("hello");
        bytes.extend_from_slice(&buffer[..got]);
        if let Decoded::Message(Message::ClientHello(hello), used) = hello::decode(&bytes).expect("a good hello") {
            assert_eq!(used, bytes.len(), "nothing follows the hello");
            break hello;
        }
    };
    let accept = Accept {
        transport: Transport::Tcp,
        fallback: None,
        ucx: None,
        required_features: 0,
        supported_features: 0,
        process_id: [7; 16],
        conn: 5,
        generation: 6,
        max_message: 1 << 30,
        max_head: 1 << 20,
        credit: Credit { messages: 1 << 20, bytes: 1 << 40 },
        keepalive_ms: 0,
        endpoint: None,
    };
    stream.write_all(&hello::encode(&Message::Accept(accept))).expect("accept");
    (connecting.blocking().expect("connect"), stream, hello)
}

/// One control frame for the client's end.
fn control_frame(hello: &ClientHello, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; MAX_HEADER];
    let len = FrameHeader::new(kind, hello.conn, hello.generation, 0).encode(&mut header);
    [&encode_prefix(len, payload.len() as u64), &header[..len], payload].concat()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_frame_is_done_when_the_kernel_has_it_and_not_when_control_frames_are() {
    let dispatcher = dispatcher();
    let (connection, mut stream, hello) = native(&dispatcher, config());
    let ping = control_frame(&hello, Kind::Ping, &control::encode_ping(1));
    for _ in 0..10 {
        stream.write_all(&ping).expect("ping");
        let mut pong = vec![0; ping.len()];
        stream.read_exact(&mut pong).expect("pong");
    }
    // More than any socket buffer: it can't be done while nobody reads.
    let len = 64 << 20;
    let sent = connection.send_tracked(Frame::new(&b"head"[..], vec![1_u8; len])).expect("send");
    until("the first write", || connection.stats().frames_sent == 1 && stream.peek(&mut [0; 8]).is_ok_and(|n| n > 0));
    let mut sent = pin!(sent);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(sent.as_mut().poll(&mut cx), Poll::Pending), "it is done, they say, and it is not");
    std::io::copy(&mut stream.take(len as u64), &mut std::io::sink()).expect("read");
    until("the end of the frame", || matches!(sent.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
    connection.abort();
    dispatcher.shutdown();
}

#[test]
fn a_peer_that_asks_and_never_listens_is_cut_off() {
    let dispatcher = dispatcher();
    let (connection, mut stream, hello) = native(&dispatcher, config());
    let pings = control_frame(&hello, Kind::Ping, &control::encode_ping(1)).repeat(200);
    stream.set_write_timeout(Some(Duration::from_secs(20))).expect("timeout");
    // 32 MiB of answers are many times what sockets hold.
    let flooded = (0..(32 << 20) / pings.len()).all(|_| {
        let reads = || dispatcher.stats().turns_with_work + dispatcher.stats().wakes_by_io;
        let before = reads();
        let sent = stream.write_all(&pings).is_ok();
        // Few at once: a flood in one read is found otherwise.
        let soon = Instant::now() + Duration::from_millis(20);
        while reads() == before && Instant::now() < soon {
            std::thread::yield_now();
        }
        sent
    });
    assert!(!flooded, "all of it was answered into memory");
    until("the end", || connection.error().is_some());
    assert_eq!(connection.error().map(|e| e.kind()), Some(ErrorKind::Limit), "{:?}", connection.error());
    dispatcher.shutdown();
}

/// Frames of eight bytes.
struct Eights;

impl Framer for Eights {
    fn name(&self) -> &'static str {
        "eights"
    }

    fn detect(&self, _: &[u8]) -> Detect {
        Detect::Yes
    }

    fn cut(&self, bytes: &[u8]) -> Cut {
        if bytes.len() < 8 { Cut::NeedMore(8) } else { Cut::Frame { head: 8, body: 0 } }
    }
}

#[test]
fn nothing_is_received_after_the_end() {
    let dispatcher = dispatcher();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address: Address = format!("tcp://{}", listener.local_addr().expect("address")).parse().expect("address");
    let config = ConnectionConfig { framer: Some(Arc::new(Eights)), ..config() };
    let mut connection = dispatcher.connect(&address, config).blocking().expect("connect");
    let (mut stream, _) = listener.accept().expect("accept");
    stream.write_all(b"12345678").expect("write");
    until("the frame", || connection.stats().frames_received == 1);
    let waker = std::task::Waker::noop();
    let sender = connection.sender();
    let mut closing = pin!(sender.close());
    until("the close", || closing.as_mut().poll(&mut Context::from_waker(waker)).is_ready());
    assert_eq!(stream.read(&mut [0; 8]).expect("the client's end"), 0);
    stream.write_all(b"too late").expect("write");
    drop(stream);
    until("the socket's end", || dispatcher.stats().connections == 0);
    assert_eq!(connection.try_recv().expect("came before the end").expect("a frame").head, "12345678");
    for _ in 0..3 {
        assert_eq!(connection.try_recv().expect_err("after the end").kind(), ErrorKind::Closed);
    }
    dispatcher.shutdown();
}
