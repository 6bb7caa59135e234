//! A connection as a file descriptor that any event loop can wait for.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use ucrpc::transport::{ConnectionConfig, ErrorKind};

use super::Case;
use crate::{
    bed::Bed,
    tools::{block_for, block_on, eventually},
};

pub const CASES: &[Case] = &[
    Case::all("pipe_opens", pipe_opens).and_auto(),
    Case::all("pipe_breaks", pipe_breaks).and_auto(),
    Case::all("pipe_closes", pipe_closes),
    Case::all("pipe_misused", pipe_misused),
    Case::all("pipe_of_a_failed_dial", pipe_of_a_failed_dial),
    Case::all("pipe_in_foreign_epoll", pipe_in_foreign_epoll).and_auto(),
];

/// What poll says of a descriptor, after at most `patience`.
fn events_within(fd: BorrowedFd<'_>, patience: Duration) -> PollFlags {
    let mut fds = [PollFd::new(&fd, PollFlags::IN | PollFlags::OUT)];
    let patience = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
    poll(&mut fds, Some(&patience)).expect("poll");
    fds[0].revents()
}

fn events(fd: &OwnedFd) -> PollFlags {
    events_within(fd.as_fd(), Duration::ZERO)
}

const LONG: Duration = Duration::from_secs(10);

/// Not writable before the connection is open, writable from then on, never readable.
fn pipe_opens(bed: &Bed) {
    // Nobody can be open before this dispatcher runs its loop.
    let local = ucrpc::transport::LocalDispatcher::new(Default::default()).unwrap();
    let mut listener = bed.listen_as(&ConnectionConfig::default());
    let client = local.handle().connect(listener.local_address(), ConnectionConfig::default()).into_connection();
    let early = client.readiness_fd().unwrap();
    assert_eq!(events_within(early.as_fd(), Duration::from_millis(50)), PollFlags::empty());
    local.block_on(client.opened()).unwrap();
    assert_eq!(events(&early), PollFlags::OUT, "writable as soon as opened() is ready");
    let late = client.readiness_fd().unwrap();
    assert_eq!(events(&late), PollFlags::empty(), "the dispatcher has not looked yet");
    let mut server = local.block_on(listener.accept()).unwrap();
    local.block_on(async {
        server.send(&b"data"[..]).unwrap();
        let mut client = client;
        assert_eq!(client.recv().await.unwrap().head, "data");
        for fd in [&early, &late] {
            assert_eq!(events(fd), PollFlags::OUT, "data is not announced here");
        }
        client.send(&b"data"[..]).unwrap();
        assert_eq!(server.recv().await.unwrap().head, "data");
        client.close().await.unwrap();
    });
    for fd in [&early, &late] {
        assert!(events(fd).contains(PollFlags::ERR));
    }
    block_on(server.closed());
}

/// An error when the connection ends, however it does.
fn pipe_breaks(bed: &Bed) {
    for how in 0..4 {
        let (client, server) = bed.pair(&ConnectionConfig::default());
        let (there, here) = (server.readiness_fd().unwrap(), client.readiness_fd().unwrap());
        for fd in [&there, &here] {
            assert_eq!(events_within(fd.as_fd(), LONG), PollFlags::OUT);
        }
        match how {
            0 => block_on(server.close()).unwrap(),
            1 => server.abort(),
            2 => client.abort(),
            _ => drop(server),
        }
        for fd in [here, there] {
            eventually("EPOLLERR at both ends", || events(&fd).contains(PollFlags::ERR));
        }
    }
}

/// Closing the descriptor closes the connection; one duplicate keeps it.
fn pipe_closes(bed: &Bed) {
    for open_first in [true, false] {
        let mut listener = bed.listen_as(&ConnectionConfig::default());
        let client = bed.client.connect(listener.local_address(), ConnectionConfig::default()).into_connection();
        let fd = client.readiness_fd().unwrap();
        let copy = fd.try_clone().unwrap();
        drop(fd);
        if open_first {
            block_on(client.opened()).unwrap();
            let mut server = listener.accept_blocking().unwrap();
            client.send(&b"sent before"[..]).unwrap();
            assert!(client.is_open());
            drop(copy);
            assert_eq!(server.recv_blocking().unwrap().head, "sent before");
            assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
        } else {
            drop(copy);
        }
        let end = block_for(LONG, client.closed()).expect("closed by its descriptor");
        assert!(matches!(end.kind(), ErrorKind::Closed | ErrorKind::PeerClosed), "{end}");
    }
}

