//! Where connections live: on dispatchers of their own thread, on the caller's thread, on one, on several; and how these
//! wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use ucrpc::transport::{
    Connection, ConnectionConfig, Dispatcher, DispatcherConfig, Dispatchers, ErrorKind, ListenConfig, LocalDispatcher,
    Placement, WaitPolicy, spawn_local,
};

use super::{Case, On};
use crate::{
    bed::{self, Bed},
    tools::{block_for, block_on, check_numbered, exchange, numbered, random_bytes},
};

pub const CASES: &[Case] = &[
    Case::all("wait_policies", wait_policies),
    Case::all("policy_switched", policy_switched),
    Case::all("local_client", local_client).and_auto(),
    Case::all("local_tasks", local_tasks),
    Case::all("one_dispatcher", one_dispatcher).and_auto(),
    Case::all("one_local_dispatcher", one_local_dispatcher),
    Case::all("blocking_on_own_thread", blocking_on_own_thread),
    Case::all("round_robin", round_robin).and_auto(),
    Case::all("least_loaded", least_loaded),
    Case::on("other_dispatcher_in_use", On::All, others_go_on),
];

const ADAPTIVE: WaitPolicy = WaitPolicy::Adaptive { spin: Duration::from_micros(50) };

fn ping_pong(client: &mut Connection, server: &mut Connection, rounds: u32) {
    for i in 0..rounds {
        let body = [0, 300, 20_000, 300_000][i as usize % 4];
        block_on(client.send_wait(numbered(0, i, 8, body))).unwrap();
        let frame = server.recv_blocking().unwrap();
        block_on(server.send_wait(frame)).unwrap();
        assert_eq!(check_numbered(client.recv_blocking().unwrap()), (0, i));
    }
}

fn wait_policies(bed: &Bed) {
    for policy in [WaitPolicy::Busy, ADAPTIVE, WaitPolicy::Event] {
        bed.set_wait(policy);
        assert_eq!((bed.client.wait_policy(), bed.server.wait_policy()), (policy, policy));
        let (mut client, mut server) = bed.pair(&ConnectionConfig::default());
        ping_pong(&mut client, &mut server, 100);
        let before = bed.client.stats();
        thread::sleep(Duration::from_millis(50));
        let after = bed.client.stats();
        if policy == WaitPolicy::Busy {
            assert_eq!(before.sleeps, after.sleeps, "a busy dispatcher never sleeps");
            assert!(after.turns > before.turns);
        } else {
            assert!(after.turns - before.turns < 5000, "{} turns in 50 ms of rest", after.turns - before.turns);
        }
        block_on(client.close()).unwrap();
    }
}

fn policy_switched(bed: &Bed) {
    let (mut client, mut server) = bed.pair(&ConnectionConfig::default());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let policies = [WaitPolicy::Busy, WaitPolicy::Event, ADAPTIVE, WaitPolicy::Event];
            for i in (0..policies.len()).cycle() {
                if done.load(Ordering::SeqCst) {
                    break;
                }
                bed.client.set_wait_policy(policies[i]);
                bed.server.set_wait_policy(policies[(i + 1) % policies.len()]);
                thread::sleep(Duration::from_micros(300));
            }
        });
        ping_pong(&mut client, &mut server, 300);
        done.store(true, Ordering::SeqCst);
    });
}

/// The caller's thread drives the client, as the lowest latency wants it.
fn local_client(bed: &Bed) {
    let mut listener = bed.listen_as(&ConnectionConfig::default());
    let local = LocalDispatcher::new(DispatcherConfig::default()).unwrap();
    let dispatcher = local.handle();
    let mut client = local.block_on(dispatcher.connect(listener.local_address(), ConnectionConfig::default())).unwrap();
    bed.backend.check(&client);
    let mut server = listener.accept_blocking().unwrap();
    let echo = thread::spawn(move || {
        while let Ok(frame) = server.recv_blocking() {
            block_on(server.send_wait(frame)).unwrap();
        }
    });
    for policy in [WaitPolicy::Busy, ADAPTIVE, WaitPolicy::Event] {
        dispatcher.set_wait_policy(policy);
        local.block_on(async {
            for i in 0..150 {
                let body = [0, 300, 20_000, 300_000][i as usize % 4];
                client.send(numbered(0, i, 8, body)).unwrap();
                assert_eq!(check_numbered(client.recv().await.unwrap()), (0, i));
            }
        });
    }
    // What another thread sends while nobody drives goes out when somebody does.
    let sender = client.sender();
    thread::spawn(move || sender.send(numbered(1, 0, 8, 0)).unwrap()).join().unwrap();
    local.block_on(async {
        assert_eq!(check_numbered(client.recv().await.unwrap()), (1, 0));
        client.close().await.unwrap();
    });
    echo.join().unwrap();
    assert_eq!(dispatcher.stats().wake_detector_hits, 0);
    let ends = client.recv_blocking().unwrap_err();
    assert_eq!(ends.kind(), ErrorKind::Closed);
    drop(client);
    drop(local);
    assert_eq!((dispatcher.stats().connections, dispatcher.stats().ucx_endpoints), (0, 0));
}

