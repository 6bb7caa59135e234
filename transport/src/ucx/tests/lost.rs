//! Whether a sleeping worker is woken: a rally between two threads, each of which sleeps on its worker's descriptor.
//!
//! Over verbs it is not enough to sleep once `ucp_worker_arm` has said yes, and on Soft-RoCE one more progress at once is not enough
//! either (`docs/rdma.md`). This counts how often each ritual is not woken. `ci/rdma-guest.sh` runs it over verbs; over tcp:
//! `UCX_TLS=tcp UCRPC_TEST_UCX_SCENARIO=rally <the test binary> --exact ucx::tests::child --ignored --nocapture`

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

/// What is done between arming and sleeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ritual {
    /// Nothing.
    Bare,
    /// One progress.
    Once,
    /// One progress, a look at the descriptor, one more progress: what the dispatcher does.
    Twice,
}

/// So long does a side sleep at most. All else here takes a small part of it.
const SLEEP: Duration = Duration::from_millis(100);

#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    messages: u64,
    sleeps: u64,
    /// The progress right after the arming found something.
    found: u64,
    /// The one after the look at the descriptor did.
    found_late: u64,
    /// A message was there when the time was over, and the descriptor told of it only then: it had just come.
    just_come: u64,
    /// A message was there when the time was over, and the descriptor stayed silent.
    lost: u64,
}

fn readable(worker: &Worker, timeout: Duration) -> bool {
    let fd = worker.event_fd();
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.as_nanos() as i64 };
    poll(&mut fds, Some(&timeout)).is_ok_and(|n| n > 0)
}

/// Whether to sleep: true if there is nothing to do and the next thing makes the descriptor readable, as far as the ritual knows.
fn fall_asleep(worker: &mut Worker, ritual: Ritual, tally: &mut Tally) -> bool {
    if worker.arm().expect("arms") == Armed::Busy {
        return false;
    }
    if ritual != Ritual::Bare && worker.progress() != 0 {
        tally.found += 1;
        return false;
    }
    if ritual == Ritual::Twice {
        if readable(worker, Duration::ZERO) {
            return false;
        }
        if worker.progress() != 0 {
            tally.found_late += 1;
            return false;
        }
    }
    true
}

/// Answers every message with one, after a pause of random length, until `end`; then says goodbye.
fn rally(worker: &mut Worker, to: EndpointId, ritual: Ritual, seed: u64, end: Instant) -> Tally {
    let (mut tally, mut random, mut timed_out) = (Tally::default(), seed, false);
    let mut said_bye = false;
    loop {
        let mut worked = worker.progress() != 0;
        let (mut got, mut bye) = (0, false);
        while let Some(event) = worker.poll_event() {
            worked = true;
            match event {
                Event::Message { header, .. } if header.to_vec() == b"bye" => bye = true,
                Event::Message { .. } => got += 1,
                Event::SendDone { result, .. } => result.expect("sending works"),
                other => panic!("unexpected: {other:?}"),
            }
        }
        // Nobody sends for a time as long as a sleep unless it was woken: what is here came long ago, or a packet was lost, or a
        // virtual processor stood still. What has just come announces itself, as the dispatcher's detector knows.
        if timed_out && got > 0 {
            let announced = readable(worker, SLEEP / 2);
            tally.just_come += u64::from(announced);
            tally.lost += u64::from(!announced);
        }
        tally.messages += got;
        for _ in 0..got {
            // The moments in which messages arrive wander across the other side's ritual.
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            for _ in 0..(random >> 33) % 2000 {
                std::hint::spin_loop();
            }
            let _ = worker.send_copy(to, b"more", [b"", b""], 0).expect("sends");
        }
        if !said_bye && (bye || Instant::now() > end) {
            let _ = worker.send_copy(to, b"bye", [b"", b""], 0).expect("sends");
            said_bye = true;
        }
        if bye {
            return tally;
        }
        timed_out = false;
        if worked || !fall_asleep(worker, ritual, &mut tally) {
            continue;
        }
        tally.sleeps += 1;
        timed_out = !readable(worker, SLEEP) && !readable(worker, Duration::ZERO);
    }
}

/// A rally of some seconds with the ritual that `UCRPC_RITUAL` names.
pub(super) fn rally_of_two() {
    let text = |name: &str| std::env::var(name).unwrap_or_default();
    let ritual = match text("UCRPC_RITUAL").as_str() {
        "bare" => Ritual::Bare,
        "once" => Ritual::Once,
        _ => Ritual::Twice,
    };
    let seconds = text("UCRPC_RALLY_SECONDS").parse().unwrap_or(5);
    let (tell_address, other_address) = std::sync::mpsc::channel::<Vec<u8>>();
    let (tell_mine, mine) = std::sync::mpsc::channel::<Vec<u8>>();
    let side = move |first: bool, tell: std::sync::mpsc::Sender<Vec<u8>>, hear: std::sync::mpsc::Receiver<Vec<u8>>| {
        let mut worker = Worker::new().expect("this test needs UCX");
        tell.send(worker.address().to_vec()).expect("the other side is here");
        let to = worker.connect(&hear.recv().expect("the other side is here")).expect("reachable");
        let _ = worker.send_copy(to, b"more", [b"", b""], 0).expect("sends");
        let end = Instant::now() + Duration::from_secs(seconds);
        let tally = rally(&mut worker, to, ritual, u64::from(first), end);
        println!("\nlanes {}", worker.endpoint_info(to));
        // The other side may wait for the last word.
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            worker.progress();
        }
        worker.close(to);
        assert!(worker.shutdown(Instant::now() + Duration::from_secs(5)), "parked");
        tally
    };
    let other = std::thread::spawn(move || side(false, tell_address, mine));
    let ours = side(true, tell_mine, other_address);
    let theirs = other.join().expect("no panic");
    println!("\nRALLY {ritual:?} {ours:?} {theirs:?}");
    println!(
        "SLEEPS {} FOUND {} LATE {} JUST COME {} LOST {}",
        ours.sleeps + theirs.sleeps,
        ours.found + theirs.found,
        ours.found_late + theirs.found_late,
        ours.just_come + theirs.just_come,
        ours.lost + theirs.lost
    );
}
