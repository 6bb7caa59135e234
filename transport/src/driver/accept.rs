//! The accepting side: listeners, who gets the next connection, and when to stop for a while.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    },
    task::Waker,
    time::Duration,
};

use atomic_waker::AtomicWaker;
use crossbeam_queue::SegQueue;

use super::{
    Command,
    io::{Core, Source, Timer},
    mem_link::{self, MemLink, MemParty},
    opening::{Opened, Opening, Role, Stage, Step},
};
use crate::{
    Address, Connection, Dispatcher, Error, ErrorKind, Result,
    config::ListenConfig,
    connection::{self, ConnectionInfo, Transport},
    dispatcher::{self, Placement},
    driver::conn::Link,
    event::{poller::Key, timer::TimerId},
    proto::negotiate::Policy,
    tcp::{self, AcceptEnd, Stream},
    ucx,
};

/// How long a listener pauses when the process has no descriptors left.
const PAUSE: Duration = Duration::from_millis(50);
/// Connections accepted in one turn.
const ACCEPTS_PER_TURN: usize = 64;

/// What a listener listens with.
pub(crate) enum ListenSocket {
    Stream(tcp::Listener),
    /// UCX's connection manager.
    Cm(ucx::CmListener),
    Mem,
}

/// What a listener's handle and its dispatchers share.
pub(crate) struct ListenerShared {
    address: Address,
    pub(super) config: ListenConfig,
    places: Vec<Dispatcher>,
    placement: Placement,
    turn: AtomicUsize,
    accepted: SegQueue<Connection>,
    /// Connections in `accepted`.
    waiting: AtomicUsize,
    handshakes: AtomicUsize,
    /// Accepting has stopped for want of room; whoever makes room says so to the dispatcher.
    paused: AtomicBool,
    acceptor: AtomicWaker,
    end: OnceLock<Error>,
}

impl ListenerShared {
    pub(crate) fn new(
        address: Address,
        config: ListenConfig,
        places: Vec<Dispatcher>,
        placement: Placement,
    ) -> Arc<Self> {
        Arc::new(Self {
            address,
            config,
            places,
            placement,
            turn: AtomicUsize::new(0),
            accepted: SegQueue::new(),
            waiting: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            paused: AtomicBool::new(false),
            acceptor: AtomicWaker::new(),
            end: OnceLock::new(),
        })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The dispatcher that has the listening socket.
    pub(crate) fn home(&self) -> &Arc<dispatcher::Shared> {
        &self.places[0].shared
    }

    /// The dispatcher for the next connection.
    pub(crate) fn place(&self) -> &Arc<dispatcher::Shared> {
        &self.placement.choose(&self.places, &self.turn).shared
    }

    pub(crate) fn register(&self, waker: &Waker) {
        self.acceptor.register(waker);
    }

    /// Takes a connection that is open.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Option<Connection>> {
        if let Some(connection) = self.accepted.pop() {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            self.made_room();
            return Ok(Some(connection));
        }
        match self.end.get() {
            Some(error) => Err(error.clone()),
            None => Ok(None),
        }
    }

    /// Ends it: no further connection is handed out.
    pub(crate) fn close(&self, error: Error) {
        let _ = self.end.set(error);
        while self.accepted.pop().is_some() {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        self.acceptor.wake();
    }

    fn hand_out(self: &Arc<Self>, connection: Connection) {
        if self.end.get().is_some() {
            return;
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.accepted.push(connection);
        self.acceptor.wake();
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.load(Ordering::Acquire) >= self.config.accept_queue.max(1) || self.is_full_of_handshakes()
    }

    /// Whether it is handshakes that leave no room.
    pub(super) fn is_full_of_handshakes(&self) -> bool {
        self.handshakes.load(Ordering::Acquire) >= self.config.max_handshakes.max(1)
    }

    /// The dispatchers that serve its connections.
    pub(super) fn places(&self) -> &[Dispatcher] {
        &self.places
    }

    fn made_room(self: &Arc<Self>) {
        fence(Ordering::SeqCst);
        if self.paused.load(Ordering::Acquire) && self.paused.swap(false, Ordering::AcqRel) {
            self.home().command(Command::ResumeAccept { listener: self.clone() });
        }
    }

    pub(super) fn handshake_begins(&self) {
        self.handshakes.fetch_add(1, Ordering::AcqRel);
    }

    /// A handshake is over, well or badly.
    pub(crate) fn handshake_over(self: &Arc<Self>) {
        self.handshakes.fetch_sub(1, Ordering::AcqRel);
        self.made_room();
    }

    fn policy(&self) -> Policy {
        match self.address {
            Address::Auto(_) if self.config.ucx => Policy::Auto,
            Address::Ucx(_) if self.config.ucx => Policy::UcxRequired,
            _ => Policy::TcpOnly,
        }
    }
}

impl fmt::Debug for ListenerShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("address", &self.address).field("end", &self.end.get()).finish_non_exhaustive()
    }
}

