//! What the cases share: futures that are polled by hand, counting what the process has, and what `util/` has for all suites.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use ucrpc::transport::{Body, Connection, Frame, Sender};

pub(crate) use crate::{
    block_on::{Unpark, block_on},
    frames::{Rng, Sum, check_numbered, numbered, random_bytes, sizes_around},
};

/// Sends a frame and receives it on the other side.
pub fn exchange(from: &Sender, to: &mut Connection, head: Bytes, body: impl Into<Body>) {
    let body = body.into();
    let expected = match &body {
        Body::Segments(segments) => Sum::of(&head, &segments.concat()),
        Body::Bytes(bytes) => Sum::of(&head, bytes),
        _ => Sum::of(&head, &[]),
    };
    block_on(from.send_wait(Frame::new(head, body))).expect("send");
    assert_eq!(Sum::of_frame(to.recv_blocking().expect("receive")), expected);
}

/// As [`block_on`], but `None` when `patience` is over. The future is dropped then.
pub fn block_for<F: Future>(patience: Duration, future: F) -> Option<F::Output> {
    let deadline = Instant::now() + patience;
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        std::thread::park_timeout(deadline.checked_duration_since(Instant::now())?);
    }
}

/// Polls a future `times` times with nothing that wakes it, pausing for about `pause` spins in between.
pub fn poll_times<F: Future>(mut future: Pin<&mut F>, times: u64, rng: &mut Rng) -> Option<F::Output> {
    for _ in 0..times {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(output);
        }
        for _ in 0..rng.below(2000) {
            std::hint::spin_loop();
        }
    }
    None
}

/// A waker that counts.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits until `check` says yes; for counters, which no event announces.
pub fn eventually(what: &str, check: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What this process has of things that may leak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    pub descriptors: usize,
    pub threads: usize,
    /// Resident memory, bytes.
    pub rss: u64,
}

impl Holdings {
    pub fn now() -> Self {
        let count = |path: &str| std::fs::read_dir(path).expect("proc").count();
        let statm = std::fs::read_to_string("/proc/self/statm").expect("proc");
        let pages: u64 = statm.split(' ').nth(1).and_then(|p| p.parse().ok()).expect("resident pages");
        let page = rustix::param::page_size() as u64;
        Self { descriptors: count("/proc/self/fd"), threads: count("/proc/self/task"), rss: pages * page }
    }
}

/// How long `ci/soak.sh` wants soaks to run; `None` for the short version.
pub fn soak_seconds() -> Option<Duration> {
    let text = std::env::var("UCRPC_SOAK_SECONDS").ok()?;
    Some(Duration::from_secs(text.parse().expect("UCRPC_SOAK_SECONDS is a number of seconds")))
}
