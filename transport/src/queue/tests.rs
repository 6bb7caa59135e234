//! The oracle test, stress with real threads, drop counters, and the memory budget.

use super::*;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::mem::size_of;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

/// How often things run: Miri takes some thousand times as long.
const fn scaled(count: usize) -> usize {
    if cfg!(miri) { count.div_ceil(1000) } else { count }
}

#[derive(Debug, Clone)]
enum Operation {
    Push { sender: usize, weight: u64 },
    Pop,
    CloneSender(usize),
    DropSender(usize),
    CloseSender(usize),
    CloseReceiver,
    DropReceiver,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        12 => (0..4usize, 0..40u64).prop_map(|(sender, weight)| Operation::Push { sender, weight }),
        2 => (0..4usize, any::<u64>()).prop_map(|(sender, weight)| Operation::Push { sender, weight }),
        10 => Just(Operation::Pop),
        2 => (0..4usize).prop_map(Operation::CloneSender),
        1 => (0..4usize).prop_map(Operation::DropSender),
        1 => (0..4usize).prop_map(Operation::CloseSender),
        1 => Just(Operation::CloseReceiver),
        1 => Just(Operation::DropReceiver),
    ]
}

/// A value that writes its id down when it is dropped.
#[derive(Debug)]
struct Logged {
    id: usize,
    log: Rc<RefCell<Vec<usize>>>,
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.log.borrow_mut().push(self.id);
    }
}

/// What the queue should do, in the plainest words.
struct Oracle {
    limits: Limits,
    values: VecDeque<(usize, u64)>,
    closed: bool,
}

impl Oracle {
    fn bytes(&self) -> u64 {
        self.values.iter().map(|(_, weight)| weight).sum()
    }

    fn admits(&self, weight: u64) -> bool {
        self.values.is_empty()
            || (self.values.len() < self.limits.messages as usize && self.bytes() + weight <= self.limits.bytes)
    }
}

/// Applies the operations to both and compares after each; returns the ids of the values dropped.
fn compare(limits: Limits, operations: Vec<Operation>) -> Result<(), TestCaseError> {
    let log = Rc::new(RefCell::new(Vec::new()));
    let mut oracle = Oracle { limits, values: VecDeque::new(), closed: false };
    let (sender, receiver) = bounded(limits);
    let (mut senders, mut receiver) = (vec![sender], Some(receiver));
    let mut dropped = Vec::new();
    for (id, operation) in operations.into_iter().enumerate() {
        match operation {
            Operation::Push { sender, weight } if sender < senders.len() => {
                // The heaviest weight there is, as documented.
                let counted = weight.min((1 << 38) - 1);
                let expected = match (oracle.closed, oracle.admits(counted)) {
                    (true, _) => Err(PushError::Closed(id)),
                    (false, false) => Err(PushError::Full(id)),
                    (false, true) => Ok(()),
                };
                prop_assert_eq!(
                    senders[sender].has_room_for(weight),
                    !expected.as_ref().is_err_and(PushError::is_full)
                );
                let result = senders[sender].push(Logged { id, log: log.clone() }, weight);
                match &result {
                    Ok(()) => oracle.values.push_back((id, counted)),
                    Err(_) => dropped.push(id),
                }
                let result = result.map_err(|error| match error {
                    PushError::Full(value) => PushError::Full(value.id),
                    PushError::Closed(value) => PushError::Closed(value.id),
                });
                prop_assert_eq!(result, expected);
            }
            Operation::Pop => {
                if let Some(receiver) = &mut receiver {
                    let popped = receiver.pop().map(|value| value.id);
                    prop_assert_eq!(popped, oracle.values.pop_front().map(|(id, _)| id));
                    dropped.extend(popped);
                }
            }
            Operation::CloneSender(sender) if sender < senders.len() && senders.len() < 4 => {
                senders.push(senders[sender].clone());
            }
            Operation::DropSender(sender) if sender < senders.len() => drop(senders.swap_remove(sender)),
            Operation::CloseSender(sender) if sender < senders.len() => {
                senders[sender].close();
                oracle.closed = true;
            }
            Operation::CloseReceiver => {
                if let Some(receiver) = &mut receiver {
                    receiver.close();
                    oracle.closed = true;
                }
            }
            Operation::DropReceiver => {
                if receiver.take().is_some() {
                    oracle.closed = true;
                    dropped.extend(oracle.values.drain(..).map(|(id, _)| id));
                }
            }
            // For a sender that is gone.
            _ => continue,
        }
        for sender in &senders {
            prop_assert_eq!((sender.len(), sender.bytes()), (oracle.values.len(), oracle.bytes()));
            prop_assert_eq!(sender.is_empty(), oracle.values.is_empty());
            prop_assert_eq!(sender.is_closed(), oracle.closed);
            prop_assert_eq!(sender.has_room(), oracle.closed || oracle.admits(1));
        }
        if let Some(receiver) = &receiver {
            receiver.invariants();
            prop_assert_eq!((receiver.len(), receiver.bytes()), (oracle.values.len(), oracle.bytes()));
            prop_assert_eq!(receiver.is_empty(), oracle.values.is_empty());
            prop_assert_eq!(receiver.is_closed(), oracle.closed);
        }
        prop_assert_eq!(&*log.borrow(), &dropped);
    }
    // What is left goes with the receiver, in order, whoever is the last.
    drop(senders);
    drop(receiver);
    dropped.extend(oracle.values.drain(..).map(|(id, _)| id));
    prop_assert_eq!(&*log.borrow(), &dropped);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 8 } else { 2000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn behaves_like_the_oracle(
        messages in 1..6u32,
        bytes in 0..80u64,
        operations in prop::collection::vec(operation(), 0..if cfg!(miri) { 60 } else { 200 }),
    ) {
        compare(Limits { messages, bytes }, operations)?;
    }
}

