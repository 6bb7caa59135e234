//! Compression of messages, with a limit on what a peer's message may become.
//!
//! - `snappy`: one raw snappy block (a varint of the length, then the data), not the framing format.
//! - `gzip`, `zlib`: one member of RFC 1952, one stream of RFC 1950.
//! - `lz4`: brpc reserves the number and released no implementation. Here it is what was proposed to brpc: a varint of the
//!   length as in snappy, then one LZ4 block.

use std::io::{Read, Write};

use bytes::{BufMut, Bytes};
use thiserror::Error;

use crate::wire::MessageBuf;

/// How a frame's message is compressed. Attachments never are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CompressType {
    /// Not at all.
    #[default]
    None,
    /// Snappy: fast.
    Snappy,
    /// Gzip: small, slow.
    Gzip,
    /// Zlib: gzip's algorithm with a shorter header.
    Zlib,
    /// LZ4: fast. Not understood by released versions of brpc.
    Lz4,
}

impl CompressType {
    /// The type with this number on the wire.
    pub fn from_wire(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Snappy),
            2 => Some(Self::Gzip),
            3 => Some(Self::Zlib),
            4 => Some(Self::Lz4),
            _ => None,
        }
    }

    /// The number on the wire.
    pub fn to_wire(self) -> i32 {
        match self {
            Self::None => 0,
            Self::Snappy => 1,
            Self::Gzip => 2,
            Self::Zlib => 3,
            Self::Lz4 => 4,
        }
    }
}

/// A message that cannot be compressed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CompressError {
    /// The message is longer than the format allows: 4 GiB - 1.
    #[error("message of {len} bytes is too long to compress")]
    TooLong {
        /// Bytes of the message.
        len: usize,
    },
    /// The compressor failed.
    #[error("cannot compress")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A message that cannot be decompressed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecompressError {
    /// It would become longer than allowed. Found before or while it is decompressed, never after.
    #[error("decompressed message is longer than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// It is no data of this format, is cut off, or has something after its end.
    #[error("compressed message is corrupt")]
    Corrupt(#[source] Option<Box<dyn std::error::Error + Send + Sync>>),
}

impl DecompressError {
    fn corrupt(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Corrupt(Some(source.into()))
    }
}

/// No byte of a snappy block makes more than this many: a copy of 64 takes three.
const SNAPPY_MAX_RATIO: usize = 22;

/// No byte of an LZ4 block makes more than this many: a length byte stands for 255.
const LZ4_MAX_RATIO: usize = 255;

/// What is inflated at first; doubled as needed. Keeps small messages cheap.
const FIRST_CHUNK: usize = 4 << 10;

impl CompressType {
    /// Compresses `message`; `names` bytes of room are left as in [`MessageBuf::with_capacity`].
    ///
    /// # Errors
    ///
    /// If the message is too long for the format.
    pub fn compress(self, message: MessageBuf, names: usize) -> Result<MessageBuf, CompressError> {
        if self == Self::None {
            return Ok(message);
        }
        let input = message.as_slice();
        let failed = |error: std::io::Error| CompressError::Failed(error.into());
        let len = u32::try_from(input.len()).map_err(|_| CompressError::TooLong { len: input.len() })?;
        let mut out = MessageBuf::with_capacity(input.len() / 2 + 64, names);
        match self {
            Self::None => {}
            Self::Snappy => {
                let block = snap::raw::Encoder::new().compress_vec(input);
                out.out().put_slice(&block.map_err(|error| CompressError::Failed(error.into()))?);
            }
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(out.out().writer(), flate2::Compression::default());
                encoder.write_all(input).and_then(|()| encoder.finish().map(drop)).map_err(failed)?;
            }
            Self::Zlib => {
                let mut encoder = flate2::write::ZlibEncoder::new(out.out().writer(), flate2::Compression::default());
                encoder.write_all(input).and_then(|()| encoder.finish().map(drop)).map_err(failed)?;
            }
            Self::Lz4 => {
                prost::encode_length_delimiter(len as usize, &mut out.out()).map_err(|error| failed(error.into()))?;
                out.out().put_slice(&lz4_flex::block::compress(input));
            }
        }
        Ok(out)
    }

    /// Decompresses `message`, to at most `limit` bytes. The result's buffer never is longer than `limit`; while it grows,
    /// its predecessor of half the length may be there, too.
    ///
    /// # Errors
    ///
    /// If the result would be longer, or the data are corrupt.
    pub fn decompress(self, message: Bytes, limit: usize) -> Result<Bytes, DecompressError> {
        match self {
            Self::None if message.len() > limit => Err(DecompressError::TooLong { limit }),
            Self::None => Ok(message),
            Self::Snappy => decompress_snappy(&message, limit),
            Self::Gzip => {
                let mut decoder = flate2::bufread::GzDecoder::new(&message[..]);
                let inflated = inflate(&mut decoder, limit)?;
                at_end(decoder.into_inner(), inflated)
            }
            Self::Zlib => {
                let mut decoder = flate2::bufread::ZlibDecoder::new(&message[..]);
                let inflated = inflate(&mut decoder, limit)?;
                at_end(decoder.into_inner(), inflated)
            }
            Self::Lz4 => decompress_lz4(&message, limit),
        }
    }
}

