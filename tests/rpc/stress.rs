//! Many calls over many connections, with everything going wrong now and then: nothing is lost, nothing leaks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ucrpc::rpc::channel::{RetryOn, RetryPolicy};
use ucrpc::rpc::client::RawCaller;
use ucrpc::{Channel, Code, Server};

use crate::bed::{Bed, Case};
use crate::echo::{EchoClient, EchoRequest, EchoServer, Seen, Service, Way};
use crate::ending::eventually;
use crate::proxy::Proxy;
use crate::unary::bytes_of;

pub const CASES: &[Case] = &[("random_faults", random_faults)];

/// Where there is a socket to cut.
pub const ON_SOCKETS: &[Case] = &[("random_cuts", random_cuts)];

/// Calls, connections, and bytes after which one may be cut; `UCRPC_STRESS=full` for 100,000 over 100 (`ci/stress.sh`).
fn scale() -> (u64, usize, u64) {
    match std::env::var("UCRPC_STRESS").as_deref() {
        Ok("full") => (100_000, 100, 1 << 20),
        _ => (3_000, 12, 40 << 10),
    }
}

const THREADS: u64 = 4;
/// Calls that one thread has under way at once.
const BATCH: u64 = 20;

/// How calls ended.
#[derive(Debug, Default)]
struct Ends {
    good: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
    dropped: AtomicU64,
    /// With their connection.
    lost: AtomicU64,
}

impl Ends {
    fn all(&self) -> [u64; 5] {
        let Self { good, failed, timed_out, dropped, lost } = self;
        [good, failed, timed_out, dropped, lost].map(|counter| counter.load(Ordering::SeqCst))
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Memory of this process, KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Handlers that fail, panic, sleep past the deadline or are cancelled.
fn random_faults(bed: &Bed) {
    run(bed, false);
}

/// The same, while connections are cut at random places.
fn random_cuts(bed: &Bed) {
    run(bed, true);
}

fn run(bed: &Bed, cut: bool) {
    let (calls, connections, least) = scale();
    let (service, seen) = Service::new(Way::Local);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)).max_concurrency(500));
    let proxy = cut.then(|| Proxy::start(server.address(), least));
    let address = proxy.as_ref().map_or(server.address(), Proxy::address);
    let mut policy = RetryPolicy::default();
    policy.on = RetryOn::Never;
    let open = || -> Vec<Channel> {
        let builder = || Channel::builder(address).on(&bed.client).timeout(Duration::from_secs(30));
        (0..connections).map(|_| builder().retry(policy.clone()).connect_lazy().unwrap()).collect()
    };
    // Once small, so that what is kept for good is there before anything is compared: memory, and UCX's descriptors.
    let (before, open_before) = {
        let channels = open();
        let ends = Ends::default();
        storm(&channels, calls / 10, &ends, cut);
        drop(channels);
        at_rest(bed, &server, proxy.as_ref());
        (resident(), fewest_descriptors())
    };
    let started = Seen::get(&seen.started);
    let channels = open();
    let ends = Ends::default();
    let made = storm(&channels, calls, &ends, cut);
    let counts = ends.all();
    assert_eq!(counts.iter().sum::<u64>(), made, "each call ended once: {ends:?}");
    assert!(counts[..4].iter().all(|count| *count > 0), "every fault happened: {ends:?}");
    eventually("nothing runs", || server.stats().running == 0);
    for channel in &channels {
        assert_eq!(channel.stats().in_flight, 0);
    }
    let stats = server.stats();
    let ran = Seen::get(&seen.started) - started;
    assert_eq!(Seen::get(&seen.started), Seen::get(&seen.ended) + Seen::get(&seen.dropped), "{stats:?}");
    assert!(ran >= counts[0] + counts[1] && ran <= made, "{ran} handlers for {ends:?}");
    match &proxy {
        Some(proxy) => assert!(proxy.cuts() > 10 && counts[4] > 0, "{} cuts, {ends:?}", proxy.cuts()),
        None => assert_eq!(counts[4], 0, "{ends:?}"),
    }
    drop(channels);
    at_rest(bed, &server, proxy.as_ref());
    // The last handle of a connection closes its socket, on whatever thread that is.
    eventually("descriptors are closed", || descriptors() <= open_before + 2);
    let after = resident();
    assert!(after <= before + (64 << 10), "KiB: {before} before, {after} after");
    println!("{made} calls over {connections} connections: {ends:?}; {before} KiB before, {after} after");
}

