//! Dispatchers as the application holds them: threads that drive sockets, UCX and local tasks.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use atomic_waker::AtomicWaker;
use crossbeam_queue::SegQueue;

use crate::{
    Address, Error, ErrorKind, Pool, Result,
    config::{ConnectionConfig, DispatcherConfig, ListenConfig, WaitPolicy},
    connection::{self, Connecting, pack},
    driver::{self, Command, Woken},
    event::poller::Key,
    listener::Listener,
    queue::{RingSender, WakeState},
    resolve,
    stats::{DispatcherCounters, DispatcherStats},
};

/// What a dispatcher's thread and all its handles share.
pub(crate) struct Shared {
    pub(crate) id: u64,
    pub(crate) config: DispatcherConfig,
    pub(crate) wake: WakeState,
    waker: Arc<mio::Waker>,
    pub(crate) commands: SegQueue<Command>,
    pub(crate) woken_tasks: SegQueue<Woken>,
    ring: RingSender<u64>,
    wait: AtomicU64,
    pub(crate) pool: Pool,
    pub(crate) counters: DispatcherCounters,
    stopped: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Identifies dispatchers in this process.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

const BUSY: u64 = u64::MAX;
const EVENT: u64 = 0;

fn encode(policy: WaitPolicy) -> u64 {
    match policy {
        WaitPolicy::Busy => BUSY,
        WaitPolicy::Event => EVENT,
        WaitPolicy::Adaptive { spin } => (spin.as_nanos() as u64).clamp(1, 4_000_000_000),
    }
}

impl Shared {
    pub(crate) fn new(config: DispatcherConfig, waker: Arc<mio::Waker>, ring: RingSender<u64>) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            wake: WakeState::new(),
            waker,
            commands: SegQueue::new(),
            woken_tasks: SegQueue::new(),
            ring,
            wait: AtomicU64::new(encode(config.wait)),
            pool: Pool::new(&config.pool),
            counters: DispatcherCounters::default(),
            stopped: AtomicBool::new(false),
            thread: Mutex::new(None),
            config,
        })
    }

    /// Puts a connection on the ready ring.
    #[inline]
    pub(crate) fn ready(&self, key: Key) {
        self.ring.push(pack(key));
        self.nudge();
    }

    /// Gives the dispatcher something to do. After its end, it is dropped.
    pub(crate) fn command(&self, command: Command) {
        self.commands.push(command);
        if self.is_stopped() {
            // The thread may have ended without seeing it; what is dropped here completes with an error.
            while let Some(command) = self.commands.pop() {
                command.reject();
            }
        } else {
            self.nudge();
        }
    }

    /// Wakes the dispatcher if it sleeps. Called after something was put where it looks.
    #[inline]
    pub(crate) fn nudge(&self) {
        if self.wake.notify()
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(dispatcher = self.id, %error, "cannot wake the dispatcher");
        }
    }

    pub(crate) fn wait_policy(&self) -> WaitPolicy {
        match self.wait.load(Ordering::Relaxed) {
            BUSY => WaitPolicy::Busy,
            EVENT => WaitPolicy::Event,
            nanos => WaitPolicy::Adaptive { spin: Duration::from_nanos(nanos) },
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.nudge();
    }
}

/// A handle to a dispatcher. Clones share it; any thread may use it.
#[derive(Clone)]
pub struct Dispatcher {
    pub(crate) shared: Arc<Shared>,
}

