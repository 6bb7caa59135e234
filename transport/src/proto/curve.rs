//! The header of Curve's UCX messages, and what its handshake says: `ucx+cm://` speaks this and nothing of our own.
//!
//! ```text
//! 0        2        4        6            8                       16
//! | ver 0  | cmd    | pad    | reserve 0  | sn                    |   little-endian
//! ```
//!
//! The payload starts with `pad` filler bytes. `sn` counts the messages of one direction from 0, whatever they are.

/// Bytes of the header, always.
pub const HEADER: usize = 16;
/// Bytes of a handshake's payload, always.
pub const FEATURES: usize = 16;
/// Largest payload of a PING that is answered, bytes. Both known senders put at most 8 there.
pub const MAX_PING: usize = 1024;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Whole frames of an RPC protocol.
    Data = 0,
    /// Answered by PONG with the same payload.
    Ping = 1,
    /// The answer.
    Pong = 2,
    /// The dialling side's first message.
    Hello = 3,
    /// The accepting side's first message.
    HelloReply = 4,
}

impl Command {
    const ALL: [Self; 5] = [Self::Data, Self::Ping, Self::Pong, Self::Hello, Self::HelloReply];
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CurveError {
    /// The header has another length.
    #[error("a header of {0} bytes, not {HEADER}")]
    Length(usize),
    /// Another version of the format.
    #[error("version {0} of the message format, only 0 is known")]
    Version(u16),
    /// No such command.
    #[error("unknown command {0}")]
    Command(u16),
    /// More filler than payload.
    #[error("{pad} bytes of filler in a payload of {len}")]
    Pad {
        /// The filler.
        pad: u16,
        /// The payload.
        len: usize,
    },
    /// A handshake's payload has another length.
    #[error("a handshake of {0} bytes, not {FEATURES}")]
    Handshake(usize),
    /// One side demands what the other can't do.
    #[error("features are missing: {0:#x} here, {1:#x} there")]
    Features(u64, u64),
}

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub command: Command,
    /// Filler bytes at the payload's front.
    pub pad: u16,
    /// Its number.
    pub sn: u64,
}

impl Header {
    /// A header without filler, as we send it.
    pub const fn new(command: Command, sn: u64) -> Self {
        Self { command, pad: 0, sn }
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[2..4].copy_from_slice(&(self.command as u16).to_le_bytes());
        bytes[4..6].copy_from_slice(&self.pad.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sn.to_le_bytes());
        bytes
    }

    /// Reads a header. The reserved field is not looked at: its senders don't agree that it is zero.
    ///
    /// # Errors
    /// A wrong length, version or command.
    pub fn decode(bytes: &[u8]) -> Result<Self, CurveError> {
        let bytes: &[u8; HEADER] = bytes.try_into().map_err(|_| CurveError::Length(bytes.len()))?;
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if field(0) != 0 {
            return Err(CurveError::Version(field(0)));
        }
        let command = Command::ALL.into_iter().find(|c| *c as u16 == field(2)).ok_or(CurveError::Command(field(2)))?;
        let (_, sn) = bytes.split_last_chunk().expect("16 bytes end in 8");
        Ok(Self { command, pad: field(4), sn: u64::from_le_bytes(*sn) })
    }

    /// Where the content of a payload of `len` bytes starts.
    ///
    /// # Errors
    /// More filler than payload.
    pub fn content(&self, len: usize) -> Result<usize, CurveError> {
        let pad = usize::from(self.pad);
        if pad <= len { Ok(pad) } else { Err(CurveError::Pad { pad: self.pad, len }) }
    }
}

/// What one side demands and can do, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Without these on the other side it can't go on.
    pub required: u64,
    /// What this side can do.
    pub supported: u64,
}

