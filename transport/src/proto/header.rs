//! The header of a native frame: the UCX active-message header, and the start of each frame on TCP.
//!
//! Little-endian:
//!
//! ```text
//!  0 u8  kind
//!  1 u8  flags       1 HEAD_LEN, 2 CREDIT, 4 HEAD_INLINE, 8 HEAD_BEFORE
//!  2 u16 reserved, 0
//!  4 u32 conn        the receiver's id of the connection
//!  8 u32 generation  of that id
//! 12 u32 seq
//!    u32 head_len                 with HEAD_LEN
//!    u32 messages, u64 bytes      with CREDIT
//! ```
//!
//! Decoding is strict, so that every bit that means nothing today can mean something tomorrow.

/// The largest encoded header, in bytes.
pub const MAX_HEADER: usize = 32;

/// The smallest encoded header, in bytes: neither a head length nor credit.
pub const MIN_HEADER: usize = 16;

/// Bytes of the prefix that delimits frames on a byte stream.
pub const PREFIX: usize = 8;

/// The longest payload that the prefix can say: 56 bits.
pub const MAX_PAYLOAD: u64 = (1 << 56) - 1;

const HEAD_LEN: u8 = 1;
const CREDIT: u8 = 2;
const HEAD_INLINE: u8 = 4;
const HEAD_BEFORE: u8 = 8;
const KNOWN_FLAGS: u8 = HEAD_LEN | CREDIT | HEAD_INLINE | HEAD_BEFORE;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// An application's frame.
    Data = 1,
    /// The head of a DATA frame with the same `seq` that follows with [`HeadPlace::Before`].
    Head = 2,
    /// Shows that the path to the receiver carries messages.
    Prove = 3,
    /// The answer to [`Kind::Prove`].
    Proved = 4,
    /// Asks whether the peer is alive; payload: [`super::control::encode_ping`].
    Ping = 5,
    /// The answer to [`Kind::Ping`], with the same payload.
    Pong = 6,
    /// Returns credit and nothing else.
    Credit = 7,
    /// The sender sends no more DATA; `seq` is how many DATA frames it has sent.
    Goodbye = 8,
    /// All DATA frames that a [`Kind::Goodbye`] counted have arrived.
    GoodbyeAck = 9,
    /// The receiver did not take the body of a DATA frame; payload: [`super::control::encode_refused`].
    Refused = 10,
}

impl Kind {
    const fn from_wire(byte: u8) -> Option<Self> {
        // 16 and 17 are set aside for descriptors of a shared pool and their release.
        Some(match byte {
            1 => Self::Data,
            2 => Self::Head,
            3 => Self::Prove,
            4 => Self::Proved,
            5 => Self::Ping,
            6 => Self::Pong,
            7 => Self::Credit,
            8 => Self::Goodbye,
            9 => Self::GoodbyeAck,
            10 => Self::Refused,
            _ => return None,
        })
    }
}

/// Permission to send, as a window or as what comes back of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// DATA frames.
    pub messages: u32,
    /// Bytes of head and body together.
    pub bytes: u64,
}

/// Where the head of a DATA frame is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HeadPlace {
    /// At the start of the payload: `head_len` bytes of it, or all of it if there is no `head_len`.
    #[default]
    InPayload,
    /// Behind the frame header, inside the active-message header (rendezvous over UCX only). Needs a `head_len`.
    InHeader,
    /// In an earlier frame of [`Kind::Head`] with the same `seq`. A `head_len` may repeat its length as a check.
    Before,
}

/// A decoded frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: Kind,
    /// The receiver's id of the connection: an index into its table.
    pub conn: u32,
    /// The generation of that id: a stale one is dropped, never used.
    pub generation: u32,
    /// DATA and HEAD: number of the DATA frame in its direction, from 0, wrapping. GOODBYE: count of DATA frames
    /// sent, wrapping. All others: 0.
    pub seq: u32,
    /// Bytes of the head. Without it the whole payload is the head and there is no body. DATA only.
    pub head_len: Option<u32>,
    /// Credit that comes back to the receiver of this header. Always there in CREDIT, possible in all others.
    pub credit: Option<Credit>,
    /// Where the head is; [`HeadPlace::InPayload`] for all kinds but DATA.
    pub place: HeadPlace,
}

