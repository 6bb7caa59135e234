//! One connection as the dispatcher has it.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Io, accept::ListenerShared, cm_link::CmLink, mem_link::MemLink, opening::Opening, tcp_link::TcpLink,
    ucx_link::UcxLink,
};
use crate::{
    Connection, Error, ErrorKind, Frame, Result,
    backend::Backend,
    config::ConnectionConfig,
    connection::{DriverHalf, NO_RECEIVER, Outgoing, Shared},
    event::{pipe::ReadyPipe, poller::Key, timer::TimerId},
    plan::PendingId,
    proto::{
        control,
        credit::{RecvCredit, Urgency},
        header::{Credit, FrameHeader, Kind},
        lifecycle::Lifecycle,
        liveness::Liveness,
        order::Reorder,
    },
    queue::{Receiver, Sender},
};

/// What every connection has, whatever carries it.
pub(crate) struct ConnCore {
    pub(crate) key: Key,
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: Receiver<Outgoing>,
    pub(crate) deliver: Sender<Frame>,
    pub(crate) config: ConnectionConfig,
    pub(crate) session: Session,
    pub(crate) pipes: Vec<(ReadyPipe, Key)>,
    pub(crate) timer: Option<TimerId>,
    /// The accepted connection's handle, until it is open and goes to the listener.
    pub(crate) accepted: Option<(Connection, Arc<ListenerShared>)>,
    /// Control frames that are sent when the connection is served next.
    pub(crate) controls: Vec<(FrameHeader, Bytes)>,
    /// What the stall watchdog saw last.
    pub(crate) progress: super::stall::Progress,
    /// When the stall watchdog looks, if no heartbeat brings it here.
    pub(super) look_at: Option<Instant>,
    /// It is in `Io::ready` already.
    pub(crate) is_ready: bool,
    /// Frames for a reader on this thread.
    pub(crate) inbox: super::inbox::Inbox,
}

/// The protocol's state of one connection.
pub(crate) struct Session {
    /// The peer's key for this connection: it goes into every header.
    pub(crate) peer: Key,
    /// What the peer may send; `None` without ucrpc's framing.
    pub(crate) recv: Option<RecvCredit>,
    /// How much of what the application consumed is known to `recv`.
    pub(crate) known_frames: u64,
    pub(crate) known_bytes: u64,
    pub(crate) order: Reorder<Frame>,
    /// Heads that came before their bodies.
    pub(crate) heads: VecDeque<(u32, Bytes)>,
    pub(crate) liveness: Option<Liveness>,
    pub(crate) life: Lifecycle,
    /// Frames that were delivered without their bodies, about which the application has not decided or whose transfer
    /// is not over: the goodbye waits for them.
    pub(crate) unfinished: u32,
    /// How often the peer wants to hear from us, and when it last did without asking.
    pub(crate) peer_interval: Option<Duration>,
    pub(crate) said: Instant,
    pub(crate) next_pending: u32,
}

/// The number of a PONG that answers no PING: pings count from 1.
const UNASKED: u64 = 0;

/// Heads that may wait for their bodies, and frames that may be parked out of order: as many as a window lets the peer
/// send, but never more than this.
const MAX_PARKED: u32 = 1 << 16;

impl Session {
    pub(crate) fn new(config: &ConnectionConfig, now: Instant) -> Self {
        let parked = config.recv_window_frames.clamp(1, MAX_PARKED);
        Self {
            peer: Key { index: 0, generation: 0 },
            recv: None,
            known_frames: 0,
            known_bytes: 0,
            order: Reorder::new(parked),
            heads: VecDeque::new(),
            liveness: config.keepalive.map(|k| {
                Liveness::new(crate::proto::liveness::Keepalive { interval: k.interval, deadline: k.deadline }, now)
            }),
            life: Lifecycle::new(),
            unfinished: 0,
            peer_interval: None,
            said: now,
            next_pending: 0,
        }
    }

    /// Data frames of the peer that are here entirely, for the goodbye.
    pub(crate) fn received(&self) -> u32 {
        self.order.expected().wrapping_sub(self.unfinished)
    }

    /// A name for a body that is set aside.
    pub(crate) fn pending_id(&mut self) -> PendingId {
        self.next_pending = self.next_pending.wrapping_add(1);
        PendingId(self.next_pending)
    }
}

impl ConnCore {
    pub(crate) fn new(half: DriverHalf, now: Instant) -> Self {
        let session = Session::new(&half.config, now);
        Self {
            key: Key { index: 0, generation: 0 },
            shared: half.shared,
            queue: half.queue,
            deliver: half.deliver,
            config: half.config,
            session,
            pipes: Vec::new(),
            timer: None,
            accepted: None,
            controls: Vec::new(),
            progress: super::stall::Progress::default(),
            look_at: None,
            is_ready: false,
            inbox: super::inbox::Inbox::default(),
        }
    }

    /// A control frame's header.
    pub(crate) fn control_header(&self, kind: Kind, seq: u32) -> FrameHeader {
        FrameHeader::new(kind, self.session.peer.index, self.session.peer.generation, seq)
    }

