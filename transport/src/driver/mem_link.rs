//! A connection inside this process: frames change hands by queue. For tests and simulation; the contract is the same.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;

use super::{
    Command, ConnCore, Io, Pumped,
    receive::{self, Placed},
    send::{Budget, Numbering, count_sent},
};
use crate::{
    Body, Error, ErrorKind, Frame, Result,
    backend::Backend,
    connection::{self, Outgoing},
    event::poller::Key,
    plan::{FetchReply, PendingBody, PendingId},
    proto::{
        credit::Urgency,
        header::{Credit, FrameHeader, Kind},
    },
    queue::{Limits, Receiver, Sender, bounded},
    tcp::BufKind,
};

/// Frames of one direction that the other side has not looked at. Credit bounds data; control frames are few.
const INBOX: Limits = Limits { messages: 1 << 16, bytes: 1 << 40 };

/// What goes from one side to the other.
pub(crate) enum MemMessage {
    Data { header: FrameHeader, frame: Frame },
    Control { header: FrameHeader, payload: Bytes },
}

/// Everything that one side must know of the other.
#[derive(Clone)]
pub(crate) struct MemParty {
    pub(crate) shared: Arc<connection::Shared>,
    pub(crate) key: Key,
    pub(crate) inbox: Sender<MemMessage>,
    /// Its end was seen.
    pub(crate) gone: Arc<AtomicBool>,
    pub(crate) credit: Credit,
    pub(crate) max_message: u64,
    pub(crate) max_head: u32,
}

impl MemParty {
    /// Tells this party, which asked for a connection, what became of it.
    pub(crate) fn answer(self, peer: Result<Self>) {
        let dispatcher = self.shared.dispatcher.clone();
        dispatcher.command(Command::MemAnswer { to: self.key, peer });
    }
}

/// One side's own half of the pair.
pub(crate) struct MemInbox {
    pub(crate) messages: Receiver<MemMessage>,
    pub(crate) gone: Arc<AtomicBool>,
}

impl Drop for MemInbox {
    fn drop(&mut self) {
        // Also where it never came to a link: whoever took the other side in the meantime must see it.
        self.gone.store(true, Ordering::Release);
    }
}

/// Describes this side for the other, and keeps what it needs itself.
pub(crate) fn party(core: &ConnCore) -> (MemParty, MemInbox) {
    let (inbox, messages) = bounded(INBOX);
    let gone = Arc::new(AtomicBool::new(false));
    let party = MemParty {
        shared: core.shared.clone(),
        key: core.key,
        inbox,
        gone: gone.clone(),
        credit: super::terms::granted(&core.config),
        max_message: core.config.max_message,
        max_head: core.config.max_head,
    };
    (party, MemInbox { messages, gone })
}

/// The memory backend's side of a connection.
pub(crate) struct MemLink {
    peer: MemParty,
    inbox: MemInbox,
    numbering: Numbering,
    /// The frame whose body waits for the pool's quota, and those the application decides about.
    no_room: Option<(Bytes, Bytes)>,
    held: Option<(PendingId, Bytes)>,
}

impl MemLink {
    pub(crate) fn new(peer: MemParty, inbox: MemInbox) -> Self {
        let numbering = Numbering::new(peer.key, Some(peer.credit));
        Self { peer, inbox, numbering, no_room: None, held: None }
    }

    pub(super) fn send_now(
        &mut self,
        core: &mut ConnCore,
        outgoing: &mut Option<Outgoing>,
        len: u64,
    ) -> Option<Result<()>> {
        if self.numbering.is_stalled() || !self.numbering.take_credit(len) {
            return None;
        }
        Some(self.put(core, outgoing.take()?, len))
    }

    fn put(&mut self, core: &mut ConnCore, out: Outgoing, len: u64) -> Result<()> {
        count_sent(&core.shared, len);
        let header = self.numbering.header(&out.frame, out.frame.body.len(), core.credit_due(Urgency::Piggyback));
        self.post(MemMessage::Data { header, frame: out.frame }, len)?;
        if let Some(done) = out.done {
            done.complete(Ok(()));
        }
        Ok(())
    }

    fn post(&self, message: MemMessage, len: u64) -> Result<()> {
        match self.peer.inbox.push(message, len) {
            Ok(()) => {
                self.peer.shared.announce();
                Ok(())
            }
            // The peer has ended. Its last words may still be in our inbox: the end is found there, not here.
            Err(refused) if !refused.is_full() => Ok(()),
            Err(_) => Err(Error::new(ErrorKind::Limit, "the peer's inbox is full of control frames")),
        }
    }

