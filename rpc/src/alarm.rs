//! Wake-ups at points in time, many on one timer of the transport.
//!
//! What waits most often, calls in flight, is not here: each connection's table of calls is its own alarm.

use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;
use ucrpc_transport::{Dispatcher, Sleep};

/// Deadlines closer to each other than this fire together: it bounds how often a table is looked through.
pub(crate) const GRAIN: Duration = Duration::from_millis(1);

/// One timer of the transport that is moved earlier when needed, and never later: a deadline that is gone costs one
/// look at the table when the timer fires.
#[derive(Default)]
pub(crate) struct OneTimer {
    sleep: Option<(Instant, Sleep)>,
}

impl OneTimer {
    /// Polls the timer for the point in time `at`; true if it has come.
    pub(crate) fn poll(&mut self, dispatcher: &Dispatcher, at: Option<Instant>, cx: &mut Context<'_>) -> bool {
        let Some(at) = at else { return false };
        if at <= Instant::now() {
            self.sleep = None;
            return true;
        }
        if self.sleep.as_ref().is_none_or(|(armed, _)| *armed > at) {
            self.sleep = Some((at, dispatcher.sleep_until(at)));
        }
        let Some((_, sleep)) = &mut self.sleep else { return false };
        if std::pin::Pin::new(sleep).poll(cx).is_pending() {
            return false;
        }
        self.sleep = None;
        true
    }
}

#[derive(Default)]
struct Table {
    entries: Slab<(Instant, Waker)>,
    armed: Option<Instant>,
    driver: Option<Waker>,
    closed: bool,
}

/// Wakes tasks at points in time. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Alarm {
    table: Arc<Mutex<Table>>,
}

impl Alarm {
    /// An alarm whose timer is on `dispatcher`.
    pub(crate) fn start(dispatcher: &Dispatcher) -> Self {
        let alarm = Self::default();
        let (driver, on) = (alarm.clone(), dispatcher.clone());
        dispatcher.spawn_task(move || {
            let mut timer = OneTimer::default();
            std::future::poll_fn(move |cx| driver.drive(&on, &mut timer, cx))
        });
        alarm
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn drive(&self, dispatcher: &Dispatcher, timer: &mut OneTimer, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let armed = {
                let mut table = self.lock();
                if table.closed {
                    return Poll::Ready(());
                }
                if !table.driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    table.driver = Some(cx.waker().clone());
                }
                table.armed
            };
            if !timer.poll(dispatcher, armed, cx) {
                return Poll::Pending;
            }
            self.fire(Instant::now());
        }
    }

    fn fire(&self, now: Instant) {
        let mut due = Vec::new();
        let mut next = None;
        {
            let mut table = self.lock();
            for (_, (at, waker)) in &table.entries {
                if *at <= now {
                    due.push(waker.clone());
                } else {
                    next = Some(next.map_or(*at, |next: Instant| next.min(*at)));
                }
            }
            table.armed = next.map(|at| at.max(now + GRAIN));
        }
        due.into_iter().for_each(Waker::wake);
    }

    /// Asks to be woken at `at`, in place of what `entry` asked for before.
    pub(crate) fn set(&self, entry: &mut Option<AlarmEntry>, at: Instant, cx: &Context<'_>) {
        let mut table = self.lock();
        match entry {
            Some(entry) => {
                let slot = &mut table.entries[entry.key];
                slot.0 = at;
                slot.1.clone_from(cx.waker());
            }
            None => {
                let key = table.entries.insert((at, cx.waker().clone()));
                *entry = Some(AlarmEntry { alarm: self.clone(), key });
            }
        }
        if table.armed.is_none_or(|armed| at < armed) {
            table.armed = Some(at);
            let driver = table.driver.clone();
            drop(table);
            if let Some(driver) = driver {
                driver.wake();
            }
        }
    }

    /// Ends the driver.
    pub(crate) fn close(&self) {
        let driver = {
            let mut table = self.lock();
            table.closed = true;
            table.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

/// One request to be woken. Dropping it takes it back.
pub(crate) struct AlarmEntry {
    alarm: Alarm,
    key: usize,
}

impl Drop for AlarmEntry {
    fn drop(&mut self) {
        // The waker is dropped outside the lock: it may be the last owner of a task.
        let entry = self.alarm.lock().entries.try_remove(self.key);
        drop(entry);
    }
}
