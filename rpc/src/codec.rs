//! Between messages and frames: serialization, compression, checksums, metas.

mod checksum;
mod compress;
mod decode;
mod encode;

use bytes::Bytes;
use prost::Message;

pub use checksum::{ChecksumType, crc32c_value};
pub use compress::{CompressError, CompressType, DecompressError};
pub(crate) use decode::decode_parts;
pub use decode::{decode_request, decode_response};
pub use encode::{AttemptMeta, encode_request, encode_response, encode_response_with};
pub(crate) use encode::{encode_error, encode_signal};

use crate::{Code, Status};

/// What a peer's message may take once decompressed, by default: 64 MiB, as a whole frame.
pub const MAX_MESSAGE_SIZE: usize = 64 << 20;

/// Decodes a request's message.
///
/// # Errors
///
/// [`Code::EREQUEST`] if it is none of this type.
pub fn decode_request_message<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|error| Status::new(Code::EREQUEST, format!("cannot parse request: {error}")))
}

/// Decodes a response's message.
///
/// # Errors
///
/// [`Code::ERESPONSE`] if it is none of this type.
pub fn decode_response_message<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|error| Status::new(Code::ERESPONSE, format!("cannot parse response: {error}")))
}
