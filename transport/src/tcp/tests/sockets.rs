use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use mio::{Events, Poll};
use socket2::SockRef;

use super::*;

/// A directory of this test's own, removed in the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ucrpc-tcp-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn accept_all(listener: &Listener) -> Vec<Stream> {
    let mut accepted = vec![];
    let end = listener.accept(&mut 100, &mut |stream| accepted.push(stream)).unwrap();
    assert!(matches!(end, AcceptEnd::Drained));
    accepted
}

/// Waits for the writable edge, as the driver does.
fn finish(stream: &mut Stream) -> Result<Progress, Error> {
    let mut poll = Poll::new().unwrap();
    poll.registry().register(stream, Token(0), Interest::WRITABLE).unwrap();
    let (mut events, started) = (Events::with_capacity(1), Instant::now());
    loop {
        poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
        match connected(stream) {
            Ok(Progress::Connecting) => assert!(started.elapsed() < Duration::from_secs(20), "no writable edge"),
            done => return done,
        }
    }
}

fn connect_and_talk(listener: &Listener, address: SocketAddr, options: &SocketOptions) -> (Stream, Stream) {
    let mut client = dial_tcp(address, options).unwrap();
    assert_eq!(finish(&mut client), Ok(Progress::Connected));
    let server = accept_all(listener).pop().unwrap();
    assert_eq!(client.write(b"hello").unwrap(), 5);
    let mut buf = [0; 9];
    assert_eq!(server.read(&mut buf).unwrap(), 5);
    assert_eq!(client.addresses().0, Some(address));
    (client, server)
}

fn bind(address: impl Into<std::net::IpAddr>, only_v6: bool) -> Result<Listener, Error> {
    Listener::bind_tcp((address.into(), 0).into(), only_v6, 128, SocketOptions::default())
}

#[test]
fn tcp_over_ipv4() {
    let listener = bind(Ipv4Addr::LOCALHOST, false).unwrap();
    assert!(accept_all(&listener).is_empty());
    let (client, server) = connect_and_talk(&listener, listener.local_addr().unwrap(), &SocketOptions::default());
    server.shutdown(net::Shutdown::Both).unwrap();
    server.shutdown(net::Shutdown::Both).unwrap();
    assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn tcp_over_ipv6_alone_and_with_ipv4() {
    if !std::fs::read_to_string("/proc/net/if_inet6").is_ok_and(|list| list.contains(" lo\n")) {
        // No IPv6 on this machine: then that must be what the error says.
        assert_eq!(bind(Ipv6Addr::LOCALHOST, false).unwrap_err().kind(), ErrorKind::Invalid);
        return;
    }
    let options = SocketOptions::default();
    let listener = bind(Ipv6Addr::LOCALHOST, false).unwrap();
    connect_and_talk(&listener, listener.local_addr().unwrap(), &options);
    let both = bind(Ipv6Addr::UNSPECIFIED, false).unwrap();
    let port = both.local_addr().unwrap().port();
    connect_and_talk(&both, (Ipv6Addr::LOCALHOST, port).into(), &options);
    connect_and_talk(&both, (Ipv4Addr::LOCALHOST, port).into(), &options);
    let only = bind(Ipv6Addr::UNSPECIFIED, true).unwrap();
    let port = only.local_addr().unwrap().port();
    connect_and_talk(&only, (Ipv6Addr::LOCALHOST, port).into(), &options);
    assert_eq!(refusal((Ipv4Addr::LOCALHOST, port).into()).kind(), ErrorKind::Refused);
}

fn refusal(address: SocketAddr) -> Error {
    match dial_tcp(address, &SocketOptions::default()) {
        Ok(mut stream) => finish(&mut stream).unwrap_err(),
        Err(error) => error,
    }
}

#[test]
fn a_port_where_nobody_listens_refuses() {
    // Bound and not listening: nobody else can get the port in between.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    assert_eq!(refusal(address).kind(), ErrorKind::Refused);
}

#[test]
fn a_socket_that_met_itself_is_not_connected() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.connect(&socket.local_addr().unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let stream = Stream::Tcp(TcpStream::from_std(socket.into()));
    assert_eq!(connected(&stream).unwrap_err().kind(), ErrorKind::Refused);
}

#[test]
fn a_port_in_use_is_invalid() {
    let listener = bind(Ipv4Addr::LOCALHOST, false).unwrap();
    let address = listener.local_addr().unwrap();
    let error = Listener::bind_tcp(address, false, 128, SocketOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.text().contains(&address.to_string()), "{error}");
}

#[test]
fn options_reach_both_ends() {
    let keepalive = Keepalive { interval: Duration::from_millis(1500), deadline: Duration::from_secs(6) };
    let options =
        SocketOptions { keepalive: Some(keepalive), send_buffer: Some(100_000), receive_buffer: Some(50_000) };
    let listener = Listener::bind_tcp((Ipv4Addr::LOCALHOST, 0).into(), false, 16, options).unwrap();
    let (client, server) = connect_and_talk(&listener, listener.local_addr().unwrap(), &options);
    for stream in [&client, &server] {
        let socket = SockRef::from(stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(30)));
        assert_eq!(
            (socket.tcp_keepalive_retries().unwrap(), socket.tcp_keepalive_interval().unwrap().as_secs()),
            (4, 1)
        );
        assert_eq!((socket.send_buffer_size().unwrap(), socket.recv_buffer_size().unwrap()), (200_000, 100_000));
    }
    let plain = bind(Ipv4Addr::LOCALHOST, false).unwrap();
    let (client, server) = connect_and_talk(&plain, plain.local_addr().unwrap(), &SocketOptions::default());
    assert!(!SockRef::from(&server).keepalive().unwrap() && SockRef::from(&server).tcp_nodelay().unwrap());
    // Set later, when the first bytes have told the protocol; the extremes are clamped.
    client.set_keepalive(&Keepalive { interval: Duration::ZERO, deadline: Duration::ZERO }).unwrap();
    assert_eq!(SockRef::from(&client).tcp_user_timeout().unwrap(), Some(Duration::from_secs(30)));
    server.set_keepalive(&Keepalive { interval: Duration::MAX, deadline: Duration::from_secs(1 << 20) }).unwrap();
    assert_eq!(SockRef::from(&server).tcp_keepalive_time().unwrap(), Duration::from_secs(32_767));
}

