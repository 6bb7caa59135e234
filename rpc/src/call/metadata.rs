//! Custom metadata: brpc's `user_fields`.

use bytes::Bytes;

use crate::wire::UserFields;

/// Names and values that travel with a call or a response.
///
/// For a handful of small entries: they are part of each frame's meta and looked up one after the other. Limits:
/// [`crate::wire::Limits`]. Values of brpc's C++ peers may be any bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata(Vec<(Bytes, Bytes)>);

/// An entry that is too long to send with any meta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("metadata entry of {len} bytes is longer than {}", Metadata::MAX_ENTRY)]
pub struct MetadataError {
    /// Bytes of key and value.
    pub len: usize,
}

impl Metadata {
    /// The longest entry: key and value, in bytes.
    pub const MAX_ENTRY: usize = 32 << 10;

    /// No metadata. Allocates nothing.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Sets `key` to `value`, in place of what it was.
    ///
    /// # Errors
    ///
    /// If the entry is longer than [`Self::MAX_ENTRY`]; nothing is changed then.
    pub fn insert(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<(), MetadataError> {
        let (key, value) = (key.into(), value.into());
        let len = key.len() + value.len();
        if len > Self::MAX_ENTRY {
            return Err(MetadataError { len });
        }
        match self.0.iter_mut().find(|entry| entry.0 == key) {
            Some(entry) => entry.1 = value,
            None => self.0.push((key, value)),
        }
        Ok(())
    }

    /// The value of `key`, if it is there and UTF-8.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.get_bytes(key).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The value of `key`.
    pub fn get_bytes(&self, key: &str) -> Option<&Bytes> {
        // From the wire a key may come twice: the last one counts.
        self.0.iter().rev().find(|entry| entry.0 == key.as_bytes()).map(|entry| &entry.1)
    }

    /// All entries, in the order in which they were set or came.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries as they go into a meta.
    pub fn as_user_fields(&self) -> UserFields<'_> {
        UserFields::from(self.0.as_slice())
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(key, value)| key.len() + value.len()).sum()
    }
}

impl From<UserFields<'_>> for Metadata {
    fn from(fields: UserFields<'_>) -> Self {
        if fields.is_empty() {
            return Self::new();
        }
        // One allocation for all texts. They are copied so that a handler which keeps them does not keep the whole frame.
        let mut texts = bytes::BytesMut::with_capacity(fields.iter().map(|(k, v)| k.len() + v.len()).sum());
        let mut entries = Vec::with_capacity(fields.len());
        for (key, value) in fields.iter() {
            texts.extend_from_slice(key);
            let key = texts.split().freeze();
            texts.extend_from_slice(value);
            entries.push((key, texts.split().freeze()));
        }
        Self(entries)
    }
}