static MEM_LISTENERS: Mutex<Option<HashMap<String, Weak<ListenerShared>>>> = Mutex::new(None);

/// Enters a `mem://` listener under its name.
pub(crate) fn register_mem(name: &str, listener: &Arc<ListenerShared>) -> Result<()> {
    let mut listeners = MEM_LISTENERS.lock().unwrap_or_else(|e| e.into_inner());
    let listeners = listeners.get_or_insert_default();
    listeners.retain(|_, weak| weak.upgrade().is_some_and(|l| l.end.get().is_none()));
    if listeners.contains_key(name) {
        return Err(Error::new(ErrorKind::Invalid, format!("somebody listens on mem://{name} already")));
    }
    listeners.insert(name.to_owned(), Arc::downgrade(listener));
    Ok(())
}

/// The `mem://` listener of a name.
pub(super) fn find_mem(name: &str) -> Result<Arc<ListenerShared>> {
    let listeners = MEM_LISTENERS.lock().unwrap_or_else(|e| e.into_inner());
    let found = listeners.as_ref().and_then(|l| l.get(name)).and_then(Weak::upgrade);
    found
        .filter(|l| l.end.get().is_none())
        .ok_or_else(|| Error::new(ErrorKind::Refused, format!("nobody listens on mem://{name}")))
}

/// A listener in its dispatcher's table.
pub(crate) struct Listening {
    shared: Arc<ListenerShared>,
    pub(super) socket: ListenSocket,
    source: Option<Key>,
    timer: Option<TimerId>,
}

impl Listening {
    pub(super) fn new(shared: Arc<ListenerShared>, socket: ListenSocket) -> Self {
        Self { shared, socket, source: None, timer: None }
    }

    pub(super) fn shared(&self) -> &Arc<ListenerShared> {
        &self.shared
    }

    /// Its UCX listener, if it has one.
    pub(super) fn cm(&self) -> Option<&ucx::CmListener> {
        match &self.socket {
            ListenSocket::Cm(listener) => Some(listener),
            ListenSocket::Stream(_) | ListenSocket::Mem => None,
        }
    }
}

impl Core {
    pub(super) fn listen(&mut self, shared: Arc<ListenerShared>, socket: ListenSocket) {
        let key = self.listeners.insert(Listening::new(shared, socket));
        self.io.shared.counters.listeners.set(self.listeners.len() as u64);
        let Some(listening) = self.listeners.get_mut(key) else { return };
        if let ListenSocket::Stream(listener) = &listening.socket {
            let source = self.io.sources.insert(Source::Listener(key));
            listening.source = Some(source);
            if let Err(error) = self.io.poller.add_readable(listener, source) {
                let error = Error::from_io("watching the listener", &error);
                return self.end_listener(key, error);
            }
            self.accept(key);
        }
    }

    fn listener_key(&self, shared: &Arc<ListenerShared>) -> Option<Key> {
        let is_it = |key: &Key| self.listeners.get(*key).is_some_and(|l| Arc::ptr_eq(&l.shared, shared));
        self.listeners.keys().into_iter().find(is_it)
    }

    pub(super) fn unlisten(&mut self, shared: &Arc<ListenerShared>) {
        if let Some(key) = self.listener_key(shared) {
            self.end_listener(key, Error::new(ErrorKind::Closed, "the listener was dropped"));
        }
    }

    pub(super) fn end_listener(&mut self, key: Key, error: Error) {
        let Some(listening) = self.listeners.remove(key) else { return };
        if let Some(source) = listening.source {
            self.io.sources.remove(source);
        }
        match listening.socket {
            ListenSocket::Stream(listener) => self.io.poller.remove(&listener),
            ListenSocket::Cm(listener) => {
                if let Some(engine) = self.io.engine(listener.worker()) {
                    engine.worker.close_listener(listener);
                }
            }
            ListenSocket::Mem => {}
        }
        if let Some(timer) = listening.timer {
            self.io.timers.cancel(timer);
        }
        listening.shared.close(error);
        self.io.shared.counters.listeners.set(self.listeners.len() as u64);
    }

