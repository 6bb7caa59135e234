//! The dialling side: sockets are made, and parties of this process are looked up.
//!
//! The addresses of a name are tried in order, the next one when the last has failed or has taken a while, as RFC 8305 has it: an
//! address whose packets are dropped must not use up the whole time. The first that is connected is used.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use super::{
    Command, accept,
    conn::{Conn, ConnCore, Link},
    io::{Core, Io, Source},
    mem_link,
    opening::{Opening, Role, Stage, Step},
};
use crate::{
    Address, Error, ErrorKind, Result,
    connection::DriverHalf,
    event::poller::Key,
    proto::negotiate::Policy,
    tcp::{self, SocketOptions, Stream},
};

/// How long an address may take before the next one is tried as well: what RFC 8305 recommends.
const STAGGER: Duration = Duration::from_millis(250);

/// A socket that is connecting.
pub(super) struct Attempt {
    stream: Arc<Stream>,
    source: Key,
    address: Option<SocketAddr>,
}

/// The policy of a dialled address.
fn policy(address: &Address) -> Policy {
    match address {
        Address::Ucx(_) => Policy::UcxRequired,
        Address::Auto(_) => Policy::Auto,
        _ => Policy::TcpOnly,
    }
}

impl Core {
    /// Opens a connection.
    pub(super) fn connect(&mut self, half: DriverHalf, address: Address, resolved: Vec<SocketAddr>) {
        if self.conns.len() >= self.io.shared.config.max_connections {
            let text = format!("the dispatcher has {} connections, its limit", self.conns.len());
            return half.shared.finish(Error::new(ErrorKind::Limit, text));
        }
        let deadline = self.io.after(half.config.connect_timeout);
        let mut opening = Opening::new(Role::Dial, address.clone(), policy(&address), deadline);
        opening.more = VecDeque::from(resolved);
        let key = self.adopt(half, opening);
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Link::Opening(opening) = &mut conn.link else { return };
        match opening.dial(&mut conn.core, &mut self.io) {
            Ok(Step::Wait) => self.settle(key),
            Ok(Step::Open(opened)) => self.opened(key, *opened),
            Err(error) => self.end(key, error),
        }
    }

    /// Takes a connection into the table.
    pub(super) fn adopt(&mut self, half: DriverHalf, opening: Opening) -> Key {
        let core = ConnCore::new(half, self.io.now);
        self.io.handshakes += 1;
        let key = self.conns.insert(Conn { core, link: Link::Opening(Box::new(opening)) });
        if let Some(conn) = self.conns.get_mut(key) {
            conn.core.key = key;
            conn.core.shared.set_key(key);
            // A close that was wished before there was a key; see `Shared::announce`.
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            conn.core.make_ready(&mut self.io);
            let shared = conn.core.shared.clone();
            self.add_pipes(&shared);
        }
        key
    }
}

impl Attempt {
    fn end(self, io: &mut Io) {
        io.sources.remove(self.source);
        io.poller.remove(&*self.stream);
    }
}

