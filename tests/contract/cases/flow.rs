//! Readers that stop, quotas that are used up: memory stays bounded, senders see it, and nothing is lost.

use std::{thread, time::Duration};

use bytes::Bytes;
use ucrpc::transport::{
    Announcement, ConnectionConfig, DispatcherConfig, ErrorKind, Frame, PoolConfig, RecvPlan, SendError,
};

use super::Case;
use crate::{
    bed::Bed,
    tools::{Holdings, block_for, block_on, check_numbered, eventually, numbered, random_bytes},
};

pub const CASES: &[Case] = &[
    Case::all("reader_stops", reader_stops).and_auto(),
    Case::all("reader_stops_small", reader_stops_small),
    Case::all("window_below_frame", window_below_frame),
    Case::all("quota", quota),
    Case::all("quota_mixed", quota_mixed),
    Case::all("quota_below_frame", quota_below_frame),
    Case::all("receiver_dropped", receiver_dropped),
    Case::all("credit_both_ways", credit_both_ways),
];

/// Sends until the sender has seen `Full` for a while; returns how many frames were taken.
fn fill(
    bed: &Bed,
    config: &ConnectionConfig,
    body: usize,
) -> (u32, ucrpc::transport::Connection, ucrpc::transport::Connection) {
    let (client, server) = bed.pair(config);
    let mut sent = 0;
    loop {
        match client.send(numbered(0, sent, 8, body)) {
            Ok(()) => sent += 1,
            Err(SendError::Full(_)) => {
                if block_for(Duration::from_millis(300), client.ready()).is_none() {
                    return (sent, client, server);
                }
            }
            Err(other) => panic!("{other:?}"),
        }
        assert!(u64::from(sent) * body as u64 <= 1 << 30, "a sender that is never told to stop");
    }
}

fn drain(mut server: ucrpc::transport::Connection, client: &ucrpc::transport::Connection, sent: u32, body: usize) {
    for i in 0..sent {
        assert_eq!(check_numbered(server.recv_blocking().unwrap()), (0, i));
    }
    let sender = client.sender();
    let more = thread::spawn(move || {
        for i in 0..20 {
            block_on(sender.send_wait(numbered(1, i, 8, body))).unwrap();
        }
    });
    for i in 0..20 {
        assert_eq!(check_numbered(server.recv_blocking().unwrap()), (1, i));
    }
    more.join().unwrap();
}

fn reader_stops(bed: &Bed) {
    let (window, queue, body) = (2 << 20, 1 << 20, 300_000);
    // What two workers take once, over RDMA tens of megabytes each to receive into, no reader has anything to do with.
    let start = Holdings::now().rss;
    let (first, mut reads) = bed.pair(&ConnectionConfig::default());
    first.send(numbered(0, 0, 8, body)).unwrap();
    assert_eq!(check_numbered(reads.recv_blocking().unwrap()), (0, 0));
    let before = Holdings::now().rss;
    let config = ConnectionConfig { recv_window_bytes: window, send_queue_bytes: queue, ..ConnectionConfig::default() };
    let (sent, client, server) = fill(bed, &config, body);
    let taken = u64::from(sent) * body as u64;
    // A window, a queue, one frame that waits for credit, and one that is larger than what is left of the queue.
    let most = window + queue + 2 * body as u64;
    assert!(taken <= most, "{taken} bytes taken with a window of {window} and a queue of {queue}");
    assert!(server.stats().bytes_received <= window, "{} received", server.stats().bytes_received);
    assert!(client.stats().credit_stalls > 0);
    let in_use = bed.server.pool().stats().receive_in_use;
    // The pool hands out 300 kB in buffers of 1 MiB.
    assert!(in_use <= window / body as u64 * (1 << 20), "{in_use} bytes of the pool in use");
    let grown = Holdings::now().rss.saturating_sub(before);
    println!(
        "{} bytes of memory for the first connection, {grown} while the reader stops",
        before.saturating_sub(start)
    );
    assert!(grown < 32 << 20, "{grown} bytes more of memory while the reader stops");
    drain(server, &client, sent, body);
}

/// Small frames are bounded by their number.
fn reader_stops_small(bed: &Bed) {
    let config = ConnectionConfig { recv_window_frames: 100, send_queue_frames: 50, ..ConnectionConfig::default() };
    let (sent, client, server) = fill(bed, &config, 10);
    assert!(sent <= 100 + 50 + 1, "{sent} frames taken with a window of 100 and a queue of 50");
    assert_eq!(server.stats().frames_received, 100);
    drain(server, &client, sent, 10);
}

/// A frame that is larger than the window, and than the queue, comes alone.
fn window_below_frame(bed: &Bed) {
    let config = ConnectionConfig { recv_window_bytes: 1000, send_queue_bytes: 1000, ..ConnectionConfig::default() };
    let (client, mut server) = bed.pair(&config);
    let sender = client.sender();
    let sizes = [10, 5000, 10, 400_000, 10, 999, 1000, 1001, 3 << 20, 0];
    let sending = thread::spawn(move || {
        for (i, body) in sizes.into_iter().enumerate() {
            block_on(sender.send_wait(numbered(0, i as u32, 8, body))).unwrap();
        }
    });
    for i in 0..sizes.len() {
        assert_eq!(check_numbered(server.recv_blocking().unwrap()), (0, i as u32));
    }
    sending.join().unwrap();
}

/// A bed whose server may hold `quota` bytes of received bodies.
fn bed_with_quota(bed: &Bed, quota: u64) -> Bed {
    let pool = PoolConfig { receive_quota: quota, ..PoolConfig::default() };
    let server = DispatcherConfig { pool, ..DispatcherConfig::default() };
    Bed::with(bed.backend, &server, &DispatcherConfig::default())
}

