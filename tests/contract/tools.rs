//! What the cases share: random bytes that can be checked, futures that are polled by hand, counting what the process has.

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

pub(crate) use crate::block_on::{Unpark, block_on};

/// A small generator of pseudo-random numbers (xorshift), so that a failure can be repeated.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }
}

/// Bytes that depend on a seed and are no repetition of a short pattern.
pub fn random_bytes(seed: u64, len: usize) -> Bytes {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; len];
    let mut chunks = bytes.chunks_exact_mut(8);
    for chunk in &mut chunks {
        chunk.copy_from_slice(&rng.next().to_le_bytes());
    }
    let rest = chunks.into_remainder();
    let last = rng.next().to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
    bytes.into()
}

/// The checksums of head and body, and their lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    head: (usize, u32),
    body: (usize, u32),
}

impl Sum {
    pub fn of(head: &[u8], body: &[u8]) -> Self {
        Self { head: (head.len(), crc32c::crc32c(head)), body: (body.len(), crc32c::crc32c(body)) }
    }

    /// The checksums of a received frame, whose body must be here.
    pub fn of_frame(frame: Frame) -> Self {
        let body = frame.body.into_bytes().expect("the body was received");
        Self::of(&frame.head, &body)
    }
}

/// The `number`-th frame of a sender: its head starts with both, everything else is random and follows from them.
pub fn numbered(sender: u32, number: u32, head: usize, body: usize) -> Frame {
    let seed = u64::from(sender) << 32 | u64::from(number);
    let mut bytes = Vec::with_capacity(head.max(8));
    bytes.extend_from_slice(&sender.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    if head > 8 {
        bytes.extend_from_slice(&random_bytes(!seed, head - 8));
    }
    Frame::new(bytes, random_bytes(seed, body))
}

/// Checks a [`numbered`] frame and returns its sender and number.
pub fn check_numbered(frame: Frame) -> (u32, u32) {
    let word = |at: usize| u32::from_le_bytes(frame.head[at..at + 4].try_into().expect("four bytes"));
    let (sender, number) = (word(0), word(4));
    let expected = numbered(sender, number, frame.head.len(), frame.body.len() as usize);
    assert_eq!(Sum::of_frame(frame), Sum::of_frame(expected), "content of frame {number} of sender {sender}");
    (sender, number)
}

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
