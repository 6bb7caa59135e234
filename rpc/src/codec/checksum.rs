//! Checksums over what is on the wire.

use crate::wire::RpcMeta;

/// How a frame's message is protected against corruption.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChecksumType {
    /// Not at all.
    #[default]
    None,
    /// CRC-32C.
    Crc32c,
}

impl ChecksumType {
    /// The type with this number on the wire.
    pub fn from_wire(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Crc32c),
            _ => None,
        }
    }

    /// The number on the wire.
    pub fn to_wire(self) -> i32 {
        match self {
            Self::None => 0,
            Self::Crc32c => 1,
        }
    }
}

/// What brpc adds to a rotated checksum, so that a checksum of data that has checksums in it is no weaker.
const MASK_DELTA: u32 = 0xa282_ead8;

/// `checksum_value` of CRC-32C: over `pieces` one after the other (the message as it is on the wire, so compressed if it is,
/// then the attachment if it is covered), masked (rotated right by 15 bits, plus a constant), big-endian.
pub fn crc32c_value<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> [u8; 4] {
    let crc = pieces.into_iter().fold(0, crc32c::crc32c_append);
    crc.rotate_right(15).wrapping_add(MASK_DELTA).to_be_bytes()
}

/// Whether the checksum in `meta` is right.
pub(super) fn verify(meta: &RpcMeta<'_>, message: &[u8], attachment: &[u8]) -> Result<(), &'static str> {
    match ChecksumType::from_wire(meta.checksum_type) {
        Some(ChecksumType::None) => Ok(()),
        Some(ChecksumType::Crc32c) => {
            let covered = if meta.checksum_with_attachment { attachment } else { &[] };
            if meta.checksum_value == crc32c_value([message, covered]) {
                Ok(())
            } else {
                Err("checksum does not match")
            }
        }
        None => Err("unknown checksum type"),
    }
}
