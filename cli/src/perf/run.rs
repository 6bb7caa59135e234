//! One measurement while it runs: when it ends, what was timed, what failed.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::sync::Semaphore;
use ucrpc::{Code, Status};

use crate::{
    exit::{Exit, Failure},
    out::Progress,
};

/// The longest latency that is told from longer ones, nanoseconds: an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// What a measurement found.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Latencies, nanoseconds. Empty where single messages are not timed.
    pub(crate) latencies: Option<Histogram<u64>>,
    /// Calls or messages that went well.
    pub(crate) count: u64,
    /// Those that did not.
    pub(crate) errors: u64,
    /// Calls of an open loop that were due and had no room to be made in time.
    pub(crate) unsent: u64,
    /// The last error.
    pub(crate) last_error: Option<String>,
    /// From the start to the last completion.
    pub(crate) elapsed: Duration,
}

impl Tally {
    /// A percentile of the latencies, microseconds.
    pub(crate) fn percentile(&self, percentile: f64) -> Option<f64> {
        let latencies = self.latencies.as_ref().filter(|latencies| !latencies.is_empty())?;
        Some(latencies.value_at_percentile(percentile) as f64 / 1e3)
    }

    /// The longest latency, microseconds.
    pub(crate) fn max(&self) -> Option<f64> {
        let latencies = self.latencies.as_ref().filter(|latencies| !latencies.is_empty())?;
        Some(latencies.max() as f64 / 1e3)
    }

    fn record(&mut self, latency: Duration) {
        if let Some(latencies) = &mut self.latencies {
            latencies.saturating_record(latency.as_nanos() as u64);
        }
    }
}

/// A measurement under way, shared by the local tasks that make it.
pub(crate) struct Run {
    start: Instant,
    end: Instant,
    tally: RefCell<Tally>,
    /// Latencies since they were last taken, for who shows them live.
    recent: Option<RefCell<Histogram<u64>>>,
    broken: RefCell<Option<Failure>>,
    is_broken: Cell<bool>,
    progress: RefCell<Progress>,
    next_tick: Cell<Instant>,
}

impl Run {
    /// Begins now, and goes on for `time`.
    pub(crate) fn begin(time: Duration, progress: Progress) -> Rc<Self> {
        Rc::new(Self::new(time, progress, None))
    }

    /// As [`Self::begin`], with [`Self::take_recent`].
    pub(crate) fn begin_live(time: Duration, progress: Progress) -> Rc<Self> {
        Rc::new(Self::new(time, progress, Some(RefCell::new(histogram()))))
    }

    fn new(time: Duration, progress: Progress, recent: Option<RefCell<Histogram<u64>>>) -> Self {
        let start = Instant::now();
        Self {
            start,
            end: start + time,
            tally: RefCell::new(Tally { latencies: Some(histogram()), ..Tally::default() }),
            recent,
            broken: RefCell::new(None),
            is_broken: Cell::new(false),
            progress: RefCell::new(progress),
            next_tick: Cell::new(start),
        }
    }

    /// Whether another message is to be sent at `now`.
    pub(crate) fn goes_on(&self, now: Instant) -> bool {
        now < self.end && !self.is_broken.get()
    }

