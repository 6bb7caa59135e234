//! The protobuf encoding as far as the metas need it: reading from a slice, writing into one from its end.

use super::MetaError;

pub(super) const VARINT: u8 = 0;
const FIXED64: u8 = 1;
pub(super) const LEN: u8 = 2;
const START_GROUP: u8 = 3;
const END_GROUP: u8 = 4;
const FIXED32: u8 = 5;

/// Groups inside groups that an unknown field may have. protobuf's own decoders stop at 100.
const MAX_GROUP_DEPTH: usize = 32;

/// The longest varint.
const MAX_VARINT_LEN: usize = 10;

/// One field of a message: its number and what the wire says of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) wire_type: u8,
}

/// Reads a message field by field.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field, or `None` at the end of the message.
    pub(super) fn field(&mut self) -> Result<Option<Field>, MetaError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let wire_type = (tag & 7) as u8;
        match u32::try_from(tag >> 3) {
            Ok(number) if (1..1 << 29).contains(&number) && wire_type <= FIXED32 => {
                Ok(Some(Field { number, wire_type }))
            }
            _ => Err(MetaError::Tag { tag }),
        }
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, MetaError> {
        match self.rest {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, MetaError> {
        let mut value = 0_u64;
        for (at, &byte) in self.rest.iter().take(MAX_VARINT_LEN).enumerate() {
            if at == MAX_VARINT_LEN - 1 && byte > 1 {
                return Err(MetaError::Varint);
            }
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < MAX_VARINT_LEN { MetaError::Truncated } else { MetaError::Varint })
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], MetaError> {
        let len = self.varint()?;
        match usize::try_from(len).ok().and_then(|len| self.rest.split_at_checked(len)) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err(MetaError::Truncated),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The value of `field` as a number.
    pub(super) fn number(&mut self, field: Field) -> Result<u64, MetaError> {
        field.expect(VARINT)?;
        self.varint()
    }

    /// The value of `field` as bytes.
    pub(super) fn slice(&mut self, field: Field) -> Result<&'a [u8], MetaError> {
        field.expect(LEN)?;
        self.bytes()
    }

    /// The value of `field` as text.
    pub(super) fn text(&mut self, field: Field) -> Result<&'a str, MetaError> {
        std::str::from_utf8(self.slice(field)?).map_err(|_| MetaError::NotUtf8 { field: field.number })
    }

    /// Leaves out the value of a field that is not known here.
    pub(super) fn skip(&mut self, field: Field) -> Result<(), MetaError> {
        let mut open = [0_u32; MAX_GROUP_DEPTH];
        let mut depth = 0;
        let mut field = field;
        loop {
            match field.wire_type {
                VARINT => drop(self.varint()?),
                FIXED64 => self.advance(8)?,
                LEN => drop(self.bytes()?),
                START_GROUP => {
                    *open.get_mut(depth).ok_or(MetaError::Group)? = field.number;
                    depth += 1;
                }
                END_GROUP => {
                    depth = depth.checked_sub(1).ok_or(MetaError::Group)?;
                    if open[depth] != field.number {
                        return Err(MetaError::Group);
                    }
                }
                _ => self.advance(4)?,
            }
            if depth == 0 {
                return Ok(());
            }
            field = self.field()?.ok_or(MetaError::Group)?;
        }
    }

    fn advance(&mut self, len: usize) -> Result<(), MetaError> {
        self.rest = self.rest.get(len..).ok_or(MetaError::Truncated)?;
        Ok(())
    }
}

impl Field {
    pub(super) fn expect(self, wire_type: u8) -> Result<(), MetaError> {
        if self.wire_type == wire_type {
            Ok(())
        } else {
            Err(MetaError::WireType { field: self.number, wire_type: self.wire_type })
        }
    }
}

/// Notes which fields were there, to find duplicates. Fields of the metas have numbers up to 31.
#[derive(Debug, Default)]
pub(super) struct Seen(u32);

impl Seen {
    pub(super) fn once(&mut self, field: Field) -> Result<(), MetaError> {
        let bit = 1_u32.checked_shl(field.number).unwrap_or(0);
        if self.0 & bit != 0 {
            return Err(MetaError::Duplicate { field: field.number });
        }
        self.0 |= bit;
        Ok(())
    }

    /// Errs if the field `number`, called `name`, was not there.
    pub(super) fn require(&self, number: u32, name: &'static str) -> Result<(), MetaError> {
        if self.0 & (1 << number) != 0 { Ok(()) } else { Err(MetaError::Missing { field: name }) }
    }
}

/// Where fields are written to, **the last one first**: when a length is due, what it counts is there already, and one pass does.
/// The bytes come out in the order of the wire.
pub(super) trait Sink {
    fn put(&mut self, bytes: &[u8]);

    fn varint(&mut self, value: u64);

    /// Bytes so far.
    fn len(&self) -> usize;

    fn number(&mut self, field: u32, value: u64) {
        self.varint(value);
        self.varint(u64::from(field << 3 | u32::from(VARINT)));
    }

    fn bytes(&mut self, field: u32, value: &[u8]) {
        self.put(value);
        self.len_prefix(field, value.len());
    }

    /// A message inside the message.
    fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        let before = self.len();
        write(self);
        self.len_prefix(field, self.len() - before);
    }

    fn len_prefix(&mut self, field: u32, len: usize) {
        self.varint(len as u64);
        self.varint(u64::from(field << 3 | u32::from(LEN)));
    }
}

/// Counts bytes.
#[derive(Debug, Default)]
pub(super) struct Count(pub(super) usize);

/// Seven bits a byte, at least one.
#[inline]
fn varint_len(value: u64) -> usize {
    (u64::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

impl Sink for Count {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    fn varint(&mut self, value: u64) {
        self.0 += varint_len(value);
    }

    fn len(&self) -> usize {
        self.0
    }
}

/// Writes bytes to the end of a slice, towards its beginning. What finds no room is counted.
#[derive(Debug)]
pub(super) struct Back<'a> {
    room: &'a mut [u8],
    len: usize,
}

impl<'a> Back<'a> {
    pub(super) fn new(room: &'a mut [u8]) -> Self {
        Self { room, len: 0 }
    }

    /// The next `len` bytes towards the beginning, if they are there.
    #[inline]
    fn take(&mut self, len: usize) -> Option<&mut [u8]> {
        let end = self.room.len().checked_sub(self.len);
        self.len += len;
        self.room.get_mut(..end?)?.split_at_mut_checked(end?.checked_sub(len)?).map(|(_, taken)| taken)
    }
}

impl Sink for Back<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        if let Some(room) = self.take(bytes.len()) {
            room.copy_from_slice(bytes);
        }
    }

    #[inline]
    fn varint(&mut self, mut value: u64) {
        if value < 0x80 {
            if let Some([byte]) = self.take(1) {
                *byte = value as u8;
            }
            return;
        }
        if let Some([rest @ .., last]) = self.take(varint_len(value)) {
            for byte in rest {
                *byte = value as u8 | 0x80;
                value >>= 7;
            }
            *last = value as u8;
        }
    }

    fn len(&self) -> usize {
        self.len
    }
}

/// A signed number as varints carry it: negative ones sign-extended to 64 bits.
pub(super) fn signed(value: impl Into<i64>) -> u64 {
    value.into() as u64
}
