//! The ritual of going to sleep, and the detector behind it.

use std::time::Duration;

use super::{
    engine::Engine,
    io::{Core, Io, Source, WorkerSlot},
};
use crate::{event::poller::Key, stats::DispatcherCounters, ucx::Armed};

/// So often in a row, with nothing done in between, a worker may say that it is busy before the thread naps all the same. Over
/// shared memory it says so while messages wait for room in a peer's queue, which may be long, or for ever if the peer is dead.
const BUSY_ARMS: u32 = 1000;
/// How long such a nap is: the most that a message of a busy worker is late.
const NAP: Duration = Duration::from_millis(1);
/// The shortest sleep of the detector.
const SHORTEST: Duration = Duration::from_millis(1);
/// A worker's descriptor that stays ready although progress finds nothing is believed this often in a row.
const USELESS_EDGES: u32 = 3;

/// So many further sleeps of the detector's length, without a wake-up, make what is queued unannounced a lost wake-up. A producer
/// that the system stopped between its push and its notification writes the event descriptor as soon as it runs again, because
/// the state still says asleep.
const CONFIRMATIONS: u32 = 5;

/// How long to sleep.
pub(super) struct Asleep {
    pub(super) timeout: Duration,
    /// It is a timer's time; else the detector's.
    pub(super) by_timer: bool,
}

impl Core {
    /// Whether any queue that others fill has something. Part of the sleep ritual.
    fn has_queued_work(&self) -> bool {
        !self.ring.is_empty()
            || !self.io.ready.is_empty()
            || !self.io.shared.commands.is_empty()
            || !self.io.shared.woken_tasks.is_empty()
            || !self.io.doomed.is_empty()
    }

    /// Sleeps in the poller, if nothing is left to do.
    pub(super) fn sleep(&mut self, woken: &dyn Fn() -> bool) {
        let Some(asleep) = self.fall_asleep(woken) else { return };
        if let Err(error) = self.io.poller.poll(Some(asleep.timeout)) {
            tracing::error!(%error, "the poller failed");
        }
        let lost = !asleep.by_timer && self.is_lost();
        self.io.shared.wake.wake_up();
        self.update_clock();
        self.after_sleep(Some(asleep.by_timer), lost);
    }

    /// Ends a sleep that somebody else's poller has slept: `timed_out` says that its time is over.
    #[cfg(feature = "tokio")]
    pub(super) fn wake_up_elsewhere(&mut self, asleep: &Asleep, timed_out: bool) {
        if let Err(error) = self.io.poller.poll(Some(Duration::ZERO)) {
            tracing::error!(%error, "the poller failed");
        }
        let lost = timed_out && !asleep.by_timer && self.is_lost();
        self.io.shared.wake.wake_up();
        self.update_clock();
        self.after_sleep(timed_out.then_some(asleep.by_timer), lost);
    }

    /// Whether something is queued, after a sleep that only the detector has ended, and nobody announces it. To be asked
    /// before the state says that the dispatcher runs: until then whoever has pushed and not notified will end a sleep.
    fn is_lost(&mut self) -> bool {
        for _ in 0..CONFIRMATIONS {
            if !self.io.poller.is_silent() || !self.has_queued_work() {
                return false;
            }
            let detector = self.io.shared.config.detector.max(SHORTEST);
            if let Err(error) = self.io.poller.poll(Some(detector)) {
                tracing::error!(%error, "the poller failed");
                return false;
            }
        }
        self.io.poller.is_silent()
    }

