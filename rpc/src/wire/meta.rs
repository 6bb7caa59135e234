//! `RpcMeta`: what a `PRPC` frame says about itself.

use std::fmt;

use bytes::Bytes;

use super::pb::{Count, Reader, Seen, Sink, signed};
use super::{Limits, MetaError, StreamSettings};

/// The meta of a `PRPC` frame: a request's or a response's.
///
/// It borrows from the frame it was decoded from, or from what is to be encoded. A field with its default value is not
/// sent, but for `correlation_id` and a response's `error_code`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RpcMeta<'a> {
    /// There in a request.
    pub request: Option<RequestMeta<'a>>,
    /// There in a response.
    pub response: Option<ResponseMeta<'a>>,
    /// How the message is compressed: see [`crate::codec::CompressType`]. The attachment never is.
    pub compress_type: i32,
    /// Names the call on its connection; a response repeats its request's.
    pub correlation_id: i64,
    /// Bytes of the attachment at the end of the frame. Not checked against the frame here: [`super::parse()`] does.
    pub attachment_size: i64,
    /// Who the client is; on the first request of a connection.
    pub authentication_data: Option<&'a [u8]>,
    /// There when the call opens a stream.
    pub stream_settings: Option<StreamSettings>,
    /// Custom metadata.
    pub user_fields: UserFields<'a>,
    /// How the message is serialized: 0 protobuf, 1 json, 2 proto-json, 3 proto-text.
    pub content_type: i32,
    /// What `checksum_value` is: see [`crate::codec::ChecksumType`].
    pub checksum_type: i32,
    /// The checksum of the message as it is on the wire.
    pub checksum_value: &'a [u8],
    /// Whether `checksum_value` covers the attachment, too, after the message.
    pub checksum_with_attachment: bool,
    /// What ucrpc's peers tell each other beside brpc's protocol.
    pub signal: Signal,
}

/// ucrpc's extension of `RpcMeta`: an int32 field that brpc does not know and skips.
///
/// A meta with neither request nor response is no call to ucrpc, but brpc's server answers one with an error. So a signal that
/// stands alone goes only to a peer that is known to be ucrpc: on a native connection, or after a [`Self::Hello`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// Nothing is told: the field is not there.
    #[default]
    None,
    /// The sender is ucrpc and understands signals. With the first request of a connection, and with the next response
    /// after such a request.
    Hello,
    /// The caller does not wait any more for the call with this correlation id.
    Cancel,
    /// The server is stopping: no new calls on this connection.
    GoAway,
    /// Not known here: ignored.
    Other(i32),
}

impl Signal {
    fn from_wire(number: i32) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Hello,
            2 => Self::Cancel,
            3 => Self::GoAway,
            other => Self::Other(other),
        }
    }

    fn to_wire(self) -> i32 {
        match self {
            Self::None => 0,
            Self::Hello => 1,
            Self::Cancel => 2,
            Self::GoAway => 3,
            Self::Other(number) => number,
        }
    }
}

/// The number of the field that carries a [`Signal`]: the last one whose tag takes two bytes, far from brpc's own.
const SIGNAL_FIELD: u32 = 2047;

/// The part of [`RpcMeta`] that a request has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestMeta<'a> {
    /// Full name of the service (`package.Service`), or its bare name.
    pub service_name: &'a str,
    /// Bare name of the method.
    pub method_name: &'a str,
    /// A number the caller chose to find this call in logs.
    pub log_id: Option<i64>,
    /// The trace this call is part of.
    pub trace_id: Option<i64>,
    /// This call's span in the trace.
    pub span_id: Option<i64>,
    /// The span that made this call.
    pub parent_span_id: Option<i64>,
    /// The caller's name for the request, as HTTP's `x-request-id`. Not necessarily UTF-8.
    pub request_id: Option<&'a [u8]>,
    /// The client's time budget for this call in milliseconds.
    pub timeout_ms: Option<i32>,
}

/// The part of [`RpcMeta`] that a response has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResponseMeta<'a> {
    /// 0 is success. Numbers: [`crate::Code`].
    pub error_code: i32,
    /// What went wrong, for humans. Not necessarily UTF-8.
    pub error_text: &'a [u8],
}

impl<'a> RpcMeta<'a> {
    /// Decodes a meta.
    ///
    /// # Errors
    ///
    /// On anything that is no `RpcMeta` within `limits`. Unknown fields are left out.
    pub fn decode(bytes: &'a [u8], limits: &Limits) -> Result<Self, MetaError> {
        let mut meta = Self::default();
        meta.decode_here(bytes, limits)?;
        Ok(meta)
    }

