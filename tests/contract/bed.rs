//! Where a case runs: a backend, its settings, its dispatchers, and the accounts that must balance afterwards.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use ucrpc::transport::{
    Address, Connection, ConnectionConfig, Dispatcher, DispatcherConfig, Keepalive, ListenConfig, Listener, Transport,
    WaitPolicy,
};

/// What carries the frames of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    Mem,
    /// A byte stream: TCP or a Unix socket.
    Stream,
    Ucx,
}

/// A transport under test.
#[derive(Debug, Clone, Copy)]
pub struct Backend {
    pub name: &'static str,
    pub environment: &'static [(&'static str, &'static str)],
    pub carrier: Carrier,
    address: &'static str,
    /// What the connection must say it runs over.
    lanes: &'static str,
}

const NO_UCX: &[(&str, &str)] = &[("UCRPC_UCX_LIBRARY", "none")];
const ANY_PORT_UCX: &str = "ucx://127.0.0.1:0";

/// Every transport that works without special hardware. `auto` is UCX found by negotiation, `auto-none` the fallback to
/// TCP where there is no UCX.
pub const BACKENDS: &[Backend] = &[
    Backend { name: "mem", environment: NO_UCX, carrier: Carrier::Mem, address: "mem://", lanes: "mem" },
    Backend { name: "tcp", environment: NO_UCX, carrier: Carrier::Stream, address: "tcp://127.0.0.1:0", lanes: "tcp" },
    Backend { name: "unix", environment: NO_UCX, carrier: Carrier::Stream, address: "unix://", lanes: "unix" },
    ucx("ucx-tcp", &[("UCX_TLS", "tcp")], ANY_PORT_UCX, "tcp"),
    ucx("ucx-posix", &[("UCX_TLS", "posix")], ANY_PORT_UCX, "posix"),
    ucx("ucx-sysv", &[("UCX_TLS", "sysv")], ANY_PORT_UCX, "sysv"),
    ucx("ucx-all", &[], ANY_PORT_UCX, "ucx"),
    ucx("auto", &[], "auto://127.0.0.1:0", "ucx"),
    Backend {
        name: "auto-none",
        environment: NO_UCX,
        carrier: Carrier::Stream,
        address: "auto://127.0.0.1:0",
        lanes: "tcp",
    },
];

/// UCX over verbs; run in a guest of `cargo xtask rdma-vm`, where a missing device is a failure. One device for both sides:
/// with two, UCX would use both.
pub const RDMA_BACKENDS: &[Backend] = &[
    ucx("ucx-rc", &[("UCX_TLS", "rc"), ("UCX_NET_DEVICES", "rxe0:1")], ANY_PORT_UCX, "rc_verbs/rxe0"),
    ucx("ucx-ud", &[("UCX_TLS", "ud_verbs"), ("UCX_NET_DEVICES", "rxe0:1")], ANY_PORT_UCX, "ud_verbs/rxe0"),
];

/// The detector's time in a guest: a virtual CPU that is kept from running delays the interrupt that announces a completion.
const IN_A_GUEST: Duration = Duration::from_secs(1);

/// Those of this run: `UCRPC_TEST_RDMA` asks for verbs.
pub fn backends() -> &'static [Backend] {
    if std::env::var_os("UCRPC_TEST_RDMA").is_some() { RDMA_BACKENDS } else { BACKENDS }
}

const fn ucx(
    name: &'static str,
    environment: &'static [(&'static str, &'static str)],
    address: &'static str,
    lanes: &'static str,
) -> Backend {
    Backend { name, environment, carrier: Carrier::Ucx, address, lanes }
}

impl Backend {
    pub fn is_ucx(&self) -> bool {
        self.carrier == Carrier::Ucx
    }

    pub fn is_verbs(&self) -> bool {
        RDMA_BACKENDS.iter().any(|b| b.name == self.name)
    }

    pub fn is_stream(&self) -> bool {
        self.carrier == Carrier::Stream
    }

    /// An address to listen on.
    pub fn address(&self) -> Address {
        // A listener that is dropped lets go of its name a moment later.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let text = match self.address {
            "unix://" => format!("unix:///tmp/ucrpc-contract-{}-{next}.sock", std::process::id()),
            "mem://" => format!("mem://contract-{next}"),
            other => other.to_owned(),
        };
        text.parse().expect("address")
    }

    /// Whether `connection` really runs over this.
    pub fn check(&self, connection: &Connection) {
        let transport = connection.transport().expect("an open connection has a transport");
        let (right_kind, text) = match transport {
            Transport::Ucx(lanes) => (self.carrier == Carrier::Ucx, format!("ucx {lanes}")),
            other => (self.carrier != Carrier::Ucx, other.to_string()),
        };
        assert!(right_kind && text.contains(self.lanes), "{} runs over {transport}", self.name);
        assert_eq!(
            connection.fallback_reason().is_some(),
            self.name == "auto-none",
            "{:?}",
            connection.fallback_reason()
        );
    }
}

