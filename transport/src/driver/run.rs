//! The loop: turns, waiting, and the ritual of going to sleep.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    marker::PhantomData,
    pin::pin,
    rc::Rc,
    sync::atomic::Ordering,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use super::{
    CURRENT, CURRENT_ID, Command, Current, SHUTDOWN_GRACE,
    conn::Link,
    io::{Core, Hot, Io, Source, Timer, WorkerSlot},
    opening::NO_TOKEN,
    receive,
    tasks::{RootWaker, Tasks, poll_root},
};
use crate::{
    Dispatcher, Error, ErrorKind, Result,
    config::{DispatcherConfig, WaitPolicy},
    connection::unpack,
    dispatcher,
    event::poller::{Edge, Key, Poller},
    proto::header::{self, Kind},
    queue,
    ucx::{Armed, Event, Worker},
};

/// Calls of progress in one turn before sockets and queues are looked at.
const PROGRESS_PER_TURN: usize = 64;
/// UCX events taken in one turn.
const EVENTS_PER_TURN: usize = 1024;
/// Turns of a spinning loop between two looks at the clock and the sockets while UCX is in use: epoll costs as much as
/// ten empty turns of UCX over shared memory. The distance doubles from the first to the second of these while the
/// sockets are silent (about 5 us), and starts over when one of them has something.
const TURNS_PER_POLL: [u32; 2] = [1, 256];
/// The same while stream connections are read without being asked for: such a turn costs a system call by itself.
const TURNS_PER_POLL_HOT: u32 = 64;
/// As many idle turns count for one that found work: it may have taken long.
const WORKING_TURN: u32 = 8;
/// Stream connections that a spinning loop reads in each turn instead of waiting for their edges: a read that finds
/// nothing costs less than an epoll that finds nothing, and one that finds something saves the epoll.
const HOT_STREAMS: usize = 4;
/// Turns without a byte after which a stream connection is left to its edges again.
const COOLS_AFTER: u32 = 256;
/// Connections served in one turn.
const SERVED_PER_TURN: usize = 256;
/// A worker's descriptor that stays ready although progress finds nothing is believed this often in a row.
const USELESS_EDGES: u32 = 3;

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
        Ok(Self { current: Current { shared, core, tasks, ready }, not_send: PhantomData })
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
            if root.take()
                && let Poll::Ready(output) = poll_root(future.as_mut(), &waker)
            {
                self.turn();
                return output;
            }
            let worked = self.turn();
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
        let shared = &self.current.shared;
        // Asking a queue whether it is empty is much cheaper than popping from it: no fence.
        let has_tasks = !shared.woken_tasks.is_empty() || !self.current.ready.borrow().is_empty();
        let polled = has_tasks && Tasks::run(&self.current.tasks);
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
        polled | worked
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
        let _running = Running::enter(&self.current);
        self.turn()
    }

    #[cfg(feature = "tokio")]
    pub(super) fn parts(&self) -> (&Arc<dispatcher::Shared>, &Rc<RefCell<Core>>) {
        (&self.current.shared, &self.current.core)
    }

    #[cfg(feature = "tokio")]
    pub(super) fn has_ready_tasks(&self) -> bool {
        !self.current.ready.borrow().is_empty()
    }
}

impl Drop for LocalDispatcher {
    fn drop(&mut self) {
        let Current { shared, core, tasks, .. } = &self.current;
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
        core.io.timers = crate::event::timer::Timers::new();
        if let WorkerSlot::Ready { worker, source } = std::mem::replace(&mut core.io.worker, WorkerSlot::Unused) {
            core.io.poller.remove(&worker.event_fd());
            core.io.sources.remove(source);
            if !worker.shutdown(Instant::now() + SHUTDOWN_GRACE) {
                tracing::warn!("the application still holds received ucx memory: its worker is left behind");
            }
        }
        core.io.ops.clear();
        core.io.publish(0);
        shared.counters.listeners.set(0);
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
        if !self.io.hot.is_empty() {
            worked |= self.read_hot();
        }
        if self.io.due_for_poll(worked) {
            self.update_clock();
            worked |= self.poll(Some(Duration::ZERO));
            worked |= self.fire_timers();
            self.io.publish(self.conns.len());
        }
        worked |= self.serve_ready();
        while let Some((key, error)) = self.io.doomed.pop() {
            worked = true;
            self.end(key, error);
        }
        worked
    }