/// Local tasks on both ends: sends from the dispatcher's own thread take the short way, with the same order.
fn local_tasks(bed: &Bed) {
    let (mut client, mut server) = bed.pair(&ConnectionConfig::default());
    bed.server.spawn_task(move || async move {
        assert!(Dispatcher::current().is_some_and(|d| d.is_current()));
        while let Ok(frame) = server.recv().await {
            if server.send_wait(frame).await.is_err() {
                break;
            }
        }
    });
    let (tell, hear) = std::sync::mpsc::channel();
    bed.client.spawn_task(move || async move {
        let sender = client.sender();
        let count = 400;
        spawn_local(async move {
            for i in 0..count {
                sender.send_wait(numbered(0, i, 8, [0, 300, 20_000, 300_000][i as usize % 4])).await.unwrap();
            }
        })
        .unwrap();
        for i in 0..count {
            assert_eq!(check_numbered(client.recv().await.unwrap()), (0, i));
        }
        client.close().await.unwrap();
        tell.send(()).unwrap();
    });
    hear.recv_timeout(Duration::from_secs(60)).expect("the tasks end");
}

/// Both ends on one dispatcher, as every process that calls itself has it. UCX has no path with failure handling from a
/// worker to itself over some lanes: `auto://` says why it took TCP then, and `ucx://` that it can't; nothing hangs.
fn one_dispatcher(bed: &Bed) {
    let mut listener = bed.listen_as(&ConnectionConfig::default());
    let dialled = bed.server.connect(listener.local_address(), ConnectionConfig::default());
    let client = block_for(Duration::from_secs(10), dialled).expect("a connect to oneself ends");
    let mut client = match client {
        Ok(client) => client,
        Err(error) if bed.backend.is_ucx() && listener.local_address().scheme() == "ucx" => {
            assert_eq!(error.kind(), ErrorKind::NoUcx, "{error}");
            assert!(error.text().contains("itself") || error.text().contains("reach"), "{error}");
            eprintln!("{}: {error}", bed.backend.name);
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let mut server = listener.accept_blocking().unwrap();
    eprintln!("{}: {:?}", bed.backend.name, client.info());
    ping_pong(&mut client, &mut server, 200);
    exchange(&client, &mut server, Bytes::from_static(b"large"), random_bytes(1, 20 << 20));
    block_on(client.close()).unwrap();
    assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
}

/// The same in `block_on`, where everything happens on this thread.
fn one_local_dispatcher(bed: &Bed) {
    let local = LocalDispatcher::new(DispatcherConfig::default()).unwrap();
    let dispatcher = local.handle();
    let address = bed.backend.address();
    let result = local.block_on(async {
        let mut listener = dispatcher.listen(&address, ListenConfig::default())?;
        let mut client = dispatcher.connect(listener.local_address(), ConnectionConfig::default()).await?;
        let mut server = listener.accept().await?;
        for i in 0..200 {
            let body = [0, 300, 20_000, 300_000][i as usize % 4];
            client.send(numbered(0, i, 8, body)).unwrap();
            let frame = server.recv().await?;
            server.send(frame).unwrap();
            assert_eq!(check_numbered(client.recv().await?), (0, i));
        }
        client.close().await?;
        assert_eq!(server.recv().await.unwrap_err().kind(), ErrorKind::PeerClosed);
        Ok::<_, ucrpc::transport::Error>(())
    });
    match result {
        Ok(()) => {}
        Err(error) => assert!(bed.backend.is_ucx() && error.kind() == ErrorKind::NoUcx, "{error}"),
    }
    assert_eq!(dispatcher.stats().wake_detector_hits, 0);
}

/// A blocking call on the dispatcher's own thread would wait for itself for ever: it is refused.
fn blocking_on_own_thread(bed: &Bed) {
    let (mut client, server) = bed.pair(&ConnectionConfig::default());
    let dispatcher = bed.client.clone();
    let address = bed.backend.address();
    let (tell, hear) = std::sync::mpsc::channel();
    bed.client.spawn_task(move || async move {
        let one = client.recv_blocking().map(drop).unwrap_err();
        let two = dispatcher.connect(&address, ConnectionConfig::default()).blocking().map(drop).unwrap_err();
        tell.send([one.kind(), two.kind()]).unwrap();
    });
    let kinds = hear.recv_timeout(Duration::from_secs(10)).expect("it does not wait");
    assert_eq!(kinds, [ErrorKind::Invalid; 2]);
    drop(server);
}

fn several(placement: Placement) -> (Dispatchers, DispatcherConfig) {
    let config = DispatcherConfig { name: "several".to_owned(), ..DispatcherConfig::default() };
    (Dispatchers::spawn(3, &config, placement).unwrap(), config)
}

/// Connections per dispatcher.
fn counts(dispatchers: &Dispatchers) -> Vec<u64> {
    dispatchers.all().iter().map(|d| d.stats().connections).collect()
}

/// Accepting and dialling sides take turns, and every connection works where it was put.
fn round_robin(bed: &Bed) {
    let (servers, _) = several(Placement::RoundRobin);
    let (clients, _) = several(Placement::RoundRobin);
    let mut listener = servers.listen(&bed.backend.address(), ListenConfig::default()).unwrap();
    let mut pairs = Vec::new();
    for _ in 0..12 {
        let client = clients.connect(listener.local_address(), ConnectionConfig::default()).blocking().unwrap();
        pairs.push((client, listener.accept_blocking().unwrap()));
    }
    crate::tools::eventually("four on each", || counts(&servers) == [4; 3] && counts(&clients) == [4; 3]);
    for (client, server) in &mut pairs {
        bed.backend.check(client);
        ping_pong(client, server, 8);
    }
    for (client, _) in &pairs {
        block_on(client.close()).unwrap();
    }
    drop((pairs, listener));
    servers.all().iter().chain(clients.all()).for_each(bed::finish);
    servers.shutdown();
}

/// Room that came free is filled first.
fn least_loaded(bed: &Bed) {
    let (servers, _) = several(Placement::LeastLoaded);
    let mut listener = servers.listen(&bed.backend.address(), ListenConfig::default()).unwrap();
    let mut open = |n: u64| {
        let client = bed.client.connect(listener.local_address(), ConnectionConfig::default()).blocking().unwrap();
        let server = listener.accept_blocking().unwrap();
        // The gauges are what is compared: they must have been seen.
        crate::tools::eventually("it is counted", || counts(&servers).iter().sum::<u64>() == n);
        (client, server)
    };
    let mut pairs: Vec<_> = (1..=6).map(&mut open).collect();
    assert_eq!(counts(&servers), [2; 3]);
    // All connections of one dispatcher go: the next two are put there.
    let (client, _server) = pairs.remove(0);
    block_on(client.close()).unwrap();
    crate::tools::eventually("one is gone", || counts(&servers).iter().sum::<u64>() == 5);
    let emptier = counts(&servers).iter().position(|n| *n == 1).unwrap();
    let pair = open(6);
    assert_eq!(counts(&servers)[emptier], 2);
    drop((pair, pairs, client, listener));
    servers.all().iter().for_each(bed::finish);
}

/// One dispatcher that is stopped in a task does not hold up another one.
fn others_go_on(bed: &Bed) {
    let (mut client, mut server) = bed.pair(&ConnectionConfig::default());
    let other = Dispatcher::spawn(DispatcherConfig::default()).unwrap();
    let (hold, release) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let (held, started) = (hold.clone(), release.clone());
    other.spawn_task(move || async move {
        started.store(true, Ordering::SeqCst);
        while held.load(Ordering::SeqCst) {
            thread::yield_now();
        }
    });
    while !release.load(Ordering::SeqCst) {
        thread::yield_now();
    }
    ping_pong(&mut client, &mut server, 50);
    hold.store(false, Ordering::SeqCst);
    bed::finish(&other);
}