impl Features {
    /// Ours: none is defined yet.
    pub const OURS: Self = Self { required: 0, supported: 0 };

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; FEATURES] {
        let mut bytes = [0; FEATURES];
        bytes[..8].copy_from_slice(&self.required.to_le_bytes());
        bytes[8..].copy_from_slice(&self.supported.to_le_bytes());
        bytes
    }

    /// Reads a handshake's content.
    ///
    /// # Errors
    /// A wrong length.
    pub fn decode(content: &[u8]) -> Result<Self, CurveError> {
        let bytes: &[u8; FEATURES] = content.try_into().map_err(|_| CurveError::Handshake(content.len()))?;
        let (required, _) = bytes.split_first_chunk().expect("16 bytes start with 8");
        let (_, supported) = bytes.split_last_chunk().expect("16 bytes end in 8");
        Ok(Self { required: u64::from_le_bytes(*required), supported: u64::from_le_bytes(*supported) })
    }

    /// Whether two sides can work together; the same from both sides.
    ///
    /// # Errors
    /// The features that are missing here and there.
    pub fn agree(&self, peer: &Self) -> Result<(), CurveError> {
        let (here, there) = (peer.required & !self.supported, self.required & !peer.supported);
        if here | there == 0 { Ok(()) } else { Err(CurveError::Features(here, there)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden() {
        let header = Header { command: Command::HelloReply, pad: 3, sn: 0x0102_0304_0506_0708 };
        let bytes = [0, 0, 4, 0, 3, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1];
        assert_eq!((header.encode(), Header::decode(&bytes)), (bytes, Ok(header)));
        assert_eq!(Header::new(Command::Data, 0).encode(), [0; HEADER]);
        let features = Features { required: 0x11, supported: 1 << 63 };
        let bytes = [0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80];
        assert_eq!((features.encode(), Features::decode(&bytes)), (bytes, Ok(features)));
        for (number, command) in Command::ALL.into_iter().enumerate() {
            assert_eq!(Header::new(command, 1).encode()[2..4], (number as u16).to_le_bytes());
        }
    }

    #[test]
    fn what_is_refused() {
        let good = Header::new(Command::Ping, 9).encode();
        let with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            Header::decode(&bytes)
        };
        assert_eq!(with(0, 1), Err(CurveError::Version(1)));
        assert_eq!(with(1, 1), Err(CurveError::Version(256)));
        assert_eq!(with(2, 5), Err(CurveError::Command(5)));
        assert_eq!(with(3, 1), Err(CurveError::Command(257)));
        assert_eq!(with(6, 7).map(|h| h.sn), Ok(9), "the reserved field is not looked at");
        assert_eq!(Header::decode(&good[..15]), Err(CurveError::Length(15)));
        assert_eq!(Header::decode(&[0; 17]), Err(CurveError::Length(17)));
        assert_eq!(Features::decode(&[0; 15]), Err(CurveError::Handshake(15)));
        let padded = Header { pad: 4, ..Header::new(Command::Data, 0) };
        assert_eq!((padded.content(4), padded.content(3)), (Ok(4), Err(CurveError::Pad { pad: 4, len: 3 })));
    }

    #[test]
    fn features_must_be_known_on_both_sides() {
        let side = |required, supported| Features { required, supported };
        assert_eq!(Features::OURS.agree(&Features::OURS), Ok(()));
        assert_eq!(Features::OURS.agree(&side(0, u64::MAX)), Ok(()));
        assert_eq!(Features::OURS.agree(&side(4, 4)), Err(CurveError::Features(4, 0)));
        assert_eq!(side(2, 3).agree(&side(1, 1)), Err(CurveError::Features(0, 2)));
        assert_eq!(side(2, 3).agree(&side(1, 2)), Ok(()));
    }

    proptest! {
        #[test]
        fn round_trip(command in 0usize..5, pad in any::<u16>(), sn in any::<u64>(), required in any::<u64>(), supported in any::<u64>()) {
            let header = Header { command: Command::ALL[command], pad, sn };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
            let features = Features { required, supported };
            prop_assert_eq!(Features::decode(&features.encode()), Ok(features));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), len in any::<usize>()) {
            if let Ok(header) = Header::decode(&bytes) {
                let again = header.encode();
                prop_assert_eq!((&again[..6], &again[8..]), (&bytes[..6], &bytes[8..]));
                prop_assert_eq!(header.content(len).is_ok(), usize::from(header.pad) <= len);
            }
            prop_assert_eq!(Features::decode(&bytes).is_ok(), bytes.len() == FEATURES);
        }
    }
}