    /// Lets UCX work until nothing is left, or the turn is long enough.
    pub(super) fn progress(&mut self) -> bool {
        let Some(worker) = self.io.live_worker() else { return false };
        let mut worked = false;
        for _ in 0..PROGRESS_PER_TURN {
            if worker.progress() == 0 {
                break;
            }
            worked = true;
        }
        worked
    }

    /// Acts on what UCX's callbacks have left.
    pub(super) fn take_events(&mut self) -> bool {
        for taken in 0..EVENTS_PER_TURN {
            let Some(event) = self.io.live_worker().and_then(Worker::poll_event) else { return taken > 0 };
            match event {
                Event::Message { header, data, .. } => self.on_message(&header, data),
                Event::Announced { header, rndv, .. } => self.on_announced(&header, rndv),
                Event::SendDone { token: NO_TOKEN, .. } => {}
                Event::SendDone { token, result } => self.on_sent(token, result),
                Event::FetchDone { token, buf, result } => self.on_fetch_done(token, buf, result),
                Event::EndpointFailed { ep, error } => self.on_endpoint_failed(ep, error),
                Event::ConnRequest { request, .. } => drop(request),
            }
        }
        true
    }

    #[inline]
    fn on_message(&mut self, bytes: &[u8], data: bytes::Bytes) {
        let Ok((header, inline)) = header::decode_with_head(bytes) else { return self.stale("an undecodable header") };
        let key = Key { index: header.conn, generation: header.generation };
        let Some(conn) = self.conns.get_mut(key) else { return self.stale("no such connection") };
        conn.core.heard(self.io.now);
        conn.core.reassure(&mut self.io);
        let link = match &mut conn.link {
            Link::Ucx(link) => link,
            Link::Opening(_) => return self.on_early_message(key, header, inline, data),
            Link::Tcp(_) | Link::Mem(_) => return self.stale("the connection does not use ucx"),
        };
        use crate::backend::Backend as _;
        let given = match header.credit {
            Some(credit) => {
                let given = link.give(credit);
                conn.core.make_ready(&mut self.io);
                given
            }
            None => Ok(()),
        };
        let (core, io) = (&mut conn.core, &mut self.io);
        let result = given.and_then(|()| match header.kind {
            Kind::Data => {
                let result = link.on_data(core, io, &header, inline, data);
                core.shared.reader.wake();
                result
            }
            Kind::Head => link.on_head(core, io, header.seq, data),
            // A repeated proof is harmless: the peer opened on the strength of ours.
            Kind::Prove | Kind::Proved => Ok(()),
            _ => receive::control(core, io, &mut **link, &header, &data),
        });
        match result {
            Err(error) => self.end(key, error),
            Ok(()) if header.kind == Kind::Data && core.session.life.is_open() => {}
            Ok(()) => self.settle(key),
        }
    }

    /// A message for a connection that is not open: a proof, or data that overtook the peer's READY.
    fn on_early_message(&mut self, key: Key, header: header::FrameHeader, inline: &[u8], data: bytes::Bytes) {
        let kind = header.kind;
        self.opening_step(key, |opening, core, io| opening.on_proof(core, io, kind));
        let is_open = self.conns.get(key).is_some_and(|c| matches!(c.link, Link::Ucx(_)));
        if is_open && !matches!(kind, Kind::Prove | Kind::Proved) {
            let mut bytes = [0; header::MAX_HEADER];
            let len = header.encode(&mut bytes);
            self.on_message(&[&bytes[..len], inline].concat(), data);
        }
    }