    pub(super) fn resume_accept(&mut self, shared: &Arc<ListenerShared>) {
        if let Some(key) = self.listener_key(shared) {
            self.accept(key);
        }
    }

    /// Accepts until nobody waits, or there is no room.
    pub(super) fn accept(&mut self, key: Key) {
        let mut streams = Vec::new();
        let Some(listening) = self.listeners.get_mut(key) else { return };
        let ListenSocket::Stream(listener) = &listening.socket else { return };
        let shared = listening.shared.clone();
        let (mut budget, mut crowded) = (ACCEPTS_PER_TURN, false);
        let end = loop {
            if shared.is_full() {
                shared.paused.store(true, Ordering::Release);
                self.io.shared.counters.accept_pauses.add(1);
                // Room made between the look and the flag would go unnoticed. Pairs with the fence in `made_room`: either
                // we see the room, or who made it sees the flag.
                fence(Ordering::SeqCst);
                if shared.is_full() {
                    crowded = shared.is_full_of_handshakes();
                    break Ok(AcceptEnd::Drained);
                }
                shared.paused.store(false, Ordering::Release);
            }
            let mut one = 1;
            let end = listener.accept(&mut one, &mut |stream| {
                shared.handshakes.fetch_add(1, Ordering::AcqRel);
                streams.push(stream);
            });
            budget -= 1;
            match end {
                Ok(AcceptEnd::Budget) if budget > 0 => {}
                other => break other,
            }
        };
        match end {
            Ok(AcceptEnd::Drained) => {}
            Ok(AcceptEnd::Budget) => self.accept_later(key, Duration::ZERO),
            Ok(AcceptEnd::Exhausted(error)) => {
                tracing::warn!(address = %shared.address, %error, "accepting pauses");
                self.io.shared.counters.accept_pauses.add(1);
                self.accept_later(key, PAUSE);
            }
            Err(error) => self.end_listener(key, error),
        }
        if crowded {
            self.make_way(key, &shared);
        }
        for stream in streams {
            let place = shared.place();
            if place.id == self.io.shared.id {
                self.adopt_stream(&shared, stream);
            } else {
                place.command(Command::Adopt { listener: shared.clone(), stream });
            }
        }
    }

    pub(super) fn accept_later(&mut self, key: Key, pause: Duration) {
        let at = self.io.after(pause);
        if let Some(listening) = self.listeners.get_mut(key) {
            self.io.sooner(&mut listening.timer, at, Timer::Listener(key));
        }
    }

    pub(super) fn on_listener_timer(&mut self, key: Key) {
        if let Some(listening) = self.listeners.get_mut(key) {
            listening.timer = None;
            self.accept(key);
        }
    }

    /// Shakes hands on a socket that was accepted.
    pub(super) fn adopt_stream(&mut self, listener: &Arc<ListenerShared>, stream: Stream) {
        if self.conns.len() >= self.io.shared.config.max_connections {
            tracing::warn!(limit = self.conns.len(), "connection refused: the dispatcher is at its limit");
            self.io.shared.counters.handshakes_failed.add(1);
            return listener.handshake_over();
        }
        let key = self.new_accepted(listener);
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Link::Opening(opening) = &mut conn.link else { return };
        let source = self.io.sources.insert(Source::Socket(key));
        let stream = Arc::new(stream);
        if let Err(error) = self.io.poller.add(&*stream, source) {
            self.io.sources.remove(source);
            return self.end(key, Error::from_io("watching the socket", &error));
        }
        (opening.stream, opening.source) = (Some(stream), Some(source));
        self.on_opening_edge(key, None);
    }

    pub(super) fn new_accepted(&mut self, listener: &Arc<ListenerShared>) -> Key {
        let config = listener.config.connection.clone();
        let deadline = self.io.after(config.connect_timeout);
        let opening = Opening::new(Role::Accept, listener.address.clone(), listener.policy(), deadline);
        let (handle, half) = connection::new(self.io.shared.clone(), config);
        let key = self.adopt(half, opening);
        if let Some(conn) = self.conns.get_mut(key) {
            conn.core.accepted = Some((handle, listener.clone()));
        }
        self.note_accepted(key);
        key
    }

