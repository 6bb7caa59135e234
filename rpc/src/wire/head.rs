//! Writing a frame's head: header, meta and message in one contiguous buffer.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use ucrpc_transport::small;

use super::pb::{Back, Sink as _};
use super::{EncodeError, FRAME_HEADER_LEN, Limits, PRPC_MAGIC, RpcMeta};

/// Room for header and meta of a response, and of a request without its names: ids, sizes, a checksum, no metadata.
const HEADROOM: usize = 88;

/// A serialized message with room in front of it for the header and the meta.
///
/// Meta and header come last because they depend on the message (its length, its checksum). If they fit the room, the
/// message is not moved.
#[derive(Debug)]
pub struct MessageBuf {
    buf: BytesMut,
    start: usize,
}

/// An encoded head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Header, meta and message.
    pub bytes: Bytes,
    /// Where the message starts in it.
    pub message_at: usize,
}

impl Head {
    /// The message alone, sharing the head's memory: for sending it again under another meta.
    pub fn message(&self) -> Bytes {
        self.bytes.slice(self.message_at..)
    }
}

impl MessageBuf {
    /// An empty message with room for `capacity` bytes, and for `names` bytes of names and metadata in the meta.
    pub fn with_capacity(capacity: usize, names: usize) -> Self {
        let start = HEADROOM + names;
        let mut buf = small::buffer(start + capacity);
        buf.put_bytes(0, start);
        Self { buf, start }
    }

    /// Serializes `message`. `names` as in [`Self::with_capacity`].
    pub fn encode<M: Message>(message: &M, names: usize) -> Self {
        let mut out = Self::with_capacity(message.encoded_len(), names);
        message.encode_raw(&mut out.buf);
        out
    }

    /// Copies a message that is serialized already.
    pub fn copy_from_slice(message: &[u8], names: usize) -> Self {
        let mut out = Self::with_capacity(message.len(), names);
        out.buf.put_slice(message);
        out
    }

    /// The message.
    pub fn as_slice(&self) -> &[u8] {
        &self.buf[self.start..]
    }

    /// Bytes of the message.
    pub fn len(&self) -> usize {
        self.buf.len() - self.start
    }

    /// Whether the message has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where to append to the message.
    pub fn out(&mut self) -> &mut impl BufMut {
        &mut self.buf
    }

    /// The message without its room, not copied.
    pub fn freeze(mut self) -> Bytes {
        self.buf.advance(self.start);
        self.buf.freeze()
    }

    /// Writes header and meta before the message. `meta.attachment_size` is not looked at: `attachment_len` is what
    /// goes into the meta and the header.
    ///
    /// # Errors
    ///
    /// If meta or frame would be longer than `limits` allow; the message is lost then.
    pub fn into_head(self, meta: &RpcMeta<'_>, attachment_len: usize, limits: &Limits) -> Result<Head, EncodeError> {
        // `attachment_size` is an int32 on the wire.
        let limit = u64::from(limits.max_body_size);
        let attachment_size = i32::try_from(attachment_len)
            .map_err(|_| EncodeError::BodyTooLarge { size: attachment_len as u64, limit })?;
        let attachment_size = i64::from(attachment_size);
        let mut this = self;
        let meta_len = this.write_meta(meta, attachment_size);
        if meta_len > limits.max_meta_size as usize {
            return Err(EncodeError::MetaTooLarge { size: meta_len as u64, limit: limits.max_meta_size.into() });
        }
        let size = meta_len as u64 + this.len() as u64 + attachment_len as u64;
        if size > limit {
            return Err(EncodeError::BodyTooLarge { size, limit });
        }
        let message_at = FRAME_HEADER_LEN + meta_len;
        if this.start < message_at {
            this = Self::copy_from_slice(this.as_slice(), message_at);
            this.write_meta(meta, attachment_size);
        }
        let mut head = this.buf;
        head.advance(this.start - message_at);
        let mut header = &mut head[..FRAME_HEADER_LEN];
        header.put_slice(&PRPC_MAGIC);
        header.put_u32(size as u32);
        header.put_u32(meta_len as u32);
        Ok(Head { bytes: head.freeze(), message_at })
    }

    /// Writes the meta right before the message, as far as there is room, and says how long it is.
    fn write_meta(&mut self, meta: &RpcMeta<'_>, attachment_size: i64) -> usize {
        let mut room = Back::new(&mut self.buf[..self.start]);
        meta.write_with(&mut room, attachment_size);
        room.len()
    }
}
