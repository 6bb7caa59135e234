//! A server of the tests' service, and its client in another process.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ucrpc::{
    Channel, Code, Server,
    rpc::{
        channel::{Backoff, RetryOn, RetryPolicy},
        client::RawCaller,
    },
    transport::Address,
};

use super::{Program, Words, report};
use crate::{
    block_on::block_on,
    calls::{bytes_of, check_failures, check_payloads, check_sizes, check_stream, request},
    echo::{EchoClient, EchoRequest, EchoServer, Seen, Service, Way},
    process::now_us,
};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
/// Callers at a time, each with one call under way.
const CALLERS: usize = 4;

/// The server of this program.
pub(super) struct Serving {
    server: Server,
    seen: Arc<Seen>,
}

/// Calls that go on until they are told to stop.
#[derive(Default)]
pub(super) struct Storm {
    over: AtomicBool,
    callers: Mutex<Vec<std::thread::JoinHandle<()>>>,
    well: AtomicU64,
    failed: AtomicU64,
    longest_ms: AtomicU64,
    /// What was reported last: that calls go, or since when they fail.
    said: Mutex<Option<Said>>,
    /// Errors that a server which is gone does not explain.
    strange: Mutex<Vec<String>>,
}

enum Said {
    Well,
    Fail(Instant),
}

impl Program {
    pub(super) fn serve(&self, words: &Words<'_>) {
        let (service, seen) = Service::new(Way::Local);
        let address: Address = words.target.parse().expect("an address");
        let server = Server::builder().service(EchoServer::new(service)).on(&self.dispatcher);
        let server = server.transport(words.listener()).listen(address).start().expect("serve");
        report("serving", &[("addr", server.address())]);
        *self.serving.lock().expect("not poisoned") = Some(Serving { server, seen });
    }

    pub(super) fn served(&self) {
        let serving = self.serving.lock().expect("not poisoned");
        let Serving { server, seen } = serving.as_ref().expect("it serves");
        let counts = [&seen.started, &seen.ended, &seen.dropped].map(Seen::get);
        let running = server.stats().running;
        report(
            "served",
            &[("started", &counts[0]), ("ended", &counts[1]), ("dropped", &counts[2]), ("running", &running)],
        );
    }

    pub(super) fn unserve(&self) {
        let serving = self.serving.lock().expect("not poisoned").take().expect("it serves");
        block_on(serving.server.shutdown(Duration::from_secs(5)));
        drop(serving);
        report("unserved", &[]);
    }

    fn channel(&self, words: &Words<'_>, timeout: Duration) -> Channel {
        // A second try would hide a first one that failed.
        let mut never = RetryPolicy::default();
        never.on = RetryOn::Never;
        let soon = Backoff { first: Duration::from_millis(5), max: Duration::from_millis(200), jitter: 0.5 };
        let address: Address = words.target.parse().expect("an address");
        let channel = Channel::builder(address).on(&self.dispatcher).transport(words.connection());
        channel.timeout(timeout).retry(never).reconnect(soon).connect_lazy().expect("an address of this program")
    }

    /// Runs one of the checks, on a thread of its own that may panic.
    pub(super) fn calls(&self, words: &Words<'_>) {
        let (channel, start) = (self.channel(words, LONG), Instant::now());
        let (check, client): (String, _) = (words.get("check").expect("a name"), EchoClient::new(channel.clone()));
        std::thread::spawn(move || {
            let over = channel.clone();
            let result = std::thread::spawn(move || {
                // The first response tells each side what the other understands.
                client.echo(request(bytes_of(1, 1))).blocking().expect("the first call");
                match check.as_str() {
                    "payloads" => check_payloads(&client, channel.transports()[0]),
                    "sizes" => check_sizes(&client),
                    "failures" => check_failures(&client),
                    "stream" => drop(check_stream(&channel, &client)),
                    "given-up" => give_up(&client),
                    other => panic!("unknown check {other:?}"),
                }
                let left = channel.stats();
                assert_eq!(left.in_flight, 0);
                // The server may say that the time is over when the client has seen it by itself.
                assert!(left.stray_responses == 0 || check == "given-up", "a response that nobody waits for");
            });
            let ok = result.join().is_ok();
            let transport = transport_of(&over);
            let ms = start.elapsed().as_millis();
            drop(over);
            report("called", &[("ok", &ok), ("transport", &transport), ("ms", &ms)]);
        });
    }

