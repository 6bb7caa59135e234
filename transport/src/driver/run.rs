//! The loop: turns, waiting, and the dispatcher that a thread drives itself.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    marker::PhantomData,
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use super::{
    CURRENT, CURRENT_ID, Command, Current, OWN, SHUTDOWN_GRACE,
    io::{Core, Io, Timer},
    tasks::{RootWaker, Tasks, poll_root},
};
use crate::{
    Dispatcher, Error, ErrorKind, Result,
    config::{DispatcherConfig, WaitPolicy},
    connection::unpack,
    dispatcher,
    event::poller::{Key, Poller},
    queue,
};

/// Connections served in one turn.
const SERVED_PER_TURN: usize = 256;

/// A dispatcher that this thread drives itself: with [`LocalDispatcher::block_on`] a call needs no hand-over between
/// threads.
///
/// ```
/// use ucrpc_transport::{Address, ConnectionConfig, DispatcherConfig, ListenConfig, LocalDispatcher};
///
/// let local = LocalDispatcher::new(DispatcherConfig::default())?;
/// let dispatcher = local.handle();
/// let echo = local.block_on(async {
///     let address: Address = "mem://local-dispatcher-example".parse()?;
///     let mut listener = dispatcher.listen(&address, ListenConfig::default())?;
///     let client = dispatcher.connect(&address, ConnectionConfig::default()).into_connection();
///     client.send(&b"hello"[..])?;
///     let mut server = listener.accept().await?;
///     server.recv().await
/// })?;
/// assert_eq!(echo.head, "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LocalDispatcher {
    current: Current,
    /// It belongs to this thread, as its UCX worker does.
    not_send: PhantomData<*const ()>,
}

impl LocalDispatcher {
    /// Makes a dispatcher for this thread. If the configuration names a CPU, this thread is pinned to it.
    ///
    /// # Errors
    /// Of the operating system: descriptors, or the CPU to pin to.
    pub fn new(config: DispatcherConfig) -> Result<Self> {
        if let Some(cpu) = config.pin {
            pin_to(cpu)?;
        }
        let (poller, waker) = Poller::new().map_err(|e| Error::from_io("poller", &e))?;
        let (ring_in, ring) = queue::ready_ring();
        let shared = dispatcher::Shared::new(config, waker, ring_in);
        let core = Core {
            io: Io::new(shared.clone(), poller),
            conns: super::table::Table::new(),
            listeners: super::table::Table::new(),
            ring,
        };
        let tasks = Tasks::new(shared.clone());
        let ready = tasks.ready.clone();
        let (core, tasks) = (Rc::new(RefCell::new(core)), Rc::new(RefCell::new(tasks)));
        let current = Current { shared, core, tasks, ready };
        OWN.with_borrow_mut(|own| own.push(current.clone()));
        Ok(Self { current, not_send: PhantomData })
    }

    /// A handle for any thread.
    pub fn handle(&self) -> Dispatcher {
        Dispatcher { shared: self.current.shared.clone() }
    }