#[test]
fn limits_are_clamped_to_what_one_word_counts() {
    let (sender, _receiver) = bounded(Limits { messages: 0, bytes: 0 });
    sender.push((), 0).unwrap();
    assert!(sender.push((), 0).unwrap_err().is_full());

    let (sender, mut receiver) = bounded(Limits { messages: u32::MAX, bytes: u64::MAX });
    sender.push(1, u64::MAX).unwrap();
    assert!(sender.push(2, 1).unwrap_err().is_full());
    sender.push(2, 0).unwrap();
    assert_eq!((sender.len(), sender.bytes()), (2, (1 << 38) - 1));
    assert_eq!((receiver.pop(), receiver.pop(), receiver.pop()), (Some(1), Some(2), None));
    assert_eq!((sender.len(), sender.bytes()), (0, 0));
}

#[test]
fn zero_sized_and_large_values_pass() {
    let (sender, mut receiver) = bounded(Limits { messages: 4, bytes: 0 });
    for _ in 0..3 {
        sender.push((), 0).unwrap();
    }
    assert_eq!((0..4).filter(|_| receiver.pop().is_some()).count(), 3);

    let (sender, mut receiver) = bounded(Limits { messages: 4, bytes: 0 });
    for round in 0..10u8 {
        sender.push([round; 1000], 0).unwrap();
        sender.push([round + 100; 1000], 0).unwrap();
        assert_eq!(receiver.pop(), Some([round; 1000]));
        assert_eq!(receiver.pop(), Some([round + 100; 1000]));
    }
}

#[test]
fn errors_say_what_happened_and_hold_the_value() {
    let error = PushError::Full("a");
    assert_eq!(error.to_string(), "the queue is full");
    assert_eq!(error.into_inner(), "a");
    let error = PushError::Closed(String::from("b"));
    assert_eq!(error.to_string(), "the queue is closed");
    assert!(!error.is_full());
    assert_eq!(error.into_inner(), "b");
}

