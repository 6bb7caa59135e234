use std::net::SocketAddr;

use bytes::Bytes;

use super::*;
use crate::error::ErrorKind;

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn dial(group: &mut Group, listener: &CmListener) -> (EndpointId, ConnRequest) {
    let client = group.workers[0].connect_cm(loopback(listener.addr().port())).expect("dials");
    let (request, addr) = group.until("a connection request", |index, event| match event {
        Event::ConnRequest { request, client_addr, .. } if index == 1 => Some((request, client_addr)),
        other => panic!("unexpected at {index}: {other:?}"),
    });
    assert!(addr.is_some_and(|addr| addr.ip().is_loopback() && addr.port() != 0), "{addr:?}");
    (client, request)
}

/// Two clients' worth of messages are told apart by their endpoints, both ways, eager and rendezvous.
pub(super) fn accept_and_talk() {
    let mut group = Group::of(2);
    let listener = group.workers[1].listen_cm(loopback(0)).expect("listens");
    assert_ne!(listener.addr().port(), 0);
    let taken = group.workers[0].listen_cm(loopback(listener.addr().port()));
    println!("a second listener on the port: {taken:?}");
    let mut links = Vec::new();
    for _ in 0..3 {
        let (client, request) = dial(&mut group, &listener);
        let server = group.workers[1].accept_cm(request).expect("accepts");
        links.push((client, server));
    }
    for (number, (client, server)) in links.iter().enumerate() {
        let number = number as u64;
        for (from, ep, expected) in [(0, *client, *server), (1, *server, *client)] {
            let body = pattern(5000, number);
            let _ = group.workers[from].send_copy(ep, b"0123456789abcdef", [&body, b""], number).expect("sends");
            let origin = group.until("the message", |index, event| match event {
                Event::Message { data, from: origin, .. } if index == 1 - from => {
                    assert!(data == body);
                    Some(origin)
                }
                Event::SendDone { result, .. } => {
                    result.expect("sends");
                    None
                }
                other => panic!("unexpected at {index}: {other:?}"),
            });
            assert_eq!(origin, Some(expected), "the sender's endpoint");
            let payload = Payload::Bytes(Bytes::from(pattern(400_000, number)));
            let _ = group.workers[from].send_owned(ep, b"big", payload, Mode::Rendezvous, number).expect("sends");
            let (origin, rndv) = group.until("the announcement", |index, event| match event {
                Event::Announced { rndv, from: origin, .. } if index == 1 - from => Some((origin, rndv)),
                Event::SendDone { result, .. } => {
                    result.expect("sends");
                    None
                }
                other => panic!("unexpected at {index}: {other:?}"),
            });
            assert_eq!(origin, Some(expected), "the sender's endpoint");
            group.workers[1 - from].fetch(rndv, target(400_000), number).expect("fetches");
            let mut left = 2;
            group.until("both ends", |_, event| {
                match event {
                    Event::SendDone { result, .. } => result.expect("sends"),
                    Event::FetchDone { buf, result, .. } => {
                        result.expect("fetches");
                        assert!(buf.as_slice() == pattern(400_000, number));
                    }
                    other => panic!("unexpected: {other:?}"),
                }
                left -= 1;
                (left == 0).then_some(())
            });
        }
        println!("lanes: {} / {}", group.workers[0].endpoint_info(*client), group.workers[1].endpoint_info(*server));
    }
    // An ordinary close of the client is a failure event at the server.
    let (client, server) = links.remove(0);
    group.workers[0].close(client);
    let failed = group.until("the server's failure event", |index, event| match event {
        Event::EndpointFailed { ep, error } if index == 1 => Some((ep, error.kind())),
        other => panic!("unexpected at {index}: {other:?}"),
    });
    // UCX names it by what it sees first: the connection manager's reset, or the tcp lane's end.
    assert!(failed.0 == server && matches!(failed.1, ErrorKind::Reset | ErrorKind::TimedOut), "{failed:?}");
    group.workers[1].close(server);
    for (client, server) in links {
        group.workers[0].close(client);
        group.workers[1].close(server);
    }
    group.workers[1].close_listener(listener);
    group.spin(100);
    group.end();
}

