//! What the two sides agree on: the largest message, the largest head; and whom the limit of connections turns away.

use std::time::Duration;

use bytes::Bytes;
use ucrpc::transport::{Body, ConnectionConfig, DispatcherConfig, ErrorKind, Frame, ListenConfig, SendError};

use super::Case;
use crate::{
    bed::Bed,
    tools::{Sum, block_for, block_on, exchange, random_bytes},
};

pub const CASES: &[Case] = &[
    Case::all("limits_are_agreed", limits_are_agreed).and_auto(),
    Case::all("too_large_before_open", too_large_before_open),
    Case::all("too_many_connections", too_many_connections),
    Case::all("accept_queue", accept_queue),
];

/// Each side's limit holds for what is sent to it; the frame that is too large comes back, and nothing else happens.
fn limits_are_agreed(bed: &Bed) {
    let config = |max_message, max_head| ConnectionConfig { max_message, max_head, ..ConnectionConfig::default() };
    let (mut client, mut server) = bed.pair_with(&config(100_000, 3000), &config(40_000, 500));
    assert_eq!((client.info().unwrap().max_message, client.info().unwrap().max_head), (40_000, 500));
    assert_eq!((server.info().unwrap().max_message, server.info().unwrap().max_head), (100_000, 3000));
    let (to_server, to_client) = (client.sender(), server.sender());
    for (sender, receiver, largest, head) in
        [(&to_server, &mut server, 40_000, 500), (&to_client, &mut client, 100_000, 3000)]
    {
        for (head, total, fits) in
            [(head, largest, true), (head, largest + 1, false), (head + 1, head + 2, false), (0, largest + 1, false)]
        {
            let (head, body) = (random_bytes(1, head), random_bytes(2, total - head));
            let sum = Sum::of(&head, &body);
            if fits {
                exchange(sender, receiver, head, body);
                continue;
            }
            let frame = || Frame::new(head.clone(), body.clone());
            let Err(SendError::TooLarge(back, error)) = sender.send(frame()) else { panic!("too large") };
            assert_eq!((Sum::of_frame(back), error.kind()), (sum, ErrorKind::Limit));
            assert!(error.text().contains(&largest.to_string()), "{error}");
            assert_eq!(block_on(sender.send_wait(frame())).unwrap_err().kind(), ErrorKind::Limit);
            let Err(SendError::TooLarge(..)) = sender.send_tracked(frame()) else { panic!("too large") };
            // In pieces it is as large.
            let pieces = Body::Segments(vec![body.slice(..body.len() / 2), body.slice(body.len() / 2..)]);
            let Err(SendError::TooLarge(..)) = sender.send(Frame::new(head.clone(), pieces)) else { panic!("large") };
        }
        exchange(sender, receiver, Bytes::from_static(b"still open"), Body::Empty);
    }
}

/// Before the connection is open the limit is not known. A frame above it ends the connection with the reason on the
/// side that sent it, and the peer is not troubled with it.
fn too_large_before_open(bed: &Bed) {
    let mut listener = bed.listen_as(&ConnectionConfig { max_message: 10_000, ..ConnectionConfig::default() });
    // A connection may be open before the frame is there, and then the frame comes back: that is not what is tested here.
    let mut tries = 0;
    let (client, tracked, mut server) = loop {
        let client = bed.client.connect(listener.local_address(), ConnectionConfig::default()).into_connection();
        let sent = client.send_tracked(vec![1; 20_000]);
        let server = listener.accept_blocking().unwrap();
        match sent {
            Ok(tracked) => break (client, tracked, server),
            Err(SendError::TooLarge(..)) if tries < 100 => tries += 1,
            Err(other) => panic!("{other}"),
        }
    };
    let end = block_for(Duration::from_secs(10), client.closed()).expect("an end");
    assert_eq!(end.kind(), ErrorKind::Limit, "{end}");
    block_for(Duration::from_secs(10), tracked).expect("a result").unwrap_err();
    let error = block_for(Duration::from_secs(10), server.recv()).expect("an end").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Reset, "{error}");
}

fn too_many_connections(bed: &Bed) {
    let limited = DispatcherConfig { max_connections: 5, ..DispatcherConfig::default() };
    let own = Bed::with(bed.backend, &limited, &DispatcherConfig::default());
    let mut listener = own.listen_as(&ConnectionConfig::default());
    let pairs: Vec<_> = (0..5).map(|_| own.pair_on(&mut listener, &ConnectionConfig::default())).collect();
    let refused = own.client.connect(listener.local_address(), ConnectionConfig::default()).blocking().unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Reset | ErrorKind::Refused | ErrorKind::Limit), "{refused}");
    let from_full = own.server.connect(listener.local_address(), ConnectionConfig::default()).blocking().unwrap_err();
    assert_eq!(from_full.kind(), ErrorKind::Limit, "{from_full}");
    for (client, mut server) in pairs {
        exchange(&client, &mut server, Bytes::from_static(b"not disturbed"), random_bytes(2, 5_000));
        block_on(client.close()).unwrap();
        block_on(server.closed());
    }
    crate::tools::eventually("there is room again", || own.server.stats().connections == 0);
    drop(own.pair_on(&mut listener, &ConnectionConfig::default()));
    drop(listener);
    own.finish();
}

/// Nobody accepts: the queue fills up to its limit, later clients wait or are refused, and accepting goes on.
fn accept_queue(bed: &Bed) {
    let mut listener = bed.listen(ListenConfig { accept_queue: 3, ..ListenConfig::default() });
    let dial = || bed.client.connect(listener.local_address(), ConnectionConfig::default()).into_connection();
    let clients: Vec<_> = (0..12).map(|_| dial()).collect();
    crate::tools::eventually("the queue is full", || clients.iter().filter(|c| c.is_open()).count() >= 3);
    let mut served = 0;
    while let Some(server) = block_for(Duration::from_millis(500), listener.accept()) {
        server.unwrap().send(&b"served"[..]).unwrap();
        served += 1;
    }
    // Sockets wait in the kernel; mem has nothing to wait in, and says so.
    if bed.backend.is_stream() || bed.backend.is_ucx() {
        assert_eq!(served, 12);
    } else {
        assert!(served >= 3);
    }
    for client in clients {
        match block_for(Duration::from_secs(10), client.opened()).expect("open or refused") {
            Ok(()) => {}
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Refused | ErrorKind::PeerClosed), "{error}"),
        }
    }
}