    /// Goes to sleep, by the ritual: announce, look at every queue, arm UCX, let it work once more, make sure that no
    /// edge of its descriptor was used up, let UCX work a last time, commit. What is left is to wait for the poller's
    /// descriptor, and to wake up.
    pub(super) fn fall_asleep(&mut self, woken: &dyn Fn() -> bool) -> Option<Asleep> {
        let shared = self.io.shared.clone();
        let counters = &shared.counters;
        counters.arms.add(1);
        shared.wake.begin_arming();
        if woken() || self.has_queued_work() {
            counters.arm_queue_busy.add(1);
            shared.wake.wake_up();
            return None;
        }
        let armed = self.arm();
        if !armed && self.io.busy_arms.0 < BUSY_ARMS {
            shared.wake.wake_up();
            return None;
        }
        if !shared.wake.commit_sleep() {
            counters.commit_refused.add(1);
            shared.wake.wake_up();
            return None;
        }
        self.update_clock();
        // Nobody else says for as long as it sleeps how things stand.
        self.io.publish(self.conns.len());
        let detector = shared.config.detector.max(SHORTEST);
        let timer = self.io.timers.next().map(|at| at.saturating_duration_since(self.io.now));
        let naps = !armed || self.io.in_doubt;
        let longest = if naps { NAP } else { detector };
        let timeout = timer.map_or(longest, |t| t.min(longest));
        counters.sleeps.add(1);
        Some(Asleep { timeout, by_timer: naps || timer.is_some_and(|t| t <= detector) })
    }

    /// Says why the sleep ended, and acts on it. `by_timer` says whose time is over if there are no edges: a timer's or the
    /// detector's.
    fn after_sleep(&mut self, by_timer: Option<bool>, lost: bool) {
        self.io.polled();
        let mut edges = std::mem::take(&mut self.io.edges);
        self.io.poller.take(&mut edges);
        let counters = &self.io.shared.counters;
        for edge in &edges {
            match self.io.sources.get(edge.key) {
                Some(Source::Worker) => counters.wakes_by_ucx.add(1),
                _ if edge.key == Key::WAKER => counters.wakes_by_waker.add(1),
                _ => counters.wakes_by_io.add(1),
            }
        }
        let silent = edges.is_empty();
        self.io.edges = edges;
        match by_timer.filter(|_| silent) {
            Some(true) => counters.wakes_by_timer.add(1),
            Some(false) => {
                counters.detector_timeouts.add(1);
                self.detect(lost);
            }
            None => {}
        }
        let edges = std::mem::take(&mut self.io.edges);
        self.act_on(edges);
        self.fire_timers();
        self.look_after_ucx();
    }

    /// The safety timeout ended a sleep: is there work that nothing announced? What UCX has got just now announces itself,
    /// so the poller is asked before and after. What is in the queues was looked at while the state still said asleep.
    fn detect(&mut self, lost: bool) {
        if !lost && (self.has_edges_within(Duration::ZERO) || !self.progress() || self.has_edges_within(self.grace())) {
            return;
        }
        self.io.shared.counters.wake_detector_hits.add(1);
        tracing::error!(dispatcher = self.io.shared.id, queued = lost, "a wake-up was lost: please report this");
    }

    /// What the detector finds counts as lost if nothing announces it for so long: between its arrival and its announcement
    /// another thread, or the kernel, may be kept from running.
    fn grace(&self) -> Duration {
        self.io.shared.config.detector / 2
    }

    /// Whether the poller has something, or gets it in time. What it has stays for the next turn.
    fn has_edges_within(&mut self, time: Duration) -> bool {
        let mut edges = std::mem::take(&mut self.io.edges);
        let mut any = !edges.is_empty();
        if !any {
            let failed = self.io.poller.poll(Some(time)).is_err();
            self.io.poller.take(&mut edges);
            any = failed || !edges.is_empty();
        }
        self.io.edges = edges;
        any
    }

    /// Arms UCX; `false` means that there is work.
    fn arm(&mut self) -> bool {
        let Io { worker, retired, busy_arms, shared, .. } = &mut self.io;
        let counters = &shared.counters;
        let (busy, work_before) = std::mem::take(busy_arms);
        let work = counters.turns_with_work.get();
        let mut naps = false;
        for engine in retired {
            match arm_worker(engine, counters) {
                Outcome::Armed => {}
                // It may stay so for as long as the worker is.
                Outcome::Busy => naps = true,
                Outcome::Worked => return false,
            }
        }
        if let WorkerSlot::Ready(engine) = worker {
            match arm_worker(engine, counters) {
                Outcome::Armed => {}
                Outcome::Busy => {
                    *busy_arms = (if work == work_before { busy.saturating_add(1) } else { 1 }, work);
                    return false;
                }
                Outcome::Worked => return false,
            }
        }
        if naps {
            *busy_arms = (BUSY_ARMS, work);
        }
        !naps
    }
}