const WAYS: [&str; 4] = ["reject", "drop", "thread", "listener"];

/// The process that accepts nobody: rejected, dropped, dropped on another thread, undecided when the listener closes.
///
/// It is a process of its own because UCX 1.13 with assertions aborts when two workers of a process use its connection
/// manager and the descriptor of a rejected connection is used again by the other one.
pub(super) fn rejecter() {
    let mut group = Group::of(1);
    for how in WAYS {
        let listener = group.workers[0].listen_cm(loopback(0)).expect("listens");
        println!("PORT {}", listener.addr().port());
        let request = group.until("a connection request", |_, event| match event {
            Event::ConnRequest { request, .. } => Some(request),
            other => panic!("unexpected: {other:?}"),
        });
        match how {
            "reject" => group.workers[0].reject_cm(request),
            "drop" => drop(request),
            "thread" => std::thread::spawn(move || drop(request)).join().expect("drops"),
            _ => {
                group.workers[0].close_listener(listener);
                let error = group.workers[0].accept_cm(request).expect_err("too late");
                assert_eq!(error.kind(), ErrorKind::Closed);
                println!("CLOSED ");
                continue;
            }
        }
        // The client says when it has heard.
        let heard = std::thread::spawn(|| {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).expect("text");
        });
        while !heard.is_finished() {
            group.spin(10);
        }
        heard.join().expect("hears");
        group.workers[0].close_listener(listener);
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("text");
    group.end();
    println!("ENDED ");
}

/// Rejected in whatever way: the client hears of it.
pub(super) fn reject() {
    let mut group = Group::of(1);
    let mut server = Peer::start("rejecter");
    let mut port = 0;
    for how in WAYS {
        port = server.hear("PORT ").parse().expect("a port");
        let client = group.workers[0].connect_cm(loopback(port)).expect("dials");
        let error = group.until(how, |_, event| match event {
            Event::EndpointFailed { ep, error } if ep == client => Some(error),
            other => panic!("{how}: unexpected: {other:?}"),
        });
        assert_eq!(error.kind(), ErrorKind::Refused, "{how}: {error}");
        group.workers[0].close(client);
        if how == "listener" {
            server.hear("CLOSED ");
        }
        server.say("heard");
    }
    // Nobody listens: the client hears of that, too.
    match group.workers[0].connect_cm(loopback(port)) {
        Ok(client) => {
            let error = group.until("a failure", |_, event| match event {
                Event::EndpointFailed { error, .. } => Some(error),
                other => panic!("unexpected: {other:?}"),
            });
            println!("nobody listens: {error}");
            group.workers[0].close(client);
        }
        Err(error) => println!("nobody listens, at once: {error}"),
    }
    server.hear("ENDED ");
    group.end();
}

/// Two hundred connections, one after the other: nothing is left, descriptors stay flat.
pub(super) fn cycles() {
    let mut group = Group::of(2);
    let listener = group.workers[1].listen_cm(loopback(0)).expect("listens");
    let mut fds = 0;
    for cycle in 0..200_u64 {
        let (client, request) = dial(&mut group, &listener);
        let server = group.workers[1].accept_cm(request).expect("accepts");
        let _ = group.workers[0].send_copy(client, b"h", [b"there", b""], cycle).expect("sends");
        group.until("the message", |index, event| match event {
            Event::Message { from, .. } if index == 1 => {
                assert_eq!(from, Some(server));
                Some(())
            }
            _ => None,
        });
        group.workers[0].close(client);
        // The server may hear of it before it closes, too.
        group.workers[1].close(server);
        group.until_all_zero();
        if cycle == 20 {
            fds = open_fds();
        }
    }
    group.spin(100);
    std::thread::sleep(Duration::from_millis(50));
    group.spin(100);
    let now = open_fds();
    println!("fds after 20 connections: {fds}, after 200: {now}");
    assert!(now <= fds + 8, "descriptors leak: {fds} -> {now}");
    group.workers[1].close_listener(listener);
    group.end();
}
