//! Connections through UCX's connection manager until they are open: dialling, knocking, Curve's two hellos.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;

use super::{
    Command, ConnCore, Io,
    accept::{ListenSocket, ListenerShared, Listening},
    cm_link::CmLink,
    conn::Link,
    engine::Engine,
    io::Core,
    opening::{NO_TOKEN, Opened, Opening, Role, Stage, Step},
    ucx_link,
};
use crate::{
    Address, Dispatcher, Error, ErrorKind, Result,
    config::ListenConfig,
    connection::{ConnectionInfo, Transport},
    dispatcher::{self, Placement},
    event::poller::Key,
    proto::{
        curve::{self, Features, Header},
        header::Kind,
        negotiate,
    },
    ucx::{ConnRequest, EndpointId, Rendezvous, WorkerId},
};

/// How long `listen` waits for the dispatcher's thread, which makes the listener.
const LISTEN_PATIENCE: Duration = Duration::from_secs(10);
/// Endpoints above the limit of connections that may exist only to be closed again, to tell their clients at once.
const MAX_TURNED_AWAY: usize = 1024;

/// The number of either side's first message.
const FIRST: u64 = 0;

/// What a listener needs that only its dispatcher's thread can make.
pub(crate) struct CmListen {
    pub(crate) address: Address,
    pub(crate) at: SocketAddr,
    pub(crate) config: ListenConfig,
    pub(crate) places: Vec<Dispatcher>,
    pub(crate) placement: Placement,
}

/// Makes a listener on its dispatcher's thread, and waits for it.
pub(crate) fn listen(home: &Arc<dispatcher::Shared>, ask: CmListen) -> Result<Arc<ListenerShared>> {
    let ask = match super::on_own_thread(home.id, ask, |core, ask| core.listen_cm(ask)) {
        Ok(result) => return result,
        Err(ask) => ask,
    };
    let (reply, answer) = mpsc::sync_channel(1);
    home.command(Command::ListenCm { ask: Box::new(ask), reply });
    match answer.recv_timeout(LISTEN_PATIENCE) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(Error::new(ErrorKind::Stopped, "the dispatcher has stopped")),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            Err(Error::new(ErrorKind::TimedOut, "the listener's dispatcher does not run, or is blocked by a task"))
        }
    }
}

impl Core {
    /// Listens with UCX.
    pub(super) fn listen_cm(&mut self, ask: CmListen) -> Result<Arc<ListenerShared>> {
        let CmListen { address, at, config, places, placement } = ask;
        let worker = self.io.worker().map_err(|reason| negotiate::no_ucx(&reason))?;
        // UCX's words for an address that is not ours speak of a reset.
        let listener = worker.listen_cm(at).map_err(|error| {
            let kind = if error.kind() == ErrorKind::Reset { ErrorKind::System } else { error.kind() };
            let wrapped = Error::new(kind, format!("{at}: {}", error.text()));
            error.ucx_status().map_or(wrapped.clone(), |status| wrapped.with_ucx(status))
        })?;
        let bound = address.with_socket_addr(listener.addr());
        let shared = ListenerShared::new(bound, config, places, placement);
        self.listeners.insert(Listening::new(shared.clone(), ListenSocket::Cm(listener)));
        self.io.shared.counters.listeners.set(self.listeners.len() as u64);
        Ok(shared)
    }

    /// The listeners of a retired worker go to the one for new connections. Clients that knock in between are refused. If there is
    /// none, they stay: UCX's connection manager does not use shared memory.
    pub(super) fn move_listeners(&mut self, from: WorkerId) {
        // Requests that wait are accepted: UCX 1.13 with assertions does not survive a rejection beside another worker.
        self.take_events();
        let is_of = |listening: &Listening| listening.cm().is_some_and(|cm| cm.worker() == from);
        let moving: Vec<Key> =
            self.listeners.keys().into_iter().filter(|key| self.listeners.get(*key).is_some_and(is_of)).collect();
        // A worker takes milliseconds to make, in which nobody would listen.
        if moving.is_empty() || self.io.worker().is_err() {
            return;
        }
        for key in moving {
            let Some(listening) = self.listeners.get_mut(key) else { continue };
            let ListenSocket::Cm(old) = std::mem::replace(&mut listening.socket, ListenSocket::Mem) else { continue };
            let at = old.addr();
            if let Some(engine) = self.io.engine(from) {
                engine.worker.close_listener(old);
            }
            let made =
                self.io.worker().map_err(|reason| negotiate::no_ucx(&reason)).and_then(|worker| worker.listen_cm(at));
            match made {
                Ok(listener) => listening.socket = ListenSocket::Cm(listener),
                Err(error) => self.end_listener(key, error),
            }
        }
    }