    fn on_announced(&mut self, bytes: &[u8], rndv: crate::ucx::Rendezvous) {
        let Ok((header, inline)) = header::decode_with_head(bytes) else { return self.stale("an undecodable header") };
        let key = Key { index: header.conn, generation: header.generation };
        let is_data = matches!(header.kind, Kind::Data | Kind::Head);
        if let Some(conn) = self.conns.get(key)
            && !conn.link.is_open()
            && is_data
        {
            self.opening_step(key, |opening, core, io| opening.on_proof(core, io, Kind::Data));
        }
        let Some(conn) = self.conns.get_mut(key) else { return self.stale("no such connection") };
        let Link::Ucx(link) = &mut conn.link else { return self.stale("the connection does not use ucx") };
        conn.core.heard(self.io.now);
        use crate::backend::Backend as _;
        let (core, io) = (&mut conn.core, &mut self.io);
        let given = header.credit.map_or(Ok(()), |credit| {
            core.make_ready(io);
            link.give(credit)
        });
        let result = given.and_then(|()| {
            if is_data {
                let result = link.on_announced(core, io, &header, inline, rndv);
                core.shared.reader.wake();
                return result;
            }
            Err(Error::new(ErrorKind::Protocol, format!("a {:?} frame by rendezvous", header.kind)))
        });
        match result {
            Ok(()) => self.settle(key),
            Err(error) => self.end(key, error),
        }
    }

    #[cold]
    fn stale(&mut self, why: &str) {
        self.io.shared.counters.stale_messages.add(1);
        tracing::debug!(why, "ucx message dropped");
    }

    fn on_endpoint_failed(&mut self, ep: crate::ucx::EndpointId, error: Error) {
        let is_it = |link: &Link| match link {
            Link::Ucx(link) => link.ep == ep,
            Link::Opening(opening) => opening.endpoint() == Some(ep),
            Link::Tcp(_) | Link::Mem(_) => false,
        };
        let found = self.conns.keys().into_iter().find(|k| self.conns.get(*k).is_some_and(|c| is_it(&c.link)));
        let Some(key) = found else { return };
        if self.conns.get(key).is_some_and(|c| c.link.is_open()) {
            self.end(key, error);
        } else {
            self.opening_step(key, |opening, _, io| opening.on_ucx_failed(io, &error));
        }
    }

    /// Takes edges and acts on them.
    pub(super) fn poll(&mut self, timeout: Option<Duration>) -> bool {
        if let Err(error) = self.io.poller.poll(timeout) {
            tracing::error!(%error, "the poller failed");
            return false;
        }
        self.take_edges()
    }

    pub(super) fn take_edges(&mut self) -> bool {
        let mut edges = std::mem::take(&mut self.io.edges);
        self.io.poller.take(&mut edges);
        let worked = !edges.is_empty();
        for edge in edges.drain(..) {
            match self.io.sources.get(edge.key).copied() {
                Some(Source::Socket(key)) => {
                    self.heat(key, &edge);
                    self.on_socket(key, &edge);
                }
                Some(Source::Pipe(key)) => self.on_pipe(key, edge.key),
                Some(Source::Listener(key)) => self.accept(key),
                // Progress does the work; the edge has done its part by ending the sleep.
                Some(Source::Worker) | None => {}
            }
        }
        self.io.edges = edges;
        worked
    }

    /// A socket had an edge: more may follow soon.
    fn heat(&mut self, key: Key, edge: &Edge) {
        if self.io.hot.iter().any(|hot| hot.key == key) {
            return;
        }
        self.io.poll_often();
        let spins = self.io.shared.wait_policy() != WaitPolicy::Event;
        if spins
            && edge.readable
            && self.io.hot.len() < HOT_STREAMS
            && self.conns.get(key).is_some_and(|conn| matches!(conn.link, Link::Tcp(_)))
        {
            self.io.hot.push(Hot { key, idle: 0 });
        }
    }

