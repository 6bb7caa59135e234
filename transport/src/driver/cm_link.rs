//! A connection over UCX's connection manager in Curve's messages: `ucx+cm://`.
//!
//! The wire has no credit, no goodbye and no socket beside it. What stands in for them:
//!
//! - **Flow control.** The receiver leaves announced messages at the peer while the application has a window's worth to
//!   take. The sender makes every so many small messages one that has to be fetched, and waits for it.
//! - **Goodbye.** When everything sent is complete, a PING with a content of our own goes out; its PONG says that all has
//!   arrived. To a peer that knows the content it says that this side closes; to others it is a ping.
//! - **Death.** UCX tells of a disconnect, but not whether the peer closed or crashed. Pings find a stopped peer.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use slab::Slab;

use super::{
    ConnCore, Io, Pumped,
    cm_frames::{deliver, join},
    cm_open::said_nothing,
    engine::Broken,
    receive,
    send::Budget,
    ucx_link::{MAX_INFLIGHT, SMALL, UcxOp, fail_operations, gather_small, gone},
};
use crate::{
    Error, ErrorKind, RecvBuf, Result,
    backend::Backend,
    connection::{Completion, Outgoing},
    plan::{FetchReply, PendingId},
    proto::{
        control,
        curve::{self, Command, Header},
        header::{Credit, FrameHeader, Kind},
        order::Reorder,
    },
    ucx::{EndpointId, Mode, Rendezvous, Sent},
};

/// The content of the ping with which this side closes.
const GOODBYE: u64 = u64::from_le_bytes(*b"ucrpcbye");
/// Messages that may be ahead of the next one in turn.
const WINDOW: u32 = 1 << 16;
/// Frames that may wait for the application, whatever the configured window: the peer was not asked to stop.
const MAX_WAITING: usize = 1 << 16;
/// Answers to pings that may be in flight beyond the data. A peer that asks for more without taking them is at fault.
const MAX_PONGS: u32 = 64;
/// Messages and bytes after which one is sent that has to be fetched.
const RUN: Run = Run { messages: 1024, bytes: 2 << 20 };
/// Bytes under way that hold no ping up for longer than the peer has to answer it.
const AT_ONCE: u64 = 16 << 20;
/// The slowest that larger transfers are taken to move, bytes per second: for as long as they need at that pace they excuse the
/// peer's silence, because pings wait behind them. UCX does not tell how far a transfer is.
const SLOWEST: u64 = 20_000_000;

/// What was sent without waiting for the peer.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    messages: u32,
    bytes: u64,
}

/// A message that waits at the peer.
struct Announced {
    sn: u64,
    pad: u16,
    rndv: Rendezvous,
}

/// The connection manager backend's side of a connection.
pub(crate) struct CmLink {
    pub(super) ep: EndpointId,
    /// The number of the next message sent.
    next: u64,
    frames: u32,
    inflight: u32,
    rendezvous_from: u64,
    run: Run,
    /// The send that the peer has to fetch before more is sent.
    probe: Option<u64>,
    /// Received contents that wait for their turn; pings and the like take a turn too.
    order: Reorder<Bytes>,
    /// The number of the next message in turn.
    expected: u64,
    parked: u64,
    /// In the order of their numbers.
    announced: VecDeque<Announced>,
    /// Bytes and number of the transfers under way.
    fetching: (u64, u32),
    /// Tokens and bytes of large sends under way.
    sending: Vec<(u64, u64)>,
    /// Until when transfers under way account for the peer's present silence.
    excused: Option<Instant>,
    /// The pool had none for the first announced message.
    no_room: bool,
}

impl CmLink {
    /// A link whose next message has the number `next`, and the peer's next one `expected`.
    pub(super) fn new(ep: EndpointId, next: u64, expected: u64, rendezvous_from: u64) -> Self {
        Self {
            ep,
            next,
            frames: 0,
            inflight: 0,
            rendezvous_from,
            run: Run::default(),
            probe: None,
            order: Reorder::starting_at(expected as u32, WINDOW),
            expected,
            parked: 0,
            announced: VecDeque::new(),
            fetching: (0, 0),
            sending: Vec::new(),
            excused: None,
            no_room: false,
        }
    }

    pub(super) fn send_now(
        &mut self,
        core: &mut ConnCore,
        io: &mut Io,
        outgoing: &mut Option<Outgoing>,
        len: u64,
    ) -> Option<Result<()>> {
        if self.inflight >= MAX_INFLIGHT || self.probe.is_some() {
            return None;
        }
        Some(self.put(core, io, outgoing.take()?, len))
    }

