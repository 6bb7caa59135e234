//! A dispatcher inside tokio: tokio's reactor waits for the poller's descriptor, tokio's timers for the dispatcher's.
//!
//! The dispatcher's own sleep ritual stays as it is. Between two polls of the adapter's future the dispatcher counts as
//! asleep, so whoever gives it something to do writes its event descriptor, which is in the same epoll set.

use std::{
    future::Future,
    io,
    os::fd::OwnedFd,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use atomic_waker::AtomicWaker;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, Sleep},
};

use super::{run::LocalDispatcher, sleep::Asleep};
use crate::{Error, Result, dispatcher};

/// Rounds in one poll before the other tasks of the runtime have their turn. It also bounds how long a future is polled
/// that tokio has told to wait for its next turn.
const ROUNDS: usize = 64;

/// The waker of the future that is run. While the dispatcher runs on this thread it looks for itself.
struct RootWaker {
    woken: AtomicBool,
    task: AtomicWaker,
    dispatcher: u64,
}

impl Wake for RootWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if !super::is_current(self.dispatcher) {
            self.task.wake();
        }
    }
}

/// Ends the sleep, also if the adapter's future is dropped in the middle of it.
struct Awake<'a>(&'a dispatcher::Shared);

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.wake.wake_up();
    }
}

struct Adapter<'a> {
    local: &'a LocalDispatcher,
    /// A duplicate of the poller's descriptor.
    fd: AsyncFd<OwnedFd>,
    /// For [`Adapter::asleep`] only.
    timer: Pin<Box<Sleep>>,
    asleep: Option<Asleep>,
    root: Arc<RootWaker>,
}

pub(super) async fn run<F: Future>(local: &LocalDispatcher, future: F) -> Result<F::Output> {
    let (shared, core) = local.parts();
    let fd = core.borrow().io.poller.duplicate().and_then(watch);
    let fd = fd.map_err(|e| Error::from_io("watching the dispatcher with tokio", &e))?;
    let _awake = Awake(shared);
    let root = RootWaker { woken: AtomicBool::new(true), task: AtomicWaker::new(), dispatcher: shared.id };
    let timer = Box::pin(tokio::time::sleep_until(Instant::now()));
    let mut adapter = Adapter { local, fd, timer, asleep: None, root: Arc::new(root) };
    let waker = Waker::from(adapter.root.clone());
    let mut future = pin!(future);
    std::future::poll_fn(|cx| adapter.poll(future.as_mut(), &waker, cx)).await
}

/// Registers a descriptor with tokio's reactor.
#[allow(deprecated, reason = "its successor asks for a promise that an owned descriptor keeps by itself")]
fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

impl Adapter<'_> {
    fn poll<F: Future>(
        &mut self,
        mut future: Pin<&mut F>,
        waker: &Waker,
        cx: &mut Context<'_>,
    ) -> Poll<Result<F::Output>> {
        self.root.task.register(cx.waker());
        self.wake_up(cx)?;
        for _ in 0..ROUNDS {
            if self.root.woken.swap(false, Ordering::AcqRel) {
                let polled = self.local.guarded(|| future.as_mut().poll(&mut Context::from_waker(waker)));
                if let Poll::Ready(output) = polled {
                    // What it has just sent goes out.
                    self.local.guarded_turn();
                    return Poll::Ready(Ok(output));
                }
            }
            if self.local.guarded_turn() || self.root.woken.load(Ordering::Acquire) {
                continue;
            }
            self.fall_asleep();
            if self.asleep.is_some() {
                ready!(self.wait(cx))?;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn fall_asleep(&mut self) {
        let (_, core) = self.local.parts();
        let (root, local) = (&self.root, self.local);
        let woken = || root.woken.load(Ordering::SeqCst) || local.has_ready_tasks();
        self.asleep = core.borrow_mut().fall_asleep(&woken);
        if let Some(asleep) = &self.asleep {
            self.timer.as_mut().reset(Instant::now() + asleep.timeout);
        }
    }

    /// Waits for the descriptor or the timer.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if self.fd.poll_read_ready(cx).is_pending() && self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(self.wake_up(cx))
    }

    /// Takes up work again, if it was asleep, whatever has ended the sleep.
    fn wake_up(&mut self, cx: &mut Context<'_>) -> Result<()> {
        let Some(asleep) = self.asleep.take() else { return Ok(()) };
        if let Poll::Ready(ready) = self.fd.poll_read_ready(cx) {
            // Before the edges are taken: one that comes later makes it ready again.
            ready.map_err(|e| Error::from_io("tokio's reactor", &e))?.clear_ready();
        }
        let timed_out = self.timer.is_elapsed();
        let (_, core) = self.local.parts();
        self.local.guarded(|| core.borrow_mut().wake_up_elsewhere(&asleep, timed_out));
        Ok(())
    }
}