    /// As [`Self::decode`], into a meta that is the default one. It is large: on the hot path it is not moved.
    #[inline]
    pub(super) fn decode_here(&mut self, bytes: &'a [u8], limits: &Limits) -> Result<(), MetaError> {
        let meta = self;
        let mut seen = Seen::default();
        let mut user_fields = 0;
        let mut reader = Reader::new(bytes);
        while let Some(field) = reader.field()? {
            if field.number != 9 && field.number <= 13 {
                seen.once(field)?;
            }
            match field.number {
                1 => meta.request = Some(RequestMeta::decode(reader.slice(field)?)?),
                2 => meta.response = Some(ResponseMeta::decode(reader.slice(field)?)?),
                3 => meta.compress_type = reader.number(field)? as i32,
                4 => meta.correlation_id = reader.number(field)? as i64,
                5 => meta.attachment_size = reader.number(field)? as i64,
                // chunk_info: not used by anyone.
                6 => drop(reader.slice(field)?),
                7 => meta.authentication_data = Some(reader.slice(field)?),
                8 => meta.stream_settings = Some(StreamSettings::decode(reader.slice(field)?, limits)?),
                9 => {
                    user_fields += 1;
                    if user_fields > limits.max_user_fields {
                        return Err(MetaError::TooManyUserFields { limit: limits.max_user_fields });
                    }
                    decode_entry(reader.slice(field)?)?;
                }
                10 => meta.content_type = reader.number(field)? as i32,
                11 => meta.checksum_type = reader.number(field)? as i32,
                12 => meta.checksum_value = reader.slice(field)?,
                13 => meta.checksum_with_attachment = reader.number(field)? != 0,
                SIGNAL_FIELD => meta.signal = Signal::from_wire(reader.number(field)? as i32),
                _ => reader.skip(field)?,
            }
        }
        if user_fields > 0 {
            meta.user_fields = UserFields(Repr::Wire { meta: bytes, count: user_fields });
        }
        Ok(())
    }

    /// Bytes of the encoded meta.
    pub fn encoded_len(&self) -> usize {
        self.encoded_len_with(self.attachment_size)
    }

    /// As [`Self::encoded_len`], with `attachment_size` in place of the field.
    pub(super) fn encoded_len_with(&self, attachment_size: i64) -> usize {
        let mut count = Count::default();
        self.write_with(&mut count, attachment_size);
        count.0
    }

    /// Writes the meta, last field first, with `attachment_size` in place of the field.
    pub(super) fn write_with(&self, sink: &mut impl Sink, attachment_size: i64) {
        put_number(sink, SIGNAL_FIELD, self.signal.to_wire());
        put_number(sink, 13, self.checksum_with_attachment);
        if !self.checksum_value.is_empty() {
            sink.bytes(12, self.checksum_value);
        }
        put_number(sink, 11, self.checksum_type);
        put_number(sink, 10, self.content_type);
        self.user_fields.write(sink);
        if let Some(settings) = &self.stream_settings {
            sink.message(8, |sink| settings.write(sink));
        }
        if let Some(data) = self.authentication_data {
            sink.bytes(7, data);
        }
        put_number(sink, 5, attachment_size);
        sink.number(4, signed(self.correlation_id));
        put_number(sink, 3, self.compress_type);
        if let Some(response) = &self.response {
            sink.message(2, |sink| response.write(sink));
        }
        if let Some(request) = &self.request {
            sink.message(1, |sink| request.write(sink));
        }
    }
}

impl<'a> RequestMeta<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, MetaError> {
        let mut meta = Self::default();
        let mut seen = Seen::default();
        let mut reader = Reader::new(bytes);
        while let Some(field) = reader.field()? {
            if field.number <= 8 {
                seen.once(field)?;
            }
            match field.number {
                1 => meta.service_name = reader.text(field)?,
                2 => meta.method_name = reader.text(field)?,
                3 => meta.log_id = Some(reader.number(field)? as i64),
                4 => meta.trace_id = Some(reader.number(field)? as i64),
                5 => meta.span_id = Some(reader.number(field)? as i64),
                6 => meta.parent_span_id = Some(reader.number(field)? as i64),
                7 => meta.request_id = Some(reader.slice(field)?),
                8 => meta.timeout_ms = Some(reader.number(field)? as i32),
                _ => reader.skip(field)?,
            }
        }
        seen.require(1, "service_name")?;
        seen.require(2, "method_name")?;
        Ok(meta)
    }

    fn write(&self, sink: &mut impl Sink) {
        if let Some(timeout) = self.timeout_ms {
            sink.number(8, signed(timeout));
        }
        if let Some(id) = self.request_id {
            sink.bytes(7, id);
        }
        let ids = [(6, self.parent_span_id), (5, self.span_id), (4, self.trace_id), (3, self.log_id)];
        for (field, id) in ids {
            if let Some(id) = id {
                sink.number(field, signed(id));
            }
        }
        sink.bytes(2, self.method_name.as_bytes());
        sink.bytes(1, self.service_name.as_bytes());
    }
}

