//! Frames: what an application sends and receives.

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::memory::{AlignedBuf, PoolBuf};

/// One message: a small head and a body that may be large.
///
/// Head and body arrive as they were sent, in send order on a connection. Either may be empty. The head is meant for
/// what the receiver must see before it decides where the body goes ([`crate::RecvPlan`]).
#[derive(Default)]
pub struct Frame {
    /// The small part: RPC header, meta, short message. Kept contiguous.
    pub head: Bytes,
    /// The large part: attachment, block, tensor.
    pub body: Body,
}

impl Frame {
    /// A frame of `head` and `body`.
    #[inline]
    pub fn new(head: impl Into<Bytes>, body: impl Into<Body>) -> Self {
        Self { head: head.into(), body: body.into() }
    }

    /// Bytes of head and body together.
    #[inline]
    pub fn len(&self) -> u64 {
        self.head.len() as u64 + self.body.len()
    }

    /// Whether there is neither head nor body.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A frame may have a gigabyte: its lengths and the beginning of its head are shown.
impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 64;
        let head = &self.head[..self.head.len().min(SHOWN)];
        write!(f, "Frame {{ head: {} bytes \"{}\", body: {:?} }}", self.head.len(), head.escape_ascii(), self.body)
    }
}

impl From<Bytes> for Frame {
    #[inline]
    fn from(head: Bytes) -> Self {
        Self { head, body: Body::Empty }
    }
}

impl From<Vec<u8>> for Frame {
    #[inline]
    fn from(head: Vec<u8>) -> Self {
        Bytes::from(head).into()
    }
}

impl From<&'static [u8]> for Frame {
    #[inline]
    fn from(head: &'static [u8]) -> Self {
        Bytes::from_static(head).into()
    }
}

/// Memory that a body can be received into, or sent from.
#[derive(Debug)]
#[non_exhaustive]
pub enum RecvBuf {
    /// A buffer of a [`crate::Pool`], registered where a device needs that.
    Pool(PoolBuf),
    /// Aligned memory of the application, for `O_DIRECT` and DMA.
    Aligned(AlignedBuf),
    /// Ordinary memory of the application.
    Bytes(BytesMut),
}

impl RecvBuf {
    /// Bytes in it: a body is received only into a buffer that is at least as long.
    #[inline]
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether it has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Pool(buf) => buf,
            Self::Aligned(buf) => buf,
            Self::Bytes(buf) => buf,
        }
    }

    /// Its bytes, to write. Their address does not change while the value is moved about.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Self::Pool(buf) => buf,
            Self::Aligned(buf) => buf,
            Self::Bytes(buf) => buf,
        }
    }

    /// Shortens it to `len` bytes; longer lengths change nothing.
    pub fn truncate(&mut self, len: usize) {
        match self {
            Self::Pool(buf) => buf.truncate(len),
            Self::Aligned(buf) => buf.truncate(len),
            Self::Bytes(buf) => buf.truncate(len),
        }
    }

    /// Makes it immutable and shared, without a copy.
    pub fn freeze(self) -> Bytes {
        match self {
            Self::Pool(buf) => buf.freeze(),
            Self::Aligned(buf) => Bytes::from_owner(buf),
            Self::Bytes(buf) => buf.freeze(),
        }
    }
}

/// The large part of a [`Frame`].
#[derive(Default)]
#[non_exhaustive]
pub enum Body {
    /// No body.
    #[default]
    Empty,
    /// One contiguous piece.
    Bytes(Bytes),
    /// Several pieces, sent as one body. They arrive as one piece.
    Segments(Vec<Bytes>),
    /// Received into memory that the [`crate::RecvPlan`] named: it comes back to its owner.
    Buf(RecvBuf),
    /// Announced by the peer and not fetched yet ([`crate::RecvPlan::Later`]).
    Pending(crate::plan::PendingBody),
}

impl Body {
    /// Bytes in it; of a pending body, the bytes announced.
    #[inline]
    pub fn len(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Segments(segments) => segments.iter().map(|s| s.len() as u64).sum(),
            Self::Buf(buf) => buf.len() as u64,
            Self::Pending(pending) => pending.len(),
        }
    }

    /// Whether it has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The body as one contiguous `Bytes`: without a copy but for [`Body::Segments`] of more than one piece.
    /// `None` for a pending body, which must be fetched first.
    #[inline]
    pub fn into_bytes(self) -> Option<Bytes> {
        match self {
            Self::Empty => Some(Bytes::new()),
            Self::Bytes(bytes) => Some(bytes),
            Self::Segments(mut segments) if segments.len() == 1 => segments.pop(),
            Self::Segments(segments) => {
                let total = segments.iter().map(Bytes::len).sum();
                let mut joined = BytesMut::with_capacity(total);
                segments.iter().for_each(|s| joined.extend_from_slice(s));
                Some(joined.freeze())
            }
            Self::Buf(buf) => Some(buf.freeze()),
            Self::Pending(_) => None,
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Empty => "Empty",
            Self::Bytes(_) => "Bytes",
            Self::Segments(_) => "Segments",
            Self::Buf(_) => "Buf",
            Self::Pending(_) => "Pending",
        };
        write!(f, "{kind}({} bytes)", self.len())
    }
}

impl From<Bytes> for Body {
    #[inline]
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Bytes(bytes) }
    }
}

impl From<Vec<u8>> for Body {
    #[inline]
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<Vec<Bytes>> for Body {
    #[inline]
    fn from(segments: Vec<Bytes>) -> Self {
        Self::Segments(segments)
    }
}

impl From<RecvBuf> for Body {
    #[inline]
    fn from(buf: RecvBuf) -> Self {
        Self::Bytes(buf.freeze())
    }
}
