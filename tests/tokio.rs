//! Dispatchers inside tokio, and tokio beside dispatchers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime, task::LocalSet};
use ucrpc::transport::{
    Address, Connection, ConnectionConfig, Dispatcher, DispatcherConfig, ErrorKind, Frame, ListenConfig, Listener,
    LocalDispatcher, Transport, spawn_local,
};

fn current_thread<F: Future>(future: F) -> F::Output {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let patience = Duration::from_secs(100);
    let set = LocalSet::new();
    runtime
        .block_on(async { tokio::time::timeout(patience, set.run_until(future)).await })
        .expect("it did not end in time")
}

fn local() -> LocalDispatcher {
    LocalDispatcher::new(DispatcherConfig { name: "tokio".to_owned(), ..DispatcherConfig::default() }).unwrap()
}

fn spawned() -> Dispatcher {
    Dispatcher::spawn(DispatcherConfig::default()).unwrap()
}

fn check(dispatcher: &Dispatcher) {
    assert_eq!(dispatcher.stats().wake_detector_hits, 0, "a wake-up was lost");
}

/// Echoes until its clients have gone, each connection in a task of its dispatcher.
fn echo_server(dispatcher: &Dispatcher, address: &str) -> Address {
    let listener = dispatcher.listen(&address.parse().unwrap(), ListenConfig::default()).unwrap();
    let address = listener.local_address().clone();
    dispatcher.spawn_task(move || serve(listener));
    address
}

async fn serve(mut listener: Listener) {
    while let Ok(connection) = listener.accept().await {
        spawn_local(echo(connection)).unwrap();
    }
}

async fn echo(mut connection: Connection) {
    while let Ok(frame) = connection.recv().await {
        if connection.send_wait(frame).await.is_err() {
            break;
        }
    }
}

async fn calls(dispatcher: &Dispatcher, address: &Address, count: u32) {
    let mut connection = dispatcher.connect(address, ConnectionConfig::default()).await.unwrap();
    for i in 0..count {
        let body = vec![i as u8; (i as usize * 7919) % 300_000];
        connection.send_wait(Frame::new(i.to_le_bytes().to_vec(), body.clone())).await.unwrap();
        let back = connection.recv().await.unwrap();
        assert_eq!(back.head, i.to_le_bytes().as_slice());
        assert!(back.body.into_bytes().unwrap() == body);
    }
    connection.close().await.unwrap();
}

const ADDRESSES: [&str; 3] = ["tcp://127.0.0.1:0", "ucx://127.0.0.1:0", "ucx+cm://127.0.0.1:0"];

#[test]
fn a_client_in_tokio_calls_a_server_on_a_thread() {
    let server = spawned();
    for address in &ADDRESSES[..2] {
        let address = echo_server(&server, address);
        current_thread(async {
            let local = local();
            local.run_on_tokio(calls(&local.handle(), &address, 300)).await.unwrap();
            check(&local.handle());
        });
    }
    check(&server);
    server.shutdown();
}

#[test]
fn a_server_in_tokio_serves_clients_on_a_thread() {
    for address in &ADDRESSES[..2] {
        let client = spawned();
        current_thread(async {
            let local = local();
            let dispatcher = local.handle();
            let (done, over) = tokio::sync::oneshot::channel();
            local
                .run_on_tokio(async {
                    let address = echo_server(&dispatcher, address);
                    let client = client.clone();
                    std::thread::spawn(move || {
                        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
                        runtime.block_on(calls(&client, &address, 300));
                        done.send(()).unwrap();
                    });
                    over.await.unwrap();
                })
                .await
                .unwrap();
            check(&dispatcher);
        });
        check(&client);
        client.shutdown();
    }
}

/// A listener of UCX's connection manager is made on its dispatcher's thread, also between two polls.
#[test]
fn both_ends_in_one_runtime_over_every_transport() {
    for address in ADDRESSES {
        current_thread(async {
            let (one, two) = (local(), local());
            let listener = one.handle().listen(&address.parse().unwrap(), ListenConfig::default()).unwrap();
            let at = listener.local_address().clone();
            let serving = one.run_on_tokio(async {
                let mut listener = listener;
                echo(listener.accept().await.unwrap()).await;
            });
            let calling = two.run_on_tokio(async {
                let mut connection = two.handle().connect(&at, ConnectionConfig::default()).await.unwrap();
                let native = !matches!(at, Address::UcxCm(_));
                assert_eq!(matches!(connection.transport(), Some(Transport::Ucx(_))), address.starts_with("ucx"));
                for i in 0..300_usize {
                    let body = vec![i as u8; i * 1000];
                    connection.send_wait(Frame::new(&b"head"[..], body)).await.unwrap();
                    let back = connection.recv().await.unwrap();
                    assert_eq!(
                        (back.head.len(), back.len()),
                        (if native { 4 } else { 4 + i * 1000 }, 4 + i as u64 * 1000)
                    );
                }
                connection.close().await.unwrap();
            });
            let (served, called) = tokio::join!(serving, calling);
            served.unwrap();
            called.unwrap();
            check(&one.handle());
            check(&two.handle());
        });
    }
}