impl Opening {
    /// Dials, or tries the next address.
    pub(super) fn dial(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Step> {
        if let Address::Mem(name) = &self.address {
            let name = name.clone();
            return self.dial_mem(core, &name);
        }
        if matches!(self.address, Address::UcxCm(_)) {
            return self.dial_cm(core, io);
        }
        if self.policy == Policy::UcxRequired {
            // Without UCX here there is no use in troubling the peer.
            if let Err(reason) = io.worker() {
                return Err(crate::proto::negotiate::no_ucx(&reason));
            }
        }
        self.stage = Stage::Connecting;
        self.try_next(core, io)
    }

    /// Starts with the next address with which that is possible.
    pub(super) fn try_next(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Step> {
        let options = SocketOptions::default();
        loop {
            let stream = match (&self.address, self.more.pop_front()) {
                (Address::Unix(path), _) => tcp::dial_unix(path, &options).map(|stream| (stream, None)),
                (_, Some(address)) => tcp::dial_tcp(address, &options).map(|stream| (stream, Some(address))),
                (_, None) => Err(Error::new(ErrorKind::Unreachable, "the name has no further address")),
            };
            match stream.and_then(|(stream, address)| self.watch(core, io, stream, address)) {
                Ok(()) => break,
                Err(_) if !self.more.is_empty() => {}
                Err(error) if self.attempts.is_empty() => return Err(error),
                Err(_) => return Ok(Step::Wait),
            }
        }
        // With little time left every address gets its share of it.
        let left = self.deadline.saturating_duration_since(io.now);
        let share = left / u32::try_from(self.more.len() + 1).unwrap_or(u32::MAX);
        self.next_try = io.after(share.min(STAGGER));
        self.on_connecting(core, io)
    }

    fn watch(&mut self, core: &ConnCore, io: &mut Io, stream: Stream, address: Option<SocketAddr>) -> Result<()> {
        let source = io.sources.insert(Source::Socket(core.key));
        let stream = Arc::new(stream);
        if let Err(error) = io.poller.add(&*stream, source) {
            io.sources.remove(source);
            return Err(Error::from_io("watching the socket", &error));
        }
        self.attempts.push(Attempt { stream, source, address });
        Ok(())
    }

    /// Looks at all sockets that are connecting: the first that is connected is used.
    pub(super) fn on_connecting(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Step> {
        let (mut index, mut failure) = (0, None);
        while let Some(attempt) = self.attempts.get(index) {
            match tcp::connected(&attempt.stream) {
                Ok(tcp::Progress::Connecting) => index += 1,
                Ok(tcp::Progress::Connected) => {
                    let Attempt { stream, source, address } = self.attempts.remove(index);
                    self.drop_attempts(io);
                    (self.stream, self.source, self.current) = (Some(stream), Some(source), address);
                    return self.on_connected(core, io);
                }
                Err(error) => {
                    self.attempts.remove(index).end(io);
                    failure = Some(error);
                }
            }
        }
        match failure {
            Some(_) if !self.more.is_empty() => self.try_next(core, io),
            Some(error) if self.attempts.is_empty() => Err(error),
            _ => Ok(Step::Wait),
        }
    }

    /// Whether nothing else is being tried than the socket behind `source`: what happens to that happens to the connection.
    pub(super) fn is_its_only_socket(&self, source: Key) -> bool {
        self.source == Some(source) || matches!(&self.attempts[..], [only] if only.source == source)
    }

    /// Gives up all sockets that are connecting.
    pub(super) fn drop_attempts(&mut self, io: &mut Io) {
        self.attempts.drain(..).for_each(|attempt| attempt.end(io));
    }

    /// What UCX's connection manager was asked for failed before anything was said: try the next address.
    pub(super) fn dial_next(&mut self, core: &mut ConnCore, io: &mut Io, error: Error) -> Result<Step> {
        self.close(io);
        self.peer_closed = false;
        if self.more.is_empty() || io.now >= self.deadline { Err(error) } else { self.dial(core, io) }
    }

    /// Whether a failure now is one of connecting, which another address may not have.
    pub(super) fn retriable(&self) -> bool {
        self.role == Role::Dial && matches!(self.stage, Stage::Cm { .. })
    }

    fn dial_mem(&mut self, core: &mut ConnCore, name: &str) -> Result<Step> {
        let listener = accept::find_mem(name)?;
        let (party, inbox) = mem_link::party(core);
        self.stage = Stage::Mem(Some(inbox));
        listener.place().command(Command::AdoptMem { listener: listener.clone(), peer: party });
        Ok(Step::Wait)
    }
}

/// The kernel's own keepalive guards streams that have no heartbeat of ours.
pub(super) fn kernel_keepalive(core: &ConnCore) -> Option<tcp::Keepalive> {
    core.config.keepalive.map(|k| tcp::Keepalive { interval: k.interval, deadline: k.deadline })
}
