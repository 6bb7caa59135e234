//! The receiving half of a connection over UCX: messages and announcements become frames, in the order in which they were sent.

use bytes::{Bytes, BytesMut};

use super::{
    ConnCore, Io,
    receive::{self, Placed},
    ucx_link::{UcxLink, UcxOp, gone},
};
use crate::{
    Body, Error, ErrorKind, Frame, RecvBuf, Result,
    plan::PendingBody,
    proto::header::{FrameHeader, HeadPlace, Kind},
    tcp::BufKind,
    ucx::Rendezvous,
};

/// A rendezvous that waits for the pool's quota.
pub(super) struct Waiting {
    seq: u32,
    head: Bytes,
    rndv: Rendezvous,
}

/// A body whose head is still being fetched.
pub(super) struct Headless {
    seq: u32,
    head_len: usize,
    body: Held,
}

pub(super) enum Held {
    Rendezvous(Rendezvous),
    Here(Bytes),
}

impl UcxLink {
    /// A data message that came whole.
    pub(super) fn on_data(
        &mut self,
        core: &mut ConnCore,
        io: &mut Io,
        header: &FrameHeader,
        inline: &[u8],
        mut payload: Bytes,
    ) -> Result<()> {
        let head_len = header.head_len.map_or(payload.len(), |n| n as usize);
        let (head, body) = match header.place {
            HeadPlace::InPayload => {
                if head_len > payload.len() {
                    return Err(Error::new(ErrorKind::Protocol, "the head is longer than its message"));
                }
                (payload.split_to(head_len), payload)
            }
            HeadPlace::InHeader => (Bytes::copy_from_slice(inline), payload),
            HeadPlace::Before => {
                check_head(core, head_len)?;
                receive::admit(core, (head_len + payload.len()) as u64)?;
                // A head by rendezvous may still be on its way when its eager body is here.
                return match self.take_head(core, header.seq, head_len)? {
                    Some(head) => self.on_whole(core, io, header.seq, head, payload),
                    None => {
                        self.headless.push(Headless { seq: header.seq, head_len, body: Held::Here(payload) });
                        Ok(())
                    }
                };
            }
        };
        check_head(core, head.len())?;
        receive::admit(core, (head.len() + body.len()) as u64)?;
        self.on_whole(core, io, header.seq, head, body)
    }

    /// Head and body are here, and accounted for.
    #[inline]
    fn on_whole(&mut self, core: &mut ConnCore, io: &mut Io, seq: u32, head: Bytes, body: Bytes) -> Result<()> {
        if body.is_empty() || !core.config.has_plans() {
            return deliver(core, seq, Frame { head, body: body.into() });
        }
        match receive::place(core, io, &head, body.len() as u64)? {
            Placed::Into(buf, BufKind::Own) => {
                let mut buf = buf;
                buf.as_mut_slice().copy_from_slice(&body);
                deliver(core, seq, Frame { head, body: Body::Buf(buf) })
            }
            // It is in memory already: a pool buffer would only be a copy.
            Placed::Into(_, BufKind::Bytes) | Placed::NoRoom => deliver(core, seq, Frame { head, body: body.into() }),
            Placed::Later => {
                let len = body.len() as u64;
                self.hold(core, seq, head, len, Held::Here(body))
            }
            Placed::Refuse(text) => {
                let len = (head.len() + body.len()) as u64;
                receive::note_refusal(core, io, seq, len, &text);
                skip(core, seq)
            }
        }
    }

