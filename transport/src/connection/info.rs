//! What is known of a connection.

use std::{fmt, net::SocketAddr};

use crate::FallbackReason;

/// What a connection really runs over.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// UCX; the text names the lanes that UCX chose, for instance `posix`, `tcp/lo` or `rc_verbs/rxe0:1`.
    Ucx(String),
    /// A TCP socket.
    Tcp,
    /// A Unix socket.
    Unix,
    /// This process's memory.
    Mem,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ucx(lanes) => write!(f, "ucx ({lanes})"),
            Self::Tcp => f.write_str("tcp"),
            Self::Unix => f.write_str("unix"),
            Self::Mem => f.write_str("mem"),
        }
    }
}

/// What keeps a connection from moving what it has: see [`Sender::stalled`](crate::Sender::stalled).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum Stall {
    /// This side's application does not take what has arrived.
    Application = 1,
    /// The peer's application does not take what was sent: there is no credit left.
    PeerApplication,
    /// This side's buffer pool has no quota left for a body that the peer announced.
    Pool,
    /// There is credit, but the socket or UCX takes nothing.
    Path,
}

impl Stall {
    pub(crate) const ALL: [Self; 4] = [Self::Application, Self::PeerApplication, Self::Pool, Self::Path];
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Application => "this side's application does not receive",
            Self::PeerApplication => "the peer's application does not receive",
            Self::Pool => "this side's buffer pool is used up",
            Self::Path => "the network takes nothing",
        })
    }
}

/// What is known of a connection once it is open.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// What it runs over.
    pub transport: Transport,
    /// Why it does not run over UCX although it could have been asked to.
    pub fallback_reason: Option<FallbackReason>,
    /// The peer's socket address, where it has one.
    pub peer: Option<SocketAddr>,
    /// This side's socket address, where it has one.
    pub local: Option<SocketAddr>,
    /// Largest frame that the peer accepts, bytes.
    pub max_message: u64,
    /// Largest head that the peer accepts, bytes.
    pub max_head: u32,
    /// Name of the foreign protocol, if the connection does not use ucrpc's own framing.
    pub framing: Option<&'static str>,
}
