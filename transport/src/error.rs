//! What can go wrong, as values that a program can match on and a person can read.

use std::{borrow::Cow, io, time::Duration};

/// Why an operation or a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The peer's machine answered, and nobody listens there or the peer said no.
    Refused,
    /// No route, name, device or lane leads to the peer.
    Unreachable,
    /// The peer ended or crashed: its sockets were reset or closed without a goodbye.
    Reset,
    /// A deadline passed: connect, keepalive, close or a caller's own.
    TimedOut,
    /// The peer sent something that the protocol does not allow; only its connection ends.
    Protocol,
    /// The peer speaks a version or needs a feature that we don't have.
    Version,
    /// A limit of this side or of the peer would be exceeded.
    Limit,
    /// The peer closed the connection in an orderly way.
    PeerClosed,
    /// This side closed the connection.
    Closed,
    /// The address or the configuration can't be used.
    Invalid,
    /// UCX was demanded (`ucx://`) and can't be had; the text says why.
    NoUcx,
    /// The dispatcher has stopped.
    Stopped,
    /// The operating system refused: descriptors, memory, permissions.
    System,
}

impl ErrorKind {
    /// Whether one of the sides has closed the connection, and nothing has failed.
    pub(crate) fn is_orderly(self) -> bool {
        matches!(self, Self::Closed | Self::PeerClosed)
    }

    /// A short lower-case phrase.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset by peer",
            Self::TimedOut => "timed out",
            Self::Protocol => "protocol violation",
            Self::Version => "incompatible version",
            Self::Limit => "limit exceeded",
            Self::PeerClosed => "closed by peer",
            Self::Closed => "closed",
            Self::Invalid => "invalid argument",
            Self::NoUcx => "ucx not available",
            Self::Stopped => "dispatcher stopped",
            Self::System => "system error",
        }
    }
}

/// An error with its kind, a text, and the code it came from, if any.
///
/// It is cheap to clone and compare, because one terminal error of a connection goes to everyone who waits on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {text}", kind.as_str())]
pub struct Error {
    kind: ErrorKind,
    text: Cow<'static, str>,
    os: Option<i32>,
    ucx: Option<i8>,
}

impl Error {
    /// An error of `kind`, with a text that says what happened and, where it can, what to do.
    pub fn new(kind: ErrorKind, text: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, text: text.into(), os: None, ucx: None }
    }

    /// Wraps what the operating system said about `doing`.
    #[cold]
    pub fn from_io(doing: &str, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => ErrorKind::Refused,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::AddrNotAvailable => ErrorKind::Unreachable,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::NotConnected => ErrorKind::Reset,
            io::ErrorKind::TimedOut => ErrorKind::TimedOut,
            io::ErrorKind::InvalidInput => ErrorKind::Invalid,
            _ => ErrorKind::System,
        };
        Self { kind, text: format!("{doing}: {error}").into(), os: error.raw_os_error(), ucx: None }
    }

    /// Adds the UCX status that caused it.
    #[must_use]
    pub fn with_ucx(mut self, status: i8) -> Self {
        self.ucx = Some(status);
        self
    }

    /// What a program matches on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The text without the kind.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The `errno` behind it.
    pub fn os_error(&self) -> Option<i32> {
        self.os
    }

    /// The `ucs_status_t` behind it.
    pub fn ucx_status(&self) -> Option<i8> {
        self.ucx
    }

    #[cold]
    pub(crate) fn timed_out(what: &str, after: Duration) -> Self {
        Self::new(ErrorKind::TimedOut, format!("{what} took longer than {} ms", after.as_millis()))
    }
}

/// The result of a transport operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why [`Sender::send`](crate::Sender::send) did not take a frame. The frame comes back.
#[derive(thiserror::Error)]
pub enum SendError {
    /// The send queue is full: wait for `ready()` and try again.
    #[error("send queue is full")]
    Full(crate::Frame),
    /// The connection has ended, for this reason.
    #[error("{1}")]
    Closed(crate::Frame, #[source] Error),
    /// The frame can never be sent on this connection: it is larger than the agreed limit.
    #[error("{1}")]
    TooLarge(crate::Frame, #[source] Error),
    /// The frame's body is [`crate::Body::Pending`]: it is still at the peer that announced it.
    #[error("{1}")]
    Invalid(crate::Frame, #[source] Error),
}

impl SendError {
    /// Gives the frame back.
    pub fn into_frame(self) -> crate::Frame {
        match self {
            Self::Full(frame) | Self::Closed(frame, _) | Self::TooLarge(frame, _) | Self::Invalid(frame, _) => frame,
        }
    }
}

/// The error without the frame, for `?` where the frame need not come back.
impl From<SendError> for Error {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Full(_) => Self::new(ErrorKind::Limit, "the send queue is full: wait with ready()"),
            SendError::Closed(_, error) | SendError::TooLarge(_, error) | SendError::Invalid(_, error) => error,
        }
    }
}

impl std::fmt::Debug for SendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full(frame) => f.debug_tuple("Full").field(frame).finish(),
            Self::Closed(frame, error) => f.debug_tuple("Closed").field(frame).field(error).finish(),
            Self::TooLarge(frame, error) => f.debug_tuple("TooLarge").field(frame).field(error).finish(),
            Self::Invalid(frame, error) => f.debug_tuple("Invalid").field(frame).field(error).finish(),
        }
    }
}

/// Why a connection that could have used UCX goes over TCP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FallbackReason {
    /// UCX is switched off here (`UCRPC_UCX_LIBRARY=none`, `UCRPC_TRANSPORT=tcp` or the dispatcher's configuration).
    #[error("ucx is switched off on this side ({0})")]
    Disabled(Cow<'static, str>),
    /// The UCX library can't be loaded or started here.
    #[error("no ucx library on this side: {0}")]
    NoLibrary(Cow<'static, str>),
    /// The peer has no UCX, or its policy forbids it.
    #[error("the peer has no ucx: {0}")]
    PeerHasNone(Cow<'static, str>),
    /// The two UCX versions are not known to work together.
    #[error("ucx versions differ: {ours} here, {theirs} there")]
    VersionMismatch {
        /// Our `major.minor.patch`.
        ours: String,
        /// The peer's `major.minor.patch`.
        theirs: String,
    },
    /// Settings that must agree do not (shared-memory segment sizes, error handling).
    #[error("ucx settings differ: {ours} here, {theirs} there")]
    SettingsMismatch {
        /// Our settings, printed.
        ours: String,
        /// The peer's settings, printed.
        theirs: String,
    },
    /// UCX found no lane to the peer.
    #[error("ucx can't reach the peer: {0}")]
    Unreachable(Cow<'static, str>),
    /// The proof messages did not arrive in time.
    #[error("ucx did not answer within {0} ms")]
    ProofTimedOut(u64),
    /// UCX reported an error while connecting.
    #[error("ucx failed while connecting: {0}")]
    Failed(Cow<'static, str>),
}