/// Bodies go to the pool by plan: over mem there is no other way to need it.
fn pooled() -> ConnectionConfig {
    let planner = std::sync::Arc::new(|_: &Announcement<'_>| RecvPlan::Pool);
    ConnectionConfig {
        planner: Some(planner),
        // All bodies here are to be fetched, not copied.
        rendezvous_from: Some(16 << 10),
        ..ConnectionConfig::default()
    }
}

/// With the quota used up bodies wait, and go on when the application lets go of what it has.
fn quota(bed: &Bed) {
    let quota = 3 << 20;
    let bed = bed_with_quota(bed, quota);
    let (client, mut server) = bed.pair(&pooled());
    let (sender, count, body) = (client.sender(), 40, 300_000);
    let sending = thread::spawn(move || {
        for i in 0..count {
            block_on(sender.send_wait(numbered(0, i, 8, body))).unwrap();
        }
    });
    let mut held = Vec::new();
    for i in 0..count {
        if held.len() == 3 {
            // Everything is in use: the next body must wait for the application.
            eventually("a body finds the quota used up", || bed.server.pool().stats().refused > 0);
            assert!(server.try_recv().unwrap().is_none());
            assert!(bed.server.pool().stats().receive_in_use <= quota);
            held.clear();
        }
        let frame = server.recv_blocking().unwrap();
        let (head, body) = (frame.head, frame.body.into_bytes().unwrap());
        assert_eq!(check_numbered(Frame::new(head, body.clone())), (0, i));
        held.push(body);
    }
    drop(held);
    sending.join().unwrap();
    drop((client, server));
    bed.finish();
}

/// Later bodies don't take what an earlier, larger one waits for.
fn quota_mixed(bed: &Bed) {
    let bed = bed_with_quota(bed, 9 << 20);
    let (client, mut server) = bed.pair(&pooled());
    let (sender, rounds) = (client.sender(), 6);
    let sending = thread::spawn(move || {
        for i in 0..rounds {
            for j in 0..8 {
                let body = if j == 2 { 8 << 20 } else { 1 << 20 };
                block_on(sender.send_wait(numbered(0, i * 8 + j, 8, body))).unwrap();
            }
        }
    });
    for i in 0..rounds * 8 {
        // One more than fits beside the large one is held until the next frame is here, or could be.
        let frame = block_for(Duration::from_secs(30), server.recv()).expect("bodies wait for each other").unwrap();
        assert_eq!(check_numbered(frame), (0, i));
    }
    sending.join().unwrap();
    drop((client, server));
    bed.finish();
}

/// A body that can never have its memory is a clear error, not a wait without end.
fn quota_below_frame(bed: &Bed) {
    let bed = bed_with_quota(bed, 1 << 20);
    let (client, mut server) = bed.pair(&pooled());
    // In the largest class that is within the quota or without one: what counts is the body.
    client.send(numbered(0, 0, 8, (1 << 20) - 1)).unwrap();
    assert_eq!(check_numbered(server.recv_blocking().unwrap()), (0, 0));
    client.send(numbered(0, 1, 8, (1 << 20) + 1)).unwrap();
    let error = block_for(Duration::from_secs(10), server.recv()).expect("a body that can't fit").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    assert!(error.text().contains("quota"), "{error}");
    let end = block_for(Duration::from_secs(10), client.closed()).expect("the peer hears of it");
    assert!(matches!(end.kind(), ErrorKind::Reset | ErrorKind::PeerClosed), "{end:?}");
    drop((client, server));
    bed.finish();
}

/// Without a receiver, but with a sender, what arrives is thrown away: the peer is not stopped by it.
fn receiver_dropped(bed: &Bed) {
    let config = ConnectionConfig { recv_window_frames: 16, send_queue_frames: 16, ..ConnectionConfig::default() };
    let (mut client, server) = bed.pair(&config);
    let reply = server.sender();
    for i in 0..16 {
        client.send(numbered(0, i, 8, 100)).unwrap();
    }
    eventually("the window is used up", || server.stats().frames_received == 16);
    drop(server);
    let sending = block_for(Duration::from_secs(10), async {
        for i in 0..200 {
            client.send_wait(numbered(0, i, 8, 100)).await.unwrap();
        }
    });
    assert!(sending.is_some(), "the peer waits for a receiver that is gone");
    reply.send(&b"one way"[..]).unwrap();
    assert_eq!(client.recv_blocking().unwrap().head, "one way");
    block_on(client.close()).unwrap();
}

/// Both ends send while neither reads, until both are full; then both read.
fn credit_both_ways(bed: &Bed) {
    let config = ConnectionConfig {
        recv_window_frames: 8,
        send_queue_frames: 8,
        recv_window_bytes: 1 << 20,
        ..ConnectionConfig::default()
    };
    let (mut client, mut server) = bed.pair(&config);
    let body = random_bytes(1, 50_000);
    let full = |end: &ucrpc::transport::Sender| {
        let mut sent = 0_u32;
        while block_for(
            Duration::from_millis(200),
            end.send_wait(Frame::new(sent.to_le_bytes().to_vec(), body.clone())),
        )
        .is_some()
        {
            sent += 1;
            assert!(sent < 100, "a sender that is never told to stop");
        }
        sent
    };
    let (there, back) = (full(&client), full(&server));
    assert!(there >= 16 && back >= 16, "{there} and {back} frames");
    for (count, end) in [(there, &mut server), (back, &mut client)] {
        for i in 0..count {
            let frame = end.recv_blocking().unwrap();
            assert_eq!(
                (frame.head, frame.body.into_bytes().unwrap()),
                (Bytes::from(i.to_le_bytes().to_vec()), body.clone())
            );
        }
    }
}
