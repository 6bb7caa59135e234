//! The bytes on the wire: baidu_std (`PRPC`) frames, brpc's streaming (`STRM`) frames, and a stream's state. No I/O.
//!
//! A frame is a 12-byte header (magic, body size, meta size, big-endian), a protobuf meta, a message, an attachment:
//!
//! ```text
//! 0        4            8            12                                        12+body_size
//! | "PRPC" | body_size  | meta_size  | RpcMeta (meta_size) | message | attachment |
//! ```
//!
//! Header, meta and message are the *head*: small, contiguous, read first. The attachment of a `PRPC` frame and the
//! data of a `STRM` frame are the *body*: they may be large and travel apart from the head, without a copy.
//!
//! - [`parse()`] looks at the first bytes of a frame and says where its parts are, as soon as its meta is there.
//! - [`RpcMeta`] and [`StreamFrameMeta`] are the metas. [`RpcMeta`] borrows: decoding it allocates nothing for a call
//!   without extra stream ids. The metas are decoded by hand rather than by prost, because a peer's duplicate fields, sizes
//!   out of range and long field lists are to be errors *before* memory is taken, and because names and metadata need
//!   no copies. The tests hold this decoder against prost's.
//! - [`MessageBuf`] is a message with room in front, where the meta and the header are written last: the head becomes
//!   contiguous without moving the message.
//! - [`stream`] is what happens on a stream: windows, feedback, segmentation, closing.
//!
//! The schemas are in `rpc/proto/`.

mod error;
mod frame;
mod head;
mod meta;
mod pb;
mod segments;
pub mod stream;
mod strm;

pub use error::{BadFrame, EncodeError, MetaError, WireError};
pub use frame::{FRAME_HEADER_LEN, Layout, PRPC_MAGIC, PrpcHead, STRM_MAGIC, Step, StrmHead, parse};
pub(crate) use frame::{Found, parse_here};
pub use head::{Head, MessageBuf};
pub use meta::{RequestMeta, ResponseMeta, RpcMeta, Signal, UserFields};
pub use segments::Segments;
pub use strm::{StreamFrameKind, StreamFrameMeta, StreamSettings};

/// What a peer may ask of the decoder. Each limit is checked before anything is allocated for what it limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of a frame after its 12-byte header. Default 64 MiB, as brpc's `max_body_size`.
    pub max_body_size: u32,
    /// Bytes of a frame's meta: names, metadata, authentication data, error text. Default 64 KiB.
    pub max_meta_size: u32,
    /// Entries of custom metadata in a frame. Default 128.
    pub max_user_fields: usize,
    /// Extra stream ids in a call that opens streams. Default 64.
    pub max_extra_streams: usize,
}

impl Limits {
    /// The default limits.
    pub const DEFAULT: Self =
        Self { max_body_size: 64 << 20, max_meta_size: 64 << 10, max_user_fields: 128, max_extra_streams: 64 };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