impl<'a> ResponseMeta<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, MetaError> {
        let mut meta = Self::default();
        let mut seen = Seen::default();
        let mut reader = Reader::new(bytes);
        while let Some(field) = reader.field()? {
            if field.number <= 2 {
                seen.once(field)?;
            }
            match field.number {
                1 => meta.error_code = reader.number(field)? as i32,
                2 => meta.error_text = reader.slice(field)?,
                _ => reader.skip(field)?,
            }
        }
        Ok(meta)
    }

    fn write(&self, sink: &mut impl Sink) {
        if !self.error_text.is_empty() {
            sink.bytes(2, self.error_text);
        }
        sink.number(1, signed(self.error_code));
    }
}

fn put_number(sink: &mut impl Sink, field: u32, value: impl Into<i64>) {
    let value = signed(value);
    if value != 0 {
        sink.number(field, value);
    }
}

fn decode_entry(bytes: &[u8]) -> Result<(&[u8], &[u8]), MetaError> {
    let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
    let mut seen = Seen::default();
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.field()? {
        if field.number <= 2 {
            seen.once(field)?;
        }
        match field.number {
            1 => key = reader.slice(field)?,
            2 => value = reader.slice(field)?,
            _ => reader.skip(field)?,
        }
    }
    Ok((key, value))
}

fn write_entry(sink: &mut impl Sink, key: &[u8], value: &[u8]) {
    sink.message(9, |sink| {
        sink.bytes(2, value);
        sink.bytes(1, key);
    });
}

/// The custom metadata of a frame: pairs of key and value, in the order of the wire.
///
/// brpc's type for both is `string`, yet its C++ side sends whatever bytes it was given, so these are bytes here.
/// A key may be there more than once; the last one counts.
#[derive(Clone, Copy, Default)]
pub struct UserFields<'a>(Repr<'a>);

#[derive(Clone, Copy, Default)]
enum Repr<'a> {
    #[default]
    Empty,
    /// A meta that was decoded without error and has `count` entries: iterating decodes them anew.
    Wire {
        meta: &'a [u8],
        count: usize,
    },
    Pairs(&'a [(Bytes, Bytes)]),
}

impl<'a> UserFields<'a> {
    /// The number of entries.
    pub fn len(&self) -> usize {
        match self.0 {
            Repr::Empty => 0,
            Repr::Wire { count, .. } => count,
            Repr::Pairs(pairs) => pairs.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries, keys first.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let (mut reader, pairs) = match self.0 {
            Repr::Empty => (Reader::new(&[]), [].as_slice()),
            Repr::Wire { meta, .. } => (Reader::new(meta), [].as_slice()),
            Repr::Pairs(pairs) => (Reader::new(&[]), pairs),
        };
        let on_wire = std::iter::from_fn(move || {
            // The meta was decoded before, so that none of these errors can happen.
            while let Some(field) = reader.field().ok()? {
                if field.number == 9 {
                    return decode_entry(reader.slice(field).ok()?).ok();
                }
                reader.skip(field).ok()?;
            }
            None
        });
        on_wire.chain(pairs.iter().map(|(key, value)| (key.as_ref(), value.as_ref())))
    }
}

impl UserFields<'_> {
    /// Writes the entries, last one first.
    fn write(&self, sink: &mut impl Sink) {
        match self.0 {
            Repr::Empty => {}
            Repr::Pairs(pairs) => pairs.iter().rev().for_each(|(key, value)| write_entry(sink, key, value)),
            Repr::Wire { .. } => {
                // Only a frame that is passed on has these.
                let entries: Vec<_> = self.iter().collect();
                entries.into_iter().rev().for_each(|(key, value)| write_entry(sink, key, value));
            }
        }
    }
}

impl<'a> From<&'a [(Bytes, Bytes)]> for UserFields<'a> {
    fn from(pairs: &'a [(Bytes, Bytes)]) -> Self {
        Self(Repr::Pairs(pairs))
    }
}

impl fmt::Debug for UserFields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(k, v)| (String::from_utf8_lossy(k), String::from_utf8_lossy(v))))
            .finish()
    }
}

impl PartialEq for UserFields<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for UserFields<'_> {}
