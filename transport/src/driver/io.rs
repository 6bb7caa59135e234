//! What one dispatcher owns: the table of connections, and the I/O that they share.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use slab::Slab;

use super::{accept::Listening, conn::Conn, pairing::Pairing, table::Table, ucx_link::UcxOp};
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

/// How long operations of closed endpoints may take to end before their worker is replaced. They end within microseconds, or
/// never.
const STUCK: Duration = Duration::from_millis(100);

/// How long endpoints may wait to be closed before the sockets of their worker are looked after. Most are closed within a round
/// trip.
const LATE: Duration = Duration::from_millis(200);

/// How long the kernel tries to bring data to a peer when endpoints that wait for that are late. Minutes is its default. Longer
/// than the deadlines that a connection is likely to have, since sockets that are in use get it as well.
const GIVE_UP: Duration = Duration::from_secs(20);

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
pub(crate) enum WorkerSlot {
    Unused,
    Failed(FallbackReason),
    Ready { worker: ucx::Worker, source: Key },
}

/// The I/O that the connections of a dispatcher share.
pub(crate) struct Io {
    pub(crate) shared: Arc<dispatcher::Shared>,
    pub(crate) poller: Poller,
    pub(crate) sources: Table<Source>,
    pub(crate) timers: Timers<Timer>,
    pub(crate) worker: WorkerSlot,
    pub(crate) pairing: Pairing,
    pub(crate) ops: Slab<UcxOp>,
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
    /// Sleeps given up in a row because UCX's descriptor was ready and nothing was found.
    pub(crate) useless_edges: u32,
    /// Times in a row that UCX said busy when it was to be armed, and how many turns had found work by then.
    pub(crate) busy_arms: (u32, u64),
    /// Since when the worker has had nothing but operations of closed endpoints.
    pub(crate) stuck_since: Option<Instant>,
    /// When endpoints that wait to be closed are late, and whether their sockets have a time limit already.
    late: Option<(Instant, bool)>,
}

impl Io {
    pub(crate) fn new(shared: Arc<dispatcher::Shared>, poller: Poller) -> Self {
        Self {
            shared,
            poller,
            sources: Table::new(),
            timers: Timers::new(),
            worker: WorkerSlot::Unused,
            pairing: Pairing::default(),
            ops: Slab::new(),
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
            useless_edges: 0,
            busy_arms: (0, 0),
            stuck_since: None,
            late: None,
        }
    }

