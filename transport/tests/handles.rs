//! Handles keep their promises whatever the dispatchers behind them do.

use std::{
    future::Future,
    net::TcpListener,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use ucrpc_transport::{
    Address, ConnectionConfig, Dispatcher, DispatcherConfig, Dispatchers, ErrorKind, Frame, ListenConfig,
    LocalDispatcher, Placement, WaitPolicy,
};

fn dispatcher_config() -> DispatcherConfig {
    DispatcherConfig { ucx: false, ..DispatcherConfig::default() }
}

fn connection_config() -> ConnectionConfig {
    ConnectionConfig { keepalive: None, ..ConnectionConfig::default() }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future that must not take for ever.
fn within<F: Future>(what: &str, future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{what} never ended");
        std::thread::park_timeout(left);
    }
}

#[test]
fn a_listener_on_a_stopped_dispatcher_says_so() {
    let dispatcher = Dispatcher::spawn(dispatcher_config()).expect("dispatcher");
    dispatcher.shutdown();
    for address in ["mem://stopped-listener", "tcp://127.0.0.1:0"] {
        let address: Address = address.parse().expect("address");
        let mut listener = dispatcher.listen(&address, ListenConfig::default()).expect("bind");
        let error = within("accept", listener.accept()).expect_err("nobody accepts");
        assert_eq!(error.kind(), ErrorKind::Stopped, "{address}");
    }
}

#[test]
fn sockets_for_a_stopped_dispatcher_free_their_places() {
    let all = Dispatchers::spawn(2, &dispatcher_config(), Placement::RoundRobin).expect("dispatchers");
    let client = Dispatcher::spawn(dispatcher_config()).expect("dispatcher");
    let address: Address = "tcp://127.0.0.1:0".parse().expect("address");
    let config = ListenConfig { max_handshakes: 1, ..ListenConfig::default() };
    let mut listener = all.listen(&address, config).expect("listen");
    all.all()[1].shutdown();
    let mut opened = 0;
    for _ in 0..6 {
        let connection = within("connect", client.connect(listener.local_address(), connection_config()));
        opened += u32::from(connection.is_ok());
    }
    assert_eq!(opened, 3, "every other one");
    for _ in 0..opened {
        within("accept", listener.accept()).expect("accept");
    }
    all.shutdown();
    client.shutdown();
}

#[test]
fn a_readiness_descriptor_waits_for_the_look_up() {
    let dispatcher = Dispatcher::spawn(dispatcher_config()).expect("dispatcher");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    let framed = ConnectionConfig { keepalive: None, ..ConnectionConfig::default() };
    let address: Address = format!("tcp://localhost:{port}").parse().expect("address");
    for _ in 0..20 {
        let connection = dispatcher.connect(&address, framed.clone()).into_connection();
        let fd = connection.readiness_fd().expect("descriptor");
        let (_stream, _) = listener.accept().expect("the look-up is over");
        let mut fds = [PollFd::new(&fd, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 })).expect("poll");
        assert!(!fds[0].revents().contains(PollFlags::ERR), "it broke while it was being opened");
        connection.abort();
        let mut fds = [PollFd::new(&fd, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec { tv_sec: 20, tv_nsec: 0 })).expect("poll");
        assert!(fds[0].revents().contains(PollFlags::ERR), "the end shows");
    }
    // A name that nobody knows.
    let address: Address = "tcp://no-such-host.invalid:1".parse().expect("address");
    let connection = dispatcher.connect(&address, framed).into_connection();
    let fd = connection.readiness_fd().expect("descriptor");
    let mut fds = [PollFd::new(&fd, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec { tv_sec: 30, tv_nsec: 0 })).expect("poll");
    assert!(fds[0].revents().contains(PollFlags::ERR), "the failed look-up shows");
    dispatcher.shutdown();
}

#[test]
fn a_mem_client_that_gave_up_is_gone() {
    let server = LocalDispatcher::new(dispatcher_config()).expect("dispatcher");
    let client = Dispatcher::spawn(dispatcher_config()).expect("dispatcher");
    let address: Address = "mem://gave-up".parse().expect("address");
    let config = ListenConfig { connection: connection_config(), ..ListenConfig::default() };
    let mut listener = server.handle().listen(&address, config).expect("listen");
    let hasty = ConnectionConfig { connect_timeout: Duration::from_millis(30), ..connection_config() };
    // The server's dispatcher does not run yet, so nobody answers.
    let error = within("connect", client.connect(&address, hasty)).expect_err("nobody answers");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let handle = server.handle();
    let ended = server.block_on(async {
        let mut connection = listener.accept().await.expect("it had been asked for");
        let mut end = pin!(async move { connection.recv().await.expect_err("nobody sends").kind() });
        let mut late = pin!(handle.sleep_until(Instant::now() + Duration::from_secs(10)));
        std::future::poll_fn(|cx| match end.as_mut().poll(cx) {
            Poll::Ready(kind) => Poll::Ready(Some(kind)),
            Poll::Pending => late.as_mut().poll(cx).map(|()| None),
        })
        .await
    });
    assert_eq!(ended, Some(ErrorKind::Reset));
    client.shutdown();
}

#[test]
fn handshakes_are_counted() {
    let server = Dispatcher::spawn(dispatcher_config()).expect("dispatcher");
    let address: Address = "tcp://127.0.0.1:0".parse().expect("address");
    let listener = server.listen(&address, ListenConfig::default()).expect("listen");
    let text = listener.local_address().to_string();
    let silent = std::net::TcpStream::connect(text.trim_start_matches("tcp://")).expect("connect");
    let reaches = |count| {
        let deadline = Instant::now() + Duration::from_secs(3);
        while server.stats().handshakes != count && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        server.stats().handshakes == count
    };
    assert!(reaches(1), "a silent client is a handshake");
    drop(silent);
    assert!(reaches(0), "and is none when it is gone");
    server.shutdown();
}

#[test]
fn memory_that_comes_back_during_a_sleep_is_no_lost_wake_up() {
    let config = || DispatcherConfig { wait: WaitPolicy::Event, ..DispatcherConfig::default() };
    let server = Dispatcher::spawn(config()).expect("dispatcher");
    let client = Dispatcher::spawn(config()).expect("dispatcher");
    let address: Address = "ucx://127.0.0.1:0".parse().expect("address");
    let config = ListenConfig { connection: connection_config(), ..ListenConfig::default() };
    let mut listener = server.listen(&address, config).expect("listen");
    let sending = within("connect", client.connect(listener.local_address(), connection_config())).expect("ucx");
    let mut receiving = within("accept", listener.accept()).expect("accept");
    sending.send(Frame::new(&b"head"[..], vec![1_u8; 16 << 10])).expect("send");
    let frame = within("recv", receiving.recv()).expect("recv");
    // Two sleeps that only the detector ended: it sleeps now, and nothing is under way.
    let rests = || server.stats().detector_timeouts;
    let before = rests();
    until("a rest", || rests() >= before + 2);
    assert_eq!(server.stats().ucx_held, 1, "this test needs a message in UCX's own memory");
    drop(frame);
    until("the return", || server.stats().ucx_held == 0);
    assert_eq!(server.stats().wake_detector_hits, 0);
    sending.abort();
    receiving.abort();
    client.shutdown();
    server.shutdown();
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}
