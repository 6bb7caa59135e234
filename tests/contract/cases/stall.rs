//! The stall watchdog: when nothing moves, it names the side that keeps it from moving.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ucrpc::transport::{
    Announcement, Connection, ConnectionConfig, Dispatcher, DispatcherConfig, Frame, Keepalive, ListenConfig,
    LocalDispatcher, PoolConfig, RecvPlan, SendError, Stall,
};

use super::Case;
use crate::{
    bed::Bed,
    tools::{block_on, check_numbered, numbered},
};

pub const CASES: &[Case] = &[
    Case::all("stalled_application", stalled_application).and_auto(),
    Case::all("stalled_pool", stalled_pool),
    Case::all("stalled_path", stalled_path),
    Case::all("not_stalled", not_stalled),
];

/// The watchdog looks once per interval; the deadline is long, because one side stands still here.
fn watched() -> ConnectionConfig {
    ConnectionConfig {
        keepalive: Some(Keepalive { interval: Duration::from_millis(100), deadline: Duration::from_secs(60) }),
        ..ConnectionConfig::default()
    }
}

fn becomes(what: &str, connection: &Connection, wanted: Option<Stall>) {
    let start = Instant::now();
    while connection.stalled() != wanted {
        assert!(
            start.elapsed() < Duration::from_secs(15),
            "{what}: {:?} instead of {wanted:?}, {:?}",
            connection.stalled(),
            connection.stats()
        );
        thread::sleep(Duration::from_millis(5));
    }
    println!("{what}: {wanted:?} after {:?}", start.elapsed());
}

/// Sends until nothing more is taken for a while.
fn fill(client: &Connection, body: usize) -> u32 {
    let (mut sent, mut full_since) = (0, None);
    loop {
        match client.send(numbered(0, sent, 8, body)) {
            Ok(()) => (sent, full_since) = (sent + 1, None),
            Err(SendError::Full(_)) => {
                if full_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(200) {
                    return sent;
                }
                thread::sleep(Duration::from_millis(1));
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// The server's application does not receive: its side says so of itself, and the client's of its peer.
fn stalled_application(bed: &Bed) {
    let config = ConnectionConfig { recv_window_frames: 20, send_queue_frames: 20, ..watched() };
    let (client, mut server) = bed.pair(&config);
    assert_eq!((client.stalled(), server.stalled()), (None, None));
    let sent = fill(&client, 1000);
    becomes("the receiving side", &server, Some(Stall::Application));
    becomes("the sending side", &client, Some(Stall::PeerApplication));
    for i in 0..sent {
        assert_eq!(check_numbered(server.recv_blocking().unwrap()), (0, i));
    }
    becomes("the receiving side, later", &server, None);
    becomes("the sending side, later", &client, None);
}

/// Bodies that the application holds use the pool up: the next one waits for it.
fn stalled_pool(bed: &Bed) {
    let pool = PoolConfig { receive_quota: 3 << 20, ..PoolConfig::default() };
    let server = DispatcherConfig { pool, ..DispatcherConfig::default() };
    let bed = Bed::with(bed.backend, &server, &DispatcherConfig::default());
    let planner = Arc::new(|_: &Announcement<'_>| RecvPlan::Pool);
    let config = ConnectionConfig { planner: Some(planner), rendezvous_from: Some(16 << 10), ..watched() };
    let (client, mut server) = bed.pair(&config);
    let mut held = Vec::new();
    for i in 0..3 {
        client.send(numbered(0, i, 8, 1 << 20)).unwrap();
        let frame = server.recv_blocking().unwrap();
        held.push((frame.head, frame.body.into_bytes().unwrap()));
    }
    client.send(numbered(0, 3, 8, 1 << 20)).unwrap();
    becomes("the receiving side", &server, Some(Stall::Pool));
    for (i, (head, body)) in held.drain(..).enumerate() {
        assert_eq!(check_numbered(Frame::new(head, body)), (0, i as u32));
    }
    assert_eq!(check_numbered(server.recv_blocking().unwrap()), (0, 3));
    becomes("the receiving side, later", &server, None);
    drop((client, server));
    bed.finish();
}

/// The peer's dispatcher stands still, so its socket or its UCX takes nothing. Over mem there is nothing in between: it is the
/// credit that ends there.
fn stalled_path(bed: &Bed) {
    let config = ConnectionConfig {
        recv_window_bytes: 1 << 30,
        recv_window_frames: 60_000,
        send_queue_bytes: 16 << 20,
        ..watched()
    };
    let local =
        LocalDispatcher::new(DispatcherConfig { name: "stands still".to_owned(), ..DispatcherConfig::default() })
            .expect("a dispatcher");
    let handle = local.handle();
    let (client, mut server) = local.block_on(async {
        let listen = ListenConfig { connection: config.clone(), ..ListenConfig::default() };
        let mut listener = handle.listen(&bed.backend.address(), listen).expect("listens");
        let connecting = bed.client.connect(listener.local_address(), config.clone());
        let server = listener.accept().await.expect("accepts");
        let client = thread::spawn(|| connecting.blocking());
        while !client.is_finished() {
            handle.sleep_until(Instant::now() + Duration::from_millis(1)).await;
        }
        (client.join().expect("no panic").expect("connects"), server)
    });
    let body = if bed.backend.name == "mem" { 100 } else { 100_000 };
    let sent = fill(&client, body);
    let wanted = if bed.backend.name == "mem" { Stall::PeerApplication } else { Stall::Path };
    becomes("the sending side", &client, Some(wanted));
    local.block_on(async {
        for i in 0..sent {
            assert_eq!(check_numbered(server.recv().await.unwrap()), (0, i));
        }
    });
    // It may still be asked for signs of life.
    let watch = thread::spawn(move || {
        becomes("the sending side, later", &client, None);
        client
    });
    local.block_on(async {
        while !watch.is_finished() {
            handle.sleep_until(Instant::now() + Duration::from_millis(1)).await;
        }
    });
    drop((watch.join().expect("no panic"), server));
    drop_idle(&local, &handle);
}

/// Runs a dispatcher until nothing is left on it.
fn drop_idle(local: &LocalDispatcher, handle: &Dispatcher) {
    local.block_on(async {
        let deadline = Instant::now() + Duration::from_secs(20);
        while handle.stats().connections > 0 {
            assert!(Instant::now() < deadline, "{:?}", handle.stats());
            handle.sleep_until(Instant::now() + Duration::from_millis(1)).await;
        }
    });
    assert_eq!(handle.stats().wake_detector_hits, 0);
}

/// What moves, however slowly, and what is idle is not stalled.
fn not_stalled(bed: &Bed) {
    let config = ConnectionConfig { recv_window_frames: 4, send_queue_frames: 4, ..watched() };
    let (client, mut server) = bed.pair(&config);
    let sender = client.sender();
    let sending = thread::spawn(move || {
        for i in 0..40 {
            block_on(sender.send_wait(Frame::new(Bytes::new(), vec![i; 5000]))).unwrap();
        }
    });
    for _ in 0..40 {
        thread::sleep(Duration::from_millis(20));
        assert_eq!((client.stalled(), server.stalled()), (None, None), "it moves");
        server.recv_blocking().unwrap();
    }
    sending.join().unwrap();
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(50));
        assert_eq!((client.stalled(), server.stalled()), (None, None), "it is idle");
    }
}