    /// Takes what the peer has sent.
    pub(super) fn receive(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<()> {
        let mut budget = Budget::of(&core.shared);
        let before = core.shared.counters.frames_received.get();
        self.retry_quota(core, io);
        while !budget.is_spent() && self.no_room.is_none() && self.held.is_none() {
            // Looked at before the queue: what was sent before the end is still taken.
            let gone = self.peer.gone.load(Ordering::Acquire);
            let Some(message) = self.inbox.messages.pop() else {
                // Its goodbye, or its answer to ours, may have been the last thing that was taken.
                if gone && !core.session.life.is_closed() {
                    return Err(reset());
                }
                break;
            };
            core.heard(io.now);
            match message {
                MemMessage::Data { header, frame } => {
                    budget.spend(frame.len());
                    self.take_data(core, io, &header, frame)?;
                }
                MemMessage::Control { header, payload } => {
                    budget.spend(0);
                    self.credit(core, io, &header)?;
                    receive::control(core, io, self, &header, &payload)?;
                }
            }
        }
        if budget.is_spent() {
            core.make_ready(io);
        }
        if core.shared.counters.frames_received.get() != before {
            core.wake_reader();
        }
        Ok(())
    }

    /// Asks the pool again for a body that found the quota used up. The plan was made once and stays.
    fn retry_quota(&mut self, core: &mut ConnCore, io: &mut Io) {
        let Some((_, body)) = &self.no_room else { return };
        match receive::pool_buf(io, body.len() as u64) {
            None => receive::retry_later(core, io),
            Some(mut buf) => {
                if let Some((head, body)) = self.no_room.take() {
                    buf.as_mut_slice().copy_from_slice(&body);
                    core.hand_over(Frame { head, body: buf.into() });
                }
            }
        }
    }

    fn credit(&mut self, core: &mut ConnCore, io: &mut Io, header: &FrameHeader) -> Result<()> {
        if let Some(credit) = header.credit {
            self.numbering.give(credit)?;
            core.make_ready(io);
        }
        Ok(())
    }

    fn take_data(&mut self, core: &mut ConnCore, io: &mut Io, header: &FrameHeader, frame: Frame) -> Result<()> {
        self.credit(core, io, header)?;
        if frame.head.len() > core.config.max_head as usize {
            return Err(Error::new(ErrorKind::Limit, "the peer sent a head above max_head"));
        }
        receive::admit(core, frame.len())?;
        receive::in_order(core, header.seq)?;
        if matches!(frame.body, Body::Pending(_)) {
            return Err(Error::new(ErrorKind::Invalid, "a pending body can't be sent: fetch it first"));
        }
        let body = frame.body.into_bytes().unwrap_or_default();
        self.take_body(core, io, header.seq, frame.head, body)
    }

    fn take_body(&mut self, core: &mut ConnCore, io: &mut Io, seq: u32, head: Bytes, body: Bytes) -> Result<()> {
        if body.is_empty() || !core.config.has_plans() {
            core.hand_over(Frame { head, body: body.into() });
            return Ok(());
        }
        match receive::place(core, io, &head, body.len() as u64)? {
            Placed::Into(mut buf, kind) => {
                buf.as_mut_slice()[..body.len()].copy_from_slice(&body);
                let body = if kind == BufKind::Own { Body::Buf(buf) } else { buf.into() };
                core.hand_over(Frame { head, body });
            }
            Placed::Refuse(text) => {
                let len = (head.len() + body.len()) as u64;
                receive::note_refusal(core, io, seq, len, &text);
            }
            Placed::Later => {
                let id = core.session.pending_id();
                core.session.unfinished += 1;
                let pending = PendingBody::new(body.len() as u64, id, core.shared.clone());
                self.held = Some((id, body));
                core.hand_over(Frame { head, body: Body::Pending(pending) });
            }
            Placed::NoRoom => {
                self.no_room = Some((head, body));
                receive::retry_later(core, io);
            }
        }
        Ok(())
    }
}

impl Backend for MemLink {
    fn pump(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Pumped> {
        self.receive(core, io)?;
        let mut budget = Budget::of(&core.shared);
        while !budget.is_spent() {
            let Some(out) = self.numbering.next(&mut core.queue, &core.shared)? else { return Ok(Pumped::Rest) };
            let len = out.frame.len();
            budget.spend(len);
            self.put(core, out, len)?;
        }
        Ok(Pumped::More)
    }

    fn control(&mut self, _: &mut ConnCore, _: &mut Io, header: FrameHeader, payload: &[u8]) -> Result<()> {
        debug_assert!(header.kind != Kind::Data);
        self.post(MemMessage::Control { header, payload: Bytes::copy_from_slice(payload) }, 0)
    }

    fn flush(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Pumped> {
        self.pump(core, io)
    }

    fn is_idle(&self, core: &ConnCore) -> bool {
        core.queue.is_empty() && !self.numbering.is_stalled()
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
        self.no_room.is_some()
    }

    fn fetch(&mut self, core: &mut ConnCore, io: &mut Io, id: PendingId, mut reply: FetchReply) -> Result<()> {
        match self.held.take() {
            Some((held, body)) if held == id => {
                core.session.unfinished -= 1;
                if let Some(mut buf) = reply.buf.take() {
                    buf.truncate(body.len());
                    buf.as_mut_slice().copy_from_slice(&body);
                    reply.complete(Ok(buf));
                }
                core.make_ready(io);
            }
            other => self.held = other,
        }
        Ok(())
    }

    fn close(&mut self, _: &mut ConnCore, _: &mut Io) {
        self.inbox.gone.store(true, Ordering::Release);
        self.inbox.messages.close();
        self.numbering.drop_stalled();
        (self.held, self.no_room) = (None, None);
        self.peer.shared.announce();
    }
}

fn reset() -> Error {
    Error::new(ErrorKind::Reset, "the other end of the mem connection is gone")
}
