//! What a channel does about servers that are slow, refuse, or are gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ucrpc::rpc::channel::{Backoff, BudgetConfig, RetryOn, RetryPolicy};
use ucrpc::rpc::client::RawCaller;
use ucrpc::rpc::service::StreamOffer;
use ucrpc::{CallContext, Channel, Code, Server, Status};

use crate::bed::{Bed, Case};
use crate::echo::{self, EchoClient, EchoRequest, EchoResponse, EchoServer, Seen, Service, Way};
use crate::ending::{all, eventually};
use crate::unary::{bytes_of, request};

pub const CASES: &[Case] = &[
    ("reconnect", reconnect),
    ("fail_fast_or_wait", fail_fast_or_wait),
    ("retries", retries),
    ("budget", budget),
    ("hedging", hedging),
    ("hedge_budget", hedge_budget),
    ("connect_deadline", connect_deadline),
];

fn backoff() -> Backoff {
    Backoff { first: Duration::from_millis(5), max: Duration::from_millis(50), jitter: 0.5 }
}

fn reconnect(bed: &Bed) {
    let address = bed.fixed_address();
    let start = || {
        let (service, _) = Service::new(Way::Inline);
        let server = Server::builder().service(EchoServer::new(service)).on(&bed.server).listen(&address);
        server.start()
    };
    let server = start().unwrap();
    let channel = Channel::builder(server.address()).on(&bed.client).reconnect(backoff()).connect_lazy().unwrap();
    let client = EchoClient::new(channel.clone());
    for _ in 0..3 {
        client.echo(request(bytes_of(1, 1))).blocking().unwrap();
    }
    assert_eq!(channel.stats().connects, 1);
    channel.block_on(server.shutdown(Duration::from_secs(5)));
    drop(server);
    assert!(client.echo(request(bytes_of(1, 1))).blocking().is_err());
    let mut server = None;
    eventually("the address is free", || {
        server = start().ok();
        server.is_some()
    });
    // Probing finds that it is back without a call's help.
    eventually("connected again", || channel.stats().connects >= 2);
    eventually("calls go again", || client.echo(request(bytes_of(1, 1))).blocking().is_ok());
}

fn fail_fast_or_wait(bed: &Bed) {
    let address = bed.fixed_address();
    let builder = || Channel::builder(&address).on(&bed.client).reconnect(backoff());
    let fast = EchoClient::new(builder().connect_lazy().unwrap());
    let status = fast.echo(EchoRequest::default()).blocking().unwrap_err();
    assert_ne!(status.code(), Code::ERPCTIMEDOUT, "{status:?}");
    assert_eq!(status.stats().unwrap().attempts, 0);
    let waiting = EchoClient::new(builder().wait_for_ready(true).connect_lazy().unwrap());
    let status = waiting.echo(EchoRequest::default()).timeout(Duration::from_millis(100)).blocking().unwrap_err();
    assert_eq!(status.code(), Code::ERPCTIMEDOUT, "{status:?}");
    let call = waiting.echo(request(bytes_of(3, 3))).timeout(Duration::from_secs(30)).into_future();
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| waiting.caller().block_on(call));
        std::thread::sleep(Duration::from_millis(50));
        let (service, _) = Service::new(Way::Inline);
        let server = Server::builder().service(EchoServer::new(service)).on(&bed.server).listen(&address);
        let _server = server.start().unwrap();
        assert_eq!(answer.join().unwrap().unwrap().payload, bytes_of(3, 3));
    });
}

/// Refuses the first calls of each round.
struct Moody {
    refuse: AtomicU64,
    code: Code,
    seen: Arc<AtomicU64>,
}

impl echo::echo_server::Echo for Moody {
    async fn echo(&self, _: &mut CallContext, request: EchoRequest) -> Result<EchoResponse, Status> {
        self.seen.fetch_add(1, Ordering::SeqCst);
        let left = self.refuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if left.is_ok() { Err(self.code.into()) } else { Ok(EchoResponse { payload: request.payload }) }
    }

    async fn chat(
        &self,
        _: &mut CallContext,
        _: EchoRequest,
        _: StreamOffer<EchoRequest, EchoResponse>,
    ) -> Result<EchoResponse, Status> {
        Err(Code::ENOMETHOD.into())
    }
}

