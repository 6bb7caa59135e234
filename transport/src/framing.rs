//! How a byte stream is cut into frames when it is not ucrpc's own framing.

use std::borrow::Cow;

/// Whether a stream's first bytes belong to a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detect {
    /// They do.
    Yes,
    /// They don't, whatever follows.
    No,
    /// So far they could; more bytes decide.
    NeedMore,
}

/// Where the next frame of a stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// At least this many bytes (from the frame's start, more than were given) are needed to tell.
    NeedMore(usize),
    /// The frame has a head of `head` bytes, counted from its first byte, and then a body of `body` bytes.
    Frame {
        /// Bytes of the head. At least 1.
        head: usize,
        /// Bytes of the body.
        body: u64,
    },
    /// This is no frame: the connection is closed with this text.
    Bad(Cow<'static, str>),
}

/// A protocol whose frames go over a stream as they are: head, then body, no header of ours.
///
/// It is called on the dispatcher's thread with whatever a peer sent: it must be quick, bounded and free of panics.
pub trait Framer: Send + Sync + 'static {
    /// The protocol's name, for logs.
    fn name(&self) -> &'static str;

    /// Looks at a new connection's first bytes.
    fn detect(&self, first: &[u8]) -> Detect;

    /// Finds the end of the frame that starts at `bytes[0]`.
    fn cut(&self, bytes: &[u8]) -> Cut;
}