struct Counted(Arc<AtomicUsize>, bool);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        assert!(!self.1, "this value panics");
    }
}

#[test]
fn a_value_that_panics_as_it_is_dropped_does_not_keep_the_others() {
    let drops = Arc::new(AtomicUsize::new(0));
    let value = |panics| Counted(drops.clone(), panics);
    let (sender, receiver) = bounded(Limits { messages: 10, bytes: 0 });
    let (ring, ready) = ready_ring();
    for number in 0..3 {
        assert!(sender.push(value(number == 1), 0).is_ok());
        assert!(ring.push(value(number == 0)));
    }
    for half in [Box::new(receiver) as Box<dyn std::any::Any>, Box::new(ready)] {
        let half = std::panic::AssertUnwindSafe(half);
        std::panic::catch_unwind(move || drop(half)).unwrap_err();
    }
    assert_eq!(drops.load(Ordering::Relaxed), 6);
    assert!(sender.is_closed());
    assert!(!ring.push(value(false)));
}

#[test]
fn many_producers_and_a_receiver_that_goes_away() {
    for round in 0..scaled(300) {
        let drops = Arc::new(AtomicUsize::new(0));
        let (sender, mut receiver) = bounded(Limits { messages: 64, bytes: 1 << 20 });
        let producers: Vec<_> = (0..3)
            .map(|_| {
                let (sender, drops) = (sender.clone(), drops.clone());
                thread::spawn(move || {
                    let mut made = 0;
                    loop {
                        made += 1;
                        match sender.push(Counted(drops.clone(), false), made as u64) {
                            Err(PushError::Closed(_)) => return made,
                            Err(PushError::Full(_)) => thread::yield_now(),
                            Ok(()) => {}
                        }
                    }
                })
            })
            .collect();
        let mut popped = 0;
        while popped < round % 100 {
            match receiver.pop() {
                Some(_) => popped += 1,
                None => thread::yield_now(),
            }
        }
        drop(receiver);
        let made: usize = producers.into_iter().map(|producer| producer.join().unwrap()).sum();
        assert_eq!(drops.load(Ordering::Relaxed), made);
        assert_eq!((sender.len(), sender.bytes()), (0, 0));
    }
}