    /// Reads the connections that were read lately. Their edges come all the same, and find nothing or more.
    fn read_hot(&mut self) -> bool {
        let mut worked = false;
        let mut index = 0;
        while let Some(hot) = self.io.hot.get_mut(index) {
            hot.idle += 1;
            let (key, idle) = (hot.key, hot.idle);
            let read = self.read_ahead_of_edge(key);
            worked |= read == Some(true);
            match read {
                Some(true) => self.io.hot[index].idle = 0,
                Some(false) if idle < COOLS_AFTER => {}
                _ => {
                    self.io.hot.swap_remove(index);
                    continue;
                }
            }
            index += 1;
        }
        worked
    }

    /// Whether something was read; `None` if the connection is not to be read.
    fn read_ahead_of_edge(&mut self, key: Key) -> Option<bool> {
        let conn = self.conns.get_mut(key)?;
        let Link::Tcp(link) = &mut conn.link else { return None };
        if conn.core.shared.end().is_some() || link.eof {
            return None;
        }
        match link.read(&mut conn.core, &mut self.io) {
            Ok(false) => Some(false),
            result => {
                self.after_socket(key, result.map(drop));
                Some(true)
            }
        }
    }

    pub(super) fn fire_timers(&mut self) -> bool {
        let mut worked = false;
        while let Some(timer) = self.io.timers.pop(self.io.now) {
            worked = true;
            match timer {
                Timer::Connection(key) => self.on_connection_timer(key),
                Timer::Listener(key) => self.on_listener_timer(key),
                Timer::Sleep(state) => {
                    state.fired.store(true, Ordering::Release);
                    state.waker.wake();
                }
            }
        }
        worked
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
                Command::Unlisten { listener } => self.unlisten(&listener),
                Command::ResumeAccept { listener } => self.resume_accept(&listener),
                Command::Adopt { listener, stream } => self.adopt_stream(&listener, stream),
                Command::AdoptMem { listener, peer } => self.adopt_mem(&listener, peer),
                Command::MemAnswer { to, peer } => self.on_mem_answer(to, peer),
                Command::Pipe { shared, pipe } => self.add_pipe(&shared, pipe),
                Command::Fetch { connection, id, reply } => self.fetch(connection, id, reply),
                Command::Spawn(make) => spawned.tasks.push(make),
                Command::Sleep { at, state } => {
                    if !state.dropped.load(Ordering::Acquire) {
                        self.io.timers.insert(at, Timer::Sleep(state));
                    }
                }
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

    /// Whether any queue that others fill has something. Part of the sleep ritual.
    fn has_queued_work(&self) -> bool {
        !self.ring.is_empty()
            || !self.io.ready.is_empty()
            || !self.io.shared.commands.is_empty()
            || !self.io.shared.woken_tasks.is_empty()
            || !self.io.doomed.is_empty()
    }

    /// Goes to sleep, by the ritual: announce, look at every queue, arm UCX, let it work once more, make sure that no
    /// edge of its descriptor was used up, commit, sleep.
    fn sleep(&mut self, woken: &dyn Fn() -> bool) {
        let shared = self.io.shared.clone();
        let counters = &shared.counters;
        counters.arms.add(1);
        shared.wake.begin_arming();
        if woken() || self.has_queued_work() {
            counters.arm_queue_busy.add(1);
            return shared.wake.wake_up();
        }
        if !self.arm() {
            return shared.wake.wake_up();
        }
        if !shared.wake.commit_sleep() {
            counters.commit_refused.add(1);
            return shared.wake.wake_up();
        }
        self.update_clock();
        let detector = shared.config.detector.max(Duration::from_millis(1));
        let timer = self.io.timers.next().map(|at| at.saturating_duration_since(self.io.now));
        let timeout = timer.map_or(detector, |t| t.min(detector));
        counters.sleeps.add(1);
        let result = self.io.poller.poll(Some(timeout));
        shared.wake.wake_up();
        if let Err(error) = result {
            tracing::error!(%error, "the poller failed");
        }
        self.update_clock();
        self.after_sleep(timer.is_some_and(|t| t <= detector));
    }

    /// Says why the sleep ended, and acts on it.
    fn after_sleep(&mut self, by_timer: bool) {
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
        if silent && by_timer {
            counters.wakes_by_timer.add(1);
        } else if silent {
            counters.detector_timeouts.add(1);
            self.detect();
        }
        let mut edges = std::mem::take(&mut self.io.edges);
        for edge in edges.drain(..) {
            match self.io.sources.get(edge.key).copied() {
                Some(Source::Socket(key)) => self.on_socket(key, &edge),
                Some(Source::Pipe(key)) => self.on_pipe(key, edge.key),
                Some(Source::Listener(key)) => self.accept(key),
                Some(Source::Worker) | None => {}
            }
        }
        self.io.edges = edges;
        self.fire_timers();
    }

    /// The safety timeout ended a sleep: is there work that nothing announced? What arrives just now announces itself,
    /// so the poller is asked before and after.
    fn detect(&mut self) {
        if self.has_pending_edges() {
            return;
        }
        let queued = self.has_queued_work();
        let found = queued || self.progress();
        if !found || (!queued && self.has_pending_edges()) {
            return;
        }
        self.io.shared.counters.wake_detector_hits.add(1);
        tracing::error!(dispatcher = self.io.shared.id, queued, "a wake-up was lost: please report this");
    }

    fn has_pending_edges(&mut self) -> bool {
        if self.io.poller.poll(Some(Duration::ZERO)).is_err() {
            return true;
        }
        let mut edges = std::mem::take(&mut self.io.edges);
        let before = edges.len();
        self.io.poller.take(&mut edges);
        let any = edges.len() > before;
        self.io.edges = edges;
        any
    }

    /// Arms UCX; `false` means that there is work.
    fn arm(&mut self) -> bool {
        let WorkerSlot::Ready { worker, .. } = &mut self.io.worker else { return true };
        let counters = &self.io.shared.counters;
        match worker.arm() {
            Ok(Armed::Ok) => {}
            Ok(Armed::Busy) => {
                counters.arm_ucx_busy.add(1);
                return false;
            }
            Err(error) => {
                tracing::error!(%error, "the ucx worker cannot be armed");
                return false;
            }
        }
        // Over verbs a completion between the last progress and the arming raises no event.
        if worker.progress() != 0 {
            counters.arm_progress_found.add(1);
            return false;
        }
        // Over tcp UCX's arm never says busy, and the edge of a socket that progress left readable may be used up.
        if is_readable(worker.event_fd()) {
            counters.arm_edge_ready.add(1);
            self.io.useless_edges += 1;
            if self.io.useless_edges <= USELESS_EDGES {
                return false;
            }
        }
        self.io.useless_edges = 0;
        true
    }
}

/// Whether a descriptor is readable now.
fn is_readable(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
}

impl Io {
    /// Whether this turn looks at the clock and the sockets.
    #[inline]
    fn due_for_poll(&mut self, worked: bool) -> bool {
        let longest = match self.worker {
            _ if !self.hot.is_empty() => TURNS_PER_POLL_HOT,
            WorkerSlot::Ready { .. } => TURNS_PER_POLL[1],
            _ => return true,
        };
        self.turns_to_poll = self.turns_to_poll.saturating_sub(if worked { WORKING_TURN } else { 1 });
        if self.turns_to_poll == 0 {
            self.poll_distance = (self.poll_distance * 2).clamp(TURNS_PER_POLL[0], longest);
            self.turns_to_poll = self.poll_distance;
            return true;
        }
        false
    }

    /// A socket had something: more may follow soon.
    fn poll_often(&mut self) {
        self.poll_distance = TURNS_PER_POLL[0];
        self.turns_to_poll = TURNS_PER_POLL[0];
    }
}