    /// Runs the dispatcher on this thread until `future` is ready.
    ///
    /// # Panics
    /// If a dispatcher runs on this thread already, and if polling a task panics.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _running = Running::enter(&self.current);
        let root = RootWaker::new(self.current.shared.clone());
        let waker = Waker::from(root.clone());
        let mut future = pin!(future);
        let mut spin = Spin::new();
        loop {
            // After the tasks: what wakes it is mostly one of them, and what it sends leaves in this turn.
            let polled = self.run_tasks();
            if root.take()
                && let Poll::Ready(output) = poll_root(future.as_mut(), &waker)
            {
                self.turn();
                return output;
            }
            let worked = self.turn_core() | polled;
            self.wait(&mut spin, worked, &|| root.is_woken());
        }
    }

    /// Runs until the dispatcher is told to stop.
    pub(crate) fn run(self) {
        {
            let _running = Running::enter(&self.current);
            let mut spin = Spin::new();
            while !self.current.shared.is_stopped() {
                let worked = self.turn();
                self.wait(&mut spin, worked, &|| self.current.shared.is_stopped());
            }
        }
        drop(self);
    }

    /// One round of everything that is ready.
    #[inline]
    fn turn(&self) -> bool {
        self.run_tasks() | self.turn_core()
    }

    /// Polls the tasks that are ready.
    #[inline]
    fn run_tasks(&self) -> bool {
        // Asking a queue whether it is empty is much cheaper than popping from it: no fence.
        let has_tasks = !self.current.shared.woken_tasks.is_empty() || !self.current.ready.borrow().is_empty();
        has_tasks && Tasks::run(&self.current.tasks)
    }

    /// Everything but the tasks.
    #[inline]
    fn turn_core(&self) -> bool {
        let shared = &self.current.shared;
        let mut core = self.current.core.borrow_mut();
        let mut worked = core.turn();
        if !shared.commands.is_empty() {
            let spawned = core.take_commands();
            drop(core);
            worked |= spawned.any;
            for make in spawned.tasks {
                let future = make();
                self.current.tasks.borrow_mut().spawn(future);
            }
        }
        worked
    }

    /// Spins or sleeps, as the policy says.
    #[inline]
    fn wait(&self, spin: &mut Spin, worked: bool, woken: &dyn Fn() -> bool) {
        let shared = &self.current.shared;
        let counters = &shared.counters;
        counters.turns.add(1);
        if worked {
            counters.turns_with_work.add(1);
            if spin.idle > 0 {
                counters.spin_hits.add(1);
            }
            spin.idle = 0;
            spin.since = None;
            return;
        }
        if woken() {
            return;
        }
        spin.idle = spin.idle.wrapping_add(1);
        let sleeps = match shared.wait_policy() {
            WaitPolicy::Busy => false,
            WaitPolicy::Event => true,
            WaitPolicy::Adaptive { spin: budget } => {
                // The clock is read with the sockets, not in every idle turn.
                let now = self.current.core.borrow().io.now;
                let since = *spin.since.get_or_insert(now);
                now.saturating_duration_since(since) >= budget
            }
        };
        if sleeps {
            spin.idle = 0;
            spin.since = None;
            self.current.core.borrow_mut().sleep(&|| woken() || !self.current.ready.borrow().is_empty());
        } else {
            std::hint::spin_loop();
        }
    }

    /// Runs the dispatcher inside tokio, on a `LocalSet` or a current-thread runtime, until `future` is ready. The
    /// dispatcher's descriptor is watched by tokio, so that both share one thread; waiting is always as with
    /// [`WaitPolicy::Event`].
    ///
    /// # Errors
    /// Of registering with tokio's reactor.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    ///
    /// # Cancel safety
    /// Dropping the future pauses the dispatcher; it may be run again.
    #[cfg(feature = "tokio")]
    pub async fn run_on_tokio<F: Future>(&self, future: F) -> Result<F::Output> {
        super::tokio::run(self, future).await
    }

    /// What the tokio adapter is made of: one turn, with this thread marked as the dispatcher's.
    #[cfg(feature = "tokio")]
    pub(super) fn guarded_turn(&self) -> bool {
        let worked = self.guarded(|| self.turn());
        let counters = &self.current.shared.counters;
        counters.turns.add(1);
        counters.turns_with_work.add(u64::from(worked));
        worked
    }

    /// Does something with this thread marked as the dispatcher's.
    #[cfg(feature = "tokio")]
    pub(super) fn guarded<R>(&self, act: impl FnOnce() -> R) -> R {
        let _running = Running::enter(&self.current);
        act()
    }

    #[cfg(feature = "tokio")]
    pub(super) fn parts(&self) -> (&std::sync::Arc<dispatcher::Shared>, &Rc<RefCell<Core>>) {
        (&self.current.shared, &self.current.core)
    }

    #[cfg(test)]
    pub(super) fn core(&self) -> Rc<RefCell<Core>> {
        self.current.core.clone()
    }

    #[cfg(feature = "tokio")]
    pub(super) fn has_ready_tasks(&self) -> bool {
        !self.current.ready.borrow().is_empty()
    }
}

impl Drop for LocalDispatcher {
    fn drop(&mut self) {
        let Current { shared, core, tasks, .. } = &self.current;
        // Its thread may be ending.
        let _ = OWN.try_with(|own| own.borrow_mut().retain(|c| c.shared.id != shared.id));
        shared.stop();
        let running = Running::try_enter(&self.current);
        let error = Error::new(ErrorKind::Stopped, "the dispatcher has stopped");
        core.borrow_mut().end_all(&error);
        Tasks::clear(tasks);
        while let Some(command) = shared.commands.pop() {
            command.reject();
        }
        core.borrow_mut().end_all(&error);
        drop(running);
        let mut core = core.borrow_mut();
        let timers = std::mem::replace(&mut core.io.timers, crate::event::timer::Timers::new());
        core.io.end_workers(SHUTDOWN_GRACE);
        core.io.publish(0);
        shared.counters.listeners.set(0);
        std::mem::drop(core);
        // Wakers are foreign code: nothing is borrowed while they run.
        for timer in timers.into_values() {
            if let Timer::Sleep(state) = timer {
                state.fire();
            }
        }
    }
}

