//! Futures dropped at any moment lose nothing and leak nothing.

use std::{pin::pin, thread, time::Duration};

use bytes::BytesMut;
use ucrpc::transport::{Announcement, Body, Connection, ConnectionConfig, Frame, RecvBuf, RecvPlan, SendError};

use super::Case;
use crate::{
    bed::Bed,
    tools::{Rng, block_for, block_on, check_numbered, numbered, poll_times},
};

pub const CASES: &[Case] = &[
    Case::all("drop_connecting", drop_connecting).and_auto(),
    Case::all("drop_accept", drop_accept),
    Case::all("drop_recv", drop_recv),
    Case::all("drop_send_wait", drop_send_wait),
    Case::all("drop_close_and_sent", drop_close_and_sent),
    Case::all("drop_fetch", drop_fetch),
    Case::all("drop_connection_with_data_in_flight", drop_connection_with_data_in_flight),
    Case::all("drop_dialled_and_listener", drop_dialled_and_listener),
];

/// Waits for about so long that what goes on meanwhile is at another point each time.
fn pause(rng: &mut Rng) {
    match rng.below(4) {
        0 => {}
        1 => thread::yield_now(),
        2 => (0..rng.below(20_000)).for_each(|_| std::hint::spin_loop()),
        _ => thread::sleep(Duration::from_micros(rng.below(3000))),
    }
}

fn drop_connecting(bed: &Bed) {
    let config = ConnectionConfig { linger: Duration::from_millis(500), ..ConnectionConfig::default() };
    let mut listener = bed.listen_as(&config);
    let mut rng = Rng::new(1);
    let mut opened = 0;
    for round in 0..150 {
        let mut connecting = pin!(bed.client.connect(listener.local_address(), config.clone()));
        let polls = rng.below(4);
        let result = poll_times(connecting.as_mut(), polls, &mut rng);
        pause(&mut rng);
        if let Some(connection) = result {
            connection.unwrap();
            opened += 1;
        } else if round % 10 == 9 {
            block_on(connecting).unwrap();
            opened += 1;
        }
    }
    assert!(opened >= 15);
    // Some were accepted before they were dropped; each of them ends.
    while let Some(connection) = block_for(Duration::from_millis(300), listener.accept()) {
        let mut connection = connection.unwrap();
        block_for(Duration::from_secs(10), connection.recv()).expect("its end").unwrap_err();
    }
    let (client, mut server) = bed.pair_on(&mut listener, &config);
    client.send(&b"still works"[..]).unwrap();
    assert_eq!(server.recv_blocking().unwrap().head, "still works");
}

fn drop_accept(bed: &Bed) {
    let config = ConnectionConfig::default();
    let mut listener = bed.listen_as(&config);
    let mut rng = Rng::new(2);
    for _ in 0..30 {
        let connecting = bed.client.connect(listener.local_address(), config.clone());
        let mut accepted = None;
        while accepted.is_none() {
            let polls = rng.below(3);
            accepted = poll_times(pin!(listener.accept()), polls, &mut rng);
            pause(&mut rng);
        }
        let (client, mut server) = (connecting.blocking().unwrap(), accepted.unwrap().unwrap());
        client.send(&b"hello"[..]).unwrap();
        assert_eq!(server.recv_blocking().unwrap().head, "hello");
    }
}

fn drop_recv(bed: &Bed) {
    let (client, mut server) = bed.pair(&ConnectionConfig::default());
    let (sender, count) = (client.sender(), 400);
    let sending = thread::spawn(move || {
        let mut rng = Rng::new(3);
        for i in 0..count {
            block_on(sender.send_wait(numbered(0, i, 8, rng.below(60_000) as usize))).unwrap();
            pause(&mut rng);
        }
    });
    let (mut rng, mut next) = (Rng::new(4), 0);
    while next < count {
        let polls = rng.below(3);
        match poll_times(pin!(server.recv()), polls, &mut rng) {
            Some(frame) => {
                assert_eq!(check_numbered(frame.unwrap()), (0, next));
                next += 1;
            }
            None => pause(&mut rng),
        }
    }
    sending.join().unwrap();
}

/// A dropped `send_wait` has sent its frame exactly if it was ready.
fn drop_send_wait(bed: &Bed) {
    let config = ConnectionConfig {
        send_queue_frames: 2,
        recv_window_frames: 4,
        recv_window_bytes: 100_000,
        ..ConnectionConfig::default()
    };
    let (client, mut server) = bed.pair(&config);
    let receiving = thread::spawn(move || {
        let (mut rng, mut got) = (Rng::new(5), Vec::new());
        while let Ok(frame) = server.recv_blocking() {
            got.push(check_numbered(frame).1);
            if rng.below(8) == 0 {
                pause(&mut rng);
            }
        }
        got
    });
    let (mut rng, mut sent, mut dropped) = (Rng::new(6), Vec::new(), 0);
    for i in 0..600 {
        let polls = rng.below(3);
        let frame = numbered(0, i, 8, rng.below(30_000) as usize);
        let mut sending = pin!(client.send_wait(frame));
        let early = poll_times(sending.as_mut(), polls, &mut rng);
        let done = if early.is_none() && i % 4 == 0 { Some(block_on(sending)) } else { early };
        match done {
            Some(result) => {
                result.unwrap();
                sent.push(i);
            }
            None => dropped += 1,
        }
        let polls = rng.below(2);
        let _ = poll_times(pin!(client.ready()), polls, &mut rng);
    }
    block_on(client.close()).unwrap();
    assert_eq!(receiving.join().unwrap(), sent);
    assert!(dropped > 50 && sent.len() > 50, "{dropped} dropped, {} sent", sent.len());
}