    /// A body that waits at the peer.
    pub(super) fn on_announced(
        &mut self,
        core: &mut ConnCore,
        io: &mut Io,
        header: &FrameHeader,
        inline: &[u8],
        rndv: Rendezvous,
    ) -> Result<()> {
        let seq = header.seq;
        core.shared.counters.rendezvous_received.add(1);
        if header.kind == Kind::Head || header.head_len.is_none() {
            let whole = header.kind == Kind::Data;
            if whole {
                check_head(core, rndv.len())?;
                receive::admit(core, rndv.len() as u64)?;
            } else {
                self.admit_head(core, rndv.len())?;
            }
            // Heads are bounded by `max_head` and by the window; they don't come out of the pool's quota.
            let buf = RecvBuf::Bytes(BytesMut::zeroed(rndv.len()));
            return self.start_fetch(io, rndv, buf, UcxOp::FetchHead { connection: core.key, seq, whole });
        }
        let head_len = header.head_len.unwrap_or(0) as usize;
        check_head(core, head_len)?;
        receive::admit(core, head_len as u64 + rndv.len() as u64)?;
        let head = match header.place {
            HeadPlace::InHeader => Bytes::copy_from_slice(inline),
            HeadPlace::Before => match self.take_head(core, seq, head_len)? {
                Some(head) => head,
                None => {
                    self.headless.push(Headless { seq, head_len, body: Held::Rendezvous(rndv) });
                    return Ok(());
                }
            },
            HeadPlace::InPayload => {
                return Err(Error::new(ErrorKind::Protocol, "a rendezvous with the head inside its payload"));
            }
        };
        self.receive_body(core, io, seq, head, rndv)
    }

    fn receive_body(
        &mut self,
        core: &mut ConnCore,
        io: &mut Io,
        seq: u32,
        head: Bytes,
        rndv: Rendezvous,
    ) -> Result<()> {
        let len = rndv.len() as u64;
        if core.config.planner.is_none() && self.fetches >= self.max_fetches {
            self.no_room.push_back(Waiting { seq, head, rndv });
            return Ok(());
        }
        match receive::place(core, io, &head, len)? {
            // Later bodies must not take what an earlier one waits for: they are delivered behind it anyway, and would
            // hold the quota until then.
            Placed::Into(_, BufKind::Bytes) if !self.no_room.is_empty() => {
                self.no_room.push_back(Waiting { seq, head, rndv });
                Ok(())
            }
            Placed::Into(buf, kind) => {
                self.start_fetch(io, rndv, buf, UcxOp::Fetch { connection: core.key, seq, head, kind })
            }
            Placed::Later => self.hold(core, seq, head, len, Held::Rendezvous(rndv)),
            Placed::Refuse(text) => {
                if let Some(worker) = io.worker_of(self.ep) {
                    worker.refuse(rndv);
                }
                receive::note_refusal(core, io, seq, head.len() as u64 + len, &text);
                skip(core, seq)
            }
            Placed::NoRoom => {
                self.no_room.push_back(Waiting { seq, head, rndv });
                receive::retry_later(core, io);
                Ok(())
            }
        }
    }

    pub(super) fn start_fetch(&mut self, io: &mut Io, rndv: Rendezvous, buf: RecvBuf, op: UcxOp) -> Result<()> {
        let Some(engine) = io.engine_of(self.ep) else { return Err(gone()) };
        let token = engine.ops.insert(op) as u64;
        match engine.worker.fetch(rndv, buf, token) {
            Ok(()) => {
                self.fetches += 1;
                Ok(())
            }
            Err((error, _)) => {
                engine.ops.remove(token as usize);
                Err(error)
            }
        }
    }

    /// Delivers the frame without its body, which the application decides about.
    fn hold(&mut self, core: &mut ConnCore, seq: u32, head: Bytes, len: u64, held: Held) -> Result<()> {
        let id = core.session.pending_id();
        self.held.push((id, held));
        core.session.unfinished += 1;
        let pending = PendingBody::new(len, id, core.shared.clone());
        deliver(core, seq, Frame { head, body: Body::Pending(pending) })
    }