/// Checks the length that a block claims, before memory is taken for it.
fn check_claim(claim: usize, input: &[u8], ratio: usize, limit: usize) -> Result<(), DecompressError> {
    if claim > limit {
        return Err(DecompressError::TooLong { limit });
    }
    if claim > input.len().saturating_mul(ratio) {
        return Err(DecompressError::corrupt("claimed length is impossible"));
    }
    Ok(())
}

fn decompress_snappy(input: &[u8], limit: usize) -> Result<Bytes, DecompressError> {
    let claim = snap::raw::decompress_len(input).map_err(DecompressError::corrupt)?;
    check_claim(claim, input, SNAPPY_MAX_RATIO, limit)?;
    let mut out = vec![0; claim];
    let len = snap::raw::Decoder::new().decompress(input, &mut out).map_err(DecompressError::corrupt)?;
    out.truncate(len);
    Ok(out.into())
}

fn decompress_lz4(input: &[u8], limit: usize) -> Result<Bytes, DecompressError> {
    let mut block = input;
    let claim = prost::decode_length_delimiter(&mut block).map_err(DecompressError::corrupt)?;
    check_claim(claim, block, LZ4_MAX_RATIO, limit)?;
    let mut out = vec![0; claim];
    let len = lz4_flex::block::decompress_into(block, &mut out).map_err(DecompressError::corrupt)?;
    if len != claim {
        return Err(DecompressError::corrupt("length differs from the claimed one"));
    }
    Ok(out.into())
}

/// Reads to the end, in a buffer that is never longer than `limit`.
fn inflate(reader: &mut impl Read, limit: usize) -> Result<Vec<u8>, DecompressError> {
    let mut out = Vec::new();
    let mut len = 0;
    loop {
        if len == out.len() {
            if len == limit {
                // The buffer is full; it is right only if nothing comes any more.
                return match reader.read(&mut [0]).map_err(DecompressError::corrupt)? {
                    0 => Ok(out),
                    _ => Err(DecompressError::TooLong { limit }),
                };
            }
            let longer = (len * 2).clamp(FIRST_CHUNK, limit.max(FIRST_CHUNK)).min(limit);
            out.reserve_exact(longer - len);
            out.resize(longer, 0);
        }
        match reader.read(&mut out[len..]).map_err(DecompressError::corrupt)? {
            0 => {
                out.truncate(len);
                return Ok(out);
            }
            read => len += read,
        }
    }
}

fn at_end(rest: &[u8], inflated: Vec<u8>) -> Result<Bytes, DecompressError> {
    if rest.is_empty() { Ok(inflated.into()) } else { Err(DecompressError::corrupt("data after the end")) }
}