impl Dispatcher {
    /// Starts a dispatcher on a thread of its own.
    ///
    /// # Errors
    /// Of the operating system: descriptors, threads, or the CPU to pin to.
    pub fn spawn(config: DispatcherConfig) -> Result<Self> {
        let (tell, hear) = std::sync::mpsc::sync_channel(1);
        let name = config.name.clone();
        let body = move || match driver::LocalDispatcher::new(config) {
            Ok(local) => {
                let _ = tell.send(Ok(local.handle()));
                local.run();
            }
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name(name).spawn(body);
        let thread = thread.map_err(|e| Error::from_io("dispatcher thread", &e))?;
        let dispatcher: Self =
            hear.recv().map_err(|_| Error::new(ErrorKind::Stopped, "the dispatcher thread ended at once"))??;
        *dispatcher.shared.thread.lock().unwrap_or_else(|e| e.into_inner()) = Some(thread);
        Ok(dispatcher)
    }

    /// Opens a connection. It does not wait: await the result, or take the connection while it opens.
    ///
    /// Host names are looked up on a thread of their own.
    pub fn connect(&self, address: &Address, config: ConnectionConfig) -> Connecting {
        let (connection, half) = connection::new(self.shared.clone(), config);
        resolve::connect(&self.shared, address.clone(), half);
        Connecting::new(connection)
    }

    /// Listens. One TCP port serves `tcp://`, `ucx://` and `auto://` clients; `tcp://` addresses don't offer UCX.
    ///
    /// For `ucx+cm://` the dispatcher's thread makes the listener, and this call waits for it, at most 10 s.
    ///
    /// # Errors
    /// If the address can't be bound, at once.
    pub fn listen(&self, address: &Address, config: ListenConfig) -> Result<Listener> {
        Listener::bind(vec![self.clone()], Placement::RoundRobin, address, config)
    }

    /// Runs `make` on the dispatcher's thread and then its future as a local task, which needs not be `Send`.
    ///
    /// The task must not block: everything on this dispatcher waits for it.
    pub fn spawn_task<F, Fut>(&self, make: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        self.shared.command(Command::Spawn(Box::new(move || Box::pin(make()))));
    }

    /// A future that is ready at `at`. It may be polled anywhere.
    pub fn sleep_until(&self, at: Instant) -> Sleep {
        Sleep { dispatcher: self.shared.clone(), at, state: None }
    }

    /// The dispatcher whose thread this is, if it is one.
    pub fn current() -> Option<Self> {
        driver::current_shared().map(|shared| Self { shared })
    }

    /// Whether this is the dispatcher's own thread, in its loop.
    pub fn is_current(&self) -> bool {
        driver::is_current(self.shared.id)
    }

    /// Changes how it waits, from any thread, at any time.
    pub fn set_wait_policy(&self, policy: WaitPolicy) {
        self.shared.wait.store(encode(policy), Ordering::Relaxed);
        self.shared.nudge();
    }

    /// How it waits.
    pub fn wait_policy(&self) -> WaitPolicy {
        self.shared.wait_policy()
    }

    /// Its counters.
    pub fn stats(&self) -> DispatcherStats {
        self.shared.counters.snapshot()
    }

    /// Its buffer pool.
    pub fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// A number that no other dispatcher of this process has.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.config.name
    }

    /// Stops it: connections end with [`ErrorKind::Stopped`], and its thread, if it has one of its own, is joined
    /// (unless this is that thread). Close connections first where their queues matter.
    pub fn shutdown(&self) {
        self.shared.stop();
        let thread = self.shared.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!(dispatcher = self.shared.id, "the dispatcher thread panicked");
        }
    }
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher").field("id", &self.id()).field("name", &self.name()).finish_non_exhaustive()
    }
}

/// Where a set of dispatchers puts a new connection. It stays there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Placement {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Where the fewest connections are.
    LeastLoaded,
}

impl Placement {
    pub(crate) fn choose<'a>(self, from: &'a [Dispatcher], turn: &AtomicUsize) -> &'a Dispatcher {
        match self {
            Self::RoundRobin => &from[turn.fetch_add(1, Ordering::Relaxed) % from.len()],
            Self::LeastLoaded => {
                let load = |d: &&Dispatcher| d.shared.counters.connections.get();
                from.iter().min_by_key(load).expect("a set is never empty")
            }
        }
    }
}

/// Several dispatchers that share the connections of a process.
#[derive(Debug, Clone)]
pub struct Dispatchers {
    all: Arc<[Dispatcher]>,
    placement: Placement,
    turn: Arc<AtomicUsize>,
}

