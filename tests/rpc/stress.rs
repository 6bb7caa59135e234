//! Many calls over many connections, with everything going wrong now and then: nothing is lost, nothing leaks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ucrpc::rpc::channel::{RetryOn, RetryPolicy};
use ucrpc::rpc::client::RawCaller;
use ucrpc::{Channel, Code, Server};

use crate::bed::{Bed, Case};
use crate::echo::{EchoClient, EchoRequest, EchoServer, Seen, Service, Way};
use crate::ending::eventually;
use crate::unary::bytes_of;

pub const CASES: &[Case] = &[("random_faults", random_faults)];

/// Calls and connections; `UCRPC_STRESS=full` for 100,000 over 100.
fn scale() -> (u64, usize) {
    match std::env::var("UCRPC_STRESS").as_deref() {
        Ok("full") => (100_000, 100),
        _ => (3_000, 12),
    }
}

fn random_faults(bed: &Bed) {
    let (calls, connections) = scale();
    let (service, seen) = Service::new(Way::Local);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)).max_concurrency(500));
    let mut policy = RetryPolicy::default();
    policy.on = RetryOn::Never;
    let channels: Vec<Channel> =
        (0..connections).map(|_| bed.channel(&server).retry(policy.clone()).connect_lazy().unwrap()).collect();
    let threads = 4;
    let [good, failed, timed_out, dropped] = [const { AtomicU64::new(0) }; 4];
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (channels, counters) = (&channels, [&good, &failed, &timed_out, &dropped]);
            scope.spawn(move || {
                for batch in 0..calls / threads / 20 {
                    run_batch(
                        &channels[(batch as usize * 7 + thread as usize) % channels.len()],
                        thread * 1000 + batch,
                        counters,
                    );
                }
            });
        }
    });
    let counts = [&good, &failed, &timed_out, &dropped].map(|counter| counter.load(Ordering::SeqCst));
    let made = calls / threads / 20 * 20 * threads;
    assert_eq!(counts.iter().sum::<u64>(), made, "each call ended once: {counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "every fault happened: {counts:?}");
    eventually("nothing runs", || server.stats().running == 0);
    for channel in &channels {
        assert_eq!(channel.stats().in_flight, 0);
    }
    let stats = server.stats();
    assert_eq!(Seen::get(&seen.started), Seen::get(&seen.ended) + Seen::get(&seen.dropped), "{stats:?}");
    assert_eq!(stats.started, Seen::get(&seen.started));
}

/// 20 calls at once, each with a fate of its own.
fn run_batch(channel: &Channel, seed: u64, [good, failed, timed_out, dropped]: [&AtomicU64; 4]) {
    let client = EchoClient::new(channel.clone());
    let mut under_way = Vec::new();
    for i in 0..20_u64 {
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
    for (fate, payload, call) in under_way {
        if fate == 3 {
            drop(call);
            dropped.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let (counter, right) = match channel.block_on(call) {
            Ok(response) => (good, fate > 3 && response.payload == payload),
            Err(status) if fate == 2 => (timed_out, status.code() == Code::ERPCTIMEDOUT),
            Err(status) if fate < 2 => (failed, [Code::from_wire(4242), Code::EINTERNAL].contains(&status.code())),
            Err(status) => panic!("a call without a fault failed: {status:?}"),
        };
        assert!(right, "fate {fate}");
        counter.fetch_add(1, Ordering::SeqCst);
    }
}