impl std::fmt::Debug for LocalDispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LocalDispatcher").field(&self.handle()).finish()
    }
}

/// Pins this thread.
fn pin_to(cpu: usize) -> Result<()> {
    use rustix::thread::{CpuSet, sched_setaffinity};
    if cpu >= CpuSet::MAX_CPU {
        return Err(Error::new(ErrorKind::Invalid, format!("there is no CPU {cpu}")));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|e| Error::from_io(&format!("pinning to CPU {cpu}"), &e.into()))
}

struct Spin {
    idle: u32,
    since: Option<Instant>,
}

impl Spin {
    fn new() -> Self {
        Self { idle: 0, since: None }
    }
}

/// Marks this thread as a dispatcher's while its loop runs.
struct Running {
    before: u64,
}

impl Running {
    fn enter(current: &Current) -> Self {
        Self::try_enter(current).expect("a dispatcher runs on this thread already")
    }

    fn try_enter(current: &Current) -> Option<Self> {
        let before = CURRENT_ID.try_with(Cell::get).ok()?;
        if before != 0 {
            return None;
        }
        CURRENT_ID.set(current.shared.id);
        CURRENT.set(Some(current.clone()));
        Some(Self { before })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        CURRENT_ID.set(self.before);
        CURRENT.set(None);
    }
}

/// Local tasks that were asked for from elsewhere.
struct Spawned {
    any: bool,
    tasks: Vec<Box<dyn FnOnce() -> super::LocalFuture + Send>>,
}

impl Core {
    /// One round: UCX, sockets, timers, queues.
    fn turn(&mut self) -> bool {
        let mut worked = self.progress();
        worked |= self.take_events();
        worked |= self.read_hot();
        if self.io.due_for_poll(worked) {
            self.update_clock();
            worked |= self.poll(Some(Duration::ZERO));
            worked |= self.fire_timers();
            self.io.publish(self.conns.len());
            self.look_after_ucx();
        }
        worked |= self.serve_ready();
        while let Some((key, error)) = self.io.doomed.pop() {
            worked = true;
            self.end(key, error);
        }
        worked
    }

    /// Endpoints that a handshake made for others go when no handshake is left that may ask for them.
    pub(super) fn close_spares(&mut self) {
        if self.io.engines().any(|engine| engine.pairing.has_spares())
            && self.conns.values().all(|conn| conn.link.is_open())
        {
            self.io.close_spares();
        }
    }

    /// Serves connections from the ready ring and the local list, in turn.
    fn serve_ready(&mut self) -> bool {
        let mut served = 0;
        while served < SERVED_PER_TURN && !self.ring.is_empty() {
            let Some(packed) = self.ring.pop() else { break };
            served += 1;
            self.serve(unpack(packed));
        }
        // Only those that were ready before: one that gets ready again waits for the next turn.
        for _ in 0..self.io.ready.len() {
            let Some(key) = self.io.ready.pop_front() else { break };
            served += 1;
            self.serve(key);
        }
        served > 0
    }

    /// Takes what handles asked for.
    fn take_commands(&mut self) -> Spawned {
        let mut spawned = Spawned { any: false, tasks: Vec::new() };
        while let Some(command) = self.io.shared.commands.pop() {
            spawned.any = true;
            match command {
                Command::Connect { half, address, resolved } => self.connect(half, address, resolved),
                Command::Listen { listener, socket } => self.listen(listener, socket),
                Command::ListenCm { ask, reply } => drop(reply.send(self.listen_cm(*ask))),
                Command::Unlisten { listener } => self.unlisten(&listener),
                Command::ResumeAccept { listener } => self.resume_accept(&listener),
                Command::MakeWay { listener } => self.end_oldest(&listener),
                Command::Adopt { listener, stream } => self.adopt_stream(&listener, stream),
                Command::AdoptMem { listener, peer } => self.adopt_mem(&listener, peer),
                Command::MemAnswer { to, peer } => self.on_mem_answer(to, peer),
                Command::Pipe { shared } => self.add_pipes(&shared),
                Command::Fetch { connection, id, reply } => self.fetch(connection, id, reply),
                Command::Spawn(make) => spawned.tasks.push(make),
                Command::Sleep(state) => self.arm_sleep(state),
                Command::CancelSleep(state) => self.cancel_sleep(&state),
            }
        }
        spawned
    }

    fn fetch(&mut self, key: Key, id: crate::plan::PendingId, reply: crate::plan::FetchReply) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Some(backend) = conn.link.backend() else { return };
        if let Err(error) = backend.fetch(&mut conn.core, &mut self.io, id, reply) {
            self.end(key, error);
        }
    }
}