    /// A client knocks. It stays with this dispatcher: its endpoint can only be made by the worker that listens.
    pub(super) fn on_cm_request(
        &mut self,
        worker: WorkerId,
        listener: usize,
        request: ConnRequest,
        client: Option<SocketAddr>,
    ) {
        let mut listening = self.listeners.keys().into_iter().filter_map(|key| self.listeners.get(key));
        let shared = listening.find_map(|l| {
            l.cm().filter(|cm| (cm.worker(), cm.index()) == (worker, listener)).map(|_| l.shared().clone())
        });
        // Dropping a request rejects it.
        let Some(shared) = shared else { return };
        if shared.is_full() || self.conns.len() >= self.io.shared.config.max_connections {
            return self.turn_away(worker, request);
        }
        shared.handshake_begins();
        let Some(engine) = self.io.engine(worker) else { return shared.handshake_over() };
        let ep = match engine.worker.accept_cm(request) {
            Ok(ep) => ep,
            Err(error) => {
                tracing::info!(%error, ?client, "a connection request came to nothing");
                self.io.shared.counters.handshakes_failed.add(1);
                return shared.handshake_over();
            }
        };
        let key = self.new_accepted(&shared);
        self.io.own_endpoint(ep, key);
        if let Some(conn) = self.conns.get_mut(key)
            && let Link::Opening(opening) = &mut conn.link
        {
            opening.stage = Stage::Cm { ep, peer: client };
        }
        self.settle(key);
    }

    /// There is no room. The client hears it by a close of a connection that was made: UCX 1.13 with assertions aborts when
    /// the descriptor of one that it rejected is used again by another worker of the process.
    fn turn_away(&mut self, worker: WorkerId, request: ConnRequest) {
        self.io.shared.counters.accept_pauses.add(1);
        let most = self.io.shared.config.max_connections.saturating_add(MAX_TURNED_AWAY);
        let Some(Engine { worker, .. }) = self.io.engine(worker) else { return };
        if worker.inflight().endpoints >= most {
            return worker.reject_cm(request);
        }
        match worker.accept_cm(request) {
            Ok(ep) => worker.close(ep),
            Err(error) => tracing::debug!(%error, "a connection request came to nothing"),
        }
    }

    /// A message of an endpoint that UCX's connection manager made.
    pub(super) fn on_cm_message(&mut self, from: EndpointId, header: &[u8], data: Bytes) {
        let Some(key) = self.io.owner_of(from) else { return self.stale("no such connection") };
        let Some(conn) = self.conns.get_mut(key) else { return self.stale("no such connection") };
        conn.core.heard(self.io.now);
        let result = match &mut conn.link {
            Link::Opening(_) => {
                return self.opening_step(key, |opening, core, io| opening.on_cm_message(core, io, header, &data));
            }
            Link::Cm(link) => link.on_message(&mut conn.core, &mut self.io, header, data),
            _ => return self.stale("the connection does not use ucx's connection manager"),
        };
        conn.core.wake_reader();
        match result {
            Ok(()) => self.settle(key),
            Err(error) => self.end(key, error),
        }
    }

    pub(super) fn on_cm_announced(&mut self, from: EndpointId, header: &[u8], rndv: Rendezvous) {
        let Some(key) = self.io.owner_of(from) else { return self.stale("no such connection") };
        let Some(conn) = self.conns.get_mut(key) else { return self.stale("no such connection") };
        conn.core.heard(self.io.now);
        let result = match &mut conn.link {
            Link::Cm(link) => link.on_announced(&mut conn.core, &mut self.io, header, rndv),
            _ => Err(Error::new(ErrorKind::Protocol, "a rendezvous in the handshake")),
        };
        match result {
            Ok(()) => self.settle(key),
            Err(error) => self.end(key, error),
        }
    }
}