    /// Asks the pool again for bodies that found no room.
    pub(super) fn retry_quota(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<()> {
        while self.fetches < self.max_fetches
            && let Some(waiting) = self.no_room.pop_front()
        {
            match receive::pool_buf(io, waiting.rndv.len() as u64) {
                Some(buf) => {
                    let (seq, head) = (waiting.seq, waiting.head);
                    let op = UcxOp::Fetch { connection: core.key, seq, head, kind: BufKind::Bytes };
                    self.start_fetch(io, waiting.rndv, buf, op)?;
                }
                None => {
                    self.no_room.push_front(waiting);
                    receive::retry_later(core, io);
                    break;
                }
            }
        }
        Ok(())
    }

    /// A fetch has ended.
    pub(super) fn on_fetched(
        &mut self,
        core: &mut ConnCore,
        io: &mut Io,
        op: UcxOp,
        buf: RecvBuf,
        result: Result<()>,
    ) -> Result<()> {
        self.fetches -= 1;
        self.retry_quota(core, io)?;
        match op {
            UcxOp::Send { .. } | UcxOp::FetchCm { .. } => Ok(()),
            UcxOp::FetchFor { reply, .. } => {
                core.session.unfinished -= 1;
                let failed = result.clone();
                reply.complete(result.map(|()| buf));
                failed
            }
            UcxOp::Fetch { seq, head, kind, .. } => {
                result?;
                let body = if kind == BufKind::Own { Body::Buf(buf) } else { buf.into() };
                deliver(core, seq, Frame { head, body })
            }
            UcxOp::FetchHead { seq, whole: true, .. } => {
                result?;
                deliver(core, seq, Frame { head: buf.freeze(), body: Body::Empty })
            }
            UcxOp::FetchHead { seq, whole: false, .. } => {
                result?;
                self.on_head(core, io, seq, buf.freeze())
            }
        }
    }

    /// A head that was sent before its body, and came whole.
    pub(super) fn on_head_message(&mut self, core: &mut ConnCore, io: &mut Io, seq: u32, head: Bytes) -> Result<()> {
        self.admit_head(core, head.len())?;
        self.on_head(core, io, seq, head)
    }

    /// Checks a head that comes before its body, before memory is taken for it. Its credit is counted with the body's;
    /// until then a peer that keeps to its window can't have more ahead than this.
    fn admit_head(&mut self, core: &ConnCore, len: usize) -> Result<()> {
        check_head(core, len)?;
        self.early_heads += len as u64;
        if self.early_heads > core.config.recv_window_bytes.saturating_add(core.config.max_head.into()) {
            return Err(Error::new(ErrorKind::Protocol, "more bytes of heads without bodies than the window has"));
        }
        Ok(())
    }

    /// The head that came before its body, if it is here.
    fn take_head(&mut self, core: &mut ConnCore, seq: u32, len: usize) -> Result<Option<Bytes>> {
        let Some(index) = core.session.heads.iter().position(|(number, _)| *number == seq) else { return Ok(None) };
        let head = core.session.heads.remove(index).map(|(_, head)| head).unwrap_or_default();
        self.match_head(&head, len)?;
        Ok(Some(head))
    }

    fn match_head(&mut self, head: &Bytes, len: usize) -> Result<()> {
        self.early_heads -= head.len() as u64;
        if head.len() == len {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Protocol, format!("a head of {} bytes was announced with {len}", head.len())))
    }

    fn on_head(&mut self, core: &mut ConnCore, io: &mut Io, seq: u32, head: Bytes) -> Result<()> {
        if let Some(index) = self.headless.iter().position(|w| w.seq == seq) {
            let Headless { head_len, body, .. } = self.headless.swap_remove(index);
            self.match_head(&head, head_len)?;
            return match body {
                Held::Rendezvous(rndv) => self.receive_body(core, io, seq, head, rndv),
                Held::Here(body) => self.on_whole(core, io, seq, head, body),
            };
        }
        if core.session.heads.len() >= core.config.recv_window_frames as usize {
            return Err(Error::new(ErrorKind::Protocol, "more heads than the window has frames"));
        }
        core.session.heads.push_back((seq, head));
        Ok(())
    }
}

/// Delivers in order of the numbers.
#[inline]
fn deliver(core: &mut ConnCore, seq: u32, frame: Frame) -> Result<()> {
    if core.session.order.accept_in_order(seq) {
        core.hand_over(frame);
    } else {
        core.session.order.insert(seq, frame)?;
    }
    drain(core);
    Ok(())
}

fn skip(core: &mut ConnCore, seq: u32) -> Result<()> {
    if !core.session.order.accept_in_order(seq) {
        core.session.order.skip(seq)?;
    }
    drain(core);
    Ok(())
}

#[inline]
fn drain(core: &mut ConnCore) {
    while let Some(frame) = core.session.order.pop() {
        core.hand_over(frame);
    }
}

fn check_head(core: &ConnCore, len: usize) -> Result<()> {
    if len <= core.config.max_head as usize {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Limit,
        format!("the peer sent a head of {len} bytes, max_head is {}", core.config.max_head),
    ))
}