/// Whoever takes it for a data socket is told so.
fn pipe_misused(bed: &Bed) {
    let (client, server) = bed.pair(&ConnectionConfig::default());
    let fd = client.readiness_fd().unwrap();
    assert_eq!(events_within(fd.as_fd(), LONG), PollFlags::OUT);
    rustix::io::write(&fd, b"GET /").unwrap();
    let end = block_for(LONG, client.closed()).expect("misuse ends it");
    assert_eq!(end.kind(), ErrorKind::Invalid);
    assert!(end.text().contains("readiness pipe"), "{end}");
    eventually("EPOLLERR", || events(&fd).contains(PollFlags::ERR));
    block_for(LONG, server.closed()).expect("the peer hears of it");
}

/// A dial that fails says so on the descriptor, and never that it is open.
fn pipe_of_a_failed_dial(bed: &Bed) {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
    // A port that is taken, so that nobody else gets it, and on which nobody listens.
    let taken = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&taken, &"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap()).unwrap();
    let at: std::net::SocketAddr = getsockname(&taken).unwrap().try_into().unwrap();
    let nobody = bed.backend.address().with_socket_addr(at);
    let client = bed.client.connect(&nobody, ConnectionConfig::default()).into_connection();
    let fd = match client.readiness_fd() {
        Ok(fd) => fd,
        Err(error) => return assert_eq!(error, block_on(client.closed())),
    };
    let seen = events_within(fd.as_fd(), LONG);
    assert!(seen.contains(PollFlags::ERR), "{seen:?}");
    let end = block_on(client.closed());
    assert!(matches!(end.kind(), ErrorKind::Refused | ErrorKind::System | ErrorKind::Unreachable), "{end}");
}

/// Somebody else's edge-triggered epoll waits for this transport's connect and for a TCP connect of its own, in the same
/// way, and hears of the ends too.
fn pipe_in_foreign_epoll(bed: &Bed) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
    let mut listener = bed.listen_as(&ConnectionConfig::default());
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let client = bed.client.connect(listener.local_address(), ConnectionConfig::default()).into_connection();
    let pipe = client.readiness_fd().unwrap();
    let interest = epoll::EventFlags::OUT | epoll::EventFlags::ET;
    match connect(&socket, &plain.local_addr().unwrap()) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => panic!("{error}"),
    }
    epoll::add(&poller, &socket, epoll::EventData::new_u64(1), interest).unwrap();
    epoll::add(&poller, &pipe, epoll::EventData::new_u64(2), interest).unwrap();
    let wait = |wanted: u64, flag: epoll::EventFlags| {
        let mut seen = epoll::EventFlags::empty();
        while !seen.contains(flag) {
            let mut events = Vec::with_capacity(4);
            let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
            let count = epoll::wait(&poller, rustix::buffer::spare_capacity(&mut events), Some(&patience)).unwrap();
            assert!(count > 0, "no edge of {wanted} for {flag:?}");
            let of_it = events.iter().filter(|e| e.data.u64() == wanted);
            seen |= of_it.fold(epoll::EventFlags::empty(), |all, e| all | e.flags);
        }
    };
    let mut order = Vec::new();
    while order.len() < 2 {
        let mut events = Vec::with_capacity(4);
        let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
        let count = epoll::wait(&poller, rustix::buffer::spare_capacity(&mut events), Some(&patience)).unwrap();
        assert!(count > 0, "only {order:?} connected");
        for event in &events {
            let (which, flags) = (event.data.u64(), event.flags);
            assert!(flags.contains(epoll::EventFlags::OUT));
            if !order.contains(&which) {
                order.push(which);
            }
        }
    }
    assert!(client.is_open(), "the edge came when it was open");
    let mut server = listener.accept_blocking().unwrap();
    client.send(&b"hello"[..]).unwrap();
    assert_eq!(server.recv_blocking().unwrap().head, "hello");
    server.abort();
    wait(2, epoll::EventFlags::ERR);
    block_on(client.closed());
}
