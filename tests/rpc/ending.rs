//! How calls end: deadlines, cancellation, limits, shutdown, lost connections. Each exactly once.

use std::time::{Duration, Instant};

use ucrpc::rpc::channel::{RetryOn, RetryPolicy};
use ucrpc::rpc::client::RawCaller;
use ucrpc::rpc::service::StreamOffer;
use ucrpc::{CallContext, Channel, Code, Server, Status};

use crate::bed::{Bed, Case};
use crate::echo::{self, EchoClient, EchoRequest, EchoResponse, EchoServer, Seen, Service, Way};
use crate::unary::{bytes_of, request};

pub const CASES: &[Case] = &[
    ("deadline", deadline),
    ("deadline_travels", deadline_travels),
    ("cancel", cancel),
    ("client_gone", client_gone),
    ("server_gone", server_gone),
    ("limits", limits),
    ("graceful_shutdown", graceful_shutdown),
    ("hard_shutdown", hard_shutdown),
    ("shutdown_under_load", shutdown_under_load),
    ("many_deadlines", many_deadlines),
    ("one_thread", one_thread),
];

const LONG: u32 = 60_000;

fn sleeping(sleep_ms: u32) -> EchoRequest {
    EchoRequest { sleep_ms, ..EchoRequest::default() }
}

pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(Instant::now() < deadline, "it never came to: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for all of them at once, and hands out what each came to.
pub async fn all<F: Future + Unpin>(calls: impl Iterator<Item = F>, mut done: impl FnMut(usize, F::Output)) {
    let mut calls: Vec<_> = calls.map(Some).collect();
    std::future::poll_fn(|cx| {
        let mut left = false;
        for (i, slot) in calls.iter_mut().enumerate() {
            let Some(call) = slot else { continue };
            match std::pin::Pin::new(call).poll(cx) {
                std::task::Poll::Ready(output) => {
                    *slot = None;
                    done(i, output);
                }
                std::task::Poll::Pending => left = true,
            }
        }
        if left { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
}

fn no_retry() -> RetryPolicy {
    let mut policy = RetryPolicy::default();
    policy.on = RetryOn::Never;
    policy
}

fn deadline(bed: &Bed) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    for way in [Way::Local, Way::Tokio] {
        let (service, seen) = Service::new(way);
        let mut server = Server::builder().service(EchoServer::new(service));
        if way == Way::Tokio {
            server = server.handlers_on(runtime.handle().clone());
        }
        let server = bed.serve(server);
        let client = EchoClient::new(bed.channel(&server).connect_lazy().unwrap());
        client.echo(request(bytes_of(1, 1))).blocking().unwrap();
        let started = Instant::now();
        let timeouts = [30, 5, 100, 60, 30, 1];
        let calls: Vec<_> = timeouts
            .iter()
            .map(|ms| {
                // A timeout begins when the call becomes a future; its latency when that is first polled.
                let begun = Instant::now();
                (begun, client.echo(sleeping(LONG)).timeout(Duration::from_millis(*ms)).into_future())
            })
            .collect();
        for (ms, (begun, call)) in timeouts.iter().zip(calls) {
            let status = client.caller().block_on(call).unwrap_err();
            assert_eq!(status.code(), Code::ERPCTIMEDOUT, "{status:?}");
            assert!(begun.elapsed() >= Duration::from_millis(*ms), "{ms} ms: too early: {status:?}");
        }
        // Each call on its own: nobody else is to blame for a late end. The machine is shared, so the best of several counts.
        let overshoot = (0..10).map(|_| {
            let begun = Instant::now();
            let _ = client.echo(sleeping(LONG)).timeout(Duration::from_millis(20)).blocking().unwrap_err();
            begun.elapsed() - Duration::from_millis(20)
        });
        let best = overshoot.min().unwrap();
        assert!(best < Duration::from_millis(5), "a call outlives its deadline by {best:?}");
        assert!(started.elapsed() < Duration::from_secs(20));
        eventually("handlers dropped", || {
            Seen::get(&seen.started) == Seen::get(&seen.dropped) + Seen::get(&seen.ended)
        });
        assert_eq!(Seen::get(&seen.ended), 1);
        eventually("nothing runs", || server.stats().running == 0);
        client.echo(request(bytes_of(1, 1))).blocking().unwrap();
    }
}

/// Calls itself with what is left of its deadline.
struct Nested {
    channel: std::sync::OnceLock<Channel>,
}

impl echo::echo_server::Echo for Nested {
    async fn echo(&self, context: &mut CallContext, request: EchoRequest) -> Result<EchoResponse, Status> {
        let left = context.deadline().remaining(Instant::now());
        let Some(left) = left else { return Err(Status::new(Code::EINVAL, "no deadline")) };
        if request.sleep_ms == 0 {
            let ms = u32::try_from(left.as_millis()).unwrap();
            return Ok(EchoResponse { payload: ms.to_le_bytes().to_vec().into() });
        }
        // An inner call without a timeout of its own, and after a pause, so that it is another poll.
        echo::yield_once().await;
        let client = EchoClient::new(self.channel.get().unwrap().clone());
        Ok(client.echo(EchoRequest::default()).await?.into_message())
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

fn deadline_travels(bed: &Bed) {
    let nested = std::sync::Arc::new(Nested { channel: std::sync::OnceLock::new() });
    let server = bed.serve(Server::builder().service(EchoServer::from_arc(nested.clone())));
    let inner = Channel::builder(server.address()).on(&bed.server).timeout(None).connect_lazy().unwrap();
    assert!(nested.channel.set(inner).is_ok());
    let client = EchoClient::new(bed.channel(&server).timeout(None).connect_lazy().unwrap());
    let left = |sleep_ms, timeout| {
        let call = client.echo(sleeping(sleep_ms)).timeout(Duration::from_millis(timeout));
        call.blocking().map(|r| u32::from_le_bytes(r.payload[..].try_into().unwrap()))
    };
    let direct = left(0, 20_000).unwrap();
    assert!(direct <= 20_000 && direct > 10_000, "{direct} ms");
    let inherited = left(1, 20_000).unwrap();
    assert!(inherited <= 20_000 && inherited > 10_000, "{inherited} ms");
    assert_eq!(client.echo(EchoRequest::default()).blocking().unwrap_err().code(), Code::EINVAL, "none was sent");
    drop((client, server));
    drop(std::sync::Arc::into_inner(nested));
}

fn cancel(bed: &Bed) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    for way in [Way::Local, Way::Tokio] {
        let (service, seen) = Service::new(way);
        let mut server = Server::builder().service(EchoServer::new(service));
        if way == Way::Tokio {
            server = server.handlers_on(runtime.handle().clone());
        }
        let server = bed.serve(server);
        let client = EchoClient::new(bed.channel(&server).connect_lazy().unwrap());
        // The first response tells each side what the other understands.
        client.echo(request(bytes_of(1, 1))).blocking().unwrap();
        let other = client.echo(EchoRequest { sleep_ms: 300, ..request(bytes_of(2, 9)) }).into_future();
        for round in 1..=5 {
            let call = client.echo(sleeping(LONG)).into_future();
            eventually("the handler started", || Seen::get(&seen.started) > round + 1);
            drop(call);
            eventually("the handler was dropped", || Seen::get(&seen.dropped) == round);
        }
        assert_eq!(client.caller().block_on(other).unwrap().payload, bytes_of(2, 9), "unharmed");
        eventually("nothing runs", || server.stats().running == 0);
        assert_eq!(server.stats().cancelled, 5);
        assert_eq!(client.caller().stats().in_flight, 0);
    }
}

fn client_gone(bed: &Bed) {
    let (service, seen) = Service::new(Way::Local);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)));
    let client = EchoClient::new(bed.channel(&server).connect_lazy().unwrap());
    let calls: Vec<_> = (0..10).map(|_| client.echo(sleeping(LONG)).into_future()).collect();
    // Polled once, so that the connection is made; then everything is dropped, before or after requests are there.
    let waiting = client.caller().block_on(async {
        let mut calls = calls;
        std::future::poll_fn(|cx| {
            for call in &mut calls {
                assert!(std::pin::Pin::new(call).poll(cx).is_pending());
            }
            std::task::Poll::Ready(())
        })
        .await;
        calls
    });
    drop((waiting, client));
    eventually("nothing runs", || server.stats().running == 0 && server.stats().tasks == 1);
    assert_eq!(Seen::get(&seen.started), Seen::get(&seen.dropped));
    assert_eq!(Seen::get(&seen.ended), 0);
}

fn server_gone(bed: &Bed) {
    let (service, seen) = Service::new(Way::Local);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)));
    let client = EchoClient::new(bed.channel(&server).retry(no_retry()).connect_lazy().unwrap());
    client.echo(request(bytes_of(1, 1))).blocking().unwrap();
    let calls: Vec<_> = (0..10).map(|_| client.echo(sleeping(LONG)).into_future()).collect();
    eventually("handlers started", || Seen::get(&seen.started) == 11);
    // Not a word: the connections break.
    drop(server);
    for call in calls {
        let status = client.caller().block_on(call).unwrap_err();
        assert!([Code::ELOGOFF, Code::EEOF, Code::ECONNRESET].contains(&status.code()), "{status:?}");
        assert!(status.stats().unwrap().attempts == 1);
    }
    eventually("handlers dropped", || Seen::get(&seen.dropped) == 10);
    let status = client.echo(request(bytes_of(1, 1))).blocking().unwrap_err();
    assert_ne!(status.code(), Code::ERPCTIMEDOUT, "nobody listens: {status:?}");
}

