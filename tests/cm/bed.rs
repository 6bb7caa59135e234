//! What the cases stand on: two dispatchers, a pair of connections, another process.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use ucrpc::transport::{
    Address, Connection, ConnectionConfig, Dispatcher, DispatcherConfig, Frame, ListenConfig, Listener, Transport,
};

use crate::{CHILD, block_on::block_on};

/// A server's and a client's dispatcher.
pub(super) struct Bed {
    pub(super) server: Dispatcher,
    pub(super) client: Dispatcher,
}

pub(super) fn dispatcher(name: &str) -> Dispatcher {
    Dispatcher::spawn(DispatcherConfig { name: name.to_owned(), ..DispatcherConfig::default() }).unwrap()
}

impl Bed {
    pub(super) fn new() -> Self {
        Self { server: dispatcher("server"), client: dispatcher("client") }
    }

    pub(super) fn listen(&self, config: ListenConfig) -> Listener {
        self.server.listen(&any_port(), config).unwrap()
    }

    pub(super) fn pair(&self) -> (Connection, Connection) {
        self.pair_with(ConnectionConfig::default(), ConnectionConfig::default())
    }

    pub(super) fn pair_with(&self, client: ConnectionConfig, server: ConnectionConfig) -> (Connection, Connection) {
        let mut listener = self.listen(ListenConfig { connection: server, ..ListenConfig::default() });
        self.pair_on(&mut listener, client)
    }

    pub(super) fn pair_on(&self, listener: &mut Listener, client: ConnectionConfig) -> (Connection, Connection) {
        let client = self.client.connect(listener.local_address(), client).blocking().unwrap();
        let server = listener.accept_blocking().unwrap();
        for end in [&client, &server] {
            let transport = end.transport().unwrap();
            assert!(matches!(transport, Transport::Ucx(lanes) if lanes.contains("cm")), "{transport}");
            assert!(end.info().unwrap().peer.is_some_and(|peer| peer.ip().is_loopback()));
        }
        (client, server)
    }

    /// Everything is back at zero, and no wake-up was lost.
    pub(super) fn finish(self) {
        for dispatcher in [&self.server, &self.client] {
            at_rest(dispatcher);
            assert_eq!(dispatcher.stats().wake_detector_hits, 0, "a wake-up was lost");
        }
        self.server.shutdown();
        self.client.shutdown();
    }
}

pub(super) fn at_rest(dispatcher: &Dispatcher) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (stats, pool) = (dispatcher.stats(), dispatcher.pool().stats());
        let left = stats.connections
            + stats.handshakes
            + stats.listeners
            + stats.ucx_inflight
            + stats.ucx_held
            + stats.ucx_endpoints
            + stats.timers
            + pool.receive_in_use
            + pool.send_in_use;
        if left == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{} does not come to rest: {stats:#?} {pool:?}", dispatcher.name());
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(super) fn any_port() -> Address {
    "ucx+cm://127.0.0.1:0".parse().unwrap()
}

pub(super) fn exchange(from: &Connection, to: &mut Connection, head: Bytes, body: impl Into<ucrpc::transport::Body>) {
    let body = body.into();
    let len = head.len() + body.len() as usize;
    let sum = match &body {
        ucrpc::transport::Body::Segments(segments) => {
            segments.iter().fold(crc32c::crc32c(&head), |sum, s| crc32c::crc32c_append(sum, s))
        }
        ucrpc::transport::Body::Bytes(bytes) => crc32c::crc32c_append(crc32c::crc32c(&head), bytes),
        _ => crc32c::crc32c(&head),
    };
    block_on(from.send_wait(Frame::new(head, body))).unwrap();
    let got = to.recv_blocking().unwrap();
    assert!(got.body.is_empty());
    assert_eq!((got.head.len(), crc32c::crc32c(&got.head)), (len, sum));
}

/// Another process that listens, accepts one connection and echoes.
pub(super) fn peer() {
    let dispatcher = dispatcher("peer");
    let mut listener = dispatcher.listen(&any_port(), ListenConfig::default()).unwrap();
    println!("AT {}", listener.local_address());
    let mut connection = listener.accept_blocking().unwrap();
    while let Ok(frame) = connection.recv_blocking() {
        let _ = connection.send(frame);
    }
}

pub(super) struct Peer {
    pub(super) child: Child,
    pub(super) address: Address,
}

impl Peer {
    pub(super) fn start() -> Self {
        let name = std::env::var(CHILD).unwrap();
        let backend = name.split_once('/').unwrap().0;
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(CHILD, format!("{backend}/peer")).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.map(|line| line.unwrap()).find_map(|line| line.strip_prefix("AT ").map(str::to_owned));
        Self { child, address: address.unwrap().parse().unwrap() }
    }

    pub(super) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