/// Open descriptors when the last ones of the connections before are closed, which is soon.
fn fewest_descriptors() -> usize {
    let looks = (0..30).map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        descriptors()
    });
    looks.min().expect("looked")
}

/// Until every connection is gone.
fn at_rest(bed: &Bed, server: &Server, proxy: Option<&Proxy>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let open = [&bed.client, &bed.server].map(|dispatcher| dispatcher.stats().connections);
        let (tasks, carried) = (server.stats().tasks, proxy.map_or(0, Proxy::carried));
        if open == [0, 0] && tasks == 1 && carried == 0 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{open:?} connections are left, {tasks} tasks, {carried} in the proxy: {:#?} {:?}",
            bed.server.stats(),
            server.stats()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Makes about this many calls; says how many.
fn storm(channels: &[Channel], calls: u64, ends: &Ends, cut: bool) -> u64 {
    let batches = calls / THREADS / BATCH;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for batch in 0..batches {
                    let channel = &channels[(batch as usize * 7 + thread as usize) % channels.len()];
                    run_batch(channel, thread * 1_000_003 + batch, ends, cut);
                }
            });
        }
    });
    batches * BATCH * THREADS
}

/// Calls at once, each with a fate of its own.
fn run_batch(channel: &Channel, seed: u64, ends: &Ends, cut: bool) {
    let client = EchoClient::new(channel.clone());
    let mut under_way = Vec::new();
    for i in 0..BATCH {
        let fate = (seed * 31 + i * 17) % 20;
        let payload = bytes_of((seed + i) as usize, ((seed * 131 + i * 977) % 3000) as usize);
        let mut wanted = EchoRequest { payload: payload.clone(), ..EchoRequest::default() };
        let mut timeout = Duration::from_secs(60);
        match fate {
            0 => wanted.fail_with = 4242,
            1 => wanted.fail_with = -1,
            2 => (wanted.sleep_ms, timeout) = (60_000, Duration::from_millis(1 + seed % 5)),
            3 => wanted.sleep_ms = 60_000,
            4 => wanted.sleep_ms = 1,
            _ => {}
        }
        let mut call = client.echo(wanted).timeout(timeout);
        if fate > 15 {
            call = call.attachment(bytes_of(i as usize, (fate * 3000) as usize));
        }
        under_way.push((fate, payload, call.into_future()));
    }
    let broken = [Code::EEOF, Code::ECONNRESET, Code::ECLOSE, Code::ECONNREFUSED, Code::from_wire(32)];
    for (fate, payload, call) in under_way {
        if fate == 3 {
            drop(call);
            ends.dropped.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let (counter, right) = match channel.block_on(call) {
            Ok(response) => (&ends.good, fate > 3 && response.payload == payload),
            Err(status) if fate == 2 && status.code() == Code::ERPCTIMEDOUT => (&ends.timed_out, true),
            Err(status) if fate == 0 && status.code() == Code::from_wire(4242) => (&ends.failed, true),
            Err(status) if fate == 1 && status.code() == Code::EINTERNAL => (&ends.failed, true),
            Err(status) if cut && broken.contains(&status.code()) => (&ends.lost, true),
            Err(status) => panic!("fate {fate}: {status:?}"),
        };
        assert!(right, "fate {fate}");
        counter.fetch_add(1, Ordering::SeqCst);
    }
}
