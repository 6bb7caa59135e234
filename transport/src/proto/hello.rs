//! The negotiation messages that two sides exchange over a byte stream before the first frame.
//!
//! ```text
//! 4 magic "UCRP" | u8 major | u8 type | u16 minor | u32 length of the fields
//! fields: u16 type | u16 length | value        (all little-endian)
//! ```
//!
//! A field that a receiver doesn't know is skipped, unless its type has the bit [`REQUIRED_FIELD`]: then the message
//! can't be understood without it and the receiver must reject. A field type occurs at most once. A receiver takes
//! messages of its own major version and any minor version.

mod codec;

pub use codec::{decode, encode};

use super::header::Credit;

/// The first bytes of every negotiation message, and so of every native connection.
pub const MAGIC: [u8; 4] = *b"UCRP";

/// The major version that we speak.
pub const MAJOR: u8 = 1;

/// The minor version that we speak: it grows with optional fields.
pub const MINOR: u16 = 0;

/// Bytes before the fields.
pub const ENVELOPE: usize = 12;

/// The longest fields of one message together, in bytes: a worker address and four texts fit with room to spare.
pub const MAX_FIELDS_LEN: usize = 8192;

/// The most fields in one message; we write at most 12.
pub const MAX_FIELDS: usize = 64;

/// The longest UCX worker address, in bytes. With a dozen devices it stays below 2 KiB.
pub const MAX_WORKER_ADDRESS: usize = 4096;

/// The longest text, in bytes. Longer ones are cut when they are written.
pub const MAX_TEXT: usize = 512;

/// The bit of a field type that forbids to skip the field.
pub const REQUIRED_FIELD: u16 = 0x8000;

/// Which transport a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Want {
    /// UCX if it can be had, else TCP.
    #[default]
    Auto,
    /// TCP.
    Tcp,
    /// UCX or nothing.
    Ucx,
}

/// Which transport a server chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// The byte stream that the negotiation went over.
    Tcp,
    /// UCX, once both sides have proved the path.
    Ucx,
}

/// What a side must know of the other's UCX before it makes an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UcxInfo {
    /// The library's major, minor and patch version.
    pub version: (u16, u16, u16),
    /// A hash of the settings that must be equal on both sides.
    pub fingerprint: u64,
    /// Those settings, printed. At most [`MAX_TEXT`] bytes go over the wire.
    pub settings: String,
    /// The packed worker address: 1 to [`MAX_WORKER_ADDRESS`] bytes.
    pub worker_address: Vec<u8>,
}

impl UcxInfo {
    /// Whether the worker address can be sent.
    pub fn fits(&self) -> bool {
        (1..=MAX_WORKER_ADDRESS).contains(&self.worker_address.len())
    }
}

/// The client's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The transport it asks for.
    pub want: Want,
    /// Features that the server must have.
    pub required_features: u64,
    /// Features that the client has.
    pub supported_features: u64,
    /// Random per process: another one under the same address is a restarted peer.
    pub process_id: [u8; 16],
    /// The client's id of the connection, for the headers that are sent to it.
    pub conn: u32,
    /// The generation of that id.
    pub generation: u32,
    /// The longest head and body together that the client receives, in bytes.
    pub max_message: u64,
    /// The longest head that the client receives, in bytes.
    pub max_head: u32,
    /// What the server may send before credit comes back.
    pub credit: Credit,
    /// The client's UCX.
    pub ucx: Option<UcxInfo>,
    /// Why it has none: a code of [`super::negotiate`] and a text. Not sent beside `ucx`.
    pub no_ucx_reason: Option<(u16, String)>,
    /// Milliseconds of silence after which the client asks whether the server is alive; 0: never.
    pub keepalive_ms: u32,
    /// The least number that the client can use for its UCX endpoint, if it could not use an earlier one.
    pub least_endpoint: Option<u16>,
}

