//! Between the transport's frames and this protocol's: where the parts of a frame are, and what its errors mean.

use bytes::{Bytes, BytesMut};
use ucrpc_transport::{Body, ConnectionConfig, Error, ErrorKind, Frame, Transport};

use crate::framer::{MESSAGE_AS_BODY, PrpcFramer};
use crate::wire::{
    BadFrame, FRAME_HEADER_LEN, Found, Head, Limits, RpcMeta, Segments, StreamFrameMeta, WireError, parse_here,
};
use crate::{Code, Status};

/// A received frame; a call's meta is beside it.
pub(crate) enum Incoming {
    Prpc {
        message: Bytes,
        attachment: Bytes,
    },
    Strm {
        meta: StreamFrameMeta,
        data: Bytes,
    },
    /// A call's frame that contradicts itself: answered, not fatal.
    Reject(BadFrame),
}

/// Finds the parts of a frame. The peer's transport may have cut it anywhere after the meta, which goes into `meta`: the default
/// one before.
#[inline]
pub(crate) fn take_apart<'a>(
    head: &'a Bytes,
    body: Bytes,
    limits: &Limits,
    meta: &mut RpcMeta<'a>,
) -> Result<Incoming, WireError> {
    let actual = (head.len() + body.len()) as u64;
    let check = |claimed: u64| if claimed == actual { Ok(()) } else { Err(WireError::Length { claimed, actual }) };
    match parse_here(head, limits, meta)? {
        Found::NeedMore(need) => Err(WireError::Length { claimed: need as u64, actual }),
        Found::Reject { frame_len, error } => {
            check(frame_len)?;
            Ok(Incoming::Reject(error))
        }
        Found::Strm(strm) => {
            check(strm.layout.frame_len())?;
            let data = range(head, &body, strm.layout.head_len(), actual as usize);
            Ok(Incoming::Strm { meta: strm.meta, data })
        }
        Found::Prpc(layout) => {
            check(layout.frame_len())?;
            let (message_at, body_at) = (layout.message_at(), layout.head_len());
            let message = range(head, &body, message_at, body_at);
            let attachment = range(head, &body, body_at, actual as usize);
            Ok(Incoming::Prpc { message, attachment })
        }
    }
}

/// The bytes from `from` to `to` of head and body together: copied only if they are in both.
#[inline]
fn range(head: &Bytes, body: &Bytes, from: usize, to: usize) -> Bytes {
    let cut = head.len();
    if from == to {
        Bytes::new()
    } else if to <= cut {
        head.slice(from..to)
    } else if from >= cut {
        body.slice(from - cut..to - cut)
    } else {
        let mut joined = BytesMut::with_capacity(to - from);
        joined.extend_from_slice(&head[from..]);
        joined.extend_from_slice(&body[..to - cut]);
        joined.freeze()
    }
}

/// The transport's frame of a head and what follows it. A large message without attachment goes as the body: the
/// receiver finds it a place of its own, or fetches it by rendezvous.
#[inline]
pub(crate) fn frame(head: Head, attachment: Segments) -> Frame {
    let Head { mut bytes, message_at } = head;
    if attachment.is_empty() {
        if bytes.len() - message_at >= MESSAGE_AS_BODY {
            let message = bytes.split_off(message_at);
            return Frame::new(bytes, message);
        }
        return Frame::from(bytes);
    }
    Frame::new(bytes, body(attachment))
}

pub(crate) fn body(segments: Segments) -> Body {
    match segments.pieces().len() {
        0 => Body::Empty,
        1 => Body::from(segments.into_bytes()),
        _ => Body::Segments(segments.into_vec()),
    }
}

/// The transport's limits and framing for this protocol. The framer is used where the address is `tcp://` or `unix://`, and for
/// accepted connections that speak so.
pub(crate) fn connection_config(base: &ConnectionConfig, limits: &Limits) -> ConnectionConfig {
    let frame = FRAME_HEADER_LEN as u64 + u64::from(limits.max_body_size);
    ConnectionConfig {
        max_message: frame,
        max_head: u32::try_from(frame).unwrap_or(u32::MAX),
        framer: Some(std::sync::Arc::new(PrpcFramer::new(*limits))),
        ..base.clone()
    }
}

/// The transport's name as in an address.
pub(crate) fn transport_name(transport: Option<&Transport>) -> &'static str {
    match transport {
        Some(Transport::Ucx(_)) => "ucx",
        Some(Transport::Tcp) => "tcp",
        Some(Transport::Unix) => "unix",
        Some(Transport::Mem) => "mem",
        Some(_) | None => "",
    }
}

/// What a transport's error means for a call.
pub(crate) fn status_of(error: &Error) -> Status {
    let code = match error.kind() {
        ErrorKind::Refused => Code::ECONNREFUSED,
        ErrorKind::Unreachable => Code::EHOSTUNREACH,
        ErrorKind::Reset => Code::ECONNRESET,
        ErrorKind::TimedOut => Code::ETIMEDOUT,
        ErrorKind::PeerClosed => Code::EEOF,
        ErrorKind::Closed | ErrorKind::Stopped => Code::ECLOSE,
        ErrorKind::Limit => Code::EMSGSIZE,
        ErrorKind::Invalid => Code::EINVAL,
        ErrorKind::Version | ErrorKind::Protocol => Code::EPROTO,
        ErrorKind::NoUcx => Code::ERDMA,
        _ => error.os_error().map_or(Code::EFAILEDSOCKET, Code::from_wire),
    };
    Status::new(code, error.to_string())
}
