//! Memory for small frames: pieces of one chunk per thread, instead of an allocation each.
//!
//! A frame of a small message lives for microseconds, and several parts of the stack hold parts of it. Cut from a chunk that is
//! counted already, it costs neither the allocation nor the second one that the first clone of a `Bytes` of its own makes for the
//! count. A thread has a few chunks and goes round: one whose pieces are gone when its turn comes is used again.
//!
//! Whoever keeps a piece keeps its chunk: 4 KiB.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

/// Bytes of a chunk: what a piece that is kept may hold.
const CHUNK: usize = 4 << 10;
/// Larger pieces get an allocation of their own.
const SMALL: usize = 512;

/// Chunks of a thread: enough for what is under way where 64 calls are.
const CHUNKS: usize = 8;

thread_local! {
    static CHUNKS_HERE: RefCell<Chunks> = RefCell::default();
}

#[derive(Default)]
struct Chunks {
    /// What is left of each.
    rest: [BytesMut; CHUNKS],
    /// The one that pieces are cut from.
    turn: usize,
}

/// An empty buffer with room for `len` bytes.
#[inline]
#[must_use]
pub fn buffer(len: usize) -> BytesMut {
    if len > SMALL {
        return BytesMut::with_capacity(len);
    }
    // A thread that is ending has none.
    CHUNKS_HERE.try_with(|here| here.borrow_mut().cut(len)).unwrap_or_else(|_| BytesMut::with_capacity(len))
}

/// A copy of `bytes`.
#[inline]
#[must_use]
pub fn copy(bytes: &[u8]) -> Bytes {
    if bytes.is_empty() {
        return Bytes::new();
    }
    let mut copy = buffer(bytes.len());
    copy.extend_from_slice(bytes);
    copy.freeze()
}

impl Chunks {
    #[inline]
    fn cut(&mut self, len: usize) -> BytesMut {
        if self.rest[self.turn].capacity() < len {
            self.next();
        }
        let rest = &mut self.rest[self.turn];
        let after = rest.split_off(len);
        std::mem::replace(rest, after)
    }

    /// Goes on to the next chunk: the one there, if nobody has a piece of it any more.
    #[cold]
    fn next(&mut self) {
        self.turn = (self.turn + 1) % CHUNKS;
        let rest = &mut self.rest[self.turn];
        if !rest.try_reclaim(CHUNK) {
            *rest = BytesMut::with_capacity(CHUNK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_apart_and_keep_their_bytes() {
        let pieces: Vec<(usize, Bytes)> = (0..1000).map(|n| (n, copy(&vec![n as u8; n % (SMALL + 100)]))).collect();
        for (n, piece) in pieces {
            assert_eq!(piece, vec![n as u8; n % (SMALL + 100)]);
        }
    }

    #[test]
    fn a_buffer_may_outgrow_its_room() {
        let (mut first, mut second) = (buffer(8), buffer(8));
        first.extend_from_slice(&[1; 100]);
        second.extend_from_slice(&[2; 8]);
        assert_eq!((&first[..], &second[..]), (&[1; 100][..], &[2; 8][..]));
    }

    #[test]
    fn chunks_whose_pieces_are_gone_are_used_again() {
        let places = std::thread::spawn(|| {
            let place = |piece: &Bytes| piece.as_ptr() as usize / CHUNK;
            (0..10_000).map(|_| place(&copy(&[7; 100]))).collect::<std::collections::HashSet<_>>()
        });
        // They need not start at multiples of their length.
        assert!(places.join().expect("no panic").len() <= 2 * CHUNKS);
    }
}
