//! A connection over a stream socket: TCP or Unix, ucrpc's framing or a foreign protocol's.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::{
    ConnCore, Io, Pumped,
    conn::Session,
    receive::{self, Placed},
    send::{Budget, Numbering, SendHalf, count_sent, lock},
};
use crate::{
    Body, Error, ErrorKind, Frame, Result,
    backend::Backend,
    connection::Outgoing,
    event::poller::Key,
    plan::{FetchReply, PendingBody, PendingId},
    proto::{
        credit::Urgency,
        header::{self, Credit, FrameHeader, HeadPlace, Kind},
    },
    tcp::{BufKind, Decision, FlushEnd, Mode, ReadEnd, ReadLimits, Reader, Sink, Stream, Target, Writer},
};

/// The stream backend's side of a connection.
pub(crate) struct TcpLink {
    pub(crate) half: Arc<Mutex<SendHalf>>,
    pub(crate) stream: Arc<Stream>,
    pub(crate) source: Key,
    pub(crate) reader: Reader,
    native: bool,
    /// The body that the reader is paused at.
    waiting: Option<Waiting>,
    /// The application's own fetch that is being read.
    fetching: Option<FetchReply>,
    /// Reading stopped because the application does not take what has arrived (foreign protocols have no credit).
    throttled: bool,
    /// There may be more to read, and no edge will say so.
    unread: bool,
    pub(crate) eof: bool,
}

enum Waiting {
    /// The application decides.
    Application(PendingId),
    /// The pool's quota was used up; tried again when the connection is served.
    Quota(u64),
}

impl TcpLink {
    pub(crate) fn new(stream: Arc<Stream>, source: Key, mode: Mode, numbering: Numbering, limits: ReadLimits) -> Self {
        let native = matches!(mode, Mode::Native);
        let half = SendHalf::new(numbering, Writer::new(&mode), stream.clone(), native);
        Self {
            half: Arc::new(Mutex::new(half)),
            stream,
            source,
            reader: Reader::new(mode, limits),
            native,
            waiting: None,
            fetching: None,
            throttled: false,
            unread: true,
            eof: false,
        }
    }

    pub(super) fn send_now(
        &mut self,
        core: &mut ConnCore,
        outgoing: &mut Option<Outgoing>,
        len: u64,
    ) -> Option<Result<()>> {
        let mut half = lock(&self.half);
        if !half.is_idle() || !half.numbering.take_credit(len) {
            return None;
        }
        count_sent(&core.shared, len);
        Some(half.send_now(outgoing.take()?, core.credit_due(Urgency::Piggyback)).map(drop))
    }