    /// Why a connection that UCX reports as broken has ended, as far as that can be known.
    pub(super) fn end_of(&self, core: &ConnCore, error: &Error) -> Error {
        if core.session.life.is_mutual() {
            return Error::new(ErrorKind::Closed, "both sides closed the connection");
        }
        let text = format!(
            "{}: the peer's process has ended, or it closed without a goodbye that we know; ucx's connection manager does \
             not tell which",
            error.text()
        );
        let end = Error::new(ErrorKind::Reset, text);
        error.ucx_status().map_or(end.clone(), |status| end.with_ucx(status))
    }

    /// Whether transfers under way account for the peer's silence.
    pub(super) fn excuses_silence(&mut self, now: Instant) -> bool {
        let bytes = self.fetching.0 + self.sending.iter().map(|(_, len)| len).sum::<u64>();
        let needs = Duration::from_secs_f64(bytes.saturating_sub(AT_ONCE) as f64 / SLOWEST as f64);
        now < *self.excused.get_or_insert(now + needs)
    }

    fn header(&mut self, command: Command) -> Header {
        let header = Header::new(command, self.next);
        self.next = self.next.wrapping_add(1);
        header
    }

    /// Sends one frame.
    fn put(&mut self, core: &ConnCore, io: &mut Io, out: Outgoing, len: u64) -> Result<()> {
        let Outgoing { frame, done } = out;
        core.shared.counters.frames_sent.add(1);
        core.shared.counters.bytes_sent.add(len);
        self.frames = self.frames.wrapping_add(1);
        self.run.messages += 1;
        self.run.bytes += len;
        let header = self.header(Command::Data);
        // UCX's rendezvous of nothing is no rendezvous.
        let probe = len > 0 && (self.run.messages >= RUN.messages || self.run.bytes >= RUN.bytes);
        if len <= SMALL && !probe {
            let body = gather_small(frame.body);
            return self.copy(core, io, header, [&frame.head, &body], done);
        }
        let payload = join(io, frame)?;
        let mode = if probe || len >= self.rendezvous_from { Mode::Rendezvous } else { Mode::Eager };
        if mode == Mode::Rendezvous {
            core.shared.counters.rendezvous_sent.add(1);
        }
        let Some(engine) = io.engine_of(self.ep) else { return Err(gone()) };
        let token = engine.ops.insert(UcxOp::Send { connection: core.key, done }) as u64;
        let sent = engine.worker.send_owned(self.ep, &header.encode(), payload, mode, token);
        if matches!(sent, Ok(Sent::Pending)) {
            self.sending.push((token, len));
            if probe {
                self.probe = Some(token);
            }
        }
        self.sent_or_pending(&mut engine.ops, token, sent)
    }

    fn copy(
        &mut self,
        core: &ConnCore,
        io: &mut Io,
        header: Header,
        parts: [&[u8]; 2],
        done: Option<Completion>,
    ) -> Result<()> {
        let Some(engine) = io.engine_of(self.ep) else { return Err(gone()) };
        let token = engine.ops.insert(UcxOp::Send { connection: core.key, done }) as u64;
        let sent = engine.worker.send_copy(self.ep, &header.encode(), parts, token);
        self.sent_or_pending(&mut engine.ops, token, sent)
    }

    fn say(&mut self, core: &ConnCore, io: &mut Io, command: Command, content: &[u8]) -> Result<()> {
        let header = self.header(command);
        self.copy(core, io, header, [content, &[]], None)
    }

    fn sent_or_pending(&mut self, ops: &mut Slab<UcxOp>, token: u64, sent: Result<Sent>) -> Result<()> {
        match sent {
            Ok(Sent::Pending) => {
                self.inflight += 1;
                return Ok(());
            }
            Ok(Sent::Done) => {}
            Err(error) => {
                ops.remove(token as usize);
                return Err(error);
            }
        }
        if let UcxOp::Send { done: Some(done), .. } = ops.remove(token as usize) {
            done.complete(Ok(()));
        }
        Ok(())
    }

    /// A send has ended.
    pub(super) fn on_sent(&mut self, token: u64) {
        self.inflight -= 1;
        self.excused = None;
        if let Some(index) = self.sending.iter().position(|(pending, _)| *pending == token) {
            self.sending.swap_remove(index);
        }
        if self.probe == Some(token) {
            (self.probe, self.run) = (None, Run::default());
        }
    }

    /// Whether something waits for a send to end.
    pub(super) fn has_more(&self, core: &ConnCore) -> bool {
        !core.queue.is_empty() || !core.session.life.is_open()
    }

