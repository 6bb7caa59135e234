//! The ends of connections: orderly, at once, with data in flight, without anyone who reads.

use std::{
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ucrpc::transport::{ConnectionConfig, ErrorKind, Frame, SendError, Sent};

use super::Case;
use crate::{
    bed::Bed,
    tools::{block_for, block_on, check_numbered, numbered, random_bytes},
};

pub const CASES: &[Case] = &[
    Case::all("close_with_data_in_flight", close_with_data_in_flight).and_auto(),
    Case::all("close_with_data_both_ways", close_with_data_both_ways).and_auto(),
    Case::all("close_at_once", close_at_once),
    Case::all("close_nobody_reads", close_nobody_reads),
    Case::all("drop_is_close", drop_is_close),
    Case::all("abort_with_data_in_flight", abort_with_data_in_flight).and_auto(),
    Case::all("after_the_end", after_the_end),
    Case::all("shutdown_with_data_in_flight", shutdown_with_data_in_flight),
];

/// Everything that was sent before an orderly close arrives before its end does.
fn close_with_data_in_flight(bed: &Bed) {
    for (count, largest) in [(500, 70_000), (40, 3 << 20), (3000, 40)] {
        let (client, mut server) = bed.pair(&ConnectionConfig::default());
        let body = move |i: u32| i as usize * 7919 % largest;
        let sender = client.sender();
        let sending = thread::spawn(move || {
            for i in 0..count {
                block_on(sender.send_wait(numbered(0, i, 8, body(i)))).unwrap();
            }
            block_on(sender.close())
        });
        for i in 0..count {
            assert_eq!(check_numbered(server.recv_blocking().unwrap()), (0, i));
        }
        assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
        sending.join().unwrap().unwrap();
        assert_eq!(client.error().unwrap().kind(), ErrorKind::Closed);
    }
}

/// One side closes while both send. What it had sent arrives whole and in order; what the other sent arrives in order
/// as far as it goes; everyone ends with a reason, once.
fn close_with_data_both_ways(bed: &Bed) {
    for round in 0..6 {
        let (mut client, mut server) = bed.pair(&ConnectionConfig::default());
        let count = 100 + round * 40;
        let closing = client.sender();
        let answering = server.sender();
        thread::scope(|scope| {
            scope.spawn(move || {
                for i in 0..count {
                    block_on(closing.send_wait(numbered(0, i, 8, i as usize * 997 % 90_000))).unwrap();
                }
                block_on(closing.close()).unwrap();
                let refused = closing.send(&b"late"[..]).unwrap_err();
                assert!(matches!(refused, SendError::Closed(_, error) if error.kind() == ErrorKind::Closed));
            });
            scope.spawn(move || {
                let end = (0..u32::MAX)
                    .find_map(|i| block_on(answering.send_wait(numbered(1, i, 8, i as usize * 991 % 90_000))).err());
                assert_eq!(end.unwrap().kind(), ErrorKind::PeerClosed);
            });
            scope.spawn(|| {
                for i in 0.. {
                    match client.recv_blocking() {
                        Ok(frame) => assert_eq!(check_numbered(frame), (1, i)),
                        Err(error) => return assert_eq!(error.kind(), ErrorKind::Closed),
                    }
                }
            });
            for i in 0..count {
                assert_eq!(check_numbered(server.recv_blocking().unwrap()), (0, i));
            }
            assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
        });
    }
}

fn close_at_once(bed: &Bed) {
    for round in 0..30_usize {
        let (mut client, mut server) = bed.pair(&ConnectionConfig::default());
        let frames = [0, 1, 5][round % 3];
        for i in 0..frames {
            client.send(numbered(0, i, 8, 50_000)).unwrap();
            server.send(numbered(1, i, 8, 50_000)).unwrap();
        }
        thread::scope(|scope| {
            for end in [client.sender(), server.sender()] {
                scope.spawn(move || block_on(end.close()).unwrap());
            }
        });
        // Both had sent before both closed, but who closed first may not have waited for what the other had queued.
        for (sender, end) in [(1, &mut client), (0, &mut server)] {
            for i in 0.. {
                match end.recv_blocking() {
                    Ok(frame) => assert_eq!(check_numbered(frame), (sender, i)),
                    Err(error) => {
                        assert!(matches!(error.kind(), ErrorKind::Closed | ErrorKind::PeerClosed), "{error}");
                        break;
                    }
                }
            }
        }
    }
}

/// The peer never reads: the close gives up at its deadline, and says so.
fn close_nobody_reads(bed: &Bed) {
    let linger = Duration::from_millis(400);
    let config = ConnectionConfig { linger, recv_window_frames: 4, ..ConnectionConfig::default() };
    let (client, server) = bed.pair(&config);
    for i in 0..20 {
        client.send(numbered(0, i, 8, 1000)).unwrap();
    }
    let started = Instant::now();
    let end = block_for(Duration::from_secs(10), client.close()).expect("the deadline ends it");
    assert_eq!(end.unwrap_err().kind(), ErrorKind::TimedOut);
    let took = started.elapsed();
    assert!(took >= linger && took < linger * 10, "closing took {took:?} with a deadline of {linger:?}");
    let mut server = server;
    for i in 0..4 {
        assert_eq!(check_numbered(server.recv_blocking().unwrap()), (0, i));
    }
    let error = server.recv_blocking().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Reset | ErrorKind::PeerClosed), "{error}");
}