    /// Something ended the whole measurement.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.get()
    }

    /// When it began.
    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    /// Counts a message that took from `start` to `now`; whether another one is to be sent.
    pub(crate) fn done(&self, start: Instant, now: Instant) -> bool {
        self.time(start, now);
        self.tally.borrow_mut().count += 1;
        self.goes_on(now)
    }

    /// Counts one that failed; whether another one is to be sent. A lost connection ends the measurement: figures of an
    /// outage are no figures of the server.
    pub(crate) fn failed(&self, status: &Status, start: Instant, now: Instant) -> bool {
        {
            let mut tally = self.tally.borrow_mut();
            tally.errors += 1;
            tally.elapsed = now - self.start;
            tally.last_error = Some(status.to_string());
        }
        match status.code() {
            // It took at least this long.
            Code::ERPCTIMEDOUT => self.time(start, now),
            Code::ECONNRESET
            | Code::EEOF
            | Code::EFAILEDSOCKET
            | Code::ECONNREFUSED
            | Code::EHOSTDOWN
            | Code::ECONNABORTED
            | Code::ENOTCONN
            | Code::EPIPE
            | Code::ETIMEDOUT => {
                let count = self.tally.borrow().count;
                let after = (now - self.start).as_secs_f64();
                self.fail(
                    Failure::new(
                        Exit::Lost,
                        format!("the connection was lost after {count} calls and {after:.1} s: {status}"),
                    )
                    .hint("see whether the server is still running, and what it says on stderr"),
                );
            }
            // The service, or the method, is not there: it will not come.
            Code::ENOSERVICE | Code::ENOMETHOD | Code::EREQUEST | Code::ERPCAUTH | Code::EMSGSIZE => {
                self.fail(Failure::new(Exit::Bad, status.to_string()));
            }
            _ => {}
        }
        self.goes_on(now)
    }

    /// Ends the measurement.
    pub(crate) fn fail(&self, failure: Failure) {
        self.is_broken.set(true);
        self.broken.borrow_mut().get_or_insert(failure);
    }

    /// Times something that was due at `start` and never made.
    pub(crate) fn unsent(&self, due: Instant, now: Instant) {
        self.time(due, now);
        self.tally.borrow_mut().unsent += 1;
    }

    fn time(&self, start: Instant, now: Instant) {
        let mut tally = self.tally.borrow_mut();
        let latency = now.saturating_duration_since(start);
        tally.record(latency);
        tally.elapsed = now - self.start;
        if let Some(recent) = &self.recent {
            recent.borrow_mut().saturating_record(latency.as_nanos() as u64);
        }
        if now >= self.next_tick.get() {
            self.next_tick.set(now + Duration::from_millis(50));
            self.progress.borrow_mut().time();
        }
    }

    /// The latencies since the last call of this.
    pub(crate) fn take_recent(&self) -> Option<Histogram<u64>> {
        Some(std::mem::replace(&mut *self.recent.as_ref()?.borrow_mut(), histogram()))
    }

    /// Shows a text beside the progress.
    pub(crate) fn say(&self, text: String) {
        self.progress.borrow().say(text);
    }

    /// What was found, or what ended the measurement.
    pub(crate) fn finish(&self) -> Result<Tally, Failure> {
        match self.broken.take() {
            Some(failure) => Err(failure),
            None => Ok(self.tally.take()),
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are valid")
}

/// Messages on their way there and back in order, at most so many at once: a writer launches, a reader lands.
pub(crate) struct Flight {
    room: Semaphore,
    /// When each was sent; `None` after the last one.
    sent: RefCell<VecDeque<Option<Instant>>>,
}

impl Flight {
    pub(crate) fn new(depth: usize) -> Self {
        Self { room: Semaphore::new(depth), sent: RefCell::new(VecDeque::with_capacity(depth + 1)) }
    }

    /// Waits for room and notes the time; `false` if the measurement is over.
    pub(crate) async fn launch(&self, run: &Run) -> bool {
        if let Ok(permit) = self.room.acquire().await {
            permit.forget();
        }
        let now = Instant::now();
        let goes_on = run.goes_on(now);
        self.sent.borrow_mut().push_back(goes_on.then_some(now));
        goes_on
    }

    /// Whether something is to be received; `false` when the last message has landed.
    pub(crate) async fn is_under_way(&self) -> bool {
        loop {
            if let Some(first) = self.sent.borrow().front() {
                return first.is_some();
            }
            // Only at the very start and the very end: the writer has not had its turn.
            yield_now().await;
        }
    }

    /// The oldest message is back.
    pub(crate) fn land(&self, run: &Run) {
        if let Some(Some(start)) = self.sent.borrow_mut().pop_front() {
            run.done(start, Instant::now());
        }
        self.room.add_permits(1);
    }
}

/// Lets the dispatcher do its other work.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