/// What came of arming a worker.
enum Outcome {
    Armed,
    Busy,
    Worked,
}

fn arm_worker(engine: &mut Engine, counters: &DispatcherCounters) -> Outcome {
    let Engine { worker, useless_edges, .. } = engine;
    match worker.arm() {
        Ok(Armed::Ok) => {}
        Ok(Armed::Busy) => {
            counters.arm_ucx_busy.add(1);
            return Outcome::Busy;
        }
        Err(error) => {
            tracing::error!(%error, "the ucx worker cannot be armed");
            return Outcome::Worked;
        }
    }
    // Over verbs a completion between the last progress and the arming raises no event.
    if worker.progress() != 0 {
        counters.arm_progress_found.add(1);
        return Outcome::Worked;
    }
    // Over tcp UCX's arm never says busy, and the edge of a socket that progress left readable may be used up.
    if is_readable(worker.event_fd()) {
        counters.arm_edge_ready.add(1);
        *useless_edges += 1;
        if *useless_edges <= USELESS_EDGES {
            return Outcome::Worked;
        }
    }
    *useless_edges = 0;
    // What that progress could not see yet: UCX's own thread, which it waited for, leaves it work without a signal, and
    // Soft-RoCE may look whether we are armed before it lets us see the completion (`docs/rdma.md`).
    if worker.progress() != 0 {
        counters.arm_progress_found.add(1);
        return Outcome::Worked;
    }
    Outcome::Armed
}

/// Whether a descriptor is readable now.
fn is_readable(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc,
        thread,
        time::{Duration, Instant},
    };

    use crate::{Dispatcher, DispatcherConfig, LocalDispatcher, config::WaitPolicy, driver::Command};

    const DETECTOR: Duration = Duration::from_millis(40);

    /// Pushes to a dispatcher that sleeps, and notifies it `late`, or never. Says how many wake-ups it counts as lost.
    fn hits_with_a_producer(late: Option<Duration>) -> u64 {
        let config = DispatcherConfig { wait: WaitPolicy::Event, detector: DETECTOR, ..DispatcherConfig::default() };
        let dispatcher = Dispatcher::spawn(config).expect("a dispatcher");
        let started = Instant::now();
        while dispatcher.shared.counters.sleeps.get() == 0 {
            assert!(started.elapsed() < Duration::from_secs(10), "it never sleeps");
            thread::yield_now();
        }
        let (done, served) = mpsc::channel();
        // As `command` does it, by a thread that the system stops in between.
        let task = Command::Spawn(Box::new(move || {
            Box::pin(async move {
                let _ = done.send(());
            })
        }));
        dispatcher.shared.commands.push(task);
        if let Some(late) = late {
            thread::sleep(late);
            dispatcher.shared.nudge();
        }
        served.recv_timeout(Duration::from_secs(10)).expect("it is served all the same");
        let hits = dispatcher.stats().wake_detector_hits;
        dispatcher.shutdown();
        hits
    }

    #[test]
    fn a_producer_that_is_late_with_its_notification_is_no_lost_wake_up() {
        for _ in 0..5 {
            assert_eq!(hits_with_a_producer(Some(DETECTOR * 2)), 0);
        }
    }

    #[test]
    fn a_push_that_is_never_announced_is_found() {
        assert_eq!(hits_with_a_producer(None), 1);
    }

    #[test]
    fn what_no_event_tells_is_looked_after_by_a_dispatcher_that_sleeps_between() {
        let config = DispatcherConfig { wait: WaitPolicy::Event, ..DispatcherConfig::default() };
        let local = LocalDispatcher::new(config).expect("a dispatcher");
        let core = local.core();
        let handle = local.handle();
        local.block_on(async {
            let pause = || handle.sleep_until(Instant::now() + Duration::from_millis(2));
            // The first turns look at everything.
            pause().await;
            // A worker to be watched, as it seems: the next look finds that there is none.
            core.borrow_mut().io.in_doubt = true;
            for _ in 0..3 {
                pause().await;
            }
        });
        assert!(!core.borrow().io.in_doubt);
    }
}
