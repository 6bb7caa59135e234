//! From frames to calls and responses.

use bytes::Bytes;

use super::{CompressType, checksum};
use crate::call::{CallStats, Decoded, Metadata, RawResponse};
use crate::wire::RpcMeta;
use crate::{Code, Status};

/// Only protobuf is spoken.
const CONTENT_TYPE_PB: i32 = 0;

/// Takes a request's message out of its frame: verifies the checksum, then decompresses, to at most `limit` bytes.
///
/// # Errors
///
/// [`Code::EREQUEST`] if anything about the message is wrong: the call is answered with it, the connection lives on.
pub fn decode_request(meta: &RpcMeta<'_>, message: Bytes, attachment: &[u8], limit: usize) -> Result<Bytes, Status> {
    unpack(meta, message, attachment, limit)
        .map_err(|error| Status::new(Code::EREQUEST, format!("cannot read request: {error}")))
}

/// Takes a response out of its frame: the error it carries, or message and attachment.
///
/// # Errors
///
/// The server's status, or [`Code::ERESPONSE`] if the response cannot be read.
pub fn decode_response(
    meta: &RpcMeta<'_>,
    message: Bytes,
    attachment: Bytes,
    limit: usize,
) -> Result<RawResponse, Status> {
    decode_parts(meta, message, attachment, limit).map(|decoded| decoded.with_stats(CallStats::default()))
}

pub(crate) fn decode_parts(
    meta: &RpcMeta<'_>,
    message: Bytes,
    attachment: Bytes,
    limit: usize,
) -> Result<Decoded, Status> {
    let response = meta.response.unwrap_or_default();
    if let Some(status) = Status::from_wire(response.error_code, response.error_text) {
        return Err(status);
    }
    let message = unpack(meta, message, &attachment, limit)
        .map_err(|error| Status::new(Code::ERESPONSE, format!("cannot read response: {error}")))?;
    let stream = meta.stream_settings.clone().map(Box::new);
    Ok(Decoded { message, attachment, metadata: Metadata::from(meta.user_fields), stream })
}

#[inline]
fn unpack(meta: &RpcMeta<'_>, message: Bytes, attachment: &[u8], limit: usize) -> Result<Bytes, String> {
    if meta.content_type != CONTENT_TYPE_PB {
        return Err(format!("content type {} is not supported", meta.content_type));
    }
    let compress = CompressType::from_wire(meta.compress_type)
        .ok_or_else(|| format!("compress type {} is not supported", meta.compress_type))?;
    checksum::verify(meta, &message, attachment)?;
    compress.decompress(message, limit).map_err(|error| error.to_string())
}