fn limits(bed: &Bed) {
    let (service, seen) = Service::new(Way::Local);
    let server = Server::builder().service(EchoServer::new(service));
    let server = bed.serve(server.max_concurrency(8).max_method_concurrency("ucrpc.example.Echo", "Echo", 3));
    let client = EchoClient::new(bed.channel(&server).retry(no_retry()).connect_lazy().unwrap());
    client.echo(request(bytes_of(1, 1))).blocking().unwrap();
    let calls: Vec<_> = (0..3).map(|_| client.echo(sleeping(300)).into_future()).collect();
    eventually("handlers started", || Seen::get(&seen.started) == 4);
    for _ in 0..5 {
        let status = client.echo(sleeping(0)).blocking().unwrap_err();
        assert_eq!(status.code(), Code::ELIMIT);
    }
    assert_eq!(server.stats().limited, 5);
    for call in calls {
        client.caller().block_on(call).unwrap();
    }
    eventually("places are free", || server.stats().running == 0);
    client.echo(sleeping(0)).blocking().unwrap();
}

fn graceful_shutdown(bed: &Bed) {
    let (service, seen) = Service::new(Way::Local);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)));
    let client = EchoClient::new(bed.channel(&server).retry(no_retry()).connect_lazy().unwrap());
    let idle = bed.channel(&server).connect_lazy().unwrap();
    client.caller().block_on(idle.connected()).unwrap();
    client.echo(request(bytes_of(1, 1))).blocking().unwrap();
    let running: Vec<_> = (0..5).map(|i| client.echo(sleeping(200 + i * 20)).into_future()).collect();
    eventually("handlers started", || Seen::get(&seen.started) == 6);
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| {
            client.caller().block_on(server.shutdown(Duration::from_secs(20)));
            Instant::now()
        });
        for call in running {
            client.caller().block_on(call).expect("calls that run end well");
        }
        let stopped = stopped.join().unwrap();
        assert!(stopped.elapsed() < Duration::from_secs(10));
    });
    let late = client.echo(request(bytes_of(1, 1))).blocking().unwrap_err();
    assert_ne!(late.code(), Code::ERPCTIMEDOUT, "{late:?}");
    assert_eq!((Seen::get(&seen.dropped), Seen::get(&seen.ended)), (0, 6));
    assert_eq!(server.stats().tasks, 0);
}

fn hard_shutdown(bed: &Bed) {
    let (service, seen) = Service::new(Way::Local);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)));
    let client = EchoClient::new(bed.channel(&server).retry(no_retry()).connect_lazy().unwrap());
    client.echo(request(bytes_of(1, 1))).blocking().unwrap();
    let running: Vec<_> = (0..5).map(|_| client.echo(sleeping(LONG)).into_future()).collect();
    eventually("handlers started", || Seen::get(&seen.started) == 6);
    client.caller().block_on(server.shutdown(Duration::from_millis(50)));
    for call in running {
        assert_eq!(client.caller().block_on(call).unwrap_err().code(), Code::ELOGOFF);
    }
    assert_eq!((Seen::get(&seen.dropped), Seen::get(&seen.ended)), (5, 1));
}