/// A close goes on without its future, and so does a tracked frame.
fn drop_close_and_sent(bed: &Bed) {
    let mut rng = Rng::new(7);
    for round in 0..20 {
        let (client, mut server) = bed.pair(&ConnectionConfig::default());
        for i in 0..20 {
            let sent = client.send_tracked(numbered(0, i, 8, 30_000)).unwrap();
            if i % 2 == 0 {
                let polls = rng.below(3);
                let _ = poll_times(pin!(sent), polls, &mut rng);
            }
        }
        let polls = 1 + rng.below(3);
        let _ = poll_times(pin!(client.close()), polls, &mut rng);
        let _ = poll_times(pin!(client.closed()), polls, &mut rng);
        assert!(client.send(&b"late"[..]).is_err(), "round {round}: a close that was polled has begun");
        for i in 0..20 {
            assert_eq!(check_numbered(server.recv_blocking().unwrap()), (0, i));
        }
        assert!(server.recv_blocking().is_err());
        block_for(Duration::from_secs(10), client.closed()).expect("closed without the future");
    }
}

/// A dropped fetch goes on into memory that it owns, and what follows is not disturbed.
fn drop_fetch(bed: &Bed) {
    let planner = std::sync::Arc::new(|_: &Announcement<'_>| RecvPlan::Later);
    let config = ConnectionConfig { planner: Some(planner), ..ConnectionConfig::default() };
    let (client, mut server) = bed.pair(&config);
    let (mut rng, mut fetched) = (Rng::new(8), 0);
    for i in 0..120 {
        let len = [300, 20_000, 300_000, 2 << 20][rng.below(4) as usize];
        client.send(numbered(0, i, 8, len)).unwrap();
        client.send(numbered(1, i, 8, 0)).unwrap();
        let frame = server.recv_blocking().unwrap();
        let Body::Pending(pending) = frame.body else { panic!("later") };
        let fetch = match i % 2 {
            0 => pending.fetch(RecvBuf::Bytes(BytesMut::zeroed(len))),
            _ => pending.fetch_pooled(),
        };
        let polls = rng.below(4);
        let mut fetch = pin!(fetch);
        let early = poll_times(fetch.as_mut(), polls, &mut rng);
        let done = if early.is_none() && i % 5 == 0 { Some(block_on(fetch)) } else { early };
        if let Some(buf) = done {
            assert_eq!(check_numbered(Frame::new(frame.head, Body::Buf(buf.unwrap()))), (0, i));
            fetched += 1;
        }
        assert_eq!(check_numbered(server.recv_blocking().unwrap()), (1, i));
    }
    assert!(fetched >= 24);
}

/// Both ends are dropped, with frames queued, on their way, and received but unread.
fn drop_connection_with_data_in_flight(bed: &Bed) {
    let config =
        ConnectionConfig { linger: Duration::from_millis(300), recv_window_frames: 64, ..ConnectionConfig::default() };
    let mut listener = bed.listen_as(&config);
    let mut rng = Rng::new(9);
    let fill = |end: &Connection, rng: &mut Rng| {
        for i in 0..rng.below(200) {
            match end.send(numbered(0, i as u32, 8, rng.below(100_000) as usize)) {
                Ok(()) | Err(SendError::Full(_)) => {}
                // The other side's drop was heard of already.
                Err(SendError::Closed(..)) => break,
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    for round in 0..40 {
        let (client, mut server) = bed.pair_on(&mut listener, &config);
        fill(&client, &mut rng);
        fill(&server, &mut rng);
        pause(&mut rng);
        for i in 0..rng.below(4) {
            if let Ok(Some(frame)) = server.try_recv() {
                assert_eq!(check_numbered(frame), (0, i as u32));
            } else {
                break;
            }
        }
        if round % 2 == 0 {
            drop(client);
            pause(&mut rng);
            fill(&server, &mut rng);
            drop(server);
        } else {
            drop(server);
            pause(&mut rng);
            fill(&client, &mut rng);
            drop(client);
        }
    }
}

/// A listener may be dropped with handshakes and unaccepted connections behind it.
fn drop_dialled_and_listener(bed: &Bed) {
    let mut rng = Rng::new(10);
    for _ in 0..25 {
        let mut listener = bed.listen_as(&ConnectionConfig::default());
        let dial = || bed.client.connect(listener.local_address(), ConnectionConfig::default());
        let mut dialled: Vec<_> = (0..4).map(|_| dial().into_connection()).collect();
        let polls = rng.below(3);
        let accepted = poll_times(pin!(listener.accept()), polls, &mut rng);
        pause(&mut rng);
        drop(listener);
        for client in &mut dialled {
            // Open or not, it ends when the listener's side lets go of it; the accepted one lives on.
            if accepted.is_none() {
                block_for(Duration::from_secs(10), client.closed()).expect("the listener is gone");
            }
        }
        if let Some(accepted) = accepted {
            block_on(accepted.unwrap().close()).unwrap();
        }
    }
}