    /// Credit to send back, if it is worth it.
    #[inline]
    pub(crate) fn credit_due(&mut self, urgency: Urgency) -> Option<Credit> {
        use std::sync::atomic::Ordering::Acquire;
        let recv = self.session.recv.as_mut()?;
        // The receiver writes the bytes first: what is read here covers at least the frames.
        let frames = self.shared.consumed_frames.load(Acquire);
        if frames != self.session.known_frames {
            let (frames, bytes) = if frames == NO_RECEIVER {
                let counters = &self.shared.counters;
                (counters.frames_received.get(), counters.bytes_received.get())
            } else {
                (frames, self.shared.consumed_bytes.load(Acquire))
            };
            let messages = (frames - self.session.known_frames) as u32;
            recv.on_consumed_many(Credit { messages, bytes: bytes - self.session.known_bytes });
            (self.session.known_frames, self.session.known_bytes) = (frames, bytes);
        }
        recv.take_return(urgency)
    }

    /// Passes a frame to the application. The caller wakes the reader.
    #[inline]
    pub(crate) fn hand_over(&mut self, frame: Frame) {
        let (bytes, counters) = (frame.len(), &self.shared.counters);
        counters.frames_received.add(1);
        counters.bytes_received.add(bytes);
        // It fails when the receiver is gone: what arrives counts as consumed then, see `credit_due`.
        if let Err(frame) = self.inbox.keep(frame, bytes)
            && self.deliver.push(frame, bytes).is_err()
        {
            self.shared.announce();
        }
    }

    /// A frame will not reach the application: its credit goes back.
    pub(crate) fn consumed_here(&mut self, bytes: u64) {
        if let Some(recv) = &mut self.session.recv {
            recv.on_consumed(bytes);
        }
    }

    /// The peer was heard.
    #[inline]
    pub(crate) fn heard(&mut self, now: Instant) {
        if let Some(liveness) = &mut self.session.liveness {
            liveness.heard(now);
        }
    }

    /// The answer to a ping came.
    pub(crate) fn on_pong(&mut self, id: u64, now: Instant) {
        if let Some(rtt) = self.session.liveness.as_mut().and_then(|l| l.on_pong(id, now)) {
            self.shared.counters.ping_us.set(rtt.as_micros() as u64);
        }
    }

    /// Bytes came from the peer. Its own ping may be stuck behind them for longer than it waits for an answer, so it is
    /// told now and then that they arrive.
    #[inline]
    pub(crate) fn reassure(&mut self, io: &mut Io) {
        if let Some(interval) = self.session.peer_interval
            && io.now.saturating_duration_since(self.session.said) >= interval
        {
            self.session.said = io.now;
            let header = self.control_header(Kind::Pong, 0);
            self.controls.push((header, Bytes::copy_from_slice(&control::encode_ping(UNASKED))));
            self.make_ready(io);
        }
    }

    /// The next time at which something is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let alive = self.session.liveness.as_ref().and_then(Liveness::next_timeout);
        [alive, self.look_at, self.session.life.next_timeout()].into_iter().flatten().min()
    }
}

/// How a connection reaches its peer.
pub(crate) enum Link {
    Opening(Box<Opening>),
    Tcp(Box<TcpLink>),
    Ucx(Box<UcxLink>),
    Cm(Box<CmLink>),
    Mem(Box<MemLink>),
}

impl Link {
    /// The open connection's backend.
    #[inline]
    pub(crate) fn backend(&mut self) -> Option<&mut dyn Backend> {
        match self {
            Self::Opening(_) => None,
            Self::Tcp(link) => Some(&mut **link),
            Self::Ucx(link) => Some(&mut **link),
            Self::Cm(link) => Some(&mut **link),
            Self::Mem(link) => Some(&mut **link),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        !matches!(self, Self::Opening(_))
    }
}

/// One connection.
pub(crate) struct Conn {
    pub(crate) core: ConnCore,
    pub(crate) link: Link,
}

impl Conn {
    /// The UCX worker that it uses, or that its peer knows of us.
    pub(super) fn worker(&self) -> Option<crate::ucx::WorkerId> {
        match &self.link {
            Link::Opening(opening) => opening.endpoint().map(crate::ucx::EndpointId::worker).or(opening.engine),
            Link::Ucx(link) => Some(link.ep.worker()),
            Link::Cm(link) => Some(link.ep.worker()),
            Link::Tcp(_) | Link::Mem(_) => None,
        }
    }

    /// Whether it is open, and what its peer sends goes through this worker's shared-memory receive queue.
    pub(super) fn receives_over_memory(&self, id: crate::ucx::WorkerId) -> bool {
        matches!(&self.link, Link::Ucx(link) if link.over_memory && link.ep.worker() == id)
    }

    /// Why it ends when UCX says `error`.
    pub(crate) fn end_by_ucx(&self, error: Error) -> Error {
        match &self.link {
            Link::Cm(link) => link.end_of(&self.core, &error),
            _ => error,
        }
    }

    /// Sends a control frame.
    pub(crate) fn control(&mut self, io: &mut Io, header: FrameHeader, payload: &[u8]) -> Result<()> {
        match self.link.backend() {
            Some(backend) => backend.control(&mut self.core, io, header, payload),
            None => Err(Error::new(ErrorKind::Protocol, "a control frame on a connection that is not open")),
        }
    }
}