/// A server's and a client's dispatcher.
pub struct Bed {
    pub backend: &'static Backend,
    pub server: Dispatcher,
    pub client: Dispatcher,
}

impl Bed {
    pub fn new(backend: &'static Backend) -> Self {
        Self::with(backend, &DispatcherConfig::default(), &DispatcherConfig::default())
    }

    pub fn with(backend: &'static Backend, server: &DispatcherConfig, client: &DispatcherConfig) -> Self {
        let spawn = |config: &DispatcherConfig, name: &str| {
            let detector = if backend.is_verbs() { IN_A_GUEST } else { config.detector };
            Dispatcher::spawn(DispatcherConfig { name: name.to_owned(), detector, ..config.clone() })
                .expect("dispatcher")
        };
        Self { backend, server: spawn(server, "server"), client: spawn(client, "client") }
    }

    pub fn listen(&self, config: ListenConfig) -> Listener {
        self.server.listen(&self.backend.address(), config).expect("listen")
    }

    /// A listener whose connections have this configuration.
    pub fn listen_as(&self, connection: &ConnectionConfig) -> Listener {
        self.listen(ListenConfig { connection: patient(connection), ..ListenConfig::default() })
    }

    /// A client's and a server's end of one connection, both open.
    pub fn pair(&self, config: &ConnectionConfig) -> (Connection, Connection) {
        self.pair_with(config, config)
    }

    pub fn pair_with(&self, client: &ConnectionConfig, server: &ConnectionConfig) -> (Connection, Connection) {
        let mut listener = self.listen_as(server);
        self.pair_on(&mut listener, client)
    }

    pub fn pair_on(&self, listener: &mut Listener, client: &ConnectionConfig) -> (Connection, Connection) {
        let connecting = self.client.connect(listener.local_address(), patient(client));
        let client = connecting.blocking().expect("connect");
        let server = listener.accept_blocking().expect("accept");
        self.backend.check(&client);
        self.backend.check(&server);
        (client, server)
    }

    pub fn set_wait(&self, policy: WaitPolicy) {
        self.server.set_wait_policy(policy);
        self.client.set_wait_policy(policy);
    }

    /// Waits until everything is back at zero.
    pub fn rest(&self) {
        for dispatcher in [&self.server, &self.client] {
            comes_to_rest(dispatcher, 0);
        }
    }

    /// Everything is back at zero, and no wake-up was lost.
    pub fn finish(self) {
        for dispatcher in [&self.server, &self.client] {
            finish(dispatcher);
        }
    }
}

/// A configuration whose deadlines an emulated guest keeps, where the backend needs one.
pub fn patient_over_verbs(bed: &Bed, config: ConnectionConfig) -> ConnectionConfig {
    if bed.backend.is_verbs() { patient(&config) } else { config }
}

/// Deadlines that a machine keeps which does much else at the same time. What a case has chosen stays.
fn patient(config: &ConnectionConfig) -> ConnectionConfig {
    let usual = ConnectionConfig::default();
    let mut config = config.clone();
    if config.connect_timeout == usual.connect_timeout {
        (config.connect_timeout, config.prove_timeout) = (Duration::from_secs(40), Duration::from_secs(30));
    }
    if config.linger == usual.linger {
        config.linger = Duration::from_secs(30);
    }
    if config.keepalive == usual.keepalive {
        config.keepalive = Some(Keepalive { deadline: Duration::from_secs(20), ..Keepalive::default() });
    }
    config
}

/// Ends a dispatcher whose connections were all closed: everything is back at zero, and no wake-up was lost.
pub fn finish(dispatcher: &Dispatcher) {
    comes_to_rest(dispatcher, 0);
    dispatcher.shutdown();
    assert_eq!(dispatcher.stats().wake_detector_hits, 0, "a wake-up was lost");
}

/// Waits until a dispatcher has nothing but `listeners` left.
pub fn comes_to_rest(dispatcher: &Dispatcher, listeners: u64) {
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        let (stats, pool) = (dispatcher.stats(), dispatcher.pool().stats());
        let left = stats.connections
            + stats.handshakes
            + (stats.listeners - listeners.min(stats.listeners))
            + stats.ucx_inflight
            + stats.ucx_held
            + stats.ucx_endpoints
            + stats.tasks
            + stats.timers
            + pool.receive_in_use
            + pool.send_in_use;
        if left == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{} does not come to rest: {stats:#?} {pool:?}", dispatcher.name());
        std::thread::sleep(Duration::from_millis(5));
    }
}
