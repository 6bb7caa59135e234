//! A wire that breaks: it carries bytes between a client and a server, and cuts each connection after a while.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ucrpc::Address;

trait Wire: Read + Write + Send + Sized + 'static {
    fn again(&self) -> Self;
    fn cut(&self);
}

impl Wire for TcpStream {
    fn again(&self) -> Self {
        self.try_clone().unwrap()
    }

    fn cut(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

impl Wire for UnixStream {
    fn again(&self) -> Self {
        self.try_clone().unwrap()
    }

    fn cut(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

/// Stands between clients and a server until it is dropped.
pub struct Proxy {
    address: Address,
    state: Arc<State>,
}

struct State {
    over: AtomicBool,
    connections: AtomicU64,
    cuts: AtomicU64,
}

impl Proxy {
    /// Cuts each connection when a random number of bytes, `least` to five times as many, went one way or the other.
    pub fn start(server: &Address, least: u64) -> Self {
        let state =
            Arc::new(State { over: AtomicBool::new(false), connections: AtomicU64::new(0), cuts: AtomicU64::new(0) });
        let own = state.clone();
        let address = if let Address::Unix(path) = server {
            let mut through = path.clone();
            through.set_extension("proxy");
            let listener = UnixListener::bind(&through).unwrap();
            let path = path.clone();
            std::thread::spawn(move || {
                let accept = || listener.accept().unwrap().0;
                carry(&own, least, accept, || UnixStream::connect(&path).ok());
            });
            Address::Unix(through)
        } else {
            let at = server.host_port().expect("a socket to stand on");
            let target = (at.host.clone(), at.port);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let through = server.with_socket_addr(listener.local_addr().unwrap());
            std::thread::spawn(move || {
                let accept = || listener.accept().unwrap().0;
                carry(&own, least, accept, || TcpStream::connect((target.0.as_str(), target.1)).ok());
            });
            through
        };
        Self { address, state }
    }

    /// What clients connect to.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Connections that were cut while both sides still wanted them.
    pub fn cuts(&self) -> u64 {
        self.state.cuts.load(Ordering::SeqCst)
    }

    /// Connections that are carried now.
    pub fn carried(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        // The thread that accepts looks at it after one more connection.
        match &self.address {
            Address::Unix(path) => {
                let _ = UnixStream::connect(path);
                let _ = std::fs::remove_file(path);
            }
            other => {
                let at = other.host_port().unwrap();
                let _ = TcpStream::connect((at.host.as_str(), at.port));
            }
        }
    }
}

fn carry<W: Wire>(state: &Arc<State>, least: u64, accept: impl Fn() -> W, connect: impl Fn() -> Option<W>) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    loop {
        let client = accept();
        if state.over.load(Ordering::SeqCst) {
            return;
        }
        let Some(server) = connect() else { continue };
        let mut budget = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            least + (random >> 33) % (least * 4)
        };
        state.connections.fetch_add(1, Ordering::SeqCst);
        let halves = Arc::new(AtomicU64::new(2));
        for (from, to, budget) in
            [(client.again(), server.again(), budget()), (server.again(), client.again(), budget())]
        {
            let (state, halves) = (state.clone(), halves.clone());
            std::thread::spawn(move || {
                pump(from, to, budget, &state);
                if halves.fetch_sub(1, Ordering::SeqCst) == 1 {
                    state.connections.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    }
}

/// Copies until the end, or until the budget is used up: then both ends see the connection die, mid-frame as it may be.
fn pump<W: Wire>(mut from: W, mut to: W, mut budget: u64, state: &State) {
    let mut buf = vec![0; 16 << 10];
    while let Ok(n) = from.read(&mut buf) {
        let n = n.min(usize::try_from(budget).unwrap());
        if n == 0 || to.write_all(&buf[..n]).is_err() {
            break;
        }
        budget -= n as u64;
        if budget == 0 {
            state.cuts.fetch_add(1, Ordering::SeqCst);
            break;
        }
    }
    from.cut();
    to.cut();
}