#[test]
fn the_accept_budget_holds() {
    let listener = bind(Ipv4Addr::LOCALHOST, false).unwrap();
    let address = listener.local_addr().unwrap();
    let clients: Vec<_> = (0..5).map(|_| net::TcpStream::connect(address).unwrap()).collect();
    let (mut budget, mut accepted) = (3, 0);
    let end = listener.accept(&mut budget, &mut |_| accepted += 1).unwrap();
    assert!(matches!(end, AcceptEnd::Budget) && (budget, accepted) == (0, 3));
    assert_eq!(accept_all(&listener).len(), 2);
    drop(clients);
}

#[test]
fn unix_sockets_connect_and_clean_up() {
    let dir = Dir::new("connect");
    let path = dir.0.join("socket");
    let missing = dial_unix(&path, &SocketOptions::default()).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Refused);
    let options = SocketOptions { send_buffer: Some(50_000), ..SocketOptions::default() };
    let listener = Listener::bind_unix(&path, 16, options).unwrap();
    let mut client = dial_unix(&path, &options).unwrap();
    assert_eq!(finish(&mut client), Ok(Progress::Connected));
    let server = accept_all(&listener).pop().unwrap();
    assert_eq!(SockRef::from(&server).send_buffer_size().unwrap(), 100_000);
    assert_eq!(server.addresses(), (None, None));
    assert_eq!(server.write(b"x").unwrap(), 1);
    assert_eq!(client.read(&mut [0; 4]).unwrap(), 1);
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_full_accept_queue_refuses() {
    let dir = Dir::new("full");
    let path = dir.0.join("socket");
    let listener = Listener::bind_unix(&path, 1, SocketOptions::default()).unwrap();
    let mut clients = vec![];
    let error = loop {
        match dial_unix(&path, &SocketOptions::default()) {
            Ok(client) => clients.push(client),
            Err(error) => break error,
        }
        assert!(clients.len() < 10, "the queue has no end");
    };
    assert_eq!(error.kind(), ErrorKind::Refused);
    // Busy is not gone: a second listener must not take its place.
    assert!(Listener::bind_unix(&path, 1, SocketOptions::default()).is_err());
    assert_eq!(accept_all(&listener).len(), clients.len());
}

#[test]
fn only_a_stale_socket_file_is_replaced() {
    let dir = Dir::new("stale");
    let (path, options) = (dir.0.join("socket"), SocketOptions::default());
    // std leaves the file behind, as a killed process does.
    drop(unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::bind_unix(&path, 16, options).unwrap();
    let second = Listener::bind_unix(&path, 16, options).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::Invalid);
    // The probe was a connection, which is already over.
    assert_eq!(accept_all(&listener).len(), 1);
    let mut client = unix::net::UnixStream::connect(&path).unwrap();
    client.write_all(b"x").unwrap();
    assert_eq!(accept_all(&listener).len(), 1);
    let _ = client.read(&mut [0]);

    let file = dir.0.join("file");
    std::fs::write(&file, "precious").unwrap();
    assert_eq!(Listener::bind_unix(&file, 16, options).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    assert_eq!(Listener::bind_unix(std::path::Path::new(""), 16, options).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(Listener::bind_unix(&dir.0.join("no/dir"), 16, options).unwrap_err().kind(), ErrorKind::Invalid);
    let long = dir.0.join("x".repeat(200));
    assert_eq!(Listener::bind_unix(&long, 16, options).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_listener_removes_only_its_own_file() {
    let dir = Dir::new("own");
    let path = dir.0.join("socket");
    let first = Listener::bind_unix(&path, 16, SocketOptions::default()).unwrap();
    std::fs::rename(&path, dir.0.join("moved")).unwrap();
    let second = Listener::bind_unix(&path, 16, SocketOptions::default()).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

const CHILD: &str = "UCRPC_TEST_WITHOUT_DESCRIPTORS";

/// In a process of its own: the limit would hit the tests that run beside this one.
#[test]
fn running_out_of_descriptors_is_reported_and_passes() {
    if std::env::var_os(CHILD).is_some() {
        return without_descriptors();
    }
    let name = "tcp::tests::sockets::running_out_of_descriptors_is_reported_and_passes";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed") && said.contains("was exhausted"), "{said}");
}

fn without_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let listener = bind(Ipv4Addr::LOCALHOST, false).unwrap();
    let client = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut hoard = vec![];
    let limit = Rlimit { current: Some(64), maximum: getrlimit(Resource::Nofile).maximum };
    setrlimit(Resource::Nofile, limit).unwrap();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        hoard.push(file);
    }
    for _ in 0..2 {
        let mut budget = 10;
        match listener.accept(&mut budget, &mut |_| panic!("there is no descriptor left")).unwrap() {
            AcceptEnd::Exhausted(error) => assert_eq!((error.kind(), budget), (ErrorKind::System, 9)),
            other => panic!("{other:?}"),
        }
    }
    hoard.clear();
    assert_eq!(accept_all(&listener).len(), 1);
    println!("was exhausted");
    drop(client);
}
