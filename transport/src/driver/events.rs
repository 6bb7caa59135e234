//! What has happened: UCX's events, edges of descriptors and timers, each handed to the connection that it is for.

use std::time::Duration;

use super::{
    conn::{Conn, Link},
    io::{Core, Source, Timer, WorkerSlot},
    opening::NO_TOKEN,
    receive,
};
use crate::{
    Error, ErrorKind,
    backend::Backend as _,
    event::poller::{Edge, Key},
    proto::header::{self, Kind},
    ucx::{Event, WorkerId},
};

/// Calls of progress in one turn before sockets and queues are looked at.
const PROGRESS_PER_TURN: usize = 64;
/// UCX events taken in one turn.
const EVENTS_PER_TURN: usize = 1024;

impl Core {
    /// Lets UCX work until it has brought something or nothing is left, or the turn is long enough. What it has brought
    /// is not kept waiting for a look that finds nothing more: the next turn is soon.
    pub(super) fn progress(&mut self) -> bool {
        let mut worked = match &mut self.io.worker {
            WorkerSlot::Ready(engine) => engine.progress(PROGRESS_PER_TURN),
            _ => false,
        };
        for engine in &mut self.io.retired {
            worked |= engine.progress(PROGRESS_PER_TURN);
        }
        worked
    }

    /// Acts on what UCX's callbacks have left.
    pub(super) fn take_events(&mut self) -> bool {
        for taken in 0..EVENTS_PER_TURN {
            let Some(engine) = self.io.engine_with_events() else { return taken > 0 };
            let worker = engine.worker.id();
            let Some(event) = engine.worker.poll_event() else { return taken > 0 };
            match event {
                Event::Message { header, data, from: None } => self.on_message(worker, &header, data),
                Event::Message { header, data, from: Some(ep) } => self.on_cm_message(ep, &header, data),
                Event::Announced { header, rndv, from: None } => self.on_announced(&header, rndv),
                Event::Announced { header, rndv, from: Some(ep) } => self.on_cm_announced(ep, &header, rndv),
                Event::SendDone { token: NO_TOKEN, .. } => {}
                Event::SendDone { token, result } => self.on_sent(worker, token, result),
                Event::FetchDone { token, buf, result } => self.on_fetch_done(worker, token, buf, result),
                Event::EndpointFailed { ep, error } => self.on_endpoint_failed(ep, error),
                Event::ConnRequest { listener, request, client_addr } => {
                    self.on_cm_request(worker, listener, request, client_addr);
                }
            }
        }
        true
    }

    #[inline]
    fn on_message(&mut self, worker: WorkerId, bytes: &[u8], data: bytes::Bytes) {
        let Ok((header, inline)) = header::decode_with_head(bytes) else { return self.headless(bytes) };
        let key = Key { index: header.conn, generation: header.generation };
        let Some(conn) = self.conns.get_mut(key) else { return self.stale("no such connection") };
        conn.core.heard(self.io.now);
        conn.core.reassure(&mut self.io);
        let link = match &mut conn.link {
            Link::Ucx(link) => {
                if self.io.in_doubt && link.over_memory {
                    self.io.heard_over_memory(link.ep);
                }
                link
            }
            Link::Opening(_) => return self.on_early_message(worker, key, header, inline, data),
            Link::Tcp(_) | Link::Cm(_) | Link::Mem(_) => return self.stale("the connection does not use ucx"),
        };
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
                core.wake_reader();
                result
            }
            Kind::Head => link.on_head_message(core, io, header.seq, data),
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
    fn on_early_message(
        &mut self,
        worker: WorkerId,
        key: Key,
        header: header::FrameHeader,
        inline: &[u8],
        data: bytes::Bytes,
    ) {
        if self.conns.get(key).and_then(Conn::worker).is_some_and(|of| of != worker) {
            return self.stale("it is about an earlier try to connect");
        }
        let kind = header.kind;
        self.opening_step(key, |opening, core, io| opening.on_proof(core, io, kind));
        let is_open = self.conns.get(key).is_some_and(|c| matches!(c.link, Link::Ucx(_)));
        if is_open && !matches!(kind, Kind::Prove | Kind::Proved) {
            let mut bytes = [0; header::MAX_HEADER];
            let len = header.encode(&mut bytes);
            self.on_message(worker, &[&bytes[..len], inline].concat(), data);
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
        if self.io.in_doubt && link.over_memory {
            self.io.heard_over_memory(link.ep);
        }
        conn.core.heard(self.io.now);
        let (core, io) = (&mut conn.core, &mut self.io);
        let given = header.credit.map_or(Ok(()), |credit| {
            core.make_ready(io);
            link.give(credit)
        });
        let result = given.and_then(|()| {
            if is_data {
                let result = link.on_announced(core, io, &header, inline, rndv);
                core.wake_reader();
                return result;
            }
            Err(Error::new(ErrorKind::Protocol, format!("a {:?} frame by rendezvous", header.kind)))
        });
        match result {
            Ok(()) => self.settle(key),
            Err(error) => self.end(key, error),
        }
    }

    /// A message without a header of ours. An empty one is the peer's UCX introducing an endpoint that the peer has given up.
    #[cold]
    fn headless(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.stale("an undecodable header");
        }
    }

    #[cold]
    pub(super) fn stale(&mut self, why: &str) {
        self.io.shared.counters.stale_messages.add(1);
        tracing::debug!(why, "ucx message dropped");
    }

    fn on_endpoint_failed(&mut self, ep: crate::ucx::EndpointId, error: Error) {
        // It may have been closed since the event was made.
        let Some(key) = self.io.owner_of(ep) else { return };
        let Some(conn) = self.conns.get(key) else { return };
        if conn.link.is_open() {
            let error = conn.end_by_ucx(error);
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
        self.act_on(edges);
        worked
    }

    /// Acts on edges, and gives their memory back to the next poll.
    pub(super) fn act_on(&mut self, mut edges: Vec<Edge>) {
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
    }

    pub(super) fn fire_timers(&mut self) -> bool {
        let mut worked = false;
        while let Some(timer) = self.io.timers.pop(self.io.now) {
            worked = true;
            match timer {
                Timer::Connection(key) => self.on_connection_timer(key),
                Timer::Listener(key) => self.on_listener_timer(key),
                Timer::Sleep(state) => state.fire(),
            }
        }
        worked
    }
}