    /// A message that came whole.
    pub(super) fn on_message(&mut self, core: &mut ConnCore, io: &mut Io, header: &[u8], data: Bytes) -> Result<()> {
        self.excused = None;
        let header = Header::decode(header)?;
        let content = data.slice(header.content(data.len())?..);
        match header.command {
            Command::Data => {
                self.admit(core, content.len() as u64)?;
                self.arrive(core, header.sn, content)?;
                self.fetch_announced(core, io)
            }
            Command::Ping => {
                self.skip(core, header.sn)?;
                self.on_ping(core, io, &content)
            }
            Command::Pong => {
                self.skip(core, header.sn)?;
                match control::decode_ping(&content) {
                    Ok(GOODBYE) => core.session.life.on_goodbye_ack(),
                    Ok(id) => core.on_pong(id, io.now),
                    // It was a sign of life.
                    Err(_) => {}
                }
                Ok(())
            }
            Command::Hello | Command::HelloReply => {
                Err(Error::new(ErrorKind::Protocol, "a handshake message on an open connection"))
            }
        }
    }

    fn on_ping(&mut self, core: &mut ConnCore, io: &mut Io, content: &[u8]) -> Result<()> {
        if content == GOODBYE.to_le_bytes() {
            // Its sender has waited for everything before it.
            core.session.life.on_goodbye(0, 0);
            return Ok(());
        }
        if content.len() > curve::MAX_PING || self.inflight >= MAX_INFLIGHT + MAX_PONGS {
            let text = format!("a ping of {} bytes with {} sends in flight", content.len(), self.inflight);
            return Err(Error::new(ErrorKind::Protocol, text));
        }
        self.say(core, io, Command::Pong, content)
    }

    /// A message whose content waits at the peer.
    pub(super) fn on_announced(
        &mut self,
        core: &mut ConnCore,
        io: &mut Io,
        header: &[u8],
        rndv: Rendezvous,
    ) -> Result<()> {
        self.excused = None;
        let Header { command, pad, sn } = Header::decode(header)?;
        if command != Command::Data {
            return Err(Error::new(ErrorKind::Protocol, format!("a {command:?} message by rendezvous")));
        }
        core.shared.counters.rendezvous_received.add(1);
        let content = rndv.len() - Header { command, pad, sn }.content(rndv.len())?;
        check_len(core, content as u64)?;
        self.turn(sn)?;
        let at = self.announced.partition_point(|other| other.sn < sn);
        self.announced.insert(at, Announced { sn, pad, rndv });
        self.fetch_announced(core, io)
    }

    /// Fetches what the application will have room for.
    fn fetch_announced(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<()> {
        self.no_room = false;
        while let Some(first) = self.announced.front() {
            let in_turn = first.sn == self.expected;
            // What waits behind the next message in turn must not keep it away.
            let behind = if in_turn { 0 } else { self.parked + self.fetching.0 };
            let (frames, bytes) = core.untaken();
            if bytes + behind >= core.config.recv_window_bytes || frames >= core.config.recv_window_frames as usize {
                break;
            }
            let len = first.rndv.len();
            let buf = match receive::pool_buf(io, len as u64) {
                Some(buf) => buf,
                // Others have the quota's memory and can't give it back before this one is here.
                None if in_turn && self.parked > 0 => RecvBuf::Bytes(BytesMut::zeroed(len)),
                None => {
                    self.no_room = true;
                    receive::retry_later(core, io);
                    break;
                }
            };
            let Some(Announced { sn, pad, rndv }) = self.announced.pop_front() else { break };
            let Some(engine) = io.engine_of(self.ep) else { return Err(gone()) };
            let token = engine.ops.insert(UcxOp::FetchCm { connection: core.key, sn, pad }) as u64;
            if let Err((error, _)) = engine.worker.fetch(rndv, buf, token) {
                engine.ops.remove(token as usize);
                return Err(error);
            }
            self.fetching = (self.fetching.0 + len as u64, self.fetching.1 + 1);
        }
        Ok(())
    }

    /// A transfer has ended.
    pub(super) fn on_fetched(
        &mut self,
        core: &mut ConnCore,
        io: &mut Io,
        op: &UcxOp,
        buf: RecvBuf,
        result: Result<()>,
    ) -> Result<()> {
        let UcxOp::FetchCm { sn, pad, .. } = *op else { return Ok(()) };
        self.fetching = (self.fetching.0 - buf.len() as u64, self.fetching.1 - 1);
        self.excused = None;
        result?;
        let mut content = buf.freeze();
        drop(content.split_to(usize::from(pad)));
        self.arrive(core, sn, content)?;
        self.fetch_announced(core, io)
    }

    /// Bounds what a peer can pile up here that never waits for us.
    fn admit(&self, core: &ConnCore, len: u64) -> Result<()> {
        check_len(core, len)?;
        let limit =
            core.config.recv_window_bytes.saturating_mul(2).saturating_add(core.config.max_message + 2 * RUN.bytes);
        let (frames, bytes) = core.untaken();
        let waiting = bytes + self.parked + len;
        if waiting <= limit && frames < MAX_WAITING {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Limit,
            format!(
                "{frames} frames with {waiting} bytes wait for the application: the peer does not stop, and this wire has no \
                 other flow control than rendezvous"
            ),
        ))
    }

