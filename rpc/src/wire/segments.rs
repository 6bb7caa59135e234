//! A payload in one or more pieces.

use bytes::{Bytes, BytesMut};

/// The bytes of an attachment or of a stream's message, in order, in pieces that are never copied on the way.
///
/// Received attachments have one piece. Several pieces are for sending: they arrive as one.
#[derive(Debug, Clone, Default)]
pub struct Segments(Repr);

#[derive(Debug, Clone, Default)]
enum Repr {
    #[default]
    Empty,
    One(Bytes),
    Many(Vec<Bytes>),
}

impl Segments {
    /// No bytes.
    pub const fn new() -> Self {
        Self(Repr::Empty)
    }

    /// Bytes in all pieces.
    pub fn len(&self) -> usize {
        self.pieces().iter().map(Bytes::len).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.pieces().iter().all(Bytes::is_empty)
    }

    /// The pieces.
    pub fn pieces(&self) -> &[Bytes] {
        match &self.0 {
            Repr::Empty => &[],
            Repr::One(bytes) => std::slice::from_ref(bytes),
            Repr::Many(pieces) => pieces,
        }
    }

    /// Appends a piece. An empty one changes nothing.
    pub fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.0 = match std::mem::take(&mut self.0) {
            Repr::Empty => Repr::One(piece),
            Repr::One(first) => Repr::Many(vec![first, piece]),
            Repr::Many(mut pieces) => {
                pieces.push(piece);
                Repr::Many(pieces)
            }
        };
    }

    /// All bytes as one contiguous `Bytes`: copied only if there is more than one piece.
    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Repr::Empty => Bytes::new(),
            Repr::One(bytes) => bytes,
            Repr::Many(pieces) => {
                let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
                pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
                joined.freeze()
            }
        }
    }

    /// The pieces in a vector.
    pub fn into_vec(self) -> Vec<Bytes> {
        match self.0 {
            Repr::Empty => Vec::new(),
            Repr::One(bytes) => vec![bytes],
            Repr::Many(pieces) => pieces,
        }
    }

    /// Takes the first `len` bytes off, or all if there are fewer.
    #[must_use]
    pub fn split_to(&mut self, len: usize) -> Self {
        let mut front = Self::new();
        let mut back = Self::new();
        let mut room = len;
        for mut piece in std::mem::take(self).into_vec() {
            let taken = piece.split_to(room.min(piece.len()));
            room -= taken.len();
            front.push(taken);
            back.push(piece);
        }
        *self = back;
        front
    }
}

impl From<Bytes> for Segments {
    fn from(bytes: Bytes) -> Self {
        let mut segments = Self::new();
        segments.push(bytes);
        segments
    }
}

impl From<Vec<u8>> for Segments {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&'static [u8]> for Segments {
    fn from(bytes: &'static [u8]) -> Self {
        Bytes::from_static(bytes).into()
    }
}

impl From<Vec<Bytes>> for Segments {
    fn from(pieces: Vec<Bytes>) -> Self {
        pieces.into_iter().collect()
    }
}

impl FromIterator<Bytes> for Segments {
    fn from_iter<I: IntoIterator<Item = Bytes>>(pieces: I) -> Self {
        let mut segments = Self::new();
        pieces.into_iter().for_each(|piece| segments.push(piece));
        segments
    }
}

/// Equal if the bytes are, wherever the pieces begin and end.
impl PartialEq for Segments {
    fn eq(&self, other: &Self) -> bool {
        let bytes = |segments: &'_ Self| segments.pieces().iter().flatten().copied().collect::<Vec<_>>();
        match (self.pieces(), other.pieces()) {
            ([a], [b]) => a == b,
            _ => self.len() == other.len() && bytes(self) == bytes(other),
        }
    }
}

impl Eq for Segments {}
