//! Where a case runs: a transport, its settings, its dispatchers, and the accounts that must balance afterwards.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ucrpc::rpc::channel::ChannelBuilder;
use ucrpc::rpc::server::ServerBuilder;
use ucrpc::transport::{Address, ConnectionConfig, Dispatcher, DispatcherConfig, Keepalive, ListenConfig};
use ucrpc::{Channel, Server};

pub type Case = (&'static str, fn(&Bed));

/// A transport under test.
#[derive(Clone, Copy)]
pub struct Backend {
    pub name: &'static str,
    pub environment: &'static [(&'static str, &'static str)],
    address: &'static str,
    /// What connections say that they run over.
    pub transport: &'static str,
}

const NO_UCX: &[(&str, &str)] = &[("UCRPC_UCX_LIBRARY", "none")];

/// Every transport that works without special hardware. `native` is ucrpc's own framing over TCP.
pub const BACKENDS: &[Backend] = &[
    Backend { name: "mem", environment: NO_UCX, address: "mem://", transport: "mem" },
    Backend { name: "tcp", environment: NO_UCX, address: "tcp://127.0.0.1:0", transport: "tcp" },
    Backend { name: "native", environment: NO_UCX, address: "auto://127.0.0.1:0", transport: "tcp" },
    Backend { name: "unix", environment: NO_UCX, address: "unix://", transport: "unix" },
    Backend { name: "ucx-tcp", environment: &[("UCX_TLS", "tcp")], address: "ucx://127.0.0.1:0", transport: "ucx" },
    Backend { name: "ucx-posix", environment: &[("UCX_TLS", "posix")], address: "ucx://127.0.0.1:0", transport: "ucx" },
];

/// UCX over verbs; run in a guest of `cargo xtask rdma-vm`, where a missing device is a failure.
pub const RDMA_BACKENDS: &[Backend] = &[
    Backend {
        name: "ucx-rc",
        environment: &[("UCX_TLS", "rc"), ("UCX_NET_DEVICES", "rxe0:1")],
        address: "ucx://127.0.0.1:0",
        transport: "ucx",
    },
    Backend {
        name: "ucx-ud",
        environment: &[("UCX_TLS", "ud_verbs"), ("UCX_NET_DEVICES", "rxe0:1")],
        address: "ucx://127.0.0.1:0",
        transport: "ucx",
    },
];

/// Those of this run: `UCRPC_TEST_RDMA` asks for verbs.
pub fn backends() -> &'static [Backend] {
    if std::env::var_os("UCRPC_TEST_RDMA").is_some() { RDMA_BACKENDS } else { BACKENDS }
}

impl Backend {
    pub fn is_verbs(&self) -> bool {
        RDMA_BACKENDS.iter().any(|b| b.name == self.name)
    }
}

/// A server's and a client's dispatcher.
pub struct Bed {
    pub backend: &'static Backend,
    pub server: Dispatcher,
    pub client: Dispatcher,
    next: AtomicU32,
}

impl Bed {
    pub fn new(backend: &'static Backend) -> Self {
        let usual = DispatcherConfig::default();
        // In a guest a virtual CPU that is kept from running delays the interrupt that announces a completion.
        let guest = std::env::var_os("UCRPC_TEST_RDMA").is_some();
        let detector = if guest { Duration::from_millis(400) } else { usual.detector };
        let config = |name: &str| DispatcherConfig { name: name.to_owned(), detector, ..usual.clone() };
        let server = Dispatcher::spawn(config("server")).expect("server dispatcher");
        let client = Dispatcher::spawn(config("client")).expect("client dispatcher");
        Self { backend, server, client, next: AtomicU32::new(0) }
    }

    /// An address to listen on, a new one each time.
    pub fn address(&self) -> Address {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let text = match self.backend.address {
            "unix://" => format!("unix:///tmp/ucrpc-rpc-{}-{number}.sock", std::process::id()),
            "mem://" => format!("mem://rpc-{number}"),
            other => other.to_owned(),
        };
        text.parse().expect("address")
    }

    /// An address that a server can take, leave, and take again.
    pub fn fixed_address(&self) -> Address {
        let address = self.address();
        let Some(_) = address.host_port() else { return address };
        // A port of this host that was free just now; the address is this process's alone.
        let host = format!("127.77.{}.{}", std::process::id() / 250 % 250 + 1, std::process::id() % 250 + 1);
        let port = std::net::TcpListener::bind((host.as_str(), 0)).and_then(|l| l.local_addr()).expect("a port").port();
        format!("{}://{host}:{port}", address.scheme()).parse().expect("address")
    }

    /// An address where somebody accepts, and never says a word.
    pub fn silent(&self) -> (Address, Box<dyn std::any::Any>) {
        let address = self.address();
        match &address {
            Address::Unix(path) => {
                let listener = std::os::unix::net::UnixListener::bind(path).expect("bind");
                (address, Box::new(listener))
            }
            other => {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
                let at = listener.local_addr().expect("address");
                (other.with_socket_addr(at), Box::new(listener))
            }
        }
    }

    pub fn serve(&self, server: ServerBuilder) -> Server {
        let server = match patient() {
            Some(connection) => server.transport(ListenConfig { connection, ..ListenConfig::default() }),
            None => server,
        };
        server.on(&self.server).listen(self.address()).start().expect("start")
    }

    pub fn channel(&self, server: &Server) -> ChannelBuilder {
        // Generous: other tests share the machine.
        let channel = Channel::builder(server.address()).on(&self.client).timeout(Duration::from_secs(30));
        match patient() {
            Some(connection) => channel.transport(connection),
            None => channel,
        }
    }

    /// Everything is back at zero, and no wake-up was lost.
    pub fn finish(self) {
        let deadline = Instant::now() + Duration::from_secs(15);
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

/// Deadlines that an emulated guest keeps, where connecting takes ten times as long; elsewhere the usual ones are tested.
fn patient() -> Option<ConnectionConfig> {
    std::env::var_os("UCRPC_TEST_RDMA")?;
    Some(ConnectionConfig {
        connect_timeout: Duration::from_secs(40),
        prove_timeout: Duration::from_secs(30),
        keepalive: Some(Keepalive { deadline: Duration::from_secs(20), ..Keepalive::default() }),
        ..ConnectionConfig::default()
    })
}