/// Why bytes are no frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// There are fewer bytes than the header says it has.
    #[error("frame header of {have} bytes is too short: it needs {need}")]
    Truncated {
        /// Bytes that the header has by its flags.
        need: usize,
        /// Bytes given.
        have: usize,
    },
    /// A kind that we don't know.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// Flags that we don't know.
    #[error("unknown frame flags {0:#04x}")]
    UnknownFlags(u8),
    /// The reserved bytes are not 0.
    #[error("reserved bytes of the frame header are {0:#06x}, not 0")]
    Reserved(u16),
    /// A flag about the head on a kind that has no head.
    #[error("frame flags {flags:#04x} do not belong to a {kind:?} frame")]
    FlagsOfOtherKind {
        /// The kind.
        kind: Kind,
        /// The flags.
        flags: u8,
    },
    /// The head is said to be in the active-message header, but not how long it is.
    #[error("inline head without a length")]
    InlineWithoutLength,
    /// The head is said to be in two places.
    #[error("head is both inline and sent before")]
    TwoPlaces,
    /// A CREDIT frame without credit.
    #[error("credit frame without credit")]
    MissingCredit,
    /// A sequence number on a kind that has none.
    #[error("sequence number {seq} on a {kind:?} frame")]
    UnexpectedSeq {
        /// The kind.
        kind: Kind,
        /// The number.
        seq: u32,
    },
    /// A stream's prefix gives a header length that no header has.
    #[error("no frame header has {0} bytes")]
    HeaderLength(usize),
    /// More or fewer bytes than the head that should be there follow the header.
    #[error("{have} bytes follow the frame header, {expected} expected")]
    Trailing {
        /// Bytes that should follow.
        expected: usize,
        /// Bytes that do.
        have: usize,
    },
}

impl FrameHeader {
    /// A header of `kind` with neither head length nor credit.
    pub const fn new(kind: Kind, conn: u32, generation: u32, seq: u32) -> Self {
        Self { kind, conn, generation, seq, head_len: None, credit: None, place: HeadPlace::InPayload }
    }

    /// Writes the header to the start of `out` and returns its length: 16, 20, 28 or 32. The rest of `out` is left
    /// undefined.
    ///
    /// A header that [`decode`] would not accept is a bug of the caller and is caught in debug builds only.
    #[inline]
    pub fn encode(&self, out: &mut [u8; MAX_HEADER]) -> usize {
        debug_assert!(self.place != HeadPlace::InHeader || self.head_len.is_some(), "inline head without a length");
        debug_assert!(self.kind != Kind::Credit || self.credit.is_some(), "credit frame without credit");
        debug_assert!(self.kind == Kind::Data || self.head_len.is_none(), "head length on a control frame");
        let place = match self.place {
            HeadPlace::InPayload => 0,
            HeadPlace::InHeader => HEAD_INLINE,
            HeadPlace::Before => HEAD_BEFORE,
        };
        let with_len = self.head_len.is_some();
        let with_credit = self.credit.is_some();
        let flags = place | (u8::from(with_len) * HEAD_LEN) | (u8::from(with_credit) * CREDIT);
        let first = u64::from(self.kind as u8) | u64::from(flags) << 8 | u64::from(self.conn) << 32;
        let second = u64::from(self.generation) | u64::from(self.seq) << 32;
        out[..8].copy_from_slice(&first.to_le_bytes());
        out[8..16].copy_from_slice(&second.to_le_bytes());
        // Optional fields are written whether they are there or not and then counted or not: stores are cheaper than
        // branches that the mix of traffic makes hard to predict.
        out[16..20].copy_from_slice(&self.head_len.unwrap_or(0).to_le_bytes());
        let at = MIN_HEADER + 4 * usize::from(with_len);
        let credit = self.credit.unwrap_or_default();
        out[at..at + 4].copy_from_slice(&credit.messages.to_le_bytes());
        out[at + 4..at + 12].copy_from_slice(&credit.bytes.to_le_bytes());
        at + 12 * usize::from(with_credit)
    }
}

