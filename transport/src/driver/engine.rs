//! The UCX workers of a dispatcher: the one that new connections use, and earlier ones that still have connections.
//!
//! A peer that is killed while it writes into a worker's shared-memory receive queue blocks it for all others (`ucx/doubt.rs`). So
//! when a connection over shared memory has broken while UCX has something that it does not bring, the worker is watched. If it stays
//! that way the worker is **retired**: new connections get a new one, those over shared memory end, and the others stay with the old
//! worker until they end. A worker is retired as well when operations of closed endpoints do not end: only its own end gives their
//! memory back.

use std::time::{Duration, Instant};

use slab::Slab;

use super::{
    io::{Core, Io, Source, WorkerSlot},
    pairing::Pairing,
    ucx_link::UcxOp,
};
use crate::{
    Error, ErrorKind,
    event::poller::{Key, Poller},
    proto::{control, header::Kind},
    ucx::{self, Doubt, EndpointId, Verdict, WorkerId},
};

/// How long operations of closed endpoints may take to end before their worker is retired. They end within microseconds, or
/// never.
const STUCK: Duration = Duration::from_millis(100);

/// The same for endpoints that wait to be closed on a worker whose receive queue is blocked: longer than it takes until their sockets,
/// if they have some, are reset.
const DEAF: Duration = Duration::from_millis(400);

/// How long endpoints may wait to be closed before the sockets of their worker are looked after. Most are closed within a round
/// trip.
const LATE: Duration = Duration::from_millis(200);

/// How long the kernel tries to bring data to a peer when endpoints that wait for that are late. Minutes is its default. Longer
/// than the deadlines that a connection is likely to have, since sockets that are in use get it as well.
const GIVE_UP: Duration = Duration::from_secs(20);

/// How long a receive queue may be silent, with something in it, before it counts as blocked for new connections. A sender that
/// lives marks its place within microseconds, unless the system keeps it from running. To be wrong costs a worker more.
const BLOCKED: Duration = Duration::from_millis(50);

/// How long clients wait for the answer to their hellos, at most, until it is clear whether the receive queue is blocked.
const UNCLEAR: Duration = Duration::from_millis(250);

/// How long it may be silent before the connections that use it end. To be wrong costs connections.
const DEAD: Duration = Duration::from_secs(2);

/// Workers that may be retired at a time. Each has 12 descriptors and 2 to 4 MiB, for as long as it has connections.
const MAX_RETIRED: usize = 8;

/// Whether an endpoint's peer may have died while it wrote into our memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    Perhaps,
    No,
}

/// A worker, and what belongs to it.
pub(crate) struct Engine {
    pub(crate) worker: ucx::Worker,
    pub(crate) pairing: Pairing,
    pub(crate) ops: Slab<UcxOp>,
    /// Peers may reach it over shared memory.
    has_memory: bool,
    /// Its descriptor in the poller.
    source: Key,
    /// Since when it has had nothing but operations of closed endpoints.
    stuck_since: Option<Instant>,
    /// When endpoints that wait to be closed are late, and whether their sockets have a time limit already.
    late: Option<(Instant, bool)>,
    doubt: Option<Doubt>,
    /// Endpoints that are closed when the doubt is over: UCX looks at the queue only while there are some that use it.
    kept: Vec<EndpointId>,
    /// It was retired because its receive queue is blocked.
    blocked: bool,
    /// What used it was ended to make room.
    ending: bool,
    /// When its peers were asked for a sign of life over shared memory.
    asked: Option<Instant>,
    /// Times in a row that its descriptor was ready and nothing was found.
    pub(super) useless_edges: u32,
    /// Messages that have come over shared memory while there was a doubt somewhere.
    heard: u64,
}

impl Engine {
    pub(super) fn new(worker: ucx::Worker, source: Key, has_memory: bool) -> Self {
        Self {
            worker,
            pairing: Pairing::default(),
            ops: Slab::new(),
            has_memory,
            source,
            stuck_since: None,
            late: None,
            doubt: None,
            kept: Vec::new(),
            blocked: false,
            ending: false,
            asked: None,
            useless_edges: 0,
            heard: 0,
        }
    }

    /// Lets UCX work until it has brought something or nothing is left, at most so many times.
    #[inline]
    pub(super) fn progress(&mut self, most: usize) -> bool {
        let mut worked = false;
        for _ in 0..most {
            if self.worker.progress() == 0 {
                break;
            }
            worked = true;
            if self.worker.has_events() {
                break;
            }
        }
        worked
    }

