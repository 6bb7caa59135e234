//! The receiving side that all backends share: limits, credit, plans, control frames.

use std::{borrow::Cow, panic::AssertUnwindSafe, time::Duration};

use bytes::Bytes;

use super::{ConnCore, Io, io::Timer};
use crate::{
    Error, ErrorKind, RecvBuf, Result,
    backend::Backend,
    event::poller::Key,
    memory::Purpose,
    plan::{Announcement, RecvPlan},
    proto::{
        control,
        header::{FrameHeader, Kind},
    },
    tcp::BufKind,
};

/// Where a body goes.
pub(super) enum Placed {
    Into(RecvBuf, BufKind),
    Later,
    Refuse(Cow<'static, str>),
    /// The pool's quota is used up: wait.
    NoRoom,
}

/// How soon a body that found the quota used up asks again.
const QUOTA_RETRY: Duration = Duration::from_millis(2);

/// A frame for a connection that is not the one it came on is the peer's mistake.
pub(super) fn check_key(core: &ConnCore, header: &FrameHeader) -> Result<()> {
    let key = Key { index: header.conn, generation: header.generation };
    if key == core.key {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Protocol, format!("frame for connection {key:?} on the socket of {:?}", core.key)))
}

/// Takes a data frame into account, before any memory is taken for it.
#[inline]
pub(super) fn admit(core: &mut ConnCore, len: u64) -> Result<()> {
    if len > core.config.max_message {
        return Err(Error::new(
            ErrorKind::Limit,
            format!("the peer announced a frame of {len} bytes, max_message is {}", core.config.max_message),
        ));
    }
    if let Some(recv) = &mut core.session.recv {
        recv.on_arrival(len)?;
    }
    Ok(())
}

/// A number that does not follow the last one is a mistake where frames can't overtake each other.
pub(super) fn in_order(core: &mut ConnCore, seq: u32) -> Result<()> {
    if core.session.order.accept_in_order(seq) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Protocol, format!("frame number {seq} is out of order")))
}

/// Asks the plan, and finds the memory.
pub(super) fn place(core: &ConnCore, io: &Io, head: &Bytes, body_len: u64) -> Result<Placed> {
    let plan = match &core.config.planner {
        None => RecvPlan::Pool,
        Some(planner) => {
            let announcement = Announcement { head, body_len };
            let decide = AssertUnwindSafe(|| planner.plan(&announcement));
            std::panic::catch_unwind(decide)
                .map_err(|_| Error::new(ErrorKind::Invalid, "the application's planner panicked"))?
        }
    };
    Ok(match plan {
        RecvPlan::Into(buf) if (buf.len() as u64) < body_len => {
            let text = format!("the plan's buffer has {} bytes, the body {body_len}", buf.len());
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        RecvPlan::Into(mut buf) => {
            buf.truncate(body_len as usize);
            Placed::Into(buf, BufKind::Own)
        }
        RecvPlan::Later => Placed::Later,
        RecvPlan::Refuse(text) => Placed::Refuse(text),
        RecvPlan::Pool => match pool_buf(io, body_len) {
            Some(buf) => Placed::Into(buf, BufKind::Bytes),
            None if body_len > io.shared.pool.quota(Purpose::Receive) => return Err(above_quota(io, body_len)),
            None => Placed::NoRoom,
        },
    })
}

/// No waiting helps.
#[cold]
fn above_quota(io: &Io, body_len: u64) -> Error {
    let quota = io.shared.pool.quota(Purpose::Receive);
    Error::new(
        ErrorKind::Limit,
        format!("a body of {body_len} bytes is larger than the pool's receive quota of {quota}"),
    )
}

/// A pool buffer for a body, if the quota allows.
pub(super) fn pool_buf(io: &Io, len: u64) -> Option<RecvBuf> {
    io.shared.pool.get(usize::try_from(len).ok()?, Purpose::Receive).ok().map(RecvBuf::Pool)
}

/// Serves the connection again soon.
pub(super) fn retry_later(core: &mut ConnCore, io: &mut Io) {
    let at = io.after(QUOTA_RETRY);
    io.sooner(&mut core.timer, at, Timer::Connection(core.key));
}

/// Counts a refused frame of `len` bytes and tells the peer when the turn is over.
pub(super) fn note_refusal(core: &mut ConnCore, io: &mut Io, seq: u32, len: u64, text: &str) {
    tracing::debug!(connection = ?core.key, seq, text, "body refused");
    core.shared.counters.refused.add(1);
    io.shared.counters.refused_bodies.add(1);
    core.consumed_here(len);
    if core.session.recv.is_none() {
        // A foreign protocol: nothing of ours may go into its stream.
        return;
    }
    let header = core.control_header(Kind::Refused, 0);
    core.controls.push((header, control::encode_refused(seq, text).into()));
    core.make_ready(io);
}

/// Acts on a control frame.
pub(super) fn control(
    core: &mut ConnCore,
    io: &mut Io,
    backend: &mut dyn Backend,
    header: &FrameHeader,
    payload: &[u8],
) -> Result<()> {
    match header.kind {
        Kind::Ping => {
            let id = control::decode_ping(payload)?;
            let answer = core.control_header(Kind::Pong, 0);
            backend.control(core, io, answer, &control::encode_ping(id))
        }
        Kind::Pong => {
            let id = control::decode_ping(payload)?;
            core.on_pong(id, io.now);
            Ok(())
        }
        Kind::Credit => Ok(()),
        Kind::Refused => {
            let (seq, text) = control::decode_refused(payload)?;
            tracing::debug!(connection = ?core.key, seq, text, "the peer refused a body");
            core.shared.counters.refused_by_peer.add(1);
            Ok(())
        }
        Kind::Goodbye => {
            let received = core.session.received();
            core.session.life.on_goodbye(header.seq, received);
            core.make_ready(io);
            Ok(())
        }
        Kind::GoodbyeAck => {
            core.session.life.on_goodbye_ack();
            core.make_ready(io);
            Ok(())
        }
        kind => Err(Error::new(ErrorKind::Protocol, format!("unexpected {kind:?} frame on an open connection"))),
    }
}
