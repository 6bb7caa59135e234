//! Sleeps that are given up leave nothing behind, and a dispatcher's end ends those that go on.

use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use ucrpc_transport::{Dispatcher, DispatcherConfig, LocalDispatcher, Sleep};

const HOUR: Duration = Duration::from_secs(3600);

fn polled(dispatcher: &Dispatcher, after: Duration) -> std::pin::Pin<Box<Sleep>> {
    let mut sleep = Box::pin(dispatcher.sleep_until(Instant::now() + after));
    assert!(sleep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    sleep
}

fn until_timers_are(dispatcher: &Dispatcher, count: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while dispatcher.stats().timers != count {
        assert!(Instant::now() < deadline, "{} timers, not {count}", dispatcher.stats().timers);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_dropped_sleep_takes_its_timer_with_it_on_the_own_thread() {
    let local = LocalDispatcher::new(DispatcherConfig::default()).unwrap();
    let dispatcher = local.handle();
    let kept = local.block_on(async { (0..100).map(|_| polled(&dispatcher, HOUR)).collect::<Vec<_>>() });
    assert_eq!(dispatcher.stats().timers, 100);
    local.block_on(async {
        drop(kept);
        for _ in 0..100_000 {
            drop(polled(&dispatcher, HOUR));
        }
    });
    assert_eq!(dispatcher.stats().timers, 0);
}

#[test]
fn a_dropped_sleep_takes_its_timer_with_it_from_elsewhere() {
    let dispatcher = Dispatcher::spawn(DispatcherConfig::default()).unwrap();
    let sleeps: Vec<_> = (0..1000).map(|_| polled(&dispatcher, HOUR)).collect();
    until_timers_are(&dispatcher, 1000);
    drop(sleeps);
    until_timers_are(&dispatcher, 0);
    // Dropped while the command that asks for it may still be on its way.
    for _ in 0..1000 {
        drop(polled(&dispatcher, HOUR));
    }
    until_timers_are(&dispatcher, 0);
    assert_eq!(dispatcher.stats().wake_detector_hits, 0);
    dispatcher.shutdown();
}

#[test]
fn sleeps_end_on_time_and_with_their_dispatcher() {
    let local = LocalDispatcher::new(DispatcherConfig::default()).unwrap();
    let dispatcher = local.handle();
    let start = Instant::now();
    local.block_on(async {
        let mut late = pin!(dispatcher.sleep_until(start + HOUR));
        let mut early = pin!(dispatcher.sleep_until(start + Duration::from_millis(20)));
        std::future::poll_fn(|cx| {
            assert!(late.as_mut().poll(cx).is_pending());
            early.as_mut().poll(cx)
        })
        .await;
    });
    assert!(start.elapsed() >= Duration::from_millis(20));
    #[allow(clippy::async_yields_async, reason = "it outlives the dispatcher, which is the point")]
    let mut armed = local.block_on(async { polled(&dispatcher, HOUR) });
    drop(local);
    assert_eq!(armed.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()));
    let mut late = pin!(dispatcher.sleep_until(start + HOUR));
    assert_eq!(late.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()));
}