    /// Goes on with a handshake; `closed` is the source of an edge that said that the peer has closed.
    pub(super) fn on_opening_edge(&mut self, key: Key, closed: Option<Key>) {
        self.opening_step(key, |opening, core, io| {
            opening.peer_closed |= closed.is_some_and(|source| opening.is_its_only_socket(source));
            opening.on_edge(core, io)
        });
    }

    /// Makes one step of a handshake and acts on what comes of it.
    pub(super) fn opening_step(
        &mut self,
        key: Key,
        step: impl FnOnce(&mut Opening, &mut super::ConnCore, &mut super::Io) -> Result<Step>,
    ) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Link::Opening(opening) = &mut conn.link else { return };
        let result = match step(opening, &mut conn.core, &mut self.io) {
            Err(error) if opening.retriable() => opening.dial_next(&mut conn.core, &mut self.io, error),
            other => other,
        };
        match result {
            Ok(Step::Wait) => self.settle(key),
            Ok(Step::Open(opened)) => self.opened(key, *opened),
            Err(error) => self.end(key, error),
        }
    }

    /// Takes the other party of a `mem://` connection.
    pub(super) fn adopt_mem(&mut self, listener: &Arc<ListenerShared>, peer: MemParty) {
        let ended = listener.end.get().is_some();
        if ended || listener.is_full() || self.conns.len() >= self.io.shared.config.max_connections {
            let text = if ended { "the listener is gone" } else { "the listener's queue is full" };
            return peer.answer(Err(Error::new(ErrorKind::Refused, text)));
        }
        listener.handshakes.fetch_add(1, Ordering::AcqRel);
        let key = self.new_accepted(listener);
        let Some(conn) = self.conns.get_mut(key) else { return };
        let (party, inbox) = mem_link::party(&conn.core);
        peer.clone().answer(Ok(party));
        self.opened(key, mem_opened(peer, inbox));
    }

    /// The listener answered a `mem://` dial.
    pub(super) fn on_mem_answer(&mut self, key: Key, peer: Result<MemParty>) {
        let Some(conn) = self.conns.get_mut(key) else {
            // Given up meanwhile: the other side finds that out when it looks.
            if let Ok(peer) = peer {
                peer.shared.announce();
            }
            return;
        };
        let Link::Opening(opening) = &mut conn.link else { return };
        let Stage::Mem(inbox) = &mut opening.stage else { return };
        match (peer, inbox.take()) {
            (Ok(peer), Some(inbox)) => self.opened(key, mem_opened(peer, inbox)),
            (Err(error), _) => self.end(key, error),
            (Ok(_), None) => {}
        }
    }

    /// A connection is open: exchange its link and tell everybody.
    pub(super) fn opened(&mut self, key: Key, opened: Opened) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let counters = &self.io.shared.counters;
        match &opened.info.transport {
            Transport::Ucx(_) => counters.opened_ucx.add(1),
            Transport::Tcp => counters.opened_tcp.add(1),
            Transport::Unix => counters.opened_unix.add(1),
            Transport::Mem => counters.opened_mem.add(1),
        }
        if let Some(reason) = &opened.info.fallback_reason {
            counters.fallbacks.add(1);
            tracing::info!(connection = ?key, peer = ?opened.info.peer, %reason, "tcp instead of ucx");
        }
        conn.open(&mut self.io, opened);
        if let Some((handle, listener)) = conn.core.accepted.take() {
            listener.hand_out(handle);
            listener.handshake_over();
        }
        self.io.handshakes -= 1;
        // The handshake may have read beyond its own end, up to the socket's: no edge comes for that again.
        if let Err(error) = conn.read_control(&mut self.io) {
            return self.end(key, error);
        }
        self.settle(key);
    }
}

fn mem_opened(peer: MemParty, inbox: mem_link::MemInbox) -> Opened {
    let info = ConnectionInfo {
        transport: Transport::Mem,
        fallback_reason: None,
        peer: None,
        local: None,
        max_message: peer.max_message,
        max_head: peer.max_head,
        framing: None,
    };
    let key = peer.key;
    Opened { link: Link::Mem(Box::new(MemLink::new(peer, inbox))), info, native: true, peer: key, peer_interval: None }
}
