//! Where a frame's parts are: the 12-byte header, and what follows.

use super::{BadFrame, Limits, RpcMeta, StreamFrameMeta, WireError};

/// Bytes of a frame before its meta: magic, body size, meta size.
pub const FRAME_HEADER_LEN: usize = 12;

/// The first bytes of a call's frame.
pub const PRPC_MAGIC: [u8; 4] = *b"PRPC";

/// The first bytes of a stream's frame.
pub const STRM_MAGIC: [u8; 4] = *b"STRM";

/// The lengths of a frame's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the meta.
    pub meta_len: u32,
    /// Bytes of the message, after the meta. 0 in a `STRM` frame.
    pub message_len: u32,
    /// Bytes of the body: a `PRPC` frame's attachment, a `STRM` frame's data.
    pub body_len: u32,
}

impl Layout {
    /// Where the message starts, in bytes from the frame's start.
    pub fn message_at(&self) -> usize {
        FRAME_HEADER_LEN + self.meta_len as usize
    }

    /// Bytes of header, meta and message: where the body starts.
    pub fn head_len(&self) -> usize {
        self.message_at() + self.message_len as usize
    }

    /// Bytes of the whole frame.
    pub fn frame_len(&self) -> u64 {
        self.head_len() as u64 + u64::from(self.body_len)
    }
}

/// What the first bytes of a frame tell.
#[derive(Debug, Clone, PartialEq)]
pub enum Step<'a> {
    /// To tell more, at least this many bytes from the frame's start are needed, more than were given.
    NeedMore(usize),
    /// A call's frame: request or response.
    Prpc(PrpcHead<'a>),
    /// A stream's frame.
    Strm(StrmHead),
    /// A call's frame that contradicts itself. It is skipped; a request is answered with `EREQUEST`, and the call that a
    /// response belongs to ends with `ERESPONSE`.
    Reject {
        /// The frame's meta; its `attachment_size` is wrong.
        meta: RpcMeta<'a>,
        /// Bytes of the frame, to skip it.
        frame_len: u64,
        /// What is wrong.
        error: BadFrame,
    },
}

/// The head of a `PRPC` frame.
#[derive(Debug, Clone, PartialEq)]
pub struct PrpcHead<'a> {
    /// Where the parts are.
    pub layout: Layout,
    /// The frame's meta.
    pub meta: RpcMeta<'a>,
}

/// The head of a `STRM` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StrmHead {
    /// Where the parts are.
    pub layout: Layout,
    /// The frame's meta.
    pub meta: StreamFrameMeta,
}

/// Looks at the frame that starts at `bytes[0]`. `bytes` may end anywhere, before or after the frame's end.
///
/// Frame sizes are known after the header, the parts' lengths as soon as the meta is there; neither message nor body need
/// be there yet. Nothing is allocated, but for a stream's extra ids within their limit.
///
/// # Errors
///
/// If the bytes are no frame, or one beyond `limits`: the end of the frame is then unknown or too far away, and the
/// connection has to be closed.
#[inline]
pub fn parse<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Step<'a>, WireError> {
    let mut meta = RpcMeta::default();
    Ok(match parse_here(bytes, limits, &mut meta)? {
        Found::NeedMore(need) => Step::NeedMore(need),
        Found::Prpc(layout) => Step::Prpc(PrpcHead { layout, meta }),
        Found::Strm(strm) => Step::Strm(strm),
        Found::Reject { frame_len, error } => Step::Reject { meta, frame_len, error },
    })
}

/// A [`Step`] without the call's meta.
pub(crate) enum Found {
    NeedMore(usize),
    Prpc(Layout),
    Strm(StrmHead),
    Reject { frame_len: u64, error: BadFrame },
}

/// As [`parse()`], with the call's meta in `meta`, which is the default one before.
///
/// # Errors
///
/// As [`parse()`].
#[inline]
pub(crate) fn parse_here<'a>(bytes: &'a [u8], limits: &Limits, meta: &mut RpcMeta<'a>) -> Result<Found, WireError> {
    let known = bytes.len().min(4);
    let is_prpc = bytes[..known] == PRPC_MAGIC[..known];
    if !is_prpc && bytes[..known] != STRM_MAGIC[..known] {
        let mut found = [0; 4];
        found[..known].copy_from_slice(&bytes[..known]);
        return Err(WireError::Magic { found });
    }
    let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>() else {
        return Ok(Found::NeedMore(FRAME_HEADER_LEN));
    };
    let [_, _, _, _, b0, b1, b2, b3, m0, m1, m2, m3] = *header;
    let body_size = u32::from_be_bytes([b0, b1, b2, b3]);
    let meta_size = u32::from_be_bytes([m0, m1, m2, m3]);
    if body_size > limits.max_body_size {
        return Err(WireError::BodyTooLarge { size: body_size, limit: limits.max_body_size });
    }
    if meta_size > body_size {
        return Err(WireError::MetaExceedsBody { meta: meta_size, body: body_size });
    }
    if meta_size > limits.max_meta_size {
        return Err(WireError::MetaTooLarge { size: meta_size, limit: limits.max_meta_size });
    }
    let Some(meta_bytes) = rest.get(..meta_size as usize) else {
        return Ok(Found::NeedMore(FRAME_HEADER_LEN + meta_size as usize));
    };
    let payload = body_size - meta_size;
    if is_prpc {
        meta.decode_here(meta_bytes, limits)?;
        return Ok(lay_out(meta.attachment_size, meta_size, payload));
    }
    let layout = Layout { meta_len: meta_size, message_len: 0, body_len: payload };
    Ok(Found::Strm(StrmHead { layout, meta: StreamFrameMeta::decode(meta_bytes)? }))
}

#[inline]
fn lay_out(attachment_size: i64, meta_len: u32, payload: u32) -> Found {
    let error = match u32::try_from(attachment_size) {
        Ok(body_len) if body_len <= payload => {
            return Found::Prpc(Layout { meta_len, message_len: payload - body_len, body_len });
        }
        _ if attachment_size < 0 => BadFrame::NegativeAttachment(attachment_size),
        _ => BadFrame::AttachmentExceedsPayload { attachment: attachment_size, payload },
    };
    let frame_len = FRAME_HEADER_LEN as u64 + u64::from(meta_len) + u64::from(payload);
    Found::Reject { frame_len, error }
}