    /// A number as `order` counts.
    fn turn(&self, sn: u64) -> Result<u32> {
        let ahead = sn.wrapping_sub(self.expected);
        if ahead < u64::from(WINDOW) {
            return Ok(sn as u32);
        }
        Err(Error::new(ErrorKind::Protocol, format!("message number {sn} came when {} was next", self.expected)))
    }

    fn arrive(&mut self, core: &mut ConnCore, sn: u64, content: Bytes) -> Result<()> {
        let turn = self.turn(sn)?;
        if self.order.accept_in_order(turn) {
            deliver(core, content)?;
        } else {
            self.parked += content.len() as u64;
            self.order.insert(turn, content)?;
        }
        self.drain(core)
    }

    fn skip(&mut self, core: &mut ConnCore, sn: u64) -> Result<()> {
        self.order.skip(self.turn(sn)?)?;
        self.drain(core)
    }

    fn drain(&mut self, core: &mut ConnCore) -> Result<()> {
        while let Some(content) = self.order.pop() {
            self.parked -= content.len() as u64;
            deliver(core, content)?;
        }
        let done = self.order.expected().wrapping_sub(self.expected as u32);
        self.expected = self.expected.wrapping_add(u64::from(done));
        Ok(())
    }
}

impl Backend for CmLink {
    fn pump(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Pumped> {
        self.fetch_announced(core, io)?;
        let mut budget = Budget::of(&core.shared);
        while self.inflight < MAX_INFLIGHT && self.probe.is_none() {
            if budget.is_spent() {
                return Ok(Pumped::More);
            }
            let Some(out) = core.queue.pop() else { break };
            let len = out.frame.len();
            budget.spend(len);
            self.put(core, io, out, len)?;
        }
        Ok(Pumped::Rest)
    }

    fn control(&mut self, core: &mut ConnCore, io: &mut Io, header: FrameHeader, payload: &[u8]) -> Result<()> {
        match header.kind {
            Kind::Ping => self.say(core, io, Command::Ping, payload),
            Kind::Pong => self.say(core, io, Command::Pong, payload),
            Kind::Goodbye => self.say(core, io, Command::Ping, &GOODBYE.to_le_bytes()),
            Kind::GoodbyeAck => self.say(core, io, Command::Pong, &GOODBYE.to_le_bytes()),
            // The wire has no words for the rest, and nothing here says it.
            _ => said_nothing(header.kind),
        }
    }

    fn flush(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Pumped> {
        self.pump(core, io)
    }

    fn is_idle(&self, core: &ConnCore) -> bool {
        self.inflight == 0 && core.queue.is_empty()
    }

    fn give(&mut self, _: Credit) -> Result<()> {
        Err(Error::new(ErrorKind::Protocol, "credit on a wire that has none"))
    }

    fn sent(&self) -> u32 {
        self.frames
    }

    fn waits_for_credit(&self) -> bool {
        self.probe.is_some()
    }

    fn waits_for_pool(&self) -> bool {
        self.no_room
    }

    fn fetch(&mut self, _: &mut ConnCore, _: &mut Io, _: PendingId, mut reply: FetchReply) -> Result<()> {
        // No plan is asked here, so nothing is ever set aside.
        reply.fail(Error::new(ErrorKind::Invalid, "no body of this connection waits"));
        Ok(())
    }

    fn close(&mut self, core: &mut ConnCore, io: &mut Io) {
        // UCX's connection manager makes no lanes over shared memory.
        io.close_endpoint(self.ep, Broken::No);
        if self.inflight > 0 {
            fail_operations(core, io, self.ep);
        }
        self.announced.clear();
        self.order = Reorder::new(1);
    }
}

fn check_len(core: &ConnCore, len: u64) -> Result<()> {
    if len <= core.config.max_message {
        return Ok(());
    }
    let text = format!("the peer sent a message of {len} bytes, max_message is {}", core.config.max_message);
    Err(Error::new(ErrorKind::Limit, text))
}