    /// Calls without end; tells when they begin to go well, and to fail.
    pub(super) fn storm(&self, words: &Words<'_>) {
        for caller in 0..CALLERS {
            let (channel, storm) = (self.channel(words, LONG), self.storm.clone());
            let client = EchoClient::new(channel.clone());
            let run = move || {
                for n in 0.. {
                    if storm.over.load(Ordering::Acquire) {
                        break;
                    }
                    storm.one(&channel, &client, bytes_of(caller, [10, 3000, 70_000, 400_000][n % 4]));
                }
            };
            self.storm.callers.lock().expect("not poisoned").push(std::thread::spawn(run));
        }
    }

    pub(super) fn calm(&self) {
        let storm = &self.storm;
        storm.over.store(true, Ordering::Release);
        for caller in storm.callers.lock().expect("not poisoned").drain(..) {
            caller.join().expect("callers do not panic");
        }
        let get = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        let strange = storm.strange.lock().expect("not poisoned").join(", ");
        report(
            "calm",
            &[
                ("well", &get(&storm.well)),
                ("failed", &get(&storm.failed)),
                ("longest_ms", &get(&storm.longest_ms)),
                ("strange", &strange),
            ],
        );
    }
}

impl Storm {
    fn one(&self, channel: &Channel, client: &EchoClient, payload: bytes::Bytes) {
        let begun = Instant::now();
        let result = client.echo(request(payload.clone())).blocking();
        self.longest_ms.fetch_max(begun.elapsed().as_millis() as u64, Ordering::AcqRel);
        let failure = match result {
            Ok(response) => {
                assert!(response.payload == payload, "another payload came back");
                self.well.fetch_add(1, Ordering::AcqRel);
                None
            }
            Err(status) => {
                self.failed.fetch_add(1, Ordering::AcqRel);
                use Code as C;
                let of_the_dead =
                    [C::EEOF, C::ECONNRESET, C::EFAILEDSOCKET, C::ECONNREFUSED, C::ETIMEDOUT, C::EHOSTDOWN];
                if !of_the_dead.contains(&status.code()) {
                    self.strange.lock().expect("not poisoned").push(format!("{status:?}"));
                }
                // Nobody is there: the next one fails at once, too.
                std::thread::sleep(Duration::from_millis(10));
                Some(status.to_string())
            }
        };
        let mut said = self.said.lock().expect("not poisoned");
        match (failure, &*said) {
            (Some(_), Some(Said::Fail(_))) | (None, Some(Said::Well)) => {}
            // It was answered before the other's connection broke.
            (None, Some(Said::Fail(since))) if begun < *since => {}
            (Some(text), _) => {
                *said = Some(Said::Fail(Instant::now()));
                report("calls-fail", &[("at", &now_us()), ("text", &text)]);
            }
            (None, _) => {
                *said = Some(Said::Well);
                report("calls-well", &[("at", &now_us()), ("transport", &transport_of(channel))]);
            }
        }
    }
}

/// What a channel's connection says that it runs over.
fn transport_of(channel: &Channel) -> String {
    channel.connection_infos().first().map_or_else(|| "none".to_owned(), |info| info.transport.to_string())
}

/// One call is dropped, one runs out of time, and one beside them is unharmed.
fn give_up(client: &EchoClient) {
    let sleeping = |ms| EchoRequest { sleep_ms: ms, ..request(bytes_of(2, 9)) };
    let long = LONG.as_millis() as u32;
    let beside = client.echo(sleeping(1500)).into_future();
    let dropped = client.echo(sleeping(long)).into_future();
    let late = client.echo(sleeping(long)).timeout(Duration::from_millis(1000)).into_future();
    let status = client.caller().block_on(async {
        let (mut dropped, mut late) = (std::pin::pin!(dropped), std::pin::pin!(late));
        // Both are under way until the second one's time is over; then the first is dropped.
        std::future::poll_fn(|cx| {
            assert!(dropped.as_mut().poll(cx).is_pending(), "nobody answers it");
            late.as_mut().poll(cx)
        })
        .await
    });
    assert_eq!(status.expect_err("its time was over").code(), Code::ERPCTIMEDOUT);
    assert_eq!(client.caller().block_on(beside).expect("unharmed").payload, bytes_of(2, 9));
}
