//! Local tasks: futures that run on the dispatcher's thread, between two turns of its loop.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use super::{io::Timer, table::Table};
use crate::{
    dispatcher::{self, SleepState},
    event::{poller::Key, timer::TimerId},
};

pub(crate) type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// Tasks polled in one turn before sockets and UCX are looked at again.
const TASKS_PER_TURN: usize = 256;

struct Task {
    /// Taken out while it is polled.
    future: Option<LocalFuture>,
    waker: Waker,
}

struct TaskWaker {
    key: Key,
    scheduled: AtomicBool,
    dispatcher: Arc<dispatcher::Shared>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.scheduled.swap(true, Ordering::AcqRel) {
            self.dispatcher.woken(self.clone());
        }
    }
}

/// A task that wants to be polled.
pub(crate) struct Woken(Arc<TaskWaker>);

impl dispatcher::Shared {
    fn woken(&self, waker: Arc<TaskWaker>) {
        if let Some(tasks) = super::current_tasks(self.id) {
            tasks.borrow_mut().wake(waker);
        } else {
            self.woken_tasks.push(Woken(waker));
            self.nudge();
        }
    }
}

/// What the dispatcher's thread polls next. It is apart from the futures, because wakers are called while one is polled.
///
/// A task that wakes itself while it is polled asks to go on after the others, and after what it sent has left: it waits for the
/// next turn. A task that another one wakes is polled in the same turn.
#[derive(Default)]
pub(crate) struct ReadyTasks {
    ready: VecDeque<Arc<TaskWaker>>,
    /// Woke themselves in this turn.
    yielded: Vec<Arc<TaskWaker>>,
    polled: Option<Key>,
}

impl ReadyTasks {
    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.yielded.is_empty()
    }

    fn wake(&mut self, waker: Arc<TaskWaker>) {
        if self.polled == Some(waker.key) {
            self.yielded.push(waker);
        } else {
            self.ready.push_back(waker);
        }
    }

    /// What is polled in this turn begins with those that yielded in the last one.
    fn begin(&mut self) {
        self.ready.extend(self.yielded.drain(..));
    }
}

/// The local tasks of one dispatcher.
pub(crate) struct Tasks {
    table: Table<Task>,
    pub(crate) ready: Rc<RefCell<ReadyTasks>>,
    dispatcher: Arc<dispatcher::Shared>,
}

impl Tasks {
    pub(crate) fn new(dispatcher: Arc<dispatcher::Shared>) -> Self {
        Self { table: Table::new(), ready: Rc::default(), dispatcher }
    }

    /// Adds a task; it is polled for the first time soon, not here.
    pub(crate) fn spawn(&mut self, future: LocalFuture) {
        let key = self.table.insert(Task { future: Some(future), waker: Waker::noop().clone() });
        let waker = Arc::new(TaskWaker { key, scheduled: AtomicBool::new(true), dispatcher: self.dispatcher.clone() });
        if let Some(task) = self.table.get_mut(key) {
            task.waker = waker.clone().into();
        }
        self.ready.borrow_mut().ready.push_back(waker);
        self.dispatcher.counters.tasks.set(self.table.len() as u64);
    }

    /// Polls what is ready. `this` is not borrowed while a future runs, so that it may spawn others.
    pub(crate) fn run(this: &RefCell<Self>) -> bool {
        let ready = this.borrow().ready.clone();
        ready.borrow_mut().begin();
        let mut polled = 0;
        while polled < TASKS_PER_TURN {
            let Some((key, mut future, waker)) = this.borrow_mut().next() else { break };
            polled += 1;
            ready.borrow_mut().polled = Some(key);
            let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            ready.borrow_mut().polled = None;
            if done {
                drop(future);
                let task = this.borrow_mut().finish(key);
                drop(task);
            } else if let Some(task) = this.borrow_mut().table.get_mut(key) {
                task.future = Some(future);
            }
        }
        polled > 0
    }

    fn next(&mut self) -> Option<(Key, LocalFuture, Waker)> {
        let ready = self.ready.clone();
        while let Some(Woken(waker)) = self.dispatcher.woken_tasks.pop() {
            ready.borrow_mut().ready.push_back(waker);
        }
        loop {
            let woken = ready.borrow_mut().ready.pop_front()?;
            // Cleared before the poll: a wake during it schedules the task again.
            woken.scheduled.store(false, Ordering::Release);
            if let Some(task) = self.table.get_mut(woken.key)
                && let Some(future) = task.future.take()
            {
                return Some((woken.key, future, task.waker.clone()));
            }
        }
    }

    fn finish(&mut self, key: Key) -> Option<Task> {
        let task = self.table.remove(key);
        self.dispatcher.counters.tasks.set(self.table.len() as u64);
        task
    }

    /// Drops every task. Their destructors may spawn or wake; what they spawn is dropped too.
    pub(crate) fn clear(this: &RefCell<Self>) {
        loop {
            let keys = this.borrow().table.keys();
            if keys.is_empty() {
                break;
            }
            for key in keys {
                let task = this.borrow_mut().finish(key);
                drop(task);
            }
        }
        let ready = this.borrow().ready.clone();
        let stale = std::mem::take(&mut *ready.borrow_mut());
        drop(stale);
    }
}