    /// Reads until the socket is empty or the turn's budget is spent; whether there was anything.
    pub(super) fn read(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<bool> {
        self.unread = true;
        self.read_again(core, io)
    }

    /// Goes on reading, if something stopped it before the socket was empty; whether there was anything.
    pub(super) fn read_again(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<bool> {
        self.retry_quota(core, io);
        if !self.unread || self.waiting.is_some() || self.eof {
            return Ok(false);
        }
        let full = |core: &ConnCore| {
            let (frames, bytes) = core.untaken();
            bytes >= core.config.recv_window_bytes || frames >= core.config.recv_window_frames as usize
        };
        if !self.native && full(core) {
            self.throttled = true;
            return Ok(false);
        }
        self.throttled = false;
        let all = io.shared.config.turn_bytes.max(1);
        let mut budget = all;
        let mut scratch = std::mem::take(&mut io.scratch);
        let before = core.shared.counters.frames_received.get();
        let mut sink = StreamSink {
            core,
            io,
            link: Parts { waiting: &mut self.waiting, fetching: &mut self.fetching },
            controls: Vec::new(),
            granted: None,
        };
        let end = self.reader.read(&self.stream, &mut scratch, &mut budget, &mut sink);
        let StreamSink { controls, granted, .. } = sink;
        io.scratch = scratch;
        if core.shared.counters.frames_received.get() != before {
            core.wake_reader();
        }
        let heard = budget < all;
        if heard {
            core.heard(io.now);
            core.reassure(io);
        }
        if let Some(credit) = granted {
            lock(&self.half).numbering.give(credit)?;
            core.make_ready(io);
        }
        for (header, payload) in controls {
            receive::control(core, io, self, &header, &payload)?;
        }
        match end? {
            ReadEnd::Drained => self.unread = false,
            ReadEnd::Budget => core.make_ready(io),
            ReadEnd::Paused => {}
            ReadEnd::Eof { mid_frame } => {
                self.on_eof(mid_frame)?;
                return Ok(true);
            }
        }
        Ok(heard)
    }

    /// Ends the stream after what the writer has begun; what waits in the queue is dropped. Until then it is called
    /// again with every edge.
    pub(super) fn last_word(&mut self, core: &mut ConnCore) {
        core.queue.close();
        while core.queue.pop().is_some() {}
        let mut half = lock(&self.half);
        half.numbering.drop_stalled();
        if half.writer.pending_bytes() == 0 {
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
        }
    }

    /// Whether a body waits for a decision or for memory: nothing behind it is read, the peer's pings neither.
    pub(super) fn is_paused(&self) -> bool {
        self.waiting.is_some()
    }

    fn on_eof(&mut self, mid_frame: bool) -> Result<()> {
        self.eof = true;
        self.unread = false;
        if mid_frame {
            return Err(Error::new(ErrorKind::Reset, "the peer's stream ended inside a frame"));
        }
        Ok(())
    }

    /// Asks the pool again for a body that found the quota used up.
    fn retry_quota(&mut self, core: &mut ConnCore, io: &mut Io) {
        let Some(Waiting::Quota(len)) = self.waiting else { return };
        match receive::pool_buf(io, len) {
            Some(buf) => {
                self.waiting = None;
                self.reader.resume(Target { buf, returned_as: BufKind::Bytes });
            }
            None => receive::retry_later(core, io),
        }
    }
}

impl Backend for TcpLink {
    fn pump(&mut self, core: &mut ConnCore, _: &mut Io) -> Result<Pumped> {
        let mut half = lock(&self.half);
        let mut budget = Budget::of(&core.shared);
        // Small frames gather in the writer; it is flushed when enough for one system call is there.
        const GATHER: u64 = 64 << 10;
        // Who sends is told `Full` by the queue: while the socket takes nothing, nothing may be taken out of it.
        let mut bytes = usize::MAX;
        if half.writer.pending_bytes() >= GATHER && half.flush(&mut bytes)? == FlushEnd::WouldBlock {
            return Ok(Pumped::Rest);
        }
        while !budget.is_spent() {
            let Some(out) = half.numbering.next(&mut core.queue, &core.shared)? else { break };
            let len = out.frame.len();
            budget.spend(len);
            count_sent(&core.shared, len);
            half.put(out, core.credit_due(Urgency::Piggyback));
            if half.writer.pending_bytes() >= GATHER {
                let mut bytes = usize::MAX;
                if half.flush(&mut bytes)? == FlushEnd::WouldBlock {
                    return Ok(Pumped::Rest);
                }
            }
        }
        let mut bytes = usize::MAX;
        match half.flush(&mut bytes)? {
            FlushEnd::WouldBlock => Ok(Pumped::Rest),
            FlushEnd::Budget => Ok(Pumped::More),
            FlushEnd::Done if budget.is_spent() => Ok(Pumped::More),
            FlushEnd::Done => Ok(Pumped::Rest),
        }
    }

    fn control(&mut self, _: &mut ConnCore, _: &mut Io, header: FrameHeader, payload: &[u8]) -> Result<()> {
        let mut half = lock(&self.half);
        // What was left behind waits for room in the socket, whose edge will tell.
        let blocked = half.writer.pending_bytes() > 0;
        half.put_control(header, payload);
        if blocked {
            if half.writer.pending_control() > MAX_UNREAD_CONTROL {
                return Err(Error::new(ErrorKind::Limit, "the peer does not read the answers that it asks for"));
            }
            return Ok(());
        }
        let mut bytes = usize::MAX;
        half.flush(&mut bytes)?;
        Ok(())
    }

    fn flush(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Pumped> {
        {
            let mut half = lock(&self.half);
            let mut bytes = usize::MAX;
            if half.writer.pending_bytes() > 0 && half.flush(&mut bytes)? == FlushEnd::WouldBlock {
                return Ok(Pumped::Rest);
            }
        }
        self.pump(core, io)
    }

    fn is_idle(&self, core: &ConnCore) -> bool {
        core.queue.is_empty() && lock(&self.half).is_idle()
    }

    fn give(&mut self, credit: Credit) -> Result<()> {
        lock(&self.half).numbering.give(credit)
    }

    fn sent(&self) -> u32 {
        lock(&self.half).numbering.count()
    }

    fn waits_for_credit(&self) -> bool {
        lock(&self.half).numbering.is_stalled()
    }

    fn waits_for_pool(&self) -> bool {
        matches!(self.waiting, Some(Waiting::Quota(_)))
    }

    fn fetch(&mut self, core: &mut ConnCore, io: &mut Io, id: PendingId, reply: FetchReply) -> Result<()> {
        match self.waiting {
            Some(Waiting::Application(waiting)) if waiting == id => {}
            // Decided before, or of an earlier life.
            _ => return Ok(()),
        }
        self.waiting = None;
        let mut reply = reply;
        match reply.buf.take() {
            Some(buf) => {
                self.reader.resume(Target { buf, returned_as: BufKind::Own });
                self.fetching = Some(reply);
            }
            None => {
                self.reader.refuse();
                core.session.unfinished -= 1;
                drop(reply);
            }
        }
        core.make_ready(io);
        Ok(())
    }

    fn close(&mut self, _: &mut ConnCore, io: &mut Io) {
        io.poller.remove(&*self.stream);
        io.sources.remove(self.source);
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        // Callers' threads may still hold the half: it must not keep frames or their completions.
        lock(&self.half).clear();
        self.fetching = None;
    }
}

struct Parts<'a> {
    waiting: &'a mut Option<Waiting>,
    fetching: &'a mut Option<FetchReply>,
}

/// Takes what the reader finds.
struct StreamSink<'a> {
    core: &'a mut ConnCore,
    io: &'a mut Io,
    link: Parts<'a>,
    /// Control frames, answered when the reading is done.
    controls: Vec<(FrameHeader, Bytes)>,
    granted: Option<Credit>,
}

impl StreamSink<'_> {
    /// Whether the frames are ucrpc's own.
    fn native(&self) -> bool {
        self.core.session.recv.is_some()
    }

