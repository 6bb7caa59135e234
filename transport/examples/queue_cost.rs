//! What the queues cost: nanoseconds per operation, and bytes per idle connection.
//!
//! `cargo run --release -p ucrpc-transport --example queue_cost`

use std::hint::black_box;
use std::mem::size_of;
use std::time::Instant;
use ucrpc_transport::queue::{Announce, Limits, Receiver, RingReceiver, RingSender, Sender, WakeState};
use ucrpc_transport::queue::{bounded, ready_ring};

type Message = [u64; 8];

const ROUNDS: u64 = 5_000_000;
const LIMITS: Limits = Limits { messages: 1024, bytes: 1 << 20 };

/// The best and the median of nine runs, in nanoseconds per operation.
fn measure(name: &str, per_run: u64, mut run: impl FnMut()) {
    let mut samples: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_nanos() as f64 / per_run as f64
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    println!("{name:<58} best {:6.1} ns  median {:6.1} ns", samples[0], samples[4]);
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

fn one_thread() {
    let (sender, mut receiver) = bounded::<Message>(LIMITS);
    measure("push + pop, one thread, one value in the queue", ROUNDS, || {
        for number in 0..ROUNDS {
            sender.push(black_box([number; 8]), 64).expect("room");
            black_box(receiver.pop());
        }
    });
    measure("push + pop, one thread, 64 values in a batch", ROUNDS, || {
        for number in 0..ROUNDS / 64 {
            for _ in 0..64 {
                sender.push(black_box([number; 8]), 64).expect("room");
            }
            for _ in 0..64 {
                black_box(receiver.pop());
            }
        }
    });
    let full = bounded::<Message>(Limits { messages: 1, bytes: 1 });
    full.0.push([0; 8], 1).expect("room");
    measure("push to a full queue", ROUNDS, || {
        for number in 0..ROUNDS {
            black_box(full.0.push(black_box([number; 8]), 64)).expect_err("full");
        }
    });

    let wake = WakeState::new();
    let announce = Announce::new();
    let (ring, mut ready) = ready_ring::<u32>();
    measure("notify a running dispatcher", ROUNDS, || (0..ROUNDS).for_each(|_| assert!(!wake.notify())));
    measure("announce what is announced", ROUNDS, || (0..ROUNDS).for_each(|_| _ = black_box(announce.announce())));
    measure("ring push + pop", ROUNDS, || {
        for token in 0..ROUNDS {
            ring.push(black_box(token as u32));
            black_box(ready.pop());
        }
    });
    announce.begin_drain();
    measure("the whole path: push, announce, ring, notify, drain", ROUNDS, || {
        for number in 0..ROUNDS {
            sender.push(black_box([number; 8]), 64).expect("room");
            if announce.announce() && ring.push(0) && wake.notify() {
                unreachable!("nobody sleeps");
            }
            while ready.pop().is_some() {
                announce.begin_drain();
                while let Some(message) = receiver.pop() {
                    black_box(message);
                }
            }
        }
    });
    // What of it is the allocator.
    measure("control: allocate and free 80 bytes", ROUNDS, || {
        (0..ROUNDS).for_each(|number| drop(black_box(Box::new([number; 10]))));
    });
}

fn across_threads(producers: u64) {
    const COUNT: u64 = 1_000_000;
    let name = format!("{producers} producer thread(s) to one consumer, per value");
    measure(&name, COUNT * producers, || {
        let (sender, mut receiver) = bounded::<Message>(LIMITS);
        std::thread::scope(|scope| {
            for _ in 0..producers {
                let sender = sender.clone();
                scope.spawn(move || {
                    for number in 0..COUNT {
                        while sender.push(black_box([number; 8]), 64).is_err() {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let mut received = 0;
            while received < COUNT * producers {
                match receiver.pop() {
                    Some(message) => {
                        black_box(message);
                        received += 1;
                    }
                    None => std::hint::spin_loop(),
                }
            }
        });
    });
}

fn memory() {
    const QUEUES: u64 = 100_000;
    println!(
        "size_of: Sender {}, Receiver {}, Announce {}, RingSender {}, RingReceiver {}, WakeState {}",
        size_of::<Sender<Message>>(),
        size_of::<Receiver<Message>>(),
        size_of::<Announce>(),
        size_of::<RingSender<u32>>(),
        size_of::<RingReceiver<u32>>(),
        size_of::<WakeState>()
    );
    let before = resident();
    let mut queues: Vec<_> = (0..QUEUES).map(|_| bounded::<Message>(LIMITS)).collect();
    let halves = QUEUES * size_of::<(Sender<Message>, Receiver<Message>)>() as u64;
    println!("heap of a new queue, allocator included:  {} bytes", (resident() - before - halves) / QUEUES);
    for (sender, receiver) in &mut queues {
        for _ in 0..3 {
            sender.push([1; 8], 64).expect("room");
        }
        while receiver.pop().is_some() {}
    }
    println!("heap of a used queue, allocator included: {} bytes", (resident() - before - halves) / QUEUES);
}

fn main() {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("machine{model}, {cores} cores; messages of {} bytes", size_of::<Message>());
    memory();
    one_thread();
    across_threads(1);
    across_threads(2);
}
