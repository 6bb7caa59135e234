//! Where a case runs: a backend, its settings, its dispatchers, and the accounts that must balance afterwards.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use ucrpc::transport::{
    Address, Connection, ConnectionConfig, Dispatcher, DispatcherConfig, ListenConfig, Listener, Transport, WaitPolicy,
};

/// A transport under test.
#[derive(Clone, Copy)]
pub struct Backend {
    pub name: &'static str,
    pub environment: &'static [(&'static str, &'static str)],
    address: &'static str,
}

/// Every transport that works without special hardware.
pub const BACKENDS: &[Backend] = &[
    Backend { name: "mem", environment: &[("UCRPC_UCX_LIBRARY", "none")], address: "mem://contract" },
    Backend { name: "tcp", environment: &[("UCRPC_UCX_LIBRARY", "none")], address: "tcp://127.0.0.1:0" },
    Backend { name: "unix", environment: &[("UCRPC_UCX_LIBRARY", "none")], address: "unix://" },
    Backend { name: "ucx-tcp", environment: &[("UCX_TLS", "tcp")], address: "ucx://127.0.0.1:0" },
    Backend { name: "ucx-posix", environment: &[("UCX_TLS", "posix")], address: "ucx://127.0.0.1:0" },
    Backend { name: "ucx-sysv", environment: &[("UCX_TLS", "sysv")], address: "ucx://127.0.0.1:0" },
    Backend { name: "ucx-all", environment: &[], address: "ucx://127.0.0.1:0" },
];

/// A server's and a client's dispatcher.
pub struct Bed {
    pub backend: &'static Backend,
    pub server: Dispatcher,
    pub client: Dispatcher,
}

impl Bed {
    pub fn new(backend: &'static Backend) -> Self {
        let config = |name: &str| DispatcherConfig { name: name.to_owned(), ..DispatcherConfig::default() };
        let server = Dispatcher::spawn(config("server")).expect("server dispatcher");
        let client = Dispatcher::spawn(config("client")).expect("client dispatcher");
        Self { backend, server, client }
    }

    pub fn address(&self) -> Address {
        let text = match self.backend.address {
            "unix://" => format!("unix:///tmp/ucrpc-contract-{}.sock", std::process::id()),
            other => other.to_owned(),
        };
        text.parse().expect("address")
    }

    pub fn listen(&self, config: ListenConfig) -> Listener {
        self.server.listen(&self.address(), config).expect("listen")
    }

    /// A client's and a server's end of one connection, both open.
    pub fn pair(&self, config: ConnectionConfig) -> (Connection, Connection) {
        self.pair_with(config.clone(), config)
    }

    pub fn pair_with(&self, client: ConnectionConfig, server: ConnectionConfig) -> (Connection, Connection) {
        let mut listener = self.listen(ListenConfig { connection: server, ..ListenConfig::default() });
        self.pair_on(&mut listener, client)
    }

    pub fn pair_on(&self, listener: &mut Listener, client: ConnectionConfig) -> (Connection, Connection) {
        let connecting = self.client.connect(listener.local_address(), client);
        let client = connecting.blocking().expect("connect");
        let server = listener.accept_blocking().expect("accept");
        for end in [&client, &server] {
            self.check_transport(end);
        }
        (client, server)
    }

    fn check_transport(&self, connection: &Connection) {
        let transport = connection.transport().expect("an open connection has a transport");
        let right = match (self.backend.name, transport) {
            ("mem", Transport::Mem)
            | ("tcp", Transport::Tcp)
            | ("unix", Transport::Unix)
            | ("ucx-all", Transport::Ucx(_)) => true,
            ("ucx-tcp", Transport::Ucx(lanes)) => lanes.contains("tcp"),
            ("ucx-posix", Transport::Ucx(lanes)) => lanes.contains("posix"),
            ("ucx-sysv", Transport::Ucx(lanes)) => lanes.contains("sysv"),
            _ => false,
        };
        assert!(right, "{} runs over {transport}", self.backend.name);
    }

    #[allow(dead_code, reason = "for the cases that run over every wait policy")]
    pub fn set_wait(&self, policy: WaitPolicy) {
        self.server.set_wait_policy(policy);
        self.client.set_wait_policy(policy);
    }

    /// Everything is back at zero, and no wake-up was lost.
    pub fn finish(self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        for dispatcher in [&self.server, &self.client] {
            loop {
                let stats = dispatcher.stats();
                let pool = dispatcher.pool().stats();
                let left = stats.connections
                    + stats.handshakes
                    + stats.listeners
                    + stats.ucx_inflight
                    + stats.ucx_held
                    + stats.ucx_endpoints
                    + stats.tasks
                    + stats.timers
                    + pool.receive_in_use
                    + pool.send_in_use;
                if left == 0 {
                    assert_eq!(stats.wake_detector_hits, 0, "a wake-up was lost");
                    break;
                }
                assert!(Instant::now() < deadline, "{} does not come to rest: {stats:#?} {pool:?}", dispatcher.name());
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.server.shutdown();
        self.client.shutdown();
    }
}

/// Blocks this thread, which is no dispatcher's, on a future.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}