    fn session(&mut self) -> &mut Session {
        &mut self.core.session
    }
}

/// Bytes of control frames that a peer may leave unread while it asks for more. Data is bounded by the queue, credit by the
/// peer's data; answers to pings are not bounded by anything else.
const MAX_UNREAD_CONTROL: usize = 1 << 20;

/// Control frames of one read that wait to be answered. A peer that sends more without reading our answers is at fault.
const MAX_CONTROLS: usize = 4096;

impl Sink for StreamSink<'_> {
    fn wants_plan(&self) -> bool {
        self.core.config.has_plans()
    }

    fn on_header(&mut self, bytes: &[u8], payload_len: u64) -> Result<u64> {
        let header = header::decode_exact(bytes)?;
        receive::check_key(self.core, &header)?;
        if header.place != HeadPlace::InPayload {
            return Err(Error::new(ErrorKind::Protocol, "a head outside the payload on a stream"));
        }
        let head = match header.kind {
            Kind::Data => header.head_len.map_or(payload_len, u64::from),
            _ => payload_len,
        };
        if head > payload_len {
            return Err(Error::new(ErrorKind::Protocol, format!("head of {head} bytes in a frame of {payload_len}")));
        }
        if let Some(credit) = header.credit {
            let sum = self.granted.get_or_insert(Credit { messages: 0, bytes: 0 });
            sum.messages = sum.messages.saturating_add(credit.messages);
            sum.bytes = sum.bytes.saturating_add(credit.bytes);
        }
        if header.kind == Kind::Data {
            receive::admit(self.core, payload_len)?;
            // On a stream the numbers can only follow one another.
            receive::in_order(self.core, header.seq)?;
        }
        Ok(head)
    }

    fn place(&mut self, header: &[u8], head: &Bytes, body_len: u64) -> Result<Decision> {
        match receive::place(self.core, self.io, head, body_len)? {
            Placed::Into(buf, returned_as) => Ok(Decision::Into(Target { buf, returned_as })),
            Placed::Refuse(text) => {
                // A foreign protocol has no numbers, nor anyone who would be told.
                let seq = if self.native() { header::decode_exact(header)?.seq } else { 0 };
                let len = head.len() as u64 + body_len;
                receive::note_refusal(self.core, self.io, seq, len, &text);
                Ok(Decision::Discard)
            }
            Placed::Later => {
                let id = self.session().pending_id();
                self.session().unfinished += 1;
                *self.link.waiting = Some(Waiting::Application(id));
                let pending = PendingBody::new(body_len, id, self.core.shared.clone());
                self.core.hand_over(Frame { head: head.clone(), body: Body::Pending(pending) });
                Ok(Decision::Pause)
            }
            Placed::NoRoom => {
                *self.link.waiting = Some(Waiting::Quota(body_len));
                receive::retry_later(self.core, self.io);
                Ok(Decision::Pause)
            }
        }
    }

    fn on_frame(&mut self, header: &[u8], head: Bytes, body: Body) -> Result<()> {
        // The frame may have begun in an earlier read: what it is stands in its own header and nowhere else.
        if self.native() && header.first() != Some(&(Kind::Data as u8)) {
            let header = header::decode_exact(header)?;
            if self.controls.len() >= MAX_CONTROLS {
                return Err(Error::new(ErrorKind::Protocol, "a flood of control frames"));
            }
            if header.kind != Kind::Credit {
                self.controls.push((header, head));
            }
            return Ok(());
        }
        match (self.link.fetching.take(), body) {
            // The frame was delivered when it was announced; this is the body that the application fetched.
            (Some(reply), Body::Buf(buf)) => {
                self.session().unfinished -= 1;
                reply.complete(Ok(buf));
            }
            (_, body) => self.core.hand_over(Frame { head, body }),
        }
        Ok(())
    }

    fn on_discarded(&mut self, _: &[u8], _: Bytes) -> Result<()> {
        Ok(())
    }
}
