//! Memory for small frames: pieces of one chunk per thread, instead of an allocation each.
//!
//! A frame of a small message lives for microseconds, and several parts of the stack hold parts of it. Cut from a chunk that is
//! counted already, it costs neither the allocation nor the second one that the first clone of a `Bytes` of its own makes for the
//! count. When all pieces of a chunk are gone by the time it is used up, it is used again.
//!
//! Whoever keeps a piece keeps its chunk: at most [`CHUNK`] bytes.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

/// Bytes of a chunk: what a piece that is kept may hold.
const CHUNK: usize = 4 << 10;
/// Larger pieces get an allocation of their own.
const SMALL: usize = 512;

thread_local! {
    static REST: RefCell<BytesMut> = RefCell::default();
}

/// An empty buffer with room for `len` bytes.
#[inline]
#[must_use]
pub fn buffer(len: usize) -> BytesMut {
    if len > SMALL {
        return BytesMut::with_capacity(len);
    }
    // A thread that is ending has none.
    REST.try_with(|rest| cut(&mut rest.borrow_mut(), len)).unwrap_or_else(|_| BytesMut::with_capacity(len))
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

#[inline]
fn cut(rest: &mut BytesMut, len: usize) -> BytesMut {
    if rest.capacity() < len {
        // The same chunk, if nobody else has a piece of it.
        rest.reserve(CHUNK);
    }
    let after = rest.split_off(len);
    std::mem::replace(rest, after)
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
    fn a_chunk_whose_pieces_are_gone_is_used_again() {
        let places = std::thread::spawn(|| {
            let place = |piece: &Bytes| piece.as_ptr() as usize / CHUNK;
            (0..10_000).map(|_| place(&copy(&[7; 100]))).collect::<std::collections::HashSet<_>>()
        });
        // It need not start at a multiple of its length.
        assert!(places.join().expect("no panic").len() <= 2);
    }
}
