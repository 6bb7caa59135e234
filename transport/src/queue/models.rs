//! Scenarios for `ci/loom.sh`, which explores all their interleavings. Without loom they run many
//! times over with real threads.

use super::primitive::{Arc, AtomicBool, AtomicU64, Condvar, Mutex, Ordering, model, thread};
use super::{Announce, Limits, PushError, Receiver, RingReceiver, RingSender, Sender, WakeState, bounded, ready_ring};
use std::sync::atomic::AtomicUsize;

const ROOMY: Limits = Limits { messages: 8, bytes: 1024 };

/// A value that counts its drop. The counter is the standard one: no part of what is explored.
#[derive(Debug)]
struct Value {
    id: u64,
    drops: std::sync::Arc<AtomicUsize>,
}

impl Drop for Value {
    fn drop(&mut self) {
        self.drops.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Clone, Default)]
struct Drops(std::sync::Arc<AtomicUsize>);

impl Drops {
    fn value(&self, id: u64) -> Value {
        Value { id, drops: self.0.clone() }
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn join<T, const N: usize>(threads: [thread::JoinHandle<T>; N]) {
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Pops until `count` values came.
fn pop_all<T>(receiver: &mut Receiver<T>, count: usize) -> Vec<T> {
    let mut values = Vec::new();
    while values.len() < count {
        match receiver.pop() {
            Some(value) => values.push(value),
            None => thread::yield_now(),
        }
    }
    values
}

#[test]
fn two_producers_lose_nothing_and_keep_their_order() {
    model(2, || {
        let drops = Drops::default();
        let (sender, mut receiver) = bounded(ROOMY);
        let producers = [10, 20].map(|base| {
            let (sender, drops) = (sender.clone(), drops.clone());
            thread::spawn(move || {
                for id in base..base + if base == 10 { 2 } else { 1 } {
                    sender.push(drops.value(id), 7).unwrap();
                }
            })
        });
        let ids: Vec<_> = pop_all(&mut receiver, 3).iter().map(|value| value.id).collect();
        assert!(ids.contains(&20), "{ids:?}");
        let first: Vec<_> = ids.iter().filter(|&&id| id < 20).collect();
        assert_eq!(first, [&10, &11]);
        assert_eq!((receiver.len(), receiver.bytes()), (0, 0));
        assert_eq!(drops.count(), 3);
        join(producers);
    });
}

#[test]
fn the_bound_holds_for_racing_producers() {
    model(3, || {
        let (sender, mut receiver) = bounded(Limits { messages: 2, bytes: 10 });
        let producers = [1, 2].map(|id| {
            let sender = sender.clone();
            thread::spawn(move || match sender.push(id, 6) {
                Ok(()) => 1,
                Err(PushError::Full(value)) => {
                    assert_eq!(value, id);
                    0
                }
                Err(PushError::Closed(_)) => panic!("nobody closed"),
            })
        });
        let early = usize::from(receiver.pop().is_some());
        assert!(receiver.len() <= 1 && receiver.bytes() <= 6);
        let accepted: usize = producers.map(|producer| producer.join().unwrap()).iter().sum();
        // Both only if the pop made room for the second.
        assert!((1..=1 + early).contains(&accepted));
        assert_eq!(receiver.len(), accepted - early);
        receiver.invariants();
    });
}

#[test]
fn closed_and_empty_means_finished() {
    model(2, || {
        let drops = Drops::default();
        let (sender, mut receiver) = bounded(ROOMY);
        let producer = {
            let (sender, drops) = (sender.clone(), drops.clone());
            thread::spawn(move || (0..2).filter(|&id| sender.push(drops.value(id), 1).is_ok()).count())
        };
        let closer = thread::spawn(move || {
            sender.close();
            assert!(sender.is_closed());
            assert!(matches!(sender.push(drops.value(9), 1), Err(PushError::Closed(Value { id: 9, .. }))));
            drop(sender);
            drops
        });
        let mut popped = 0;
        while !(receiver.is_closed() && receiver.is_empty()) {
            match receiver.pop() {
                Some(value) => {
                    assert_eq!(value.id, popped);
                    popped += 1;
                }
                None => thread::yield_now(),
            }
        }
        assert_eq!(producer.join().unwrap(), popped as usize);
        let drops = closer.join().unwrap();
        assert!(receiver.pop().is_none());
        assert_eq!(drops.count(), 3);
    });
}

#[test]
fn a_push_races_with_the_drop_of_the_receiver() {
    model(3, || {
        let drops = Drops::default();
        let (sender, mut receiver) = bounded(ROOMY);
        sender.push(drops.value(0), 5).unwrap();
        let producers = [1, 2].map(|id| {
            let (sender, drops) = (sender.clone(), drops.clone());
            thread::spawn(move || match sender.push(drops.value(id), 5) {
                Ok(()) => {}
                Err(PushError::Closed(value)) => assert_eq!(value.id, id),
                Err(PushError::Full(_)) => panic!("there is room"),
            })
        });
        assert_eq!(receiver.pop().map(|value| value.id), Some(0));
        drop(receiver);
        join(producers);
        // The sender is still there: nothing may wait for its end.
        assert_eq!(drops.count(), 3);
        assert_eq!((sender.len(), sender.bytes()), (0, 0));
        assert!(sender.is_closed() && sender.has_room());
    });
}

#[test]
fn a_token_races_with_the_drop_of_the_ring() {
    model(3, || {
        let drops = Drops::default();
        let (ring, ready) = ready_ring();
        let producers = [1, 2].map(|id| {
            let (ring, drops) = (ring.clone(), drops.clone());
            thread::spawn(move || ring.push(drops.value(id)))
        });
        drop(ready);
        join(producers);
        assert_eq!(drops.count(), 2);
        assert!(!ring.push(drops.value(3)));
        assert_eq!(drops.count(), 3);
    });
}

/// A connection as its handles see it.
struct Connection {
    sender: Sender<u64>,
    announce: Announce,
}

impl Connection {
    /// Returns whether a token was put on the ring.
    fn send(&self, ring: &RingSender<u8>, value: u64) -> bool {
        self.sender.push(value, 1).unwrap();
        self.announce.announce() && ring.push(0)
    }
}

/// Takes all tokens and drains for each; returns the sum of the values.
fn drain(ready: &mut RingReceiver<u8>, connection: &Connection, receiver: &mut Receiver<u64>) -> u64 {
    let mut sum = 0;
    while ready.pop().is_some() {
        connection.announce.begin_drain();
        while let Some(value) = receiver.pop() {
            sum += value;
        }
    }
    sum
}

/// Two producers announce while the dispatcher drains; the sum of what tokens led to, out of 0b11.
fn announced_sum(drain: fn(&mut RingReceiver<u8>, &Connection, &mut Receiver<u64>) -> u64) -> u64 {
    let (sender, mut receiver) = bounded(ROOMY);
    let (ring, mut ready) = ready_ring();
    let connection = Arc::new(Connection { sender, announce: Announce::new() });
    let producers = [0b01, 0b10].map(|value| {
        let (connection, ring) = (connection.clone(), ring.clone());
        thread::spawn(move || connection.send(&ring, value))
    });
    let mut sum = drain(&mut ready, &connection, &mut receiver);
    join(producers);
    sum += drain(&mut ready, &connection, &mut receiver);
    assert!(ready.is_empty());
    sum
}

#[test]
fn every_value_has_an_announced_token() {
    model(3, || assert_eq!(announced_sum(drain), 0b11));
}

#[cfg(loom)]
#[test]
#[should_panic(expected = "a value is left behind")]
fn the_model_catches_a_drain_before_begin_drain() {
    fn wrong(ready: &mut RingReceiver<u8>, connection: &Connection, receiver: &mut Receiver<u64>) -> u64 {
        let mut sum = 0;
        while ready.pop().is_some() {
            while let Some(value) = receiver.pop() {
                sum += value;
            }
            connection.announce.begin_drain();
        }
        sum
    }
    model(3, || assert_eq!(announced_sum(wrong), 0b11, "a value is left behind"));
}

/// What `epoll_wait` returns for. A sleeper that nobody wakes is a deadlock, which loom reports.
struct EventFd {
    readable: Mutex<bool>,
    changed: Condvar,
    writes: AtomicUsize,
}

impl EventFd {
    fn new() -> Arc<Self> {
        let writes = AtomicUsize::new(0);
        Arc::new(Self { readable: Mutex::new(false), changed: Condvar::new(), writes })
    }

    fn write(&self) {
        self.writes.fetch_add(1, Ordering::SeqCst);
        *self.readable.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut readable = self.readable.lock().unwrap();
        while !*readable {
            readable = self.changed.wait(readable).unwrap();
        }
        *readable = false;
    }
}

/// The dispatcher's loop: `work` until it says that all has come. Returns the number of sleeps.
fn run(wake: &WakeState, epoll: &EventFd, mut work: impl FnMut() -> Progress, arm: impl Fn()) -> usize {
    let mut sleeps = 0;
    loop {
        match work() {
            Progress::Finished => return sleeps,
            Progress::Some => continue,
            Progress::None => {}
        }
        wake.begin_arming();
        arm();
        match work() {
            Progress::None if wake.commit_sleep() => {
                sleeps += 1;
                epoll.wait();
                wake.wake_up();
            }
            Progress::None => {}
            Progress::Some => wake.wake_up(),
            Progress::Finished => return sleeps,
        }
    }
}

#[derive(PartialEq)]
enum Progress {
    None,
    Some,
    Finished,
}

/// Compares before and after, so that a `work` closure can say what it did.
fn progress(before: u64, after: u64, all: u64) -> Progress {
    match after {
        _ if after == all => Progress::Finished,
        _ if after == before => Progress::None,
        _ => Progress::Some,
    }
}

#[test]
fn a_sleeper_never_misses_a_push() {
    model(2, || {
        let (wake, epoll) = (Arc::new(WakeState::new()), EventFd::new());
        let (sender, mut receiver) = bounded(ROOMY);
        let producers = [0b01, 0b10].map(|value| {
            let (sender, wake, epoll) = (sender.clone(), wake.clone(), epoll.clone());
            thread::spawn(move || {
                sender.push(value, 1).unwrap();
                if wake.notify() {
                    epoll.write();
                }
            })
        });
        let mut sum = 0;
        let work = || {
            let before = sum;
            while let Some(value) = receiver.pop() {
                sum += value;
            }
            progress(before, sum, 0b11)
        };
        let sleeps = run(&wake, &epoll, work, || ());
        join(producers);
        // One write ends one sleep; the last one may have come while the dispatcher found the value.
        let writes = epoll.writes.load(Ordering::SeqCst);
        assert!((sleeps..=sleeps + 1).contains(&writes), "{sleeps} sleeps, {writes} writes");
    });
}

/// What the detector rests on: if it finds something queued while the state says asleep, then whoever pushed it has yet to end
/// the sleep, or has. Waiting for that ends, so a producer that is merely late is never taken for a lost wake-up.
#[test]
fn what_is_found_in_sleep_is_still_announced() {
    model(3, || {
        let (wake, epoll) = (Arc::new(WakeState::new()), EventFd::new());
        let (sender, mut receiver) = bounded(ROOMY);
        let producers = [0b01, 0b10].map(|value| {
            let (sender, wake, epoll) = (sender.clone(), wake.clone(), epoll.clone());
            thread::spawn(move || {
                sender.push(value, 1).unwrap();
                if wake.notify() {
                    epoll.write();
                }
            })
        });
        wake.begin_arming();
        if receiver.is_empty() && wake.commit_sleep() {
            // The detector's time is over at once.
            if !receiver.is_empty() {
                epoll.wait();
            }
            wake.wake_up();
        } else {
            wake.wake_up();
        }
        join(producers);
        let mut sum = 0;
        while let Some(value) = receiver.pop() {
            sum += value;
        }
        assert_eq!(sum, 0b11);
    });
}

/// With the state at running before the queue is looked at, as a sleep that is over would have it, it may never end.
#[cfg(loom)]
#[test]
#[should_panic(expected = "it would wait for ever")]
fn the_model_catches_a_look_after_wake_up() {
    model(3, || {
        let (wake, epoll) = (Arc::new(WakeState::new()), EventFd::new());
        let (sender, mut receiver) = bounded(ROOMY);
        let producer = {
            let (wake, epoll) = (wake.clone(), epoll.clone());
            thread::spawn(move || {
                sender.push(0b01, 1).unwrap();
                if wake.notify() {
                    epoll.write();
                }
            })
        };
        let mut waits = false;
        wake.begin_arming();
        if receiver.is_empty() && wake.commit_sleep() {
            wake.wake_up();
            waits = !receiver.is_empty();
        }
        join([producer]);
        assert!(!waits || epoll.writes.load(Ordering::SeqCst) > 0, "it would wait for ever");
        while receiver.pop().is_some() {}
    });
}

#[test]
fn a_sleeper_never_misses_a_token() {
    model(2, || {
        let (wake, epoll) = (Arc::new(WakeState::new()), EventFd::new());
        let (sender, mut receiver) = bounded(ROOMY);
        let (ring, mut ready) = ready_ring();
        let connection = Arc::new(Connection { sender, announce: Announce::new() });
        let producers = [0b01, 0b10].map(|value| {
            let (connection, ring) = (connection.clone(), ring.clone());
            let (wake, epoll) = (wake.clone(), epoll.clone());
            thread::spawn(move || {
                if connection.send(&ring, value) && wake.notify() {
                    epoll.write();
                }
            })
        });
        let mut sum = 0;
        let work = || {
            let before = sum;
            sum += drain(&mut ready, &connection, &mut receiver);
            progress(before, sum, 0b11)
        };
        run(&wake, &epoll, work, || ());
        join(producers);
        receiver.invariants();
    });
}

/// A worker as verbs has it: a completion raises an event only if it comes after the arming.
struct Worker {
    completions: AtomicU64,
    armed: AtomicBool,
}

impl Worker {
    fn new() -> Arc<Self> {
        Arc::new(Self { completions: AtomicU64::new(0), armed: AtomicBool::new(false) })
    }

    fn complete(&self, epoll: &EventFd) {
        self.completions.fetch_add(1, Ordering::AcqRel);
        if self.armed.swap(false, Ordering::AcqRel) {
            epoll.write();
        }
    }

    fn arm(&self) {
        self.armed.swap(true, Ordering::AcqRel);
    }

    fn progress(&self) -> u64 {
        match self.completions.load(Ordering::Acquire) {
            0 => 0,
            _ => self.completions.swap(0, Ordering::AcqRel),
        }
    }
}

#[test]
fn a_sleeper_never_misses_a_worker_event_or_a_push() {
    model(2, || {
        let (wake, epoll, worker) = (Arc::new(WakeState::new()), EventFd::new(), Worker::new());
        let (sender, mut receiver) = bounded(ROOMY);
        let device = {
            let (worker, epoll) = (worker.clone(), epoll.clone());
            thread::spawn(move || worker.complete(&epoll))
        };
        let producer = {
            let (wake, epoll) = (wake.clone(), epoll.clone());
            thread::spawn(move || {
                sender.push(0b10, 1).unwrap();
                if wake.notify() {
                    epoll.write();
                }
            })
        };
        let mut sum = 0;
        let work = || {
            let before = sum;
            sum += worker.progress();
            while let Some(value) = receiver.pop() {
                sum += value;
            }
            progress(before, sum, 0b11)
        };
        run(&wake, &epoll, work, || worker.arm());
        device.join().unwrap();
        producer.join().unwrap();
    });
}

/// A dispatcher that sleeps without looking at its sources once more. Instead of sleeping it returns
/// whether it would have slept for ever: loom cannot unwind from a deadlock through our destructors.
#[cfg(loom)]
fn sleeps_for_ever<const N: usize>(
    wake: &WakeState,
    epoll: &EventFd,
    mut work: impl FnMut() -> Progress,
    arm: impl Fn(),
    others: [thread::JoinHandle<()>; N],
) -> bool {
    let finished = work() == Progress::Finished;
    wake.begin_arming();
    arm();
    let asleep = !finished && wake.commit_sleep();
    join(others);
    asleep && !*epoll.readable.lock().unwrap()
}

#[cfg(loom)]
#[test]
#[should_panic(expected = "a push is missed")]
fn the_model_catches_a_sleeper_that_does_not_look_at_its_queue_again() {
    model(3, || {
        let (wake, epoll) = (Arc::new(WakeState::new()), EventFd::new());
        let (sender, mut receiver) = bounded(ROOMY);
        let producer = {
            let (wake, epoll) = (wake.clone(), epoll.clone());
            thread::spawn(move || {
                sender.push(1, 1).unwrap();
                if wake.notify() {
                    epoll.write();
                }
            })
        };
        let work = || progress(0, receiver.pop().unwrap_or(0), 1);
        assert!(!sleeps_for_ever(&wake, &epoll, work, || (), [producer]), "a push is missed");
    });
}

#[cfg(loom)]
#[test]
#[should_panic(expected = "an event is missed")]
fn the_model_catches_a_sleeper_that_does_not_progress_after_arming() {
    model(3, || {
        let (wake, epoll, worker) = (WakeState::new(), EventFd::new(), Worker::new());
        let device = {
            let (worker, epoll) = (worker.clone(), epoll.clone());
            thread::spawn(move || worker.complete(&epoll))
        };
        let work = || progress(0, worker.progress(), 1);
        assert!(!sleeps_for_ever(&wake, &epoll, work, || worker.arm(), [device]), "an event is missed");
    });
}