    fn close(&mut self, ep: EndpointId, broken: Broken, now: Instant) {
        if broken == Broken::Perhaps && self.suspect(now) {
            self.kept.push(ep);
        } else {
            self.worker.close(ep);
        }
    }

    /// Whether there is a doubt; it begins if there is a reason.
    fn suspect(&mut self, now: Instant) -> bool {
        if self.doubt.is_none() && self.has_memory && self.worker.has_unread() {
            self.doubt = Some(Doubt::new(now, self.heard));
        }
        self.doubt.is_some()
    }

    fn close_kept(&mut self) {
        for ep in std::mem::take(&mut self.kept) {
            self.worker.close(ep);
        }
    }

    /// Looks at the doubt again; says whether the queue has been silent for `how_long`, with something in it.
    fn is_blocked(&mut self, now: Instant, how_long: Duration) -> bool {
        let Some(doubt) = &mut self.doubt else { return false };
        match doubt.look(now, self.worker.has_unread(), self.heard) {
            Verdict::Silent(time) => time >= how_long,
            Verdict::Free => {
                self.doubt = None;
                self.blocked = false;
                self.close_kept();
                false
            }
        }
    }

    /// Whether nothing but operations of closed endpoints is left, and has been for too long. If the receive queue is blocked,
    /// endpoints that were closed while they were being connected never hear from their peers.
    fn is_stuck(&mut self, now: Instant) -> bool {
        let patience = if !self.ops.is_empty() && self.worker.is_stuck() {
            STUCK
        } else if self.blocked && self.worker.only_closes() {
            DEAF
        } else {
            self.stuck_since = None;
            return false;
        };
        let since = *self.stuck_since.get_or_insert(now);
        now.saturating_duration_since(since) >= patience
    }

    /// Looks after endpoints that wait to be closed because their peers do not read: if the worker has no others, their sockets are
    /// reset; else the kernel gives them up in time.
    fn hasten_closing(&mut self, now: Instant, handshakes: bool) {
        let Some(ucx::OnlyClosing(only)) = self.worker.closing() else {
            self.late = None;
            return;
        };
        let (at, limited) = self.late.get_or_insert((now + LATE, false));
        if now < *at {
            return;
        }
        // A peer that shakes hands may have connected to this worker already, before there is an endpoint here.
        if only && !handshakes {
            self.late = None;
            let sockets = self.worker.reset_sockets();
            tracing::debug!(sockets, "the peers of closed ucx endpoints do not read");
        } else if !*limited {
            *limited = true;
            self.worker.limit_sockets(GIVE_UP);
        }
    }

    /// Whether nothing uses it any more.
    fn is_over(&mut self, now: Instant) -> bool {
        self.worker.is_unused() || self.is_stuck(now)
    }

    /// Ends the worker; false if the application still holds memory of its.
    pub(super) fn shutdown(
        mut self,
        poller: &Poller,
        sources: &mut super::table::Table<Source>,
        deadline: Instant,
    ) -> bool {
        poller.remove(&self.worker.event_fd());
        sources.remove(self.source);
        self.close_kept();
        if self.blocked || self.doubt.is_some() {
            return self.worker.shutdown_deaf(deadline);
        }
        self.worker.shutdown(deadline)
    }
}

impl Io {
    /// The workers that run, and what belongs to them; the one for new connections first.
    #[inline]
    pub(super) fn engines(&mut self) -> impl Iterator<Item = &mut Engine> {
        let current = match &mut self.worker {
            WorkerSlot::Ready(engine) => Some(engine),
            _ => None,
        };
        current.into_iter().chain(&mut self.retired)
    }

    /// The worker of an endpoint, and what belongs to it.
    #[inline]
    pub(crate) fn engine_of(&mut self, ep: EndpointId) -> Option<&mut Engine> {
        self.engine(ep.worker())
    }

    #[inline]
    pub(crate) fn engine(&mut self, id: WorkerId) -> Option<&mut Engine> {
        match &mut self.worker {
            WorkerSlot::Ready(engine) if engine.worker.id() == id => Some(engine),
            _ => self.retired.iter_mut().find(|engine| engine.worker.id() == id),
        }
    }

    /// The worker of an endpoint.
    #[inline]
    pub(crate) fn worker_of(&mut self, ep: EndpointId) -> Option<&mut ucx::Worker> {
        self.engine_of(ep).map(|engine| &mut engine.worker)
    }