/// Reads a header from the start of `bytes` and tells how many bytes it took. Bytes that follow are not looked at;
/// [`decode_exact`] and [`decode_with_head`] also check those.
///
/// # Errors
/// Anything that [`FrameHeader::encode`] can't have written.
#[inline]
pub fn decode(bytes: &[u8]) -> Result<(FrameHeader, usize), HeaderError> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<MIN_HEADER>() else {
        return Err(HeaderError::Truncated { need: MIN_HEADER, have: bytes.len() });
    };
    let [kind, flags, r0, r1, c0, c1, c2, c3, g0, g1, g2, g3, s0, s1, s2, s3] = *fixed;
    let reserved = u16::from_le_bytes([r0, r1]);
    let seq = u32::from_le_bytes([s0, s1, s2, s3]);
    let kind = Kind::from_wire(kind).ok_or(HeaderError::UnknownKind(kind))?;
    if flags & !KNOWN_FLAGS != 0 {
        return Err(HeaderError::UnknownFlags(flags));
    }
    if reserved != 0 {
        return Err(HeaderError::Reserved(reserved));
    }
    let place = place_of(kind, flags)?;
    check_kind(kind, flags, seq)?;

    let truncated = |need| HeaderError::Truncated { need, have: bytes.len() };
    let mut used = MIN_HEADER;
    let mut rest = rest;
    let mut head_len = None;
    if flags & HEAD_LEN != 0 {
        used += 4;
        let (len, after) = rest.split_first_chunk::<4>().ok_or_else(|| truncated(used))?;
        head_len = Some(u32::from_le_bytes(*len));
        rest = after;
    }
    let mut credit = None;
    if flags & CREDIT != 0 {
        used += 12;
        let [m0, m1, m2, m3, b @ ..] = *rest.first_chunk::<12>().ok_or_else(|| truncated(used))?;
        credit = Some(Credit { messages: u32::from_le_bytes([m0, m1, m2, m3]), bytes: u64::from_le_bytes(b) });
    }
    let conn = u32::from_le_bytes([c0, c1, c2, c3]);
    let generation = u32::from_le_bytes([g0, g1, g2, g3]);
    Ok((FrameHeader { kind, conn, generation, seq, head_len, credit, place }, used))
}

/// Reads a header that fills `bytes`, as it must on a byte stream, where no head is inline.
///
/// # Errors
/// As [`decode`], and bytes left over or an inline head.
#[inline]
pub fn decode_exact(bytes: &[u8]) -> Result<FrameHeader, HeaderError> {
    let (header, used) = decode(bytes)?;
    if header.place == HeadPlace::InHeader {
        return Err(HeaderError::FlagsOfOtherKind { kind: header.kind, flags: HEAD_INLINE });
    }
    if used != bytes.len() {
        return Err(HeaderError::Trailing { expected: 0, have: bytes.len() - used });
    }
    Ok(header)
}

/// Reads an active-message header: a frame header, and the inline head if there is one (else an empty slice).
///
/// # Errors
/// As [`decode`], and an inline head that is not as long as `head_len` says.
#[inline]
pub fn decode_with_head(bytes: &[u8]) -> Result<(FrameHeader, &[u8]), HeaderError> {
    let (header, used) = decode(bytes)?;
    let head = &bytes[used..];
    let expected = match (header.place, header.head_len) {
        (HeadPlace::InHeader, Some(len)) => len as usize,
        _ => 0,
    };
    if head.len() != expected {
        return Err(HeaderError::Trailing { expected, have: head.len() });
    }
    Ok((header, head))
}

/// The prefix of a frame on a byte stream: the payload's length in the low 56 bits, the header's in the high 8.
///
/// `header_len` is what [`FrameHeader::encode`] returned and `payload_len` is at most [`MAX_PAYLOAD`]: anything else
/// is a bug of the caller and is caught in debug builds only.
#[inline]
pub fn encode_prefix(header_len: usize, payload_len: u64) -> [u8; PREFIX] {
    debug_assert!(legal_header(header_len), "no header has {header_len} bytes");
    debug_assert!(payload_len <= MAX_PAYLOAD, "a payload of {payload_len} bytes does not fit the prefix");
    ((header_len as u64) << 56 | payload_len & MAX_PAYLOAD).to_le_bytes()
}

/// Reads a prefix: the lengths of header and payload. The payload's must still be compared with a limit.
///
/// # Errors
/// A header length other than 16, 20, 28 and 32.
#[inline]
pub fn decode_prefix(prefix: [u8; PREFIX]) -> Result<(usize, u64), HeaderError> {
    let value = u64::from_le_bytes(prefix);
    let header_len = (value >> 56) as usize;
    if !legal_header(header_len) {
        return Err(HeaderError::HeaderLength(header_len));
    }
    Ok((header_len, value & MAX_PAYLOAD))
}

const fn legal_header(len: usize) -> bool {
    matches!(len, 16 | 20 | 28 | 32)
}

#[inline]
fn place_of(kind: Kind, flags: u8) -> Result<HeadPlace, HeaderError> {
    const ABOUT_HEAD: u8 = HEAD_LEN | HEAD_INLINE | HEAD_BEFORE;
    if kind != Kind::Data && flags & ABOUT_HEAD != 0 {
        return Err(HeaderError::FlagsOfOtherKind { kind, flags: flags & ABOUT_HEAD });
    }
    match flags & (HEAD_INLINE | HEAD_BEFORE) {
        0 => Ok(HeadPlace::InPayload),
        HEAD_BEFORE => Ok(HeadPlace::Before),
        HEAD_INLINE if flags & HEAD_LEN != 0 => Ok(HeadPlace::InHeader),
        HEAD_INLINE => Err(HeaderError::InlineWithoutLength),
        _ => Err(HeaderError::TwoPlaces),
    }
}

