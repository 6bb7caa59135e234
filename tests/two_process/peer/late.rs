//! How long this process was kept from running: what a busy machine adds to every deadline.

use std::{
    collections::VecDeque,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::process::now_us;

/// Between two looks.
const TICK: Duration = Duration::from_millis(5);
/// Less is no delay.
const USUAL: Duration = Duration::from_millis(5);
/// Delays that are remembered.
const KEPT: usize = 10_000;

static DELAYS: Mutex<VecDeque<(u64, Duration)>> = Mutex::new(VecDeque::new());

/// Starts to watch.
pub(super) fn watch() {
    std::thread::spawn(|| {
        loop {
            let start = Instant::now();
            std::thread::sleep(TICK);
            let late = start.elapsed().saturating_sub(TICK);
            if late > USUAL {
                let mut delays = DELAYS.lock().expect("not poisoned");
                delays.push_back((now_us(), late));
                if delays.len() > KEPT {
                    delays.pop_front();
                }
            }
        }
    });
}

/// Microseconds lost in the 3 seconds before `at`.
pub(super) fn before(at: u64) -> u64 {
    let delays = DELAYS.lock().expect("not poisoned");
    let window = at.saturating_sub(3_000_000)..=at + 100_000;
    delays.iter().filter(|(when, _)| window.contains(when)).map(|(_, late)| late.as_micros() as u64).sum()
}
