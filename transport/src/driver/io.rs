//! What one dispatcher owns: the table of connections, and the I/O that they share.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{accept::Listening, conn::Conn, engine::Engine, table::Table};
use crate::{
    Error, FallbackReason, Result,
    dispatcher::{self, SleepState},
    event::{
        poller::{Edge, Key, Poller},
        timer::{TimerId, Timers},
    },
    ucx::{self, EndpointId},
};

/// The dispatcher's shared read buffer, bytes: several of the kernel's largest segments at once.
const SCRATCH: usize = 256 << 10;

/// How long it takes until a worker is tried again that could not be made, where one was before.
const RESTART: Duration = Duration::from_secs(1);

/// What stands behind a key of the poller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The socket of a connection, whatever it is used for at the moment.
    Socket(Key),
    /// The readiness pipe of a connection.
    Pipe(Key),
    /// A listener.
    Listener(Key),
    /// The UCX worker.
    Worker,
}

/// What a timer is for.
pub(crate) enum Timer {
    /// A connection's next deadline.
    Connection(Key),
    /// Accept again after a pause.
    Listener(Key),
    /// Somebody's [`crate::Sleep`].
    Sleep(Arc<SleepState>),
}

/// The UCX worker, made when the first connection needs it.
#[expect(clippy::large_enum_variant, reason = "there is one of each dispatcher, and every message goes through it")]
pub(crate) enum WorkerSlot {
    Unused,
    /// It could not be started, and is not tried again before then, if ever.
    Failed(FallbackReason, Option<Instant>),
    Ready(Engine),
}

/// The I/O that the connections of a dispatcher share.
pub(crate) struct Io {
    pub(crate) shared: Arc<dispatcher::Shared>,
    pub(crate) poller: Poller,
    pub(crate) sources: Table<Source>,
    pub(crate) timers: Timers<Timer>,
    pub(crate) worker: WorkerSlot,
    /// A worker has run here.
    had_worker: bool,
    /// Workers that new connections do not use any more.
    pub(super) retired: Vec<Engine>,
    /// Some worker is watched.
    pub(super) in_doubt: bool,
    /// Openings wait until it is clear whether the worker for new connections receives anything.
    pub(super) openings_wait: bool,
    /// Whose each open endpoint is.
    endpoints: HashMap<EndpointId, Key>,
    /// The time, as of this turn: good enough for liveness and deadlines of many milliseconds.
    pub(crate) now: Instant,
    pub(crate) scratch: Box<[u8]>,
    /// Connections that this thread itself has found ready, in turn.
    pub(crate) ready: VecDeque<Key>,
    /// Connections that are to be ended, because it was found out where they can't be.
    pub(crate) doomed: Vec<(Key, Error)>,
    pub(crate) edges: Vec<Edge>,
    /// Connections that are being opened.
    pub(crate) handshakes: u64,
    /// Those of them that were accepted, the oldest first, with some that are over.
    pub(super) accepting: VecDeque<(Key, Instant)>,
    /// Turns until the sockets are looked at again, and how many it will be next.
    pub(crate) turns_to_poll: u32,
    pub(crate) poll_distance: u32,
    /// Stream connections that are read in each turn.
    pub(crate) hot: Vec<super::pace::Hot>,
    /// Times in a row that UCX said busy when it was to be armed, and how many turns had found work by then.
    pub(crate) busy_arms: (u32, u64),
}

impl Io {
    pub(crate) fn new(shared: Arc<dispatcher::Shared>, poller: Poller) -> Self {
        Self {
            shared,
            poller,
            sources: Table::new(),
            timers: Timers::new(),
            worker: WorkerSlot::Unused,
            had_worker: false,
            retired: Vec::new(),
            in_doubt: false,
            openings_wait: false,
            endpoints: HashMap::new(),
            now: Instant::now(),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            ready: VecDeque::new(),
            doomed: Vec::new(),
            edges: Vec::new(),
            handshakes: 0,
            accepting: VecDeque::new(),
            turns_to_poll: 0,
            poll_distance: 1,
            hot: Vec::new(),
            busy_arms: (0, 0),
        }
    }

    /// The UCX worker for new connections, started if need be.
    pub(crate) fn worker(&mut self) -> Result<&mut ucx::Worker, FallbackReason> {
        self.current_engine().map(|engine| &mut engine.worker)
    }

