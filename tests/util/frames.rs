//! Frames whose content can be checked wherever they arrive.

use bytes::Bytes;
use ucrpc::transport::Frame;

/// A small generator of pseudo-random numbers (xorshift), so that a failure can be repeated.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }
}

/// Bytes that depend on a seed and are no repetition of a short pattern.
pub(crate) fn random_bytes(seed: u64, len: usize) -> Bytes {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; len];
    let mut chunks = bytes.chunks_exact_mut(8);
    for chunk in &mut chunks {
        chunk.copy_from_slice(&rng.next().to_le_bytes());
    }
    let rest = chunks.into_remainder();
    let last = rng.next().to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
    bytes.into()
}

/// The checksums of head and body, and their lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sum {
    head: (usize, u32),
    body: (usize, u32),
}

impl Sum {
    pub(crate) fn of(head: &[u8], body: &[u8]) -> Self {
        Self { head: (head.len(), crc32c::crc32c(head)), body: (body.len(), crc32c::crc32c(body)) }
    }

    /// The checksums of a received frame, whose body must be here.
    pub(crate) fn of_frame(frame: Frame) -> Self {
        let body = frame.body.into_bytes().expect("the body was received");
        Self::of(&frame.head, &body)
    }
}

/// The `number`-th frame of a sender: its head starts with both, everything else is random and follows from them.
pub(crate) fn numbered(sender: u32, number: u32, head: usize, body: usize) -> Frame {
    let seed = u64::from(sender) << 32 | u64::from(number);
    let mut bytes = Vec::with_capacity(head.max(8));
    bytes.extend_from_slice(&sender.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    if head > 8 {
        bytes.extend_from_slice(&random_bytes(!seed, head - 8));
    }
    Frame::new(bytes, random_bytes(seed, body))
}

/// Checks a [`numbered`] frame and returns its sender and number.
pub(crate) fn check_numbered(frame: Frame) -> (u32, u32) {
    let word = |at: usize| u32::from_le_bytes(frame.head[at..at + 4].try_into().expect("four bytes"));
    let (sender, number) = (word(0), word(4));
    let expected = numbered(sender, number, frame.head.len(), frame.body.len() as usize);
    assert_eq!(Sum::of_frame(frame), Sum::of_frame(expected), "content of frame {number} of sender {sender}");
    (sender, number)
}

/// Where something changes inside: header sizes and inlined heads (32, 992), joining on the stack (512, 2048), copies
/// (2048, 4096, 8192), direct reads (16 KiB), lookahead (32 KiB), rendezvous (32, 256 KiB), pool classes, the dispatcher's
/// scratch buffer (256 KiB), a turn's budget (1 MiB), and UCX's own segments (8, 64 KiB).
const THRESHOLDS: [usize; 18] = [
    1,
    16,
    32,
    64,
    256,
    512,
    992,
    1024,
    2048,
    4096,
    8192,
    16 << 10,
    32 << 10,
    64 << 10,
    128 << 10,
    256 << 10,
    1 << 20,
    8 << 20,
];

/// Each threshold with one byte around it, for a length and for the room that a header of 16 to 40 bytes leaves.
pub(crate) fn sizes_around(largest: usize) -> Vec<usize> {
    let near = |t: usize| [t - 1, t, t + 1, t.saturating_sub(16), t.saturating_sub(24), t.saturating_sub(40)];
    let mut sizes: Vec<_> = THRESHOLDS.into_iter().filter(|t| *t <= largest).flat_map(near).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}