impl Opening {
    /// Dials the next address with UCX.
    pub(super) fn dial_cm(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Step> {
        let worker = io.worker_for_new().map_err(|reason| negotiate::no_ucx(&reason))?;
        let Some(address) = self.more.pop_front() else {
            return Err(Error::new(ErrorKind::Unreachable, "the name has no further address"));
        };
        let said = worker.connect_cm(address).and_then(|ep| {
            io.own_endpoint(ep, core.key);
            self.stage = Stage::Cm { ep, peer: Some(address) };
            greet(io, ep, curve::Command::Hello)
        });
        match said {
            Ok(()) => Ok(Step::Wait),
            Err(error) => self.dial_next(core, io, failed(Role::Dial, &error)),
        }
    }

    /// The peer's hello, or something that is none.
    fn on_cm_message(&mut self, core: &mut ConnCore, io: &mut Io, header: &[u8], data: &[u8]) -> Result<Step> {
        let Stage::Cm { ep, peer } = self.stage else { return Ok(Step::Wait) };
        match self.greeted(io, ep, header, data) {
            Ok(sn) => {
                self.stage = Stage::Done;
                Ok(Step::Open(Box::new(opened(core, io, ep, peer, sn))))
            }
            Err(error) => {
                // The peer answers: no other address of it would do better.
                self.close_endpoint(io);
                self.stage = Stage::Done;
                Err(error)
            }
        }
    }

    fn greeted(&self, io: &mut Io, ep: EndpointId, header: &[u8], data: &[u8]) -> Result<u64> {
        let header = Header::decode(header)?;
        let expected = match self.role {
            Role::Dial => curve::Command::HelloReply,
            Role::Accept => curve::Command::Hello,
        };
        if header.command != expected {
            let text = format!("a {:?} message where a {expected:?} was due", header.command);
            return Err(Error::new(ErrorKind::Protocol, text));
        }
        let features = Features::decode(&data[header.content(data.len())?..])?;
        if self.role == Role::Accept {
            // Also if that won't do: then the peer knows why.
            greet(io, ep, curve::Command::HelloReply)?;
        }
        Features::OURS.agree(&features).map_err(|error| Error::new(ErrorKind::Version, error.to_string()))?;
        Ok(header.sn)
    }

    /// UCX said that the endpoint is broken.
    pub(super) fn on_cm_failed(&self, error: &Error) -> Error {
        failed(self.role, error)
    }
}

/// Says what a failure to connect means.
fn failed(role: Role, error: &Error) -> Error {
    let (kind, why) = match (role, error.kind()) {
        (Role::Accept, kind) => (kind, "the client left during the handshake"),
        (Role::Dial, ErrorKind::Reset | ErrorKind::Refused | ErrorKind::TimedOut) => {
            (ErrorKind::Refused, "nobody listens there with ucx, or the listener has no room")
        }
        (Role::Dial, kind) => (kind, "ucx cannot connect"),
    };
    let wrapped = Error::new(kind, format!("{why} ({})", error.text()));
    error.ucx_status().map_or(wrapped.clone(), |status| wrapped.with_ucx(status))
}

fn greet(io: &mut Io, ep: EndpointId, command: curve::Command) -> Result<()> {
    let header = Header::new(command, FIRST).encode();
    let Some(worker) = io.worker_of(ep) else { return Err(ucx_link::gone()) };
    // The answer is the completion, or that the connection opens.
    worker.send_copy(ep, &header, [&Features::OURS.encode(), &[]], NO_TOKEN).map(drop)
}

fn opened(core: &ConnCore, io: &mut Io, ep: EndpointId, peer: Option<SocketAddr>, sn: u64) -> Opened {
    let lanes = io.worker_of(ep).map_or_else(String::new, |worker| worker.endpoint_info(ep));
    let from = core.config.rendezvous_from.unwrap_or_else(|| ucx_link::rendezvous_from(&lanes));
    let link = CmLink::new(ep, FIRST + 1, sn.wrapping_add(1), from);
    let max_message = core.config.max_message;
    let info = ConnectionInfo {
        transport: Transport::Ucx(lanes),
        fallback_reason: None,
        peer,
        local: None,
        // The peer's limits are not known. Head and body are one on this wire.
        max_message,
        max_head: u32::try_from(max_message).unwrap_or(u32::MAX),
        framing: Some(core.config.framer.as_ref().map_or("curve", |framer| framer.name())),
    };
    let none = Key { index: 0, generation: 0 };
    Opened { link: Link::Cm(Box::new(link)), info, native: false, peer: none, peer_interval: None }
}

/// A control frame that this wire can't carry.
#[cold]
pub(super) fn said_nothing(kind: Kind) -> Result<()> {
    tracing::debug!(?kind, "curve's wire has no such message");
    Ok(())
}