    /// Closes an endpoint: what is in flight on it ends with events, now or later.
    pub(super) fn close_endpoint(&mut self, ep: EndpointId, broken: Broken) {
        self.forget_endpoint(ep);
        let now = self.now;
        if let Some(engine) = self.engine_of(ep) {
            engine.close(ep, broken, now);
            self.in_doubt |= engine.doubt.is_some();
        }
    }

    /// Whether messages may come to an endpoint through the shared-memory receive queue. A failed one has lost its lanes.
    pub(super) fn may_be_over_memory(&mut self, ep: EndpointId) -> bool {
        let lanes = self.worker_of(ep).map_or_else(String::new, |worker| worker.endpoint_info(ep));
        lanes.is_empty() || ucx::over_memory(&lanes)
    }

    /// A peer that knows of a worker has gone before there was an endpoint.
    pub(super) fn suspect(&mut self, id: WorkerId) {
        let now = self.now;
        let doubtful = self.engine(id).is_some_and(|engine| engine.suspect(now));
        self.in_doubt |= doubtful;
    }

    /// A message came over shared memory, while there is a doubt.
    #[cold]
    pub(super) fn heard_over_memory(&mut self, ep: EndpointId) {
        if let Some(engine) = self.engine_of(ep) {
            engine.heard += 1;
        }
    }

    /// A worker that has events, if one has.
    #[inline]
    pub(super) fn engine_with_events(&mut self) -> Option<&mut Engine> {
        match &mut self.worker {
            WorkerSlot::Ready(engine) if engine.worker.has_events() => Some(engine),
            _ => self.retired.iter_mut().find(|engine| engine.worker.has_events()),
        }
    }

    /// Takes the operation that an event of a worker ends.
    #[inline]
    pub(super) fn take_op(&mut self, worker: WorkerId, token: u64) -> Option<UcxOp> {
        self.engine(worker)?.ops.try_remove(token as usize)
    }

    /// Whether it will be clear soon if the worker for new connections receives anything. Openings that ask are looked at again.
    #[cold]
    pub(super) fn is_unclear(&mut self) -> bool {
        let WorkerSlot::Ready(Engine { doubt: Some(doubt), .. }) = &self.worker else { return false };
        let unclear = doubt.age(self.now) < UNCLEAR;
        self.openings_wait |= unclear;
        unclear
    }

    /// The worker for new connections, if it runs.
    pub(super) fn current_worker_id(&self) -> Option<WorkerId> {
        match &self.worker {
            WorkerSlot::Ready(engine) => Some(engine.worker.id()),
            _ => None,
        }
    }

    /// Ends all workers, for good: operations may take `grace` to end.
    pub(super) fn end_workers(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.retire();
        for engine in std::mem::take(&mut self.retired) {
            if !engine.shutdown(&self.poller, &mut self.sources, deadline) {
                tracing::warn!("the application still holds received ucx memory: its worker is left behind");
            }
        }
    }

    /// Puts the worker for new connections aside. It works on for as long as something uses it.
    fn retire(&mut self) -> Option<WorkerId> {
        if !matches!(self.worker, WorkerSlot::Ready(_)) {
            return None;
        }
        let WorkerSlot::Ready(mut engine) = std::mem::replace(&mut self.worker, WorkerSlot::Unused) else {
            return None;
        };
        engine.pairing.close_spares(&mut engine.worker);
        let id = engine.worker.id();
        self.retired.push(engine);
        Some(id)
    }
}

impl Core {
    /// What is late and no event tells: workers and endpoints that do not end. In a busy loop with each look at the poller, else after
    /// each sleep.
    pub(super) fn look_after_ucx(&mut self) {
        let (now, handshakes) = (self.io.now, self.io.handshakes > 0);
        if let WorkerSlot::Ready(engine) = &mut self.io.worker {
            engine.hasten_closing(now, handshakes);
        }
        if let WorkerSlot::Ready(engine) = &mut self.io.worker {
            let stuck = engine.is_stuck(now);
            if stuck || engine.is_blocked(now, BLOCKED) {
                self.retire(!stuck);
            }
        }
        if !self.io.retired.is_empty() {
            self.look_after_retired();
        }
        let in_doubt = self.io.engines().any(|engine| engine.doubt.is_some());
        self.io.in_doubt = in_doubt;
        if self.io.openings_wait {
            self.io.openings_wait = false;
            self.go_on_opening();
        }
        self.close_spares();
    }

