//! A connection over UCX: active messages on an endpoint, with the negotiation's socket as its sign of life.

use std::{collections::VecDeque, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::{
    ConnCore, Io, Pumped,
    conn::Link,
    engine::{Broken, Engine},
    io::Core,
    send::{Budget, Numbering},
    ucx_recv::{Headless, Held, Waiting},
};
use crate::{
    Body, Error, ErrorKind, RecvBuf, Result,
    backend::Backend,
    connection::{Completion, Outgoing},
    event::poller::Key,
    memory::Purpose,
    plan::{FetchReply, PendingId},
    proto::{
        credit::Urgency,
        header::{Credit, FrameHeader, HeadPlace, Kind, MAX_HEADER},
        hello::{self, Message},
    },
    tcp::{BufKind, Stream},
    ucx::{self, EndpointId, Mode, Payload, Sent, WorkerId},
};

/// Frames up to this size, bytes, are copied into one contiguous message: cheaper than a second slice or a reference.
pub(super) const SMALL: u64 = 8 << 10;
/// The head rides in the AM header only up to this much in all: UCX's own limit is larger and not the same everywhere.
const MAX_INLINE: usize = 1024 - MAX_HEADER;
/// Sends of one connection that UCX has not finished. More would only queue inside UCX, where nothing bounds them, and
/// shared memory's arm says busy while anything is queued.
pub(super) const MAX_INFLIGHT: u32 = 48;
/// Control frames that a peer may leave unread in UCX's queues while it asks for more.
const MAX_UNREAD_CONTROL: u32 = 16 << 10;

/// From how many bytes a body goes by rendezvous, by the lane that carries it (`docs/decisions.md` has the measurements).
pub(super) fn rendezvous_from(lanes: &str) -> u64 {
    let verbs = ["rc_", "ud_", "dc_", "ib"].iter().any(|name| lanes.contains(name));
    // Memory that the receiver can reach by itself. Without such a lane shared memory copies fragments either way.
    let single_copy = ["xpmem", "cma", "knem"].iter().any(|name| lanes.contains(name));
    match (verbs, single_copy) {
        (true, _) => 16 << 10,
        (false, true) => 32 << 10,
        (false, false) => 256 << 10,
    }
}

/// What the lanes of a connection mean for it.
pub(super) struct Path {
    /// From how many bytes a body goes by rendezvous.
    pub(super) rendezvous_from: u64,
    /// How many bodies are fetched at a time. Over shared memory more keep nothing busier, and each has a buffer of its own: those
    /// that are in use would no longer fit into the processor's caches.
    max_fetches: u32,
    /// Messages come through the worker's shared-memory receive queue.
    over_memory: bool,
}

impl Path {
    pub(super) fn new(lanes: &str, rendezvous_from: u64) -> Self {
        let has = |names: &[&str]| names.iter().any(|name| lanes.contains(name));
        let over_memory = ucx::over_memory(lanes);
        let max_fetches = if over_memory || has(&["cma", "knem"]) { 4 } else { u32::MAX };
        Self { rendezvous_from, max_fetches, over_memory }
    }
}

/// A UCX operation that has not completed.
pub(crate) enum UcxOp {
    /// A send, and who waits for it.
    Send { connection: Key, done: Option<Completion> },
    /// A fetch of a body into the pool or a planned buffer.
    Fetch { connection: Key, seq: u32, head: Bytes, kind: BufKind },
    /// A fetch of a head that came by rendezvous.
    FetchHead { connection: Key, seq: u32, whole: bool },
    /// A fetch that the application asked for.
    FetchFor { connection: Key, reply: FetchReply },
    /// A fetch of a whole message of Curve's, whose filler is dropped.
    FetchCm { connection: Key, sn: u64, pad: u16 },
}

impl UcxOp {
    fn connection(&self) -> Key {
        match self {
            Self::Send { connection, .. }
            | Self::Fetch { connection, .. }
            | Self::FetchHead { connection, .. }
            | Self::FetchFor { connection, .. }
            | Self::FetchCm { connection, .. } => *connection,
        }
    }
}

/// The UCX backend's side of a connection.
pub(crate) struct UcxLink {
    pub(crate) ep: EndpointId,
    pub(crate) stream: Arc<Stream>,
    pub(crate) source: Key,
    /// What the control socket said and is not a whole message yet.
    pub(crate) inbox: BytesMut,
    /// This side opened on the strength of a message; the peer's READY is still to come.
    pub(crate) ready_due: bool,
    /// What the peer sends goes through the worker's shared-memory receive queue.
    pub(super) over_memory: bool,
    pub(crate) eof: bool,
    numbering: Numbering,
    inflight: u32,
    pub(super) fetches: u32,
    pub(super) max_fetches: u32,
    rendezvous_from: u64,
    /// Rendezvous whose bodies found no place yet, or have as many fetches before them as go at a time; oldest first.
    pub(super) no_room: VecDeque<Waiting>,
    /// Bodies that overtook their heads.
    pub(super) headless: Vec<Headless>,
    /// Bytes of heads that are ahead of their bodies, fetched or being fetched.
    pub(super) early_heads: u64,
    /// Bodies that the application decides about.
    pub(super) held: Vec<(PendingId, Held)>,
}

impl UcxLink {
    pub(crate) fn new(
        ep: EndpointId,
        stream: Arc<Stream>,
        source: Key,
        inbox: BytesMut,
        numbering: Numbering,
        Path { rendezvous_from, max_fetches, over_memory }: Path,
    ) -> Self {
        Self {
            ep,
            stream,
            source,
            inbox,
            ready_due: false,
            over_memory,
            eof: false,
            numbering,
            inflight: 0,
            fetches: 0,
            max_fetches,
            rendezvous_from,
            no_room: VecDeque::new(),
            headless: Vec::new(),
            early_heads: 0,
            held: Vec::new(),
        }
    }

    pub(super) fn send_now(
        &mut self,
        core: &mut ConnCore,
        io: &mut Io,
        outgoing: &mut Option<Outgoing>,
        len: u64,
    ) -> Option<Result<()>> {
        if self.inflight >= MAX_INFLIGHT || self.numbering.is_stalled() || !self.numbering.take_credit(len) {
            return None;
        }
        Some(self.put(core, io, outgoing.take()?, len))
    }

    /// Whether large transfers or a full window are under way: what is sent now may be long in coming.
    pub(super) fn is_busy(&self) -> bool {
        const BUSY: u64 = 64 << 10;
        self.inflight > 0 || self.fetches > 0 || self.numbering.in_flight_bytes() > BUSY
    }

    /// Says something on the socket.
    pub(super) fn say(&mut self, message: &Message) -> Result<()> {
        match self.stream.write(&hello::encode(message)) {
            // A peer that does not read its socket gets nothing more; it would not answer either.
            Ok(_) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(Error::from_io("the control socket", &e)),
        }
    }

    /// Sends one frame that has its credit.
    #[inline]
    fn put(&mut self, core: &mut ConnCore, io: &mut Io, out: Outgoing, len: u64) -> Result<()> {
        let Outgoing { frame, done } = out;
        let body_len = frame.body.len();
        let mut header = self.numbering.header(&frame, body_len, core.credit_due(Urgency::Piggyback));
        core.shared.counters.frames_sent.add(1);
        core.shared.counters.bytes_sent.add(len);
        if len <= SMALL {
            let body = gather_small(frame.body);
            return self.copy(core, io, &header, [&frame.head, &body], done);
        }
        if body_len == 0 {
            let mode = self.mode(frame.head.len());
            let payload = Payload::Bytes(frame.head);
            return self.own(core, io, &header, &[], (payload, mode), done);
        }
        let payload = gather(io, frame.body)?;
        let mode = self.mode(body_len as usize);
        if frame.head.len() <= MAX_INLINE {
            header.place = HeadPlace::InHeader;
            return self.own(core, io, &header, &frame.head, (payload, mode), done);
        }
        let mut before = core.control_header(Kind::Head, header.seq);
        before.credit = None;
        if frame.head.len() as u64 <= SMALL {
            self.copy(core, io, &before, [&frame.head, &[]], None)?;
        } else {
            // An eager body would be there before a head that has to be fetched.
            let head_mode = if mode == Mode::Eager { mode } else { self.mode(frame.head.len()) };
            self.own(core, io, &before, &[], (Payload::Bytes(frame.head), head_mode), None)?;
        }
        header.place = HeadPlace::Before;
        self.own(core, io, &header, &[], (payload, mode), done)
    }

    /// How a message of `len` bytes goes.
    fn mode(&self, len: usize) -> Mode {
        if len as u64 >= self.rendezvous_from { Mode::Rendezvous } else { Mode::Eager }
    }

    #[inline]
    fn copy(
        &mut self,
        core: &ConnCore,
        io: &mut Io,
        header: &FrameHeader,
        parts: [&[u8]; 2],
        done: Option<Completion>,
    ) -> Result<()> {
        let mut bytes = [0; MAX_HEADER];
        let len = header.encode(&mut bytes);
        // The slot is known before UCX is called and taken after it: a completion inside the call is an event for later.
        let Some(engine) = io.engine_of(self.ep) else { return Err(gone()) };
        let token = engine.ops.vacant_key() as u64;
        let sent = engine.worker.send_copy(self.ep, &bytes[..len], parts, token);
        self.sent_or_pending(core, engine, token, done, sent)
    }

    fn own(
        &mut self,
        core: &ConnCore,
        io: &mut Io,
        header: &FrameHeader,
        head: &[u8],
        (payload, mode): (Payload, Mode),
        done: Option<Completion>,
    ) -> Result<()> {
        let mut fixed = [0; MAX_HEADER];
        let len = header.encode(&mut fixed);
        let mut bytes = [0; MAX_HEADER + MAX_INLINE];
        bytes[..len].copy_from_slice(&fixed[..len]);
        bytes[len..len + head.len()].copy_from_slice(head);
        if mode == Mode::Rendezvous {
            core.shared.counters.rendezvous_sent.add(1);
        }
        let Some(engine) = io.engine_of(self.ep) else { return Err(gone()) };
        let token = engine.ops.vacant_key() as u64;
        let sent = engine.worker.send_owned(self.ep, &bytes[..len + head.len()], payload, mode, token);
        self.sent_or_pending(core, engine, token, done, sent)
    }

    #[inline]
    fn sent_or_pending(
        &mut self,
        core: &ConnCore,
        engine: &mut Engine,
        token: u64,
        done: Option<Completion>,
        sent: Result<Sent>,
    ) -> Result<()> {
        match sent? {
            Sent::Pending => {
                self.inflight += 1;
                let slot = engine.ops.insert(UcxOp::Send { connection: core.key, done });
                debug_assert_eq!(slot as u64, token, "nothing else takes a slot while UCX is called");
            }
            Sent::Done => {
                if let Some(done) = done {
                    done.complete(Ok(()));
                }
            }
        }
        Ok(())
    }
}

impl Backend for UcxLink {
    fn pump(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Pumped> {
        self.retry_quota(core, io)?;
        let mut budget = Budget::of(&core.shared);
        while self.inflight < MAX_INFLIGHT {
            if budget.is_spent() {
                return Ok(Pumped::More);
            }
            let Some(out) = self.numbering.next(&mut core.queue, &core.shared)? else { break };
            let len = out.frame.len();
            budget.spend(len);
            self.put(core, io, out, len)?;
        }
        Ok(Pumped::Rest)
    }

    fn control(&mut self, core: &mut ConnCore, io: &mut Io, header: FrameHeader, payload: &[u8]) -> Result<()> {
        if self.inflight > MAX_INFLIGHT + MAX_UNREAD_CONTROL {
            return Err(Error::new(ErrorKind::Limit, "the peer does not take the answers that it asks for"));
        }
        self.copy(core, io, &header, [payload, &[]], None)
    }

    fn flush(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Pumped> {
        self.pump(core, io)
    }

    fn is_idle(&self, core: &ConnCore) -> bool {
        self.inflight == 0 && !self.numbering.is_stalled() && core.queue.is_empty()
    }

    fn give(&mut self, credit: Credit) -> Result<()> {
        self.numbering.give(credit)
    }

    fn sent(&self) -> u32 {
        self.numbering.count()
    }

    fn waits_for_credit(&self) -> bool {
        self.numbering.is_stalled()
    }

    fn waits_for_pool(&self) -> bool {
        !self.no_room.is_empty() && self.fetches < self.max_fetches
    }

    fn fetch(&mut self, core: &mut ConnCore, io: &mut Io, id: PendingId, mut reply: FetchReply) -> Result<()> {
        let Some(index) = self.held.iter().position(|(held, _)| *held == id) else { return Ok(()) };
        let (_, held) = self.held.swap_remove(index);
        if !matches!((&held, &reply.buf), (Held::Rendezvous(_), Some(_))) {
            core.session.unfinished -= 1;
        }
        core.make_ready(io);
        match (held, reply.buf.take()) {
            (Held::Here(body), Some(mut buf)) => {
                buf.truncate(body.len());
                buf.as_mut_slice().copy_from_slice(&body);
                reply.complete(Ok(buf));
                Ok(())
            }
            (Held::Here(_), None) => Ok(()),
            (Held::Rendezvous(rndv), Some(mut buf)) => {
                buf.truncate(rndv.len());
                self.start_fetch(io, rndv, buf, UcxOp::FetchFor { connection: core.key, reply })
            }
            (Held::Rendezvous(rndv), None) => {
                if let Some(worker) = io.worker_of(self.ep) {
                    worker.refuse(rndv);
                }
                Ok(())
            }
        }
    }

    fn close(&mut self, core: &mut ConnCore, io: &mut Io) {
        let orderly = core.shared.end().is_some_and(|end| end.kind().is_orderly());
        let broken = if self.over_memory && !orderly { Broken::Perhaps } else { Broken::No };
        io.close_endpoint(self.ep, broken);
        if self.inflight > 0 || self.fetches > 0 {
            fail_operations(core, io, self.ep);
        }
        io.poller.remove(&*self.stream);
        io.sources.remove(self.source);
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.numbering.drop_stalled();
        self.no_room.clear();
        self.headless.clear();
        self.held.clear();
    }
}

/// Tells everyone who waits for an operation of this connection that it has ended. The operations keep their memory until
/// UCX is done with them, which may take long: over shared memory, a dead peer's full queue holds them for ever.
pub(super) fn fail_operations(core: &ConnCore, io: &mut Io, ep: EndpointId) {
    let closed = || Error::new(ErrorKind::Closed, "the connection was closed");
    let end = core.shared.end().cloned().unwrap_or_else(closed);
    let Some(engine) = io.engine_of(ep) else { return };
    for (_, op) in engine.ops.iter_mut().filter(|(_, op)| op.connection() == core.key) {
        match op {
            UcxOp::Send { done, .. } => {
                if let Some(mut done) = done.take() {
                    done.fail(end.clone());
                }
            }
            UcxOp::FetchFor { reply, .. } => reply.fail(end.clone()),
            UcxOp::Fetch { .. } | UcxOp::FetchHead { .. } | UcxOp::FetchCm { .. } => {}
        }
    }
}

impl Core {
    /// A send has ended.
    pub(super) fn on_sent(&mut self, worker: WorkerId, token: u64, result: Result<()>) {
        let Some(UcxOp::Send { connection, done }) = self.io.take_op(worker, token) else { return };
        if let Some(done) = done {
            done.complete(result.clone());
        }
        let Some(conn) = self.conns.get_mut(connection) else { return };
        // Room in flight, or the last send that a close waits for.
        let more = match &mut conn.link {
            Link::Ucx(link) => {
                link.inflight -= 1;
                !conn.core.queue.is_empty() || link.numbering.is_stalled() || !conn.core.session.life.is_open()
            }
            Link::Cm(link) => {
                link.on_sent(token);
                link.has_more(&conn.core)
            }
            _ => return,
        };
        if let Err(error) = result {
            let error = conn.end_by_ucx(error);
            return self.end(connection, error);
        }
        if more {
            conn.core.make_ready(&mut self.io);
        }
    }

    /// A fetch has ended.
    pub(super) fn on_fetch_done(&mut self, worker: WorkerId, token: u64, buf: RecvBuf, result: Result<()>) {
        let Some(op) = self.io.take_op(worker, token) else { return };
        let key = op.connection();
        let Some(conn) = self.conns.get_mut(key) else { return };
        let (core, io, failed) = (&mut conn.core, &mut self.io, result.is_err());
        let result = match &mut conn.link {
            Link::Ucx(link) => link.on_fetched(core, io, op, buf, result),
            Link::Cm(link) => link.on_fetched(core, io, &op, buf, result),
            _ => return,
        };
        match result {
            Ok(()) => {
                core.wake_reader();
                self.settle(key);
            }
            Err(error) => {
                let error = if failed { conn.end_by_ucx(error) } else { error };
                self.end(key, error);
            }
        }
    }
}

#[inline]
pub(super) fn gather_small(body: Body) -> Bytes {
    match body {
        Body::Empty => Bytes::new(),
        Body::Bytes(bytes) => bytes,
        other => other.into_bytes().unwrap_or_default(),
    }
}

/// A body in one piece: over verbs UCX copies lists of pieces anyway, and slowly.
pub(super) fn gather(io: &Io, body: Body) -> Result<Payload> {
    match body {
        Body::Empty => Ok(Payload::Bytes(Bytes::new())),
        Body::Bytes(bytes) => Ok(Payload::Bytes(bytes)),
        Body::Buf(RecvBuf::Pool(buf)) => Ok(Payload::Pool(buf)),
        Body::Buf(buf) => Ok(Payload::Bytes(buf.freeze())),
        Body::Segments(mut segments) if segments.len() == 1 => Ok(Payload::Bytes(segments.pop().unwrap_or_default())),
        Body::Segments(segments) => {
            let total = segments.iter().map(Bytes::len).sum();
            let Ok(mut buf) = io.shared.pool.get(total, Purpose::Send) else {
                // Above the quota the copy is made outside the pool: the segments were in memory as well.
                return Ok(Payload::Bytes(Body::Segments(segments).into_bytes().unwrap_or_default()));
            };
            let mut at = 0;
            for segment in &segments {
                buf[at..at + segment.len()].copy_from_slice(segment);
                at += segment.len();
            }
            Ok(Payload::Pool(buf))
        }
        Body::Pending(_) => Err(Error::new(ErrorKind::Invalid, "a pending body can't be sent: fetch it first")),
    }
}

#[cold]
pub(super) fn gone() -> Error {
    Error::new(ErrorKind::Stopped, "the ucx worker is gone")
}
