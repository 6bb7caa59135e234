//! The metas of brpc's streaming protocol.

use bytes::{BufMut, Bytes, BytesMut};

use super::pb::{Back, Count, LEN, Reader, Seen, Sink, signed};
use super::{EncodeError, FRAME_HEADER_LEN, Limits, MetaError, STRM_MAGIC};

/// One side's half of a stream, sent in the request that opens it and in the response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamSettings {
    /// The sender's id of the stream: where frames to it are addressed to.
    pub stream_id: i64,
    /// Whether the sender limits what it writes by a window, and so must be told what was consumed.
    pub need_feedback: bool,
    /// Whether the sender reads: the other side may write.
    pub writable: bool,
    /// Further streams opened by the same call.
    pub extra_stream_ids: Vec<i64>,
}

impl StreamSettings {
    pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, MetaError> {
        let mut settings = Self::default();
        let mut seen = Seen::default();
        let mut reader = Reader::new(bytes);
        let limit = limits.max_extra_streams;
        while let Some(field) = reader.field()? {
            if field.number <= 3 {
                seen.once(field)?;
            }
            match field.number {
                1 => settings.stream_id = reader.number(field)? as i64,
                2 => settings.need_feedback = reader.number(field)? != 0,
                3 => settings.writable = reader.number(field)? != 0,
                4 if field.wire_type == LEN => {
                    let mut packed = Reader::new(reader.bytes()?);
                    while !packed.is_empty() {
                        settings.add_stream(packed.varint()? as i64, limit)?;
                    }
                }
                4 => settings.add_stream(reader.number(field)? as i64, limit)?,
                _ => reader.skip(field)?,
            }
        }
        seen.require(1, "stream_id")?;
        Ok(settings)
    }

    fn add_stream(&mut self, id: i64, limit: usize) -> Result<(), MetaError> {
        if self.extra_stream_ids.len() >= limit {
            return Err(MetaError::TooManyStreams { limit });
        }
        self.extra_stream_ids.push(id);
        Ok(())
    }

    pub(super) fn write(&self, sink: &mut impl Sink) {
        for &id in self.extra_stream_ids.iter().rev() {
            sink.number(4, signed(id));
        }
        // brpc writes both flags always; so do we, to look the same in a trace.
        sink.number(3, self.writable.into());
        sink.number(2, self.need_feedback.into());
        sink.number(1, signed(self.stream_id));
    }
}

/// What a `STRM` frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFrameKind {
    /// The addressed stream does not exist or is broken.
    Rst,
    /// The sender is done with the stream in both directions.
    Close,
    /// A message, or a part of one.
    Data,
    /// How much the sender consumed so far.
    Feedback,
    /// No kind, or one that is not known here: the frame is ignored.
    Other(i32),
}

impl StreamFrameKind {
    fn from_wire(number: i32) -> Self {
        match number {
            1 => Self::Rst,
            2 => Self::Close,
            3 => Self::Data,
            4 => Self::Feedback,
            other => Self::Other(other),
        }
    }

    fn to_wire(self) -> i32 {
        match self {
            Self::Rst => 1,
            Self::Close => 2,
            Self::Data => 3,
            Self::Feedback => 4,
            Self::Other(number) => number,
        }
    }
}

/// The meta of a `STRM` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamFrameMeta {
    /// The receiver's id of the stream.
    pub stream_id: i64,
    /// The sender's id of the stream.
    pub source_stream_id: Option<i64>,
    /// What the frame is.
    pub kind: StreamFrameKind,
    /// In a data frame: whether the message goes on in the next data frame.
    pub has_continuation: Option<bool>,
    /// In a feedback frame: bytes of messages consumed since the stream was opened.
    pub consumed_size: Option<i64>,
}

impl StreamFrameMeta {
    /// A frame of `kind` to the peer's stream `stream_id`.
    pub fn new(kind: StreamFrameKind, stream_id: i64, source_stream_id: Option<i64>) -> Self {
        Self { stream_id, source_stream_id, kind, has_continuation: None, consumed_size: None }
    }

    /// The answer to a frame whose stream does not exist here: a reset, if the frame's sender can be told.
    ///
    /// Feedback gets none. It may come after the stream was closed, when data of ours is still on its way, and a reset
    /// would destroy that. A reset names no source, so that resets are never answered with resets.
    pub fn unknown_stream_reply(&self) -> Option<Self> {
        match (self.kind, self.source_stream_id) {
            (StreamFrameKind::Feedback, _) | (_, None) => None,
            (_, Some(source)) => Some(Self::new(StreamFrameKind::Rst, source, None)),
        }
    }

    /// Decodes a meta.
    ///
    /// # Errors
    ///
    /// On anything that is no `StreamFrameMeta`. Unknown fields are left out.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        let mut meta = Self::new(StreamFrameKind::Other(0), 0, None);
        let mut seen = Seen::default();
        let mut reader = Reader::new(bytes);
        while let Some(field) = reader.field()? {
            if field.number <= 5 {
                seen.once(field)?;
            }
            match field.number {
                1 => meta.stream_id = reader.number(field)? as i64,
                2 => meta.source_stream_id = Some(reader.number(field)? as i64),
                3 => meta.kind = StreamFrameKind::from_wire(reader.number(field)? as i32),
                4 => meta.has_continuation = Some(reader.number(field)? != 0),
                5 => meta.consumed_size = Some(decode_feedback(reader.slice(field)?)?),
                _ => reader.skip(field)?,
            }
        }
        seen.require(1, "stream_id")?;
        Ok(meta)
    }

    /// Bytes of the encoded meta.
    pub fn encoded_len(&self) -> usize {
        let mut count = Count::default();
        self.write(&mut count);
        count.0
    }

    /// Encodes header and meta of a frame that has `data_len` bytes of data after them.
    ///
    /// # Errors
    ///
    /// If the frame would be longer than `limits` allow.
    pub fn encode_head(&self, data_len: usize, limits: &Limits) -> Result<Bytes, EncodeError> {
        let meta_len = self.encoded_len();
        let size = meta_len as u64 + data_len as u64;
        let limit = u64::from(limits.max_body_size);
        if size > limit {
            return Err(EncodeError::BodyTooLarge { size, limit });
        }
        let mut head = BytesMut::zeroed(FRAME_HEADER_LEN + meta_len);
        let mut header = &mut head[..FRAME_HEADER_LEN];
        header.put_slice(&STRM_MAGIC);
        header.put_u32(size as u32);
        header.put_u32(meta_len as u32);
        self.write(&mut Back::new(&mut head[FRAME_HEADER_LEN..]));
        Ok(head.freeze())
    }

    fn write(&self, sink: &mut impl Sink) {
        if let Some(consumed) = self.consumed_size {
            sink.message(5, |sink| sink.number(1, signed(consumed)));
        }
        if let Some(more) = self.has_continuation {
            sink.number(4, more.into());
        }
        sink.number(3, signed(self.kind.to_wire()));
        if let Some(source) = self.source_stream_id {
            sink.number(2, signed(source));
        }
        sink.number(1, signed(self.stream_id));
    }
}

fn decode_feedback(bytes: &[u8]) -> Result<i64, MetaError> {
    let mut consumed = 0;
    let mut seen = Seen::default();
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.field()? {
        if field.number == 1 {
            seen.once(field)?;
            consumed = reader.number(field)? as i64;
        } else {
            reader.skip(field)?;
        }
    }
    Ok(consumed)
}