    /// The UCX worker for new connections, started if need be, and what belongs to it.
    pub(crate) fn current_engine(&mut self) -> Result<&mut Engine, FallbackReason> {
        let due = match &self.worker {
            WorkerSlot::Unused => true,
            WorkerSlot::Failed(_, Some(at)) => self.now >= *at,
            WorkerSlot::Failed(_, None) | WorkerSlot::Ready(_) => false,
        };
        if due {
            self.worker = match self.start_worker() {
                Ok(engine) => WorkerSlot::Ready(engine),
                // Where one has run before, what is missing now may be there again.
                Err(reason) => WorkerSlot::Failed(reason, self.had_worker.then(|| self.now + RESTART)),
            };
        }
        match &mut self.worker {
            WorkerSlot::Ready(engine) => Ok(engine),
            WorkerSlot::Failed(reason, _) => Err(reason.clone()),
            WorkerSlot::Unused => unreachable!("started above"),
        }
    }

    /// The UCX worker, if new connections can be made with it now.
    pub(crate) fn worker_for_new(&mut self) -> Result<&mut ucx::Worker, FallbackReason> {
        if !self.worker()?.has_room() {
            return Err(FallbackReason::Failed(
                "too many endpoints of given-up connections wait for their peers: ucx is used again when some have been closed; \
                 look for clients that stop in the middle of connecting"
                    .into(),
            ));
        }
        ucx::Context::get().map_err(Clone::clone)?.check_ports(self.now)?;
        self.worker()
    }

    fn start_worker(&mut self) -> Result<Engine, FallbackReason> {
        if !self.shared.config.ucx {
            return Err(FallbackReason::Disabled("the dispatcher is configured without ucx".into()));
        }
        let context = ucx::Context::get().map_err(Clone::clone)?;
        self.shared.pool.set_registrar(Arc::new(context));
        let failed = |error: String| FallbackReason::Failed(error.into());
        let worker = ucx::Worker::new().map_err(|e| failed(e.to_string()))?;
        self.had_worker = true;
        let source = self.sources.insert(Source::Worker);
        if let Err(error) = self.poller.add_readable(&worker.event_fd(), source) {
            self.sources.remove(source);
            return Err(failed(format!("watching the worker: {error}")));
        }
        Ok(Engine::new(worker, source, context.has_memory()))
    }

    /// Closes the endpoints that were made for nobody.
    #[cold]
    pub(crate) fn close_spares(&mut self) {
        for engine in self.engines() {
            engine.pairing.close_spares(&mut engine.worker);
        }
    }

    /// Notes whose an endpoint is, as soon as it is made.
    pub(super) fn own_endpoint(&mut self, ep: EndpointId, connection: Key) {
        self.endpoints.insert(ep, connection);
    }

    /// The connection that an endpoint belongs to.
    #[inline]
    pub(super) fn owner_of(&self, ep: EndpointId) -> Option<Key> {
        self.endpoints.get(&ep).copied()
    }

    /// Forgets whose an endpoint is.
    pub(super) fn forget_endpoint(&mut self, ep: EndpointId) {
        self.endpoints.remove(&ep);
    }

    /// Arms a timer that is due no later than `at`, in the place of `current`.
    pub(crate) fn sooner(&mut self, current: &mut Option<TimerId>, at: Instant, timer: Timer) {
        if let Some(id) = *current {
            if id.at() <= at {
                return;
            }
            self.timers.cancel(id);
        }
        *current = Some(self.timers.insert(at, timer));
    }

    /// The deadline `after` from now.
    pub(crate) fn after(&self, after: Duration) -> Instant {
        // Durations that overflow the clock mean "never": a century will do.
        self.now.checked_add(after).unwrap_or_else(|| self.now + Duration::from_secs(3_000_000_000))
    }

    /// Publishes the gauges.
    pub(crate) fn publish(&mut self, connections: usize) {
        let counters = &self.shared.counters;
        counters.connections.set(connections as u64);
        counters.sources.set(self.sources.len() as u64);
        counters.handshakes.set(self.handshakes);
        counters.timers.set(self.timers.len() as u64);
        counters.ucx_parked_workers.set(ucx::parked_workers());
        let (mut inflight, mut held, mut endpoints) = (0, 0, 0);
        for engine in self.engines() {
            let inside = engine.worker.inflight();
            inflight += engine.ops.len() as u64;
            held += inside.held_descriptors as u64;
            endpoints += inside.endpoints as u64;
        }
        let counters = &self.shared.counters;
        counters.ucx_inflight.set(inflight);
        counters.ucx_held.set(held);
        counters.ucx_endpoints.set(endpoints);
    }
}

/// Everything that belongs to one dispatcher, but for its tasks.
pub(crate) struct Core {
    pub(crate) io: Io,
    pub(crate) conns: Table<Conn>,
    pub(crate) listeners: Table<Listening>,
    pub(crate) ring: crate::queue::RingReceiver<u64>,
}
