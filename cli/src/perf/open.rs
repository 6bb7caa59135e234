//! Calls in an open loop: each is due at its own time, whatever became of those before it.
//!
//! Latency counts from when a call was due, not from when it could be made: a server that stalls for a second makes a thousand
//! calls late at 1000 calls/s, not one ("coordinated omission" would hide the others).

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use ucrpc::{Dispatcher, Status, transport::spawn_local};

use super::{
    run::{Run, yield_now},
    schedule::Schedule,
};
use crate::exit::Failure;

/// Timers may be late by this much; what is left is spun away.
const TIMER_SLACK: Duration = Duration::from_micros(1500);

/// What an open loop needs.
pub(crate) struct Drive {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) schedule: Schedule,
    /// Calls under way at once; those that are due meanwhile wait, and are late.
    pub(crate) limit: usize,
    /// After the last call was due, how long late ones may still be made.
    pub(crate) grace: Duration,
    pub(crate) run: Rc<Run>,
}

struct Shared<F> {
    run: Rc<Run>,
    schedule: Schedule,
    /// Calls whose time has come.
    due: Cell<u64>,
    /// Calls that were made.
    made: Cell<u64>,
    flying: Cell<usize>,
    over: Cell<bool>,
    call: F,
}

/// Makes the calls of a schedule: `call` gets each one's number.
pub(crate) async fn drive<F, Fut>(drive: &Drive, call: F) -> Result<(), Failure>
where
    F: Fn(u64) -> Fut + 'static,
    Fut: Future<Output = Result<(), Status>> + 'static,
{
    let Drive { dispatcher, schedule, run, .. } = drive;
    let (run, schedule) = (run.clone(), *schedule);
    let cell = || Cell::new(0);
    let shared = Rc::new(Shared {
        run,
        schedule,
        due: cell(),
        made: cell(),
        flying: Cell::new(0),
        over: Cell::new(false),
        call,
    });
    let mut index = 0;
    while let Some(at) = schedule.at(index) {
        until(dispatcher, at).await;
        if shared.run.is_broken() {
            break;
        }
        index += 1;
        shared.due.set(index);
        if shared.flying.get() < drive.limit {
            shared.flying.set(shared.flying.get() + 1);
            spawn_local(fly(shared.clone()))?;
        }
    }
    let last = Instant::now() + drive.grace;
    while shared.flying.get() > 0 {
        if !shared.over.get() && (Instant::now() >= last || shared.run.is_broken()) {
            shared.over.set(true);
            let now = Instant::now();
            for index in shared.made.get()..shared.due.get() {
                shared.run.unsent(schedule.at(index).unwrap_or(now), now);
            }
        }
        dispatcher.sleep_until(Instant::now() + Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Makes calls as long as any is due.
async fn fly<F, Fut>(shared: Rc<Shared<F>>)
where
    F: Fn(u64) -> Fut,
    Fut: Future<Output = Result<(), Status>>,
{
    while shared.made.get() < shared.due.get() && !shared.over.get() && !shared.run.is_broken() {
        let index = shared.made.get();
        shared.made.set(index + 1);
        let due = shared.schedule.at(index).unwrap_or_else(Instant::now);
        let result = (shared.call)(index).await;
        let now = Instant::now();
        match result {
            Ok(()) => shared.run.done(due, now),
            Err(status) => shared.run.failed(&status, due, now),
        };
    }
    shared.flying.set(shared.flying.get() - 1);
}

/// Waits for a time, exactly.
pub(crate) async fn until(dispatcher: &Dispatcher, at: Instant) {
    if let Some(early) = at.checked_sub(TIMER_SLACK)
        && early > Instant::now()
    {
        dispatcher.sleep_until(early).await;
    }
    while Instant::now() < at {
        yield_now().await;
    }
}
