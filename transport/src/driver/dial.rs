//! The dialling side: sockets are made, one address after the other, and parties of this process are looked up.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc};

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
    tcp::{self, SocketOptions},
};

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

impl Opening {
    /// Tries the next address.
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
        let options = SocketOptions::default();
        let stream = match (&self.address, self.more.pop_front()) {
            (Address::Unix(path), _) => tcp::dial_unix(path, &options)?,
            (_, Some(address)) => {
                self.current = Some(address);
                match tcp::dial_tcp(address, &options) {
                    Ok(stream) => stream,
                    Err(error) => return self.dial_next(core, io, error),
                }
            }
            (_, None) => return Err(Error::new(ErrorKind::Unreachable, "the name has no further address")),
        };
        let source = io.sources.insert(Source::Socket(core.key));
        let stream = Arc::new(stream);
        if let Err(error) = io.poller.add(&*stream, source) {
            io.sources.remove(source);
            return Err(Error::from_io("watching the socket", &error));
        }
        (self.stream, self.source, self.stage) = (Some(stream), Some(source), Stage::Connecting);
        match self.on_edge(core, io) {
            Err(error) if self.retriable() => self.dial_next(core, io, error),
            other => other,
        }
    }

    /// This address failed before anything was said: try the next one.
    pub(super) fn dial_next(&mut self, core: &mut ConnCore, io: &mut Io, error: Error) -> Result<Step> {
        self.close(io);
        self.peer_closed = false;
        if self.more.is_empty() { Err(error) } else { self.dial(core, io) }
    }

    /// Whether a failure now is one of connecting, which another address may not have.
    pub(super) fn retriable(&self) -> bool {
        self.role == Role::Dial && matches!(self.stage, Stage::Connecting | Stage::Cm { .. })
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