/// The last handle closes; any other leaves the connection open.
fn drop_is_close(bed: &Bed) {
    let (client, mut server) = bed.pair(&ConnectionConfig::default());
    let (one, two) = (client.sender(), client.sender());
    drop(client);
    one.send(&b"by a sender"[..]).unwrap();
    assert_eq!(server.recv_blocking().unwrap().head, "by a sender");
    drop(one);
    let large = random_bytes(5, 5 << 20);
    two.send(Frame::new(&b"last"[..], large.clone())).unwrap();
    drop(two);
    let last = server.recv_blocking().unwrap();
    assert_eq!((last.head, last.body.into_bytes().unwrap()), (Bytes::from_static(b"last"), large));
    assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
    assert!(!server.is_open());
}

/// Aborted on one side or both, with frames queued and on their way: every tracked frame has exactly one result, what
/// arrives is a gapless beginning, nothing leaks.
fn abort_with_data_in_flight(bed: &Bed) {
    for round in 0..12_u32 {
        let (client, mut server) = bed.pair(&ConnectionConfig::default());
        let mut sents: Vec<Sent> = Vec::new();
        for i in 0..200 {
            match client.send_tracked(numbered(0, i, 8, (i * 977 % 90_000) as usize)) {
                Ok(sent) => sents.push(sent),
                Err(SendError::Full(_)) => break,
                Err(other) => panic!("{other:?}"),
            }
            if i < 100 {
                server.send(numbered(1, i, 8, 60_000)).unwrap();
            }
        }
        let receive = round * 3;
        for i in 0..receive {
            assert_eq!(check_numbered(server.recv_blocking().unwrap()), (0, i));
        }
        if round % 3 != 1 {
            client.abort();
        }
        if round % 3 != 0 {
            server.abort();
        }
        for end in [&client, &server] {
            let error = block_for(Duration::from_secs(10), end.closed()).expect("an abort ends both sides");
            assert!(matches!(error.kind(), ErrorKind::Closed | ErrorKind::Reset), "{error}");
        }
        for i in receive.. {
            match server.recv_blocking() {
                Ok(frame) => assert_eq!(check_numbered(frame), (0, i)),
                Err(_) => break,
            }
        }
        let results = sents.into_iter().map(|sent| block_for(Duration::from_secs(10), sent).expect("a result"));
        let oks = results.map(|r| r.is_ok()).collect::<Vec<_>>();
        assert!(oks.len() > receive as usize);
        if round % 3 == 0 {
            assert_eq!(client.error().unwrap().kind(), ErrorKind::Closed, "who aborts has closed");
        }
    }
}

/// After the end everything says why, and gives back what it was given.
fn after_the_end(bed: &Bed) {
    let (mut client, mut server) = bed.pair(&ConnectionConfig::default());
    server.send(&b"unread"[..]).unwrap();
    while client.stats().frames_received == 0 {
        thread::yield_now();
    }
    block_on(server.close()).unwrap();
    let end = block_on(client.closed());
    assert_eq!(end.kind(), ErrorKind::PeerClosed);
    assert_eq!(client.recv_blocking().unwrap().head, "unread", "what had arrived is still there");
    for _ in 0..3 {
        assert_eq!(client.recv_blocking().unwrap_err(), end);
        assert_eq!(client.try_recv().unwrap_err(), end);
        assert_eq!(block_on(client.ready()).unwrap_err(), end);
        assert_eq!(block_on(client.opened()).unwrap_err(), end);
        let SendError::Closed(frame, error) = client.send(&b"frame"[..]).unwrap_err() else { panic!("closed") };
        assert_eq!((frame.head, error), (Bytes::from_static(b"frame"), end.clone()));
        assert_eq!(client.send_tracked(&b"frame"[..]).unwrap_err().into_frame().head, "frame");
        block_on(client.close()).unwrap();
        client.abort();
        assert_eq!(client.error(), Some(&end), "the first reason stays");
        assert_eq!(client.readiness_fd().unwrap_err(), end);
    }
    assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::Closed);
}

/// A dispatcher that stops with everything in flight: its connections end as stopped, the other side's as reset, and
/// handles that outlive it are harmless.
fn shutdown_with_data_in_flight(bed: &Bed) {
    let own = Bed::new(bed.backend);
    let (mut client, server) = own.pair(&ConnectionConfig::default());
    let mut sents = Vec::new();
    for i in 0..100 {
        sents.extend(client.send_tracked(numbered(0, i, 8, 60_000)).ok());
        let _ = server.send(numbered(1, i, 8, 60_000));
    }
    let frame = client.recv_blocking().unwrap();
    own.client.shutdown();
    assert_eq!(block_for(Duration::from_secs(10), client.closed()).expect("stopped").kind(), ErrorKind::Stopped);
    for sent in sents {
        block_for(Duration::from_secs(10), sent).expect("a result").ok();
    }
    let end = block_for(Duration::from_secs(10), server.closed()).expect("the peer hears of it");
    // UCX's own tcp lane calls a closed peer a timeout.
    assert!(matches!(end.kind(), ErrorKind::Reset | ErrorKind::PeerClosed | ErrorKind::TimedOut), "{end}");
    assert_eq!(check_numbered(frame), (1, 0));
    assert!(client.send(&b"late"[..]).is_err());
    let late = own.client.connect(&own.backend.address(), ConnectionConfig::default());
    assert_eq!(block_for(Duration::from_secs(10), late).expect("refused").unwrap_err().kind(), ErrorKind::Stopped);
    drop((client, server));
    crate::bed::finish(&own.server);
}