impl super::Core {
    /// Arms the timer of a [`crate::Sleep`], unless nobody waits for it any more.
    pub(super) fn arm_sleep(&mut self, state: Arc<SleepState>) {
        if state.try_arm() {
            let id = self.io.timers.insert(state.at, Timer::Sleep(state.clone()));
            state.number.store(id.number(), Ordering::Relaxed);
        }
    }

    /// Takes the timer back.
    pub(super) fn cancel_sleep(&mut self, state: &SleepState) {
        self.io.timers.cancel(TimerId::new(state.at, state.number.load(Ordering::Relaxed)));
    }
}

/// The waker of a `block_on` future.
pub(crate) struct RootWaker {
    /// Woken by the thread that runs the loop: needs no read-modify-write to be taken.
    woken_here: AtomicBool,
    woken: AtomicBool,
    dispatcher: Arc<dispatcher::Shared>,
}

impl RootWaker {
    pub(crate) fn new(dispatcher: Arc<dispatcher::Shared>) -> Arc<Self> {
        Arc::new(Self { woken_here: AtomicBool::new(true), woken: AtomicBool::new(false), dispatcher })
    }

    /// Whether it was woken since the last call.
    #[inline]
    pub(crate) fn take(&self) -> bool {
        let here = self.woken_here.load(Ordering::Relaxed);
        if here {
            self.woken_here.store(false, Ordering::Relaxed);
        }
        let elsewhere = self.woken.load(Ordering::Relaxed) && self.woken.swap(false, Ordering::AcqRel);
        here || elsewhere
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.woken_here.load(Ordering::Relaxed) || self.woken.load(Ordering::SeqCst)
    }
}

impl Wake for RootWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if super::is_current(self.dispatcher.id) {
            // The loop that looks at it is this thread.
            self.woken_here.store(true, Ordering::Relaxed);
        } else {
            self.woken.store(true, Ordering::SeqCst);
            self.dispatcher.nudge();
        }
    }
}

/// Polls the future of a `block_on`.
pub(crate) fn poll_root<F: Future>(future: Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(waker))
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        future::poll_fn,
        rc::Rc,
        task::{Poll, Waker},
        time::{Duration, Instant},
    };

    use super::super::spawn_local;
    use crate::{Address, ConnectionConfig, DispatcherConfig, ListenConfig, LocalDispatcher};

    /// Yields once for each step.
    async fn yield_now() {
        let mut yielded = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    #[test]
    fn a_task_that_yields_goes_on_after_what_it_sent_has_left() {
        let local = LocalDispatcher::new(DispatcherConfig::default()).expect("dispatcher");
        let dispatcher = local.handle();
        let address: Address = "mem://tasks-yield".parse().expect("address");
        let mut listener = dispatcher.listen(&address, ListenConfig::default()).expect("listen");
        let sent = Rc::new(RefCell::new(Vec::new()));
        local.block_on(async {
            let client = dispatcher.connect(&address, ConnectionConfig::default()).into_connection();
            client.opened().await.expect("open");
            let _server = listener.accept().await.expect("accept");
            let done = sent.clone();
            spawn_local(async move {
                for step in 0..3_u64 {
                    client.sender().send_deferred(&b"step"[..]).expect("room");
                    // Deferred frames leave with the dispatcher's turn: so far those of the steps before.
                    assert_eq!(client.stats().frames_sent, step);
                    yield_now().await;
                    done.borrow_mut().push(step);
                }
            })
            .expect("on the dispatcher");
            while sent.borrow().len() < 3 {
                dispatcher.sleep_until(Instant::now() + Duration::from_millis(1)).await;
            }
        });
        assert_eq!(*sent.borrow(), [0, 1, 2]);
    }

    #[test]
    fn a_task_that_another_wakes_is_polled_before_one_that_yielded() {
        let local = LocalDispatcher::new(DispatcherConfig::default()).expect("dispatcher");
        let order = Rc::new(RefCell::new(Vec::new()));
        let waiting: Rc<RefCell<Option<Waker>>> = Rc::default();
        local.block_on(async {
            let (trace, slot) = (order.clone(), waiting.clone());
            spawn_local(async move {
                let mut first = true;
                poll_fn(|cx| {
                    *slot.borrow_mut() = Some(cx.waker().clone());
                    if std::mem::take(&mut first) { Poll::Pending } else { Poll::Ready(()) }
                })
                .await;
                trace.borrow_mut().push("woken");
            })
            .expect("on the dispatcher");
            let (trace, slot) = (order.clone(), waiting.clone());
            spawn_local(async move {
                let yielded = yield_now();
                let mut yielded = std::pin::pin!(yielded);
                poll_fn(|cx| {
                    let polled = yielded.as_mut().poll(cx);
                    // Woken after this task has asked to go on, and still polled before it.
                    slot.borrow_mut().take().into_iter().for_each(Waker::wake);
                    polled
                })
                .await;
                trace.borrow_mut().push("yielded");
            })
            .expect("on the dispatcher");
            while order.borrow().len() < 2 {
                local.handle().sleep_until(Instant::now() + Duration::from_millis(1)).await;
            }
        });
        assert_eq!(*order.borrow(), ["woken", "yielded"]);
    }
}