/// Calls come from all sides while the server stops: each ends once, those that a handler was started for end well, and the
/// late ones hear at once that they are late.
fn shutdown_under_load(bed: &Bed) {
    let (service, seen) = Service::new(Way::Local);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)));
    let channels: Vec<_> = (0..3).map(|_| bed.channel(&server).retry(no_retry()).connect_lazy().unwrap()).collect();
    for channel in &channels {
        EchoClient::new(channel.clone()).echo(request(bytes_of(1, 1))).blocking().unwrap();
    }
    let refused = [Code::ELOGOFF, Code::ECLOSE, Code::EEOF, Code::ECONNRESET, Code::ECONNREFUSED, Code::ENOENT];
    let ended = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..6_usize)
            .map(|thread| {
                let client = EchoClient::new(channels[thread % channels.len()].clone());
                scope.spawn(move || {
                    let (mut good, mut late) = (0_u64, 0);
                    while late < 20 {
                        let batch: Vec<_> = (0..10).map(|i| client.echo(sleeping(i % 3)).into_future()).collect();
                        for call in batch {
                            match client.caller().block_on(call) {
                                Ok(_) => good += 1,
                                Err(status) => {
                                    assert!(refused.contains(&status.code()), "{status:?}");
                                    late += 1;
                                }
                            }
                        }
                    }
                    good
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        channels[0].block_on(server.shutdown(Duration::from_secs(20)));
        callers.into_iter().map(|caller| caller.join().unwrap()).sum::<u64>()
    });
    let started = Seen::get(&seen.started);
    assert_eq!((Seen::get(&seen.ended), Seen::get(&seen.dropped)), (started, 0), "no handler was cut short");
    assert_eq!(ended + 3, started, "every answer reached its caller");
    assert_eq!((server.stats().tasks, server.stats().running), (0, 0));
}

/// Hundreds of calls at once, each with a deadline of its own: none ends before it, none long after.
fn many_deadlines(bed: &Bed) {
    let (service, seen) = Service::new(Way::Local);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)));
    let client = EchoClient::new(bed.channel(&server).connect_lazy().unwrap());
    client.echo(request(bytes_of(1, 1))).blocking().unwrap();
    let timeout = |i: usize| Duration::from_millis(20 + (i * 37 % 230) as u64);
    let round = || {
        // A timeout begins when the call becomes a future; its latency when that is first polled, behind the others.
        let begun: std::cell::RefCell<Vec<Instant>> = std::cell::RefCell::default();
        let calls = (0..300).map(|i| {
            begun.borrow_mut().push(Instant::now());
            client.echo(sleeping(LONG)).timeout(timeout(i)).into_future()
        });
        let mut over = Vec::new();
        client.caller().block_on(all(calls, |i, result| {
            let status = result.unwrap_err();
            assert_eq!(status.code(), Code::ERPCTIMEDOUT, "{status:?}");
            let took = begun.borrow()[i].elapsed();
            assert!(took >= timeout(i), "ended {:?} before its deadline", timeout(i) - took);
            over.push(took - timeout(i));
        }));
        over.sort_unstable();
        assert!(over[299] < Duration::from_secs(1), "a call outlives its deadline by {:?}", over[299]);
        over[150]
    };
    // The machine is shared: the usual call counts, of the quietest round.
    let usual = (0..3).map(|_| round()).min().unwrap();
    let most = Duration::from_millis(if bed.backend.is_verbs() { 50 } else { 5 });
    assert!(usual < most, "half of the calls outlive their deadlines by {usual:?}");
    eventually("handlers dropped", || Seen::get(&seen.dropped) == 900);
    eventually("nothing runs", || server.stats().running == 0);
}

/// Server and client on one thread, without another one: `block_on` does it all.
fn one_thread(bed: &Bed) {
    let config = ucrpc::DispatcherConfig::default();
    let local = ucrpc::LocalDispatcher::new(config).unwrap();
    let (service, seen) = Service::new(Way::Local);
    local.block_on(async {
        let server = Server::builder().service(EchoServer::new(service)).on(local.handle()).listen(bed.address());
        let server = server.start().unwrap();
        let channel = Channel::builder(server.address()).on(local.handle()).connect().await.unwrap();
        let client = EchoClient::new(channel.clone());
        for i in 0..100 {
            assert_eq!(client.echo(request(bytes_of(i, i))).await.unwrap().payload, bytes_of(i, i));
        }
        let status = client.echo(sleeping(LONG)).timeout(Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(status.code(), Code::ERPCTIMEDOUT);
        let blocked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client.echo(sleeping(0)).blocking()));
        assert!(blocked.is_err(), "it would wait for itself");
        drop((client, channel));
        server.shutdown(Duration::from_secs(10)).await;
    });
    assert_eq!(Seen::get(&seen.dropped), 1);
}