#[test]
fn tokio_runs_beside_it() {
    let server = spawned();
    let address = echo_server(&server, "tcp://127.0.0.1:0");
    current_thread(async {
        let local = local();
        let dispatcher = local.handle();
        let ticks = Arc::new(AtomicU64::new(0));
        let counted = ticks.clone();
        let ticking = tokio::task::spawn_local(async move {
            let mut interval = tokio::time::interval(Duration::from_millis(5));
            loop {
                interval.tick().await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let start = Instant::now();
        let shared = dispatcher.clone();
        local
            .run_on_tokio(async move {
                // A local task of the dispatcher that waits for tokio's timer, and one that waits for the dispatcher's.
                let (left, right) = (tokio::sync::oneshot::channel(), tokio::sync::oneshot::channel());
                spawn_local(async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    left.0.send(()).unwrap();
                })
                .unwrap();
                let sleeper = shared.clone();
                spawn_local(async move {
                    sleeper.sleep_until(Instant::now() + Duration::from_millis(70)).await;
                    right.0.send(()).unwrap();
                })
                .unwrap();
                assert!(shared.is_current());
                calls(&shared, &address, 100).await;
                // A connection that is used by a task of tokio's, outside the dispatcher's turns.
                let connecting = shared.connect(&address, ConnectionConfig::default());
                let outside = shared.clone();
                tokio::task::spawn_local(async move {
                    assert!(!outside.is_current());
                    let mut connection = connecting.await.unwrap();
                    for _ in 0..100 {
                        connection.send(&b"outside"[..]).unwrap();
                        assert_eq!(connection.recv().await.unwrap().head, "outside");
                    }
                })
                .await
                .unwrap();
                left.1.await.unwrap();
                right.1.await.unwrap();
                // Longer than the detector, with nothing to do.
                tokio::time::sleep(Duration::from_millis(300)).await;
                // More turns than tokio lets a task have at once.
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                    tokio::task::consume_budget().await;
                }
            })
            .await
            .unwrap();
        assert!(start.elapsed() >= Duration::from_millis(370));
        assert!(ticks.load(Ordering::Relaxed) >= 10, "{ticks:?}");
        ticking.abort();
        assert!(dispatcher.stats().sleeps > 0);
        check(&dispatcher);
    });
    check(&server);
    server.shutdown();
}

/// Threads give it something to do while it sleeps in tokio's reactor.
#[test]
fn it_is_woken_from_other_threads() {
    current_thread(async {
        let local = local();
        let dispatcher = local.handle();
        let address = echo_server(&dispatcher, "mem://tokio-woken");
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (dispatcher, address) = (dispatcher.clone(), address.clone());
                std::thread::spawn(move || {
                    let mut connection = dispatcher.connect(&address, ConnectionConfig::default()).blocking().unwrap();
                    for i in 0..200_u32 {
                        connection.send(i.to_le_bytes().to_vec()).unwrap();
                        assert_eq!(connection.recv_blocking().unwrap().head, i.to_le_bytes().as_slice());
                        if i % 50 == 0 {
                            std::thread::sleep(Duration::from_millis(3));
                        }
                    }
                })
            })
            .collect();
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|t| t.join().unwrap()));
        local.run_on_tokio(joined).await.unwrap().unwrap();
        let stats = dispatcher.stats();
        assert!(stats.wakes_by_waker > 0, "{stats:?}");
        check(&dispatcher);
    });
}

/// Dropping the future only pauses the dispatcher: it goes on in tokio again, or in `block_on`.
#[test]
fn it_can_be_dropped_and_run_again() {
    let server = spawned();
    let address = echo_server(&server, "ucx://127.0.0.1:0");
    let local = local();
    let dispatcher = local.handle();
    let mut connection = dispatcher.connect(&address, ConnectionConfig::default()).into_connection();
    for round in 0..20_u32 {
        current_thread(async {
            // In the middle of its sleep.
            let never = local.run_on_tokio(std::future::pending::<()>());
            assert!(tokio::time::timeout(Duration::from_millis(3), never).await.is_err());
        });
        connection.send(round.to_le_bytes().to_vec()).unwrap();
        let back = if round % 2 == 0 {
            current_thread(local.run_on_tokio(connection.recv())).unwrap()
        } else {
            local.block_on(connection.recv())
        };
        assert_eq!(back.unwrap().head, round.to_le_bytes().as_slice());
    }
    local.block_on(connection.close()).unwrap();
    check(&dispatcher);
    check(&server);
    drop(local);
    server.shutdown();
}

/// Connections are plain futures: tokio's own threads may wait for a dispatcher that has its own.
#[test]
fn a_multi_thread_runtime_uses_a_spawned_dispatcher() {
    let (server, client) = (spawned(), spawned());
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for address in &ADDRESSES[..2] {
        let address = echo_server(&server, address);
        runtime.block_on(async {
            let tasks: Vec<_> = (0..8)
                .map(|_| {
                    let (client, address) = (client.clone(), address.clone());
                    tokio::spawn(async move { calls(&client, &address, 50).await })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
    }
    let listener = server.listen(&"tcp://127.0.0.1:0".parse().unwrap(), ListenConfig::default()).unwrap();
    let at = listener.local_address().clone();
    runtime.block_on(async {
        let connecting = client.connect(&at, ConnectionConfig::default());
        let mut connection = connecting.await.unwrap();
        let timeout = tokio::time::timeout(Duration::from_millis(20), connection.recv()).await;
        assert!(timeout.is_err(), "nobody sends");
        server.shutdown();
        let end = connection.recv().await.unwrap_err();
        assert!(matches!(end.kind(), ErrorKind::Reset | ErrorKind::PeerClosed), "{end}");
    });
    drop(listener);
    check(&client);
    client.shutdown();
}