/// The server takes the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The transport it chose.
    pub transport: Transport,
    /// Why it is TCP although the client would have taken UCX. Not sent with [`Transport::Ucx`].
    pub fallback: Option<(u16, String)>,
    /// The server's UCX. Always there with [`Transport::Ucx`].
    pub ucx: Option<UcxInfo>,
    /// Features that the client must have.
    pub required_features: u64,
    /// Features that the server has.
    pub supported_features: u64,
    /// Random per process.
    pub process_id: [u8; 16],
    /// The server's id of the connection, for the headers that are sent to it.
    pub conn: u32,
    /// The generation of that id.
    pub generation: u32,
    /// The longest head and body together that the server receives, in bytes.
    pub max_message: u64,
    /// The longest head that the server receives, in bytes.
    pub max_head: u32,
    /// What the client may send before credit comes back.
    pub credit: Credit,
    /// Milliseconds of silence after which the server asks whether the client is alive; 0: never.
    pub keepalive_ms: u32,
    /// The number of the server's UCX endpoint among those between the two workers: the client uses its own of that
    /// number. Not sent with [`Transport::Tcp`].
    pub endpoint: Option<u16>,
}

/// The server does not take the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// A [`super::negotiate::RejectCode`].
    pub code: u16,
    /// Why, for people.
    pub text: String,
}

/// The UCX path carries messages: the connection is open on UCX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready;

/// The UCX path could not be proved: the connection goes on as TCP on the same socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// A code of [`super::negotiate`].
    pub code: u16,
    /// What happened.
    pub text: String,
}

/// The sender gives up the negotiation and closes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nak {
    /// Why, for people.
    pub text: String,
}

/// A negotiation message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Type 1.
    ClientHello(ClientHello),
    /// Type 2.
    Accept(Accept),
    /// Type 3.
    Reject(Reject),
    /// Type 4.
    Ready(Ready),
    /// Type 5.
    Fallback(Fallback),
    /// Type 6.
    Nak(Nak),
    /// Type 7: on the socket beside an open UCX connection, while the UCX path is busy with large transfers. Asks for
    /// [`Message::Pong`] with the same number.
    Ping(u64),
    /// Type 8.
    Pong(u64),
}

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The message is not complete: at least this many bytes from its start, more than were given, are needed.
    /// Never more than [`ENVELOPE`] + [`MAX_FIELDS_LEN`].
    NeedMore(usize),
    /// A message, and how many bytes it took.
    Message(Message, usize),
}

/// Why bytes are no negotiation message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// It doesn't start with [`MAGIC`].
    #[error("not a ucrpc hello")]
    Magic,
    /// A major version that we don't speak.
    #[error("peer speaks version {0} of the hello, this side speaks {MAJOR}")]
    Major(u8),
    /// A message type that we don't know.
    #[error("unknown hello message type {0}")]
    MessageType(u8),
    /// The fields are longer than [`MAX_FIELDS_LEN`].
    #[error("hello of {0} bytes exceeds the limit of {MAX_FIELDS_LEN}")]
    TooLong(u32),
    /// More than [`MAX_FIELDS`] fields.
    #[error("hello has more than {MAX_FIELDS} fields")]
    TooManyFields,
    /// The last field reaches beyond the message.
    #[error("hello ends inside a field")]
    Truncated,
    /// A field that we don't know and must not skip.
    #[error("hello has required field {0:#06x}, which this side does not know")]
    RequiredField(u16),
    /// A field type that occurs twice.
    #[error("hello field {0} occurs twice")]
    Duplicate(u16),
    /// A field that must be there is not.
    #[error("hello field {0} is missing")]
    Missing(u16),
    /// A field of a length that its type can't have.
    #[error("hello field {field} of {len} bytes has a wrong length")]
    FieldLength {
        /// The field's type.
        field: u16,
        /// Its length in bytes.
        len: usize,
    },
    /// A value that the field can't have.
    #[error("hello field {field} has unknown value {value}")]
    Value {
        /// The field's type.
        field: u16,
        /// The value.
        value: u8,
    },
    /// A text that is not UTF-8.
    #[error("hello field {0} is not valid utf-8")]
    NotUtf8(u16),
    /// Two fields that exclude each other.
    #[error("hello fields {0} and {1} contradict each other")]
    Contradiction(u16, u16),
}

#[cfg(test)]
mod tests;
