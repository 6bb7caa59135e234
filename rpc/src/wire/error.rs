//! What can be wrong with bytes.

use thiserror::Error;

/// Bytes that are no frame of this protocol. What follows them cannot be found: the connection must be closed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WireError {
    /// The first bytes are neither `PRPC` nor `STRM`.
    #[error("a frame starts with unknown magic {found:02x?}")]
    Magic {
        /// The first four bytes, or as many as were there, then zeros.
        found: [u8; 4],
    },
    /// The frame claims more bytes than are allowed.
    #[error("frame body of {size} bytes is above the limit of {limit}")]
    BodyTooLarge {
        /// The claim.
        size: u32,
        /// [`super::Limits::max_body_size`].
        limit: u32,
    },
    /// The meta claims more bytes than are allowed.
    #[error("frame meta of {size} bytes is above the limit of {limit}")]
    MetaTooLarge {
        /// The claim.
        size: u32,
        /// [`super::Limits::max_meta_size`].
        limit: u32,
    },
    /// The meta claims more bytes than the frame has.
    #[error("frame meta of {meta} bytes is longer than the frame body of {body}")]
    MetaExceedsBody {
        /// Bytes the meta claims.
        meta: u32,
        /// Bytes the frame has after its header.
        body: u32,
    },
    /// A transport's frame is not as long as what is in it claims.
    #[error("frame of {claimed} bytes came in {actual}")]
    Length {
        /// The claim.
        claimed: u64,
        /// What came.
        actual: u64,
    },
    /// The meta cannot be decoded.
    #[error("bad frame meta")]
    Meta(#[from] MetaError),
}

/// A meta that is no valid protobuf message of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MetaError {
    /// A field goes on beyond the end of the message.
    #[error("message ends inside a field")]
    Truncated,
    /// A varint has more than ten bytes or does not fit 64 bits.
    #[error("varint is too long")]
    Varint,
    /// A tag with field number 0 or above the allowed range, or an unknown wire type.
    #[error("invalid field tag {tag}")]
    Tag {
        /// The tag as read.
        tag: u64,
    },
    /// A known field comes with the wrong wire type.
    #[error("field {field} has wire type {wire_type}")]
    WireType {
        /// Field number.
        field: u32,
        /// The wire type found.
        wire_type: u8,
    },
    /// A field that can be there once is there twice. Two readers could disagree which one counts.
    #[error("field {field} is there twice")]
    Duplicate {
        /// Field number.
        field: u32,
    },
    /// A required field is missing.
    #[error("required field {field} is missing")]
    Missing {
        /// Field name.
        field: &'static str,
    },
    /// A name is not UTF-8.
    #[error("field {field} is not valid utf-8")]
    NotUtf8 {
        /// Field number.
        field: u32,
    },
    /// A number does not fit the field's type or meaning.
    #[error("field {field} is out of range: {value}")]
    OutOfRange {
        /// Field number.
        field: u32,
        /// The value found, as a signed number.
        value: i64,
    },
    /// More entries of custom metadata than are allowed.
    #[error("more than {limit} user fields")]
    TooManyUserFields {
        /// [`super::Limits::max_user_fields`].
        limit: usize,
    },
    /// More extra stream ids than are allowed.
    #[error("more than {limit} extra stream ids")]
    TooManyStreams {
        /// [`super::Limits::max_extra_streams`].
        limit: usize,
    },
    /// Groups nested too deeply in an unknown field, or a group without its end.
    #[error("bad group in an unknown field")]
    Group,
}

/// A frame whose end is known but whose content contradicts itself: it is skipped, and a call gets an error answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BadFrame {
    /// `attachment_size` is below zero.
    #[error("attachment size {0} is negative")]
    NegativeAttachment(i64),
    /// `attachment_size` is more than the frame has left after its meta.
    #[error("attachment of {attachment} bytes is longer than the frame's payload of {payload}")]
    AttachmentExceedsPayload {
        /// Bytes the attachment claims.
        attachment: i64,
        /// Bytes the frame has after its meta.
        payload: u32,
    },
}

/// A frame that cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Meta, message and attachment together are above the limit.
    #[error("frame body of {size} bytes is above the limit of {limit}")]
    BodyTooLarge {
        /// Bytes of the frame after its header.
        size: u64,
        /// The limit: [`super::Limits::max_body_size`], or what the format can say.
        limit: u64,
    },
    /// The meta is above the limit.
    #[error("frame meta of {size} bytes is above the limit of {limit}")]
    MetaTooLarge {
        /// Bytes of the meta.
        size: u64,
        /// [`super::Limits::max_meta_size`].
        limit: u64,
    },
}