    /// The UCX worker, started if need be.
    pub(crate) fn worker(&mut self) -> Result<&mut ucx::Worker, FallbackReason> {
        if matches!(self.worker, WorkerSlot::Unused) {
            self.worker = match self.start_worker() {
                Ok((worker, source)) => WorkerSlot::Ready { worker, source },
                Err(reason) => WorkerSlot::Failed(reason),
            };
        }
        match &mut self.worker {
            WorkerSlot::Ready { worker, .. } => Ok(worker),
            WorkerSlot::Failed(reason) => Err(reason.clone()),
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

    fn start_worker(&mut self) -> Result<(ucx::Worker, Key), FallbackReason> {
        if !self.shared.config.ucx {
            return Err(FallbackReason::Disabled("the dispatcher is configured without ucx".into()));
        }
        let context = ucx::Context::get().map_err(Clone::clone)?;
        self.shared.pool.set_registrar(Arc::new(context));
        let failed = |error: String| FallbackReason::Failed(error.into());
        let worker = ucx::Worker::new().map_err(|e| failed(e.to_string()))?;
        self.pairing = Pairing::default();
        let source = self.sources.insert(Source::Worker);
        if let Err(error) = self.poller.add_readable(&worker.event_fd(), source) {
            self.sources.remove(source);
            return Err(failed(format!("watching the worker: {error}")));
        }
        Ok((worker, source))
    }

    /// Ends a worker whose operations don't end although all its endpoints are closed: only its own end gives their memory back.
    /// The next connection that needs one makes another.
    pub(crate) fn replace_stuck_worker(&mut self) {
        let stuck =
            !self.ops.is_empty() && matches!(&self.worker, WorkerSlot::Ready { worker, .. } if worker.is_stuck());
        if !stuck {
            self.stuck_since = None;
            return;
        }
        let since = *self.stuck_since.get_or_insert(self.now);
        if self.now.saturating_duration_since(since) < STUCK {
            return;
        }
        if let WorkerSlot::Ready { worker, source } = std::mem::replace(&mut self.worker, WorkerSlot::Unused) {
            self.poller.remove(&worker.event_fd());
            self.sources.remove(source);
            worker.shutdown(self.now);
        }
        self.ops.clear();
        self.stuck_since = None;
    }

    /// Looks after endpoints that wait to be closed because their peers do not read: if the worker has no others, their sockets are reset; else
    /// the kernel gives them up in time.
    pub(crate) fn hasten_closing(&mut self) {
        let WorkerSlot::Ready { worker, .. } = &mut self.worker else { return };
        let Some(ucx::OnlyClosing(only)) = worker.closing() else {
            self.late = None;
            return;
        };
        let (at, limited) = self.late.get_or_insert((self.now + LATE, false));
        if self.now < *at {
            return;
        }
        // A peer that shakes hands may have connected to this worker already, before there is an endpoint here.
        if only && self.handshakes == 0 {
            self.late = None;
            let sockets = worker.reset_sockets();
            tracing::debug!(sockets, "the peers of closed ucx endpoints do not read");
        } else if !*limited {
            *limited = true;
            worker.limit_sockets(GIVE_UP);
        }
    }

    /// The UCX worker, started if need be, and the numbers of its endpoints.
    pub(crate) fn worker_and_pairing(&mut self) -> Result<(&mut ucx::Worker, &mut Pairing), FallbackReason> {
        self.worker()?;
        match &mut self.worker {
            WorkerSlot::Ready { worker, .. } => Ok((worker, &mut self.pairing)),
            WorkerSlot::Failed(reason) => Err(reason.clone()),
            WorkerSlot::Unused => unreachable!("started above"),
        }
    }

    /// Closes the endpoints that were made for nobody.
    #[cold]
    pub(crate) fn close_spares(&mut self) {
        if let WorkerSlot::Ready { worker, .. } = &mut self.worker {
            self.pairing.close_spares(worker);
        }
    }

    /// The worker, if it runs.
    #[inline]
    pub(crate) fn live_worker(&mut self) -> Option<&mut ucx::Worker> {
        match &mut self.worker {
            WorkerSlot::Ready { worker, .. } => Some(worker),
            _ => None,
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

    /// Closes an endpoint: what is in flight on it ends with events, now or later.
    pub(super) fn close_endpoint(&mut self, ep: EndpointId) {
        self.endpoints.remove(&ep);
        if let Some(worker) = self.live_worker() {
            worker.close(ep);
        }
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
        counters.ucx_inflight.set(self.ops.len() as u64);
        counters.ucx_parked_workers.set(ucx::parked_workers());
        if !matches!(self.worker, WorkerSlot::Ready { .. }) {
            counters.ucx_held.set(0);
            counters.ucx_endpoints.set(0);
        }
        if let WorkerSlot::Ready { worker, .. } = &self.worker {
            let inside = worker.inflight();
            counters.ucx_held.set(inside.held_descriptors as u64);
            counters.ucx_endpoints.set(inside.endpoints as u64);
        }
    }
}

/// Everything that belongs to one dispatcher, but for its tasks.
pub(crate) struct Core {
    pub(crate) io: Io,
    pub(crate) conns: Table<Conn>,
    pub(crate) listeners: Table<Listening>,
    pub(crate) ring: crate::queue::RingReceiver<u64>,
}