    /// Looks again at openings that wait.
    #[cold]
    fn go_on_opening(&mut self) {
        for key in self.conns.keys() {
            if self.conns.get(key).is_some_and(|conn| !conn.link.is_open()) {
                self.opening_step(key, |opening, core, io| opening.go_on(core, io));
            }
        }
    }

    #[cold]
    fn retire(&mut self, blocked: bool) {
        // One that is stuck goes at once.
        if blocked && self.io.retired.iter().filter(|engine| !engine.ending).count() >= MAX_RETIRED {
            self.end_one_retired();
        }
        let Some(id) = self.io.retire() else { return };
        if let (true, Some(engine)) = (blocked, self.io.retired.last_mut()) {
            engine.blocked = true;
            tracing::warn!(
                dispatcher = self.io.shared.id,
                "nothing comes out of the shared-memory receive queue since a connection over it has broken: its process may have \
                 been killed while it wrote there. New connections use a new ucx worker"
            );
        }
        self.move_listeners(id);
        for key in self.conns.keys() {
            let waits = self.conns.get(key).is_some_and(|c| !c.link.is_open() && c.worker() == Some(id));
            if waits {
                self.opening_step(key, |opening, core, io| opening.on_retired(core, io));
            }
        }
        // Who reads it finds everything in its place.
        self.io.shared.counters.ucx_blocked_workers.add(u64::from(blocked));
    }

    /// Ends the retired worker that the fewest connections use.
    #[cold]
    fn end_one_retired(&mut self) {
        let users = |id| self.conns.values().filter(|conn| conn.worker() == Some(id)).count();
        let ids = self.io.retired.iter().filter(|engine| !engine.ending).map(|engine| engine.worker.id());
        let Some(id) = ids.min_by_key(|id| users(*id)) else { return };
        for key in self.conns.keys() {
            if self.conns.get(key).is_some_and(|conn| conn.worker() == Some(id)) {
                let text = "too many ucx workers of this process are blocked, and its own has the fewest connections: connect again";
                self.end(key, Error::new(ErrorKind::Reset, text));
            }
        }
        // It goes when their endpoints are closed, which takes a moment: its sockets may have much to say still.
        if let Some(engine) = self.io.engine(id) {
            engine.ending = true;
        }
    }

    /// Retired workers end when nothing uses them, and connections that can't receive any more end before.
    #[cold]
    fn look_after_retired(&mut self) {
        let now = self.io.now;
        for index in (0..self.io.retired.len()).rev() {
            let engine = &mut self.io.retired[index];
            engine.hasten_closing(now, false);
            let listens = engine.worker.listens();
            let (dead, over, id) = (engine.is_blocked(now, DEAD), engine.is_over(now), engine.worker.id());
            // It was about new connections; for those that are left the queue is looked at while they use it.
            engine.close_kept();
            let asks = engine.doubt.is_some()
                && engine.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= DEAD / 4);
            if dead {
                self.end_over_memory(id);
            } else if asks {
                engine.asked = Some(now);
                self.ask_over_memory(id);
            } else if over && !self.conns.values().any(|conn| conn.worker() == Some(id)) {
                let engine = self.io.retired.remove(index);
                engine.shutdown(&self.io.poller, &mut self.io.sources, now);
            }
            if listens {
                self.move_listeners(id);
            }
        }
    }

    /// Asks the peers over shared memory for a sign of life. Those whose keepalive is off say nothing by themselves.
    #[cold]
    fn ask_over_memory(&mut self, id: WorkerId) {
        for key in self.conns.keys() {
            let Some(conn) = self.conns.get_mut(key).filter(|conn| conn.receives_over_memory(id)) else { continue };
            let header = conn.core.control_header(Kind::Ping, 0);
            // Nobody waits for the answer of this number.
            if let Err(error) = conn.control(&mut self.io, header, &control::encode_ping(0)) {
                self.end(key, error);
            }
        }
    }

    /// Ends the connections over shared memory of a worker that can't receive that way any more.
    #[cold]
    fn end_over_memory(&mut self, id: WorkerId) {
        for key in self.conns.keys() {
            if self.conns.get(key).is_some_and(|conn| conn.receives_over_memory(id)) {
                let text = "a process that was killed while it wrote into our shared-memory receive queue has blocked it: connect again";
                self.end(key, Error::new(ErrorKind::Reset, text));
            }
        }
        if let Some(engine) = self.io.engine(id) {
            engine.doubt = None;
        }
    }
}