impl Dispatchers {
    /// Starts `count` dispatchers (0: the number of cores, at most 4) with threads of their own.
    ///
    /// With [`DispatcherConfig::pin`] set to `n`, they are pinned to the CPUs `n`, `n + 1` and so on.
    ///
    /// # Errors
    /// As [`Dispatcher::spawn`]; those already started are stopped again.
    pub fn spawn(count: usize, config: &DispatcherConfig, placement: Placement) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let count = if count == 0 { cores.min(4) } else { count };
        let mut all = Vec::new();
        for i in 0..count {
            let mut config = config.clone();
            config.pin = config.pin.map(|first| first + i);
            config.name = format!("{}-{i}", config.name);
            match Dispatcher::spawn(config) {
                Ok(dispatcher) => all.push(dispatcher),
                Err(error) => {
                    all.iter().for_each(Dispatcher::shutdown);
                    return Err(error);
                }
            }
        }
        Ok(Self { all: all.into(), placement, turn: Arc::default() })
    }

    /// Opens a connection on the dispatcher that the placement chooses.
    pub fn connect(&self, address: &Address, config: ConnectionConfig) -> Connecting {
        self.placement.choose(&self.all, &self.turn).connect(address, config)
    }

    /// Listens on the first dispatcher; accepted connections go where the placement says, those of `ucx+cm://` stay with it.
    ///
    /// # Errors
    /// As [`Dispatcher::listen`].
    pub fn listen(&self, address: &Address, config: ListenConfig) -> Result<Listener> {
        Listener::bind(self.all.to_vec(), self.placement, address, config)
    }

    /// The dispatchers.
    pub fn all(&self) -> &[Dispatcher] {
        &self.all
    }

    /// Stops them all.
    pub fn shutdown(&self) {
        self.all.iter().for_each(|d| d.shared.stop());
        self.all.iter().for_each(Dispatcher::shutdown);
    }
}

/// What a [`Sleep`] and the dispatcher's timer share.
pub(crate) struct SleepState {
    pub(crate) at: Instant,
    stage: AtomicU8,
    /// The timer's number, for the dispatcher's thread alone. 0 names none.
    pub(crate) number: AtomicU64,
    waker: AtomicWaker,
}

/// On its way to the dispatcher.
const ASKED: u8 = 0;
/// In the dispatcher's timers.
const ARMED: u8 = 1;
const FIRED: u8 = 2;
const DROPPED: u8 = 3;

impl SleepState {
    fn new(at: Instant) -> Arc<Self> {
        Arc::new(Self { at, stage: AtomicU8::new(ASKED), number: AtomicU64::new(0), waker: AtomicWaker::new() })
    }

    /// False if nobody waits for it any more.
    pub(crate) fn try_arm(&self) -> bool {
        self.stage.compare_exchange(ASKED, ARMED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Its time has come.
    pub(crate) fn fire(&self) {
        self.stage.store(FIRED, Ordering::Release);
        self.waker.wake();
    }

    fn is_fired(&self) -> bool {
        self.stage.load(Ordering::Acquire) == FIRED
    }
}

/// Future of [`Dispatcher::sleep_until`].
///
/// If the dispatcher has stopped it is ready at once.
///
/// # Cancel safety
/// May be dropped at any time: its timer goes with it.
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    dispatcher: Arc<Shared>,
    at: Instant,
    state: Option<Arc<SleepState>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let state = match &this.state {
            Some(state) => state,
            None => {
                let state = this.state.insert(SleepState::new(this.at));
                state.waker.register(cx.waker());
                driver::sleep(&this.dispatcher, state, true);
                state
            }
        };
        if state.is_fired() {
            return Poll::Ready(());
        }
        state.waker.register(cx.waker());
        if state.is_fired() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(state) = &self.state {
            drop(state.waker.take());
            // A command that is still on its way finds out by itself.
            if state.stage.swap(DROPPED, Ordering::AcqRel) == ARMED {
                driver::sleep(&self.dispatcher, state, false);
            }
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("at", &self.at).finish_non_exhaustive()
    }
}