fn moody(refuse: u64, code: Code) -> (EchoServer<Moody>, Arc<AtomicU64>) {
    let seen = Arc::<AtomicU64>::default();
    (EchoServer::new(Moody { refuse: AtomicU64::new(refuse), code, seen: seen.clone() }), seen)
}

fn policy(on: RetryOn) -> RetryPolicy {
    let mut policy = RetryPolicy::default();
    policy.on = on;
    policy
}

fn retries(bed: &Bed) {
    let check = |refuse, code, on, expected: Result<u32, Code>| {
        let (service, seen) = moody(refuse, code);
        let server = bed.serve(Server::builder().service(service));
        let client = EchoClient::new(bed.channel(&server).retry(policy(on)).connect_lazy().unwrap());
        let result = client.echo(request(bytes_of(5, 500))).blocking();
        match expected {
            Ok(attempts) => {
                let response = result.unwrap();
                assert_eq!((response.payload.clone(), response.stats().attempts), (bytes_of(5, 500), attempts));
                assert_eq!(response.stats().retries, attempts - 1);
            }
            Err(code) => assert_eq!(result.unwrap_err().code(), code),
        }
        seen.load(Ordering::SeqCst)
    };
    assert_eq!(check(2, Code::ELOGOFF, RetryOn::NotStarted, Ok(3)), 3);
    assert_eq!(check(9, Code::ELIMIT, RetryOn::NotStarted, Err(Code::ELIMIT)), 4);
    assert_eq!(check(1, Code::ENODATA, RetryOn::NotStarted, Err(Code::ENODATA)), 1);
    assert_eq!(check(1, Code::ENODATA, RetryOn::Retryable, Ok(2)), 2);
    assert_eq!(check(1, Code::EINTERNAL, RetryOn::Retryable, Err(Code::EINTERNAL)), 1);
    assert_eq!(check(1, Code::ELOGOFF, RetryOn::Never, Err(Code::ELOGOFF)), 1);
    let on = RetryOn::When(Arc::new(|status| status.code() == Code::EINTERNAL));
    assert_eq!(check(3, Code::EINTERNAL, on, Ok(4)), 4);
}

fn budget(bed: &Bed) {
    let (service, seen) = moody(u64::MAX, Code::ELIMIT);
    let server = bed.serve(Server::builder().service(service));
    let budget = BudgetConfig { per_call: 0.1, burst: 5 };
    let mut policy = policy(RetryOn::NotStarted);
    policy.backoff = Backoff { first: Duration::from_micros(100), max: Duration::from_micros(100), jitter: 0.0 };
    let channel = bed.channel(&server).retry(policy).budget(budget).connect_lazy().unwrap();
    let client = EchoClient::new(channel.clone());
    let calls = 200;
    let under_way: Vec<_> = (0..calls).map(|_| client.echo(EchoRequest::default()).into_future()).collect();
    for call in under_way {
        assert_eq!(channel.block_on(call).unwrap_err().code(), Code::ELIMIT);
    }
    let stats = channel.stats();
    assert!(stats.retries <= 5 + calls / 10, "{stats:?}");
    assert!(stats.retries >= 5 && stats.budget_refused > 0, "{stats:?}");
    assert_eq!(seen.load(Ordering::SeqCst), calls + stats.retries);
}

/// Hedges come out of the same budget as retries.
fn hedge_budget(bed: &Bed) {
    let (service, seen) = Service::new(Way::Local);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)));
    let budget = BudgetConfig { per_call: 0.1, burst: 4 };
    let builder = bed.channel(&server).connections(ucrpc::ConnectionType::Shared(2));
    let channel = builder.budget(budget).hedge_after(Duration::from_millis(1)).connect_lazy().unwrap();
    let client = EchoClient::new(channel.clone());
    while channel.transports().len() < 2 {
        client.echo(request(bytes_of(1, 1))).blocking().unwrap();
    }
    // A hedge of the first calls may have been queued on the second connection, and goes out when that opens.
    std::thread::sleep(Duration::from_millis(100));
    eventually("the first hedges have ended", || server.stats().running == 0);
    let before = (channel.stats(), Seen::get(&seen.started));
    let slow = EchoRequest { sleep_ms: 20, ..EchoRequest::default() };
    channel.block_on(all((0..100).map(|_| client.echo(slow.clone()).into_future()), |_, result| drop(result.unwrap())));
    let stats = channel.stats();
    let hedges = stats.hedges - before.0.hedges;
    assert!((1..=14).contains(&hedges) && stats.budget_refused > before.0.budget_refused, "{stats:?}");
    // A hedge may be cancelled before its handler starts.
    let ran = Seen::get(&seen.started) - before.1;
    assert!((100..=100 + hedges).contains(&ran), "{ran} handlers for 100 calls and {hedges} hedges");
    eventually("nothing runs", || server.stats().running == 0);
}