#[inline]
fn check_kind(kind: Kind, flags: u8, seq: u32) -> Result<(), HeaderError> {
    if kind == Kind::Credit && flags & CREDIT == 0 {
        return Err(HeaderError::MissingCredit);
    }
    if seq != 0 && !matches!(kind, Kind::Data | Kind::Head | Kind::Goodbye) {
        return Err(HeaderError::UnexpectedSeq { kind, seq });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::{option, prelude::*};

    use super::*;

    const ALL: [Kind; 10] = [
        Kind::Data,
        Kind::Head,
        Kind::Prove,
        Kind::Proved,
        Kind::Ping,
        Kind::Pong,
        Kind::Credit,
        Kind::Goodbye,
        Kind::GoodbyeAck,
        Kind::Refused,
    ];

    fn encoded(header: &FrameHeader) -> Vec<u8> {
        let mut out = [0xee; MAX_HEADER];
        let len = header.encode(&mut out);
        out[..len].to_vec()
    }

    fn credit() -> impl Strategy<Value = Credit> {
        (any::<u32>(), any::<u64>()).prop_map(|(messages, bytes)| Credit { messages, bytes })
    }

    fn headers() -> impl Strategy<Value = FrameHeader> {
        let ids = (any::<u32>(), any::<u32>(), any::<u32>());
        let place = prop::sample::select(vec![HeadPlace::InPayload, HeadPlace::InHeader, HeadPlace::Before]);
        (prop::sample::select(ALL.to_vec()), ids, option::of(any::<u32>()), option::of(credit()), place).prop_map(
            |(kind, (conn, generation, seq), head_len, credit, place)| {
                let data = kind == Kind::Data;
                let seq = if matches!(kind, Kind::Data | Kind::Head | Kind::Goodbye) { seq } else { 0 };
                let credit = if kind == Kind::Credit { credit.or(Some(Credit::default())) } else { credit };
                let head_len = match place {
                    _ if !data => None,
                    HeadPlace::InHeader => head_len.or(Some(7)),
                    _ => head_len,
                };
                let place = if data { place } else { HeadPlace::InPayload };
                FrameHeader { kind, conn, generation, seq, head_len, credit, place }
            },
        )
    }

    #[test]
    fn golden_plain_data() {
        let header = FrameHeader::new(Kind::Data, 0x0403_0201, 0x0807_0605, 0x0c0b_0a09);
        let bytes = [1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        assert_eq!(encoded(&header), bytes);
        assert_eq!(decode(&bytes), Ok((header, 16)));
    }

    #[test]
    fn golden_everything() {
        let header = FrameHeader {
            head_len: Some(0x1122),
            credit: Some(Credit { messages: 5, bytes: 0x0102_0304_0506_0708 }),
            place: HeadPlace::InHeader,
            ..FrameHeader::new(Kind::Data, 1, 2, 3)
        };
        #[rustfmt::skip]
        let bytes = [
            1, 7, 0, 0,  1, 0, 0, 0,  2, 0, 0, 0,  3, 0, 0, 0,
            0x22, 0x11, 0, 0,
            5, 0, 0, 0,  8, 7, 6, 5, 4, 3, 2, 1,
        ];
        assert_eq!(encoded(&header), bytes);
        assert_eq!(decode(&bytes), Ok((header, 32)));
    }

    #[test]
    fn golden_credit() {
        let header = FrameHeader {
            credit: Some(Credit { messages: 1, bytes: 0x100 }),
            ..FrameHeader::new(Kind::Credit, 9, 1, 0)
        };
        #[rustfmt::skip]
        let bytes = [
            7, 2, 0, 0,  9, 0, 0, 0,  1, 0, 0, 0,  0, 0, 0, 0,
            1, 0, 0, 0,  0, 1, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(encoded(&header), bytes);
        assert_eq!(decode(&bytes), Ok((header, 28)));
    }

    #[test]
    fn strictness() {
        let good = [1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0];
        let with = |changes: &[(usize, u8)]| {
            let mut bytes = good.to_vec();
            bytes.resize(MAX_HEADER, 0);
            changes.iter().for_each(|&(at, value)| bytes[at] = value);
            decode(&bytes).unwrap_err()
        };
        assert_eq!(decode(&good[..15]), Err(HeaderError::Truncated { need: 16, have: 15 }));
        assert_eq!(decode(&[]), Err(HeaderError::Truncated { need: 16, have: 0 }));
        for kind in [0, 11, 16, 17, 255] {
            assert_eq!(with(&[(0, kind)]), HeaderError::UnknownKind(kind));
        }
        assert_eq!(with(&[(1, 16)]), HeaderError::UnknownFlags(16));
        assert_eq!(with(&[(2, 1)]), HeaderError::Reserved(1));
        assert_eq!(with(&[(3, 1)]), HeaderError::Reserved(256));
        assert_eq!(with(&[(1, HEAD_INLINE)]), HeaderError::InlineWithoutLength);
        assert_eq!(with(&[(1, HEAD_LEN | HEAD_INLINE | HEAD_BEFORE)]), HeaderError::TwoPlaces);
        assert_eq!(with(&[(0, 7), (12, 0)]), HeaderError::MissingCredit);
        assert_eq!(with(&[(0, 5)]), HeaderError::UnexpectedSeq { kind: Kind::Ping, seq: 3 });
        assert_eq!(
            with(&[(0, 2), (1, HEAD_LEN | CREDIT)]),
            HeaderError::FlagsOfOtherKind { kind: Kind::Head, flags: HEAD_LEN }
        );
        let mut short = good;
        short[1] = HEAD_LEN | CREDIT;
        assert_eq!(decode(&short), Err(HeaderError::Truncated { need: 20, have: 16 }));
        assert_eq!(decode(&[&short[..], &[0; 15]].concat()), Err(HeaderError::Truncated { need: 32, have: 31 }));
    }

    #[test]
    fn an_inline_head_must_be_whole() {
        let header =
            FrameHeader { head_len: Some(3), place: HeadPlace::InHeader, ..FrameHeader::new(Kind::Data, 0, 0, 0) };
        let bytes = encoded(&header);
        let with = |head: &[u8]| [&bytes[..], head].concat();
        assert_eq!(decode_with_head(&with(b"abc")), Ok((header, &b"abc"[..])));
        assert_eq!(decode_with_head(&with(b"ab")), Err(HeaderError::Trailing { expected: 3, have: 2 }));
        assert_eq!(decode_with_head(&with(b"abcd")), Err(HeaderError::Trailing { expected: 3, have: 4 }));
        assert!(matches!(decode_exact(&with(b"abc")), Err(HeaderError::FlagsOfOtherKind { .. })));
        let plain = encoded(&FrameHeader::new(Kind::Data, 0, 0, 0));
        assert_eq!(decode_exact(&[&plain[..], b"x"].concat()), Err(HeaderError::Trailing { expected: 0, have: 1 }));
        assert!(decode_exact(&plain).is_ok());
    }

    #[test]
    fn golden_prefix() {
        assert_eq!(encode_prefix(16, 0x0102), [2, 1, 0, 0, 0, 0, 0, 16]);
        assert_eq!(decode_prefix([2, 1, 0, 0, 0, 0, 0, 16]), Ok((16, 0x0102)));
        assert_eq!(decode_prefix([0xff; 8]), Err(HeaderError::HeaderLength(255)));
        for len in (0..=255).filter(|len| ![16, 20, 28, 32].contains(len)) {
            assert_eq!(decode_prefix([0, 0, 0, 0, 0, 0, 0, len]), Err(HeaderError::HeaderLength(usize::from(len))));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(header in headers(), trailing in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = encoded(&header);
            let len = bytes.len();
            prop_assert!(legal_header(len));
            bytes.extend(trailing);
            prop_assert_eq!(decode(&bytes), Ok((header, len)));
            for cut in 0..len {
                let is_truncated = matches!(decode(&bytes[..cut]), Err(HeaderError::Truncated { .. }));
                prop_assert!(is_truncated);
            }
        }

        #[test]
        fn what_is_read_is_written(mut bytes in prop::collection::vec(any::<u8>(), 0..48), likely in any::<bool>()) {
            if likely && bytes.len() >= 16 {
                bytes[0] %= 12;
                bytes[1] %= 20;
                bytes[2..4].fill(0);
                if bytes[0] > 2 { bytes[12..16].fill(0) }
            }
            if let Ok((header, used)) = decode(&bytes) {
                prop_assert_eq!(encoded(&header), &bytes[..used]);
            }
            let _ = (decode_exact(&bytes), decode_with_head(&bytes));
        }

        #[test]
        fn prefixes_round_trip(header in prop::sample::select(vec![16usize, 20, 28, 32]), payload in 0..=MAX_PAYLOAD) {
            prop_assert_eq!(decode_prefix(encode_prefix(header, payload)), Ok((header, payload)));
        }
    }
}