#[test]
fn values_keep_the_order_of_their_thread_under_load() {
    const PRODUCERS: u64 = 4;
    let limits = Limits { messages: 100, bytes: 1000 };
    let count = scaled(100_000) as u64;
    let (sender, mut receiver) = bounded(limits);
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|producer| {
            let sender = sender.clone();
            thread::spawn(move || {
                for number in 0..count {
                    let mut value = (producer, number, [number; 6]);
                    while let Err(error) = sender.push(value, number % 30) {
                        value = error.into_inner();
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let mut next = [0; PRODUCERS as usize];
    while next.iter().sum::<u64>() < PRODUCERS * count {
        assert!(receiver.len() <= 100 && receiver.bytes() <= 1000);
        match receiver.pop() {
            Some((producer, number, copies)) => {
                assert_eq!(number, next[producer as usize]);
                assert_eq!(copies, [number; 6]);
                next[producer as usize] += 1;
            }
            None => thread::yield_now(),
        }
    }
    producers.into_iter().for_each(|producer| producer.join().unwrap());
    assert!(receiver.is_empty() && receiver.pop().is_none());
}

/// The whole path with real threads and a parked dispatcher: a lost wake-up is a hang that the
/// timeout turns into a failure.
#[test]
fn the_ritual_under_load_loses_no_wake_up() {
    const CONNECTIONS: usize = 3;
    let count = scaled(50_000) as u64;
    let wake = Arc::new(WakeState::new());
    let (ring, mut ready) = ready_ring::<usize>();
    let (connections, mut receivers): (Vec<_>, Vec<_>) = (0..CONNECTIONS)
        .map(|_| {
            let (sender, receiver) = bounded::<u64>(Limits { messages: 1000, bytes: 1 << 30 });
            (Arc::new((sender, Announce::new())), receiver)
        })
        .unzip();
    let received = Arc::new(AtomicU64::new(0));
    let dispatcher_thread = thread::current();
    let producers: Vec<_> = (0..2 * CONNECTIONS)
        .map(|producer| {
            let connection = connections[producer % CONNECTIONS].clone();
            let (ring, wake, dispatcher) = (ring.clone(), wake.clone(), dispatcher_thread.clone());
            thread::spawn(move || {
                for number in 0..count {
                    while connection.0.push(number, 1).is_err() {
                        thread::yield_now();
                    }
                    if connection.1.announce() && ring.push(producer % CONNECTIONS) && wake.notify() {
                        dispatcher.unpark();
                    }
                    if number % 64 == 0 {
                        // Lets the dispatcher go to sleep now and then.
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let all = 2 * CONNECTIONS as u64 * count;
    let mut sleeps = 0u64;
    while received.load(Ordering::Relaxed) < all {
        while let Some(token) = ready.pop() {
            connections[token].1.begin_drain();
            while receivers[token].pop().is_some() {
                received.fetch_add(1, Ordering::Relaxed);
            }
        }
        if received.load(Ordering::Relaxed) == all {
            break;
        }
        wake.begin_arming();
        if !ready.is_empty() {
            wake.wake_up();
        } else if wake.commit_sleep() {
            sleeps += 1;
            let start = std::time::Instant::now();
            thread::park_timeout(std::time::Duration::from_secs(20));
            assert!(start.elapsed().as_secs() < 20, "a wake-up was lost");
            wake.wake_up();
        }
    }
    producers.into_iter().for_each(|producer| producer.join().unwrap());
    assert!(ready.is_empty() && receivers.iter().all(Receiver::is_empty));
    assert!(sleeps > 0, "the dispatcher never slept: this run proved nothing");
}

#[test]
fn only_a_sleeper_is_woken_and_only_once() {
    let wake = WakeState::new();
    assert!(!wake.notify());
    wake.begin_arming();
    assert!(!wake.notify());
    assert!(!wake.commit_sleep());
    wake.begin_arming();
    assert!(wake.commit_sleep());
    assert!(wake.notify());
    assert!(!wake.notify());
    wake.wake_up();
    assert!(!wake.notify());
}

#[test]
fn a_connection_is_announced_once_per_drain() {
    let announce = Announce::default();
    assert!(announce.announce());
    assert!(!announce.announce());
    announce.begin_drain();
    assert!(announce.announce());
}

#[test]
fn an_idle_connection_is_small() {
    type Message = [u64; 8];
    // Without the allocator's own 8 to 16 bytes for each of the two pieces.
    assert!(mpsc::idle_heap::<Message>() <= 136, "{}", mpsc::idle_heap::<Message>());
    assert!(mpsc::idle_heap::<[u64; 16]>() <= 200, "{}", mpsc::idle_heap::<[u64; 16]>());
    assert!(ring::idle_heap::<u32>() <= 40);
    assert_eq!(size_of::<Sender<Message>>(), 8);
    assert_eq!(size_of::<Receiver<Message>>(), 24);
    assert_eq!(size_of::<Announce>(), 1);
    assert_eq!((size_of::<RingSender<u32>>(), size_of::<RingReceiver<u32>>()), (8, 24));
}

#[test]
fn the_halves_cross_threads() {
    const fn send<T: Send>() {}
    const fn send_and_sync<T: Send + Sync>() {}
    // `Cell` is `Send` but not `Sync`: that is all that is asked of a value.
    send_and_sync::<Sender<std::cell::Cell<u8>>>();
    send::<Receiver<std::cell::Cell<u8>>>();
    send_and_sync::<RingSender<std::cell::Cell<u8>>>();
    send::<RingReceiver<std::cell::Cell<u8>>>();
    send_and_sync::<WakeState>();
    send_and_sync::<Announce>();
}
