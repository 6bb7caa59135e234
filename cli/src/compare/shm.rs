//! The floor under everything on one host: a ping-pong of two threads that spin on shared memory.
//!
//! Two threads of one process, not two processes that map a file: what is measured is how fast one core sees what another one
//! wrote, and the cores don't know of processes. Bytes are copied in and out on both sides, as a ring would.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use super::control::{Answer, Ask, round_trips};
use crate::process;

/// Up to this size, bytes, a message travels in words beside its number; larger ones are copied as a whole.
const IN_WORDS: usize = 1024;
/// Largest message.
const LARGEST: usize = 64 << 20;
/// The number that ends the peer.
const END: u64 = u64::MAX;

/// One direction: a message and its number, on cache lines of its own.
#[repr(align(128))]
struct Lane {
    number: AtomicU64,
    size: AtomicU64,
    words: [AtomicU64; IN_WORDS / 8],
    bytes: Mutex<Vec<u8>>,
}

impl Lane {
    fn new() -> Self {
        Self {
            number: AtomicU64::new(0),
            size: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; IN_WORDS / 8],
            bytes: Mutex::new(Vec::new()),
        }
    }

    fn send(&self, number: u64, message: &Message, size: usize) {
        if size <= IN_WORDS {
            for (word, value) in self.words.iter().zip(&message.words).take(size.div_ceil(8)) {
                word.store(*value, Ordering::Relaxed);
            }
        } else {
            let mut bytes = self.bytes.lock().unwrap_or_else(|e| e.into_inner());
            bytes.resize(size, 0);
            bytes.copy_from_slice(&message.bytes[..size]);
        }
        // Only when it changes, so that its line stays where it is read.
        if self.size.load(Ordering::Relaxed) != size as u64 {
            self.size.store(size as u64, Ordering::Relaxed);
        }
        self.number.store(number, Ordering::Release);
    }

    /// Waits for a number other than `old`; 0 bytes are no message.
    fn receive(&self, old: u64, message: &mut Message, wait: impl Fn()) -> (u64, usize) {
        let number = loop {
            let number = self.number.load(Ordering::Acquire);
            if number != old {
                break number;
            }
            wait();
        };
        let size = (self.size.load(Ordering::Relaxed) as usize).min(LARGEST);
        if size <= IN_WORDS {
            for (word, value) in self.words.iter().zip(&mut message.words).take(size.div_ceil(8)) {
                *value = word.load(Ordering::Relaxed);
            }
        } else {
            let bytes = self.bytes.lock().unwrap_or_else(|e| e.into_inner());
            message.bytes.resize(size, 0);
            message.bytes.copy_from_slice(&bytes);
        }
        (number, size)
    }
}

struct Message {
    words: [u64; IN_WORDS / 8],
    bytes: Vec<u8>,
}

impl Message {
    fn new(size: usize) -> Self {
        Self { words: [7; IN_WORDS / 8], bytes: vec![7; if size > IN_WORDS { size } else { 0 }] }
    }
}

/// The side that measures.
pub(crate) struct Measurer {
    there: Arc<Lane>,
    back: Arc<Lane>,
    /// Wakes the peer from its rest.
    peer: std::thread::Thread,
    rest: Arc<AtomicU64>,
    wait: fn(),
}

/// The side that answers; it ends with the process.
pub(crate) struct Peer {
    _thread: JoinHandle<()>,
}

/// Starts the peer on its CPU. It sleeps between measurements. `alone`: there is no other CPU, and each has to make way.
pub(crate) fn pair(peer_cpu: usize, alone: bool) -> (Measurer, Peer) {
    let wait: fn() = if alone { std::thread::yield_now } else { std::hint::spin_loop };
    let (there, back, rest) = (Arc::new(Lane::new()), Arc::new(Lane::new()), Arc::new(AtomicU64::new(1)));
    let (lane_in, lane_out, asleep) = (there.clone(), back.clone(), rest.clone());
    let thread = std::thread::spawn(move || {
        // Where it is not allowed, the scheduler keeps two threads that spin apart.
        let _ = process::pin(peer_cpu);
        let mut message = Message::new(0);
        let mut last = 0;
        loop {
            while asleep.load(Ordering::Acquire) == 1 {
                std::thread::park();
            }
            let (number, size) = lane_in.receive(last, &mut message, wait);
            last = number;
            if number == END {
                last = 0;
                lane_in.number.store(0, Ordering::Relaxed);
                lane_out.number.store(0, Ordering::Relaxed);
                asleep.store(1, Ordering::Release);
                continue;
            }
            lane_out.send(number, &message, size);
        }
    });
    let peer = thread.thread().clone();
    (Measurer { there, back, peer, rest, wait }, Peer { _thread: thread })
}

impl Measurer {
    /// Ping-pongs for a while.
    pub(crate) fn measure(&self, ask: &Ask) -> Answer {
        let size = ask.size.min(LARGEST);
        let (message, mut answer) = (Message::new(size), Message::new(size));
        // The peer lays its numbers down before it rests.
        while self.rest.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        self.rest.store(0, Ordering::Release);
        self.peer.unpark();
        let mut number = 0;
        let result = round_trips(ask.time, |last| {
            if last {
                self.there.send(END, &message, 0);
                return Ok(());
            }
            self.there.send(number + 1, &message, size);
            self.back.receive(number, &mut answer, self.wait);
            number += 1;
            Ok(())
        });
        std::hint::black_box(&answer);
        result.unwrap_or_default()
    }
}
