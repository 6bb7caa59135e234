//! Random bursts with random pauses: whatever order sleeps, edges and frames come in, nothing is late or lost.

use std::{
    thread,
    time::{Duration, Instant},
};

use ucrpc::transport::{Connection, ConnectionConfig, WaitPolicy};

use super::Case;
use crate::{
    bed::Bed,
    tools::{Rng, block_for, block_on, check_numbered, numbered, soak_seconds},
};

pub const CASES: &[Case] = &[
    Case::all("soak_busy", soak_busy),
    Case::all("soak_adaptive", soak_adaptive).and_auto(),
    Case::all("soak_event", soak_event),
    Case::all("soak_mixed", soak_mixed),
];

/// Frames that one side sends at once.
const MOST: u64 = 40;

/// Frames that each sender sends at least.
const LEAST: u32 = 100;

/// Sends bursts for as long as the soak lasts; the last frame has number `u32::MAX`.
fn send(end: &Connection, id: u32, until: Instant) -> impl FnOnce() + Send + 'static {
    let sender = end.sender();
    move || {
        let mut rng = Rng::new(id.into());
        let mut number = 0;
        // A starved machine does not get far in a short time.
        while Instant::now() < until || number < LEAST {
            for _ in 0..rng.below(MOST) {
                let body = match rng.below(20) {
                    0 => rng.below(400_000),
                    1..4 => rng.below(20_000),
                    _ => rng.below(200),
                };
                block_on(sender.send_wait(numbered(id, number, 8, body as usize))).unwrap();
                number += 1;
            }
            match rng.below(6) {
                0 | 1 => {}
                2 => thread::yield_now(),
                3 => (0..rng.below(50_000)).for_each(|_| std::hint::spin_loop()),
                4 => thread::sleep(Duration::from_micros(rng.below(200))),
                _ => thread::sleep(Duration::from_micros(rng.below(5000))),
            }
        }
        block_on(sender.send_wait(numbered(id, u32::MAX, 8, 0))).unwrap();
    }
}

/// Receives until the last frame. The detector's 100 ms would only delay a lost wake-up; here it must not be needed.
fn receive(end: &mut Connection, id: u32) -> u32 {
    for next in 0.. {
        let frame = block_for(Duration::from_secs(20), end.recv()).expect("frames go on coming").unwrap();
        match check_numbered(frame) {
            (from, u32::MAX) if from == id => return next,
            got => assert_eq!(got, (id, next)),
        }
    }
    unreachable!()
}

fn soak(bed: &Bed, client: WaitPolicy, server: WaitPolicy) {
    bed.client.set_wait_policy(client);
    bed.server.set_wait_policy(server);
    let until = Instant::now() + soak_seconds().unwrap_or(Duration::from_millis(1500));
    let config = ConnectionConfig { recv_window_frames: 64, ..ConnectionConfig::default() };
    let mut listener = bed.listen_as(&config);
    let mut pairs: Vec<_> = (0..3).map(|_| bed.pair_on(&mut listener, &config)).collect();
    let frames = thread::scope(|scope| {
        let mut receiving = Vec::new();
        for (i, (client, server)) in pairs.iter_mut().enumerate() {
            let id = i as u32 * 2;
            scope.spawn(send(client, id, until));
            scope.spawn(send(server, id + 1, until));
            receiving.push(scope.spawn(move || receive(client, id + 1)));
            receiving.push(scope.spawn(move || receive(server, id)));
        }
        receiving.into_iter().map(|t| u64::from(t.join().unwrap())).sum::<u64>()
    });
    assert!(frames >= 6 * u64::from(LEAST), "only {frames} frames");
    for (client, _) in &pairs {
        block_on(client.close()).unwrap();
    }
    for dispatcher in [&bed.client, &bed.server] {
        let stats = dispatcher.stats();
        assert_eq!(stats.wake_detector_hits, 0, "{stats:#?}");
        eprintln!("{}: {frames} frames, {} sleeps of {}", bed.backend.name, stats.sleeps, dispatcher.name());
    }
}

const ADAPTIVE: WaitPolicy = WaitPolicy::Adaptive { spin: Duration::from_micros(50) };

fn soak_busy(bed: &Bed) {
    soak(bed, WaitPolicy::Busy, WaitPolicy::Busy);
}

fn soak_adaptive(bed: &Bed) {
    soak(bed, ADAPTIVE, ADAPTIVE);
}

fn soak_event(bed: &Bed) {
    soak(bed, WaitPolicy::Event, WaitPolicy::Event);
}

fn soak_mixed(bed: &Bed) {
    soak(bed, WaitPolicy::Adaptive { spin: Duration::from_micros(5) }, WaitPolicy::Event);
}