fn hedging(bed: &Bed) {
    let (fast, _) = Service::new(Way::Inline);
    let fast = bed.serve(Server::builder().service(EchoServer::new(fast)));
    /// Takes its time.
    struct Slow(Service);
    impl echo::echo_server::Echo for Slow {
        async fn echo(&self, context: &mut CallContext, request: EchoRequest) -> Result<EchoResponse, Status> {
            self.0.echo(context, EchoRequest { sleep_ms: 200, ..request }).await
        }
        async fn chat(
            &self,
            _: &mut CallContext,
            _: EchoRequest,
            _: StreamOffer<EchoRequest, EchoResponse>,
        ) -> Result<EchoResponse, Status> {
            Err(Code::ENOMETHOD.into())
        }
    }
    let (slow, seen) = Service::new(Way::Local);
    let slow = bed.serve(Server::builder().service(EchoServer::new(Slow(slow))));
    let measure = |hedge: bool| {
        let mut builder = bed.channel(&fast).address(slow.address()).budget(BudgetConfig { per_call: 1.0, burst: 200 });
        if hedge {
            builder = builder.hedge_after(Duration::from_millis(10));
        }
        let channel = builder.connect_lazy().unwrap();
        let client = EchoClient::new(channel.clone());
        // Both connections are made first.
        while channel.transports().len() < 2 {
            client.echo(request(bytes_of(1, 1))).blocking().unwrap();
        }
        let times = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let start = Instant::now();
                        client.echo(request(bytes_of(2, 2))).blocking().unwrap();
                        times.lock().unwrap().push(start.elapsed());
                    }
                });
            }
        });
        let mut times = times.into_inner().unwrap();
        times.sort_unstable();
        (times[times.len() * 99 / 100], channel.stats())
    };
    let (without, _) = measure(false);
    let dropped = Seen::get(&seen.dropped);
    // The machine is shared: one quiet round of three is enough.
    let (with, stats) = (0..3).map(|_| measure(true)).min_by_key(|(p99, _)| *p99).unwrap();
    assert!(without >= Duration::from_millis(200), "{without:?}");
    // Half of what the slow server takes is saved, also where everything else is slow (an emulated guest).
    let most = Duration::from_millis(120).max(without.saturating_sub(Duration::from_millis(100)));
    assert!(with < most, "hedged p99 {with:?}, without {without:?}");
    assert!(stats.hedges >= 50, "{stats:?}");
    eventually("the losers were cancelled", || Seen::get(&seen.dropped) - dropped >= stats.hedges / 2);
    eventually("nothing runs", || slow.stats().running == 0);
    assert_eq!(stats.in_flight, 0);
}

/// One deadline for connecting and the call.
fn connect_deadline(bed: &Bed) {
    if bed.backend.name == "mem" {
        return connects_to_nobody(bed);
    }
    // Accepts and says nothing: as long as the system has room in its queue.
    let (address, _silent) = bed.silent();
    let channel = Channel::builder(&address).on(&bed.client).connect_lazy().unwrap();
    let client = EchoClient::new(channel);
    let start = Instant::now();
    let status = client.echo(EchoRequest::default()).timeout(Duration::from_millis(100)).blocking().unwrap_err();
    assert_eq!(status.code(), Code::ERPCTIMEDOUT, "{status:?}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

fn connects_to_nobody(bed: &Bed) {
    let client = EchoClient::new(Channel::builder("mem://nobody").on(&bed.client).connect_lazy().unwrap());
    assert!(client.echo(EchoRequest::default()).timeout(Duration::from_millis(100)).blocking().is_err());
}
