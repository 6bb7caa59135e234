//! What a worker tells its driver.

use std::{fmt, net::SocketAddr, ops::Deref};

use bytes::Bytes;

use super::{ConnRequest, EndpointId, Rendezvous};
use crate::{error::Error, frame::RecvBuf};

/// Headers up to this length are kept inside the event, bytes. Our own frame header is at most 32 and Curve's is 16; every
/// byte here is copied four times on an event's way.
const INLINE_HEADER: usize = 38;

/// An AM header, copied out of UCX's memory.
pub(crate) struct SmallHeader(Repr);

enum Repr {
    Inline { len: u8, bytes: [u8; INLINE_HEADER] },
    Heap(Box<[u8]>),
}

impl SmallHeader {
    #[inline]
    pub(super) fn copy_of(header: &[u8]) -> Self {
        if header.len() > INLINE_HEADER {
            return Self(Repr::Heap(header.into()));
        }
        let mut bytes = [0; INLINE_HEADER];
        bytes[..header.len()].copy_from_slice(header);
        Self(Repr::Inline { len: header.len() as u8, bytes })
    }
}

impl Deref for SmallHeader {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Heap(bytes) => bytes,
        }
    }
}

impl fmt::Debug for SmallHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SmallHeader").field(&&**self).finish()
    }
}

/// One thing that happened on a worker.
#[derive(Debug)]
pub(crate) enum Event {
    /// A whole message.
    Message {
        /// Its header, at most [`super::MAX_AM_HEADER`] bytes.
        header: SmallHeader,
        /// Its payload: a copy, or UCX's own memory.
        data: Bytes,
        /// Who sent it: known for endpoints made with UCX's connection manager, and only if the endpoint is still ours.
        from: Option<EndpointId>,
    },
    /// A message whose payload waits at the peer.
    Announced {
        /// As in `Message`.
        header: SmallHeader,
        /// The payload to fetch or refuse.
        rndv: Rendezvous,
        /// As in `Message`.
        from: Option<EndpointId>,
    },
    /// The end of a send that was [`super::Sent::Pending`].
    SendDone {
        /// The caller's token.
        token: u64,
        /// How it went. Success means that the payload may be reused, not that the peer's application has it.
        result: Result<(), Error>,
    },
    /// The end of a fetch.
    FetchDone {
        /// The caller's token.
        token: u64,
        /// The target, back. Its content is arbitrary after an error.
        buf: RecvBuf,
        /// How it went.
        result: Result<(), Error>,
    },
    /// The endpoint is broken. It stays open (and its id valid) until it is closed.
    EndpointFailed {
        /// Which.
        ep: EndpointId,
        /// Why.
        error: Error,
    },
    /// A client wants to connect through UCX's connection manager.
    ConnRequest {
        /// The listener's index.
        listener: usize,
        /// To accept or reject; dropping it rejects.
        request: ConnRequest,
        /// Where the client says it is, if UCX can tell.
        client_addr: Option<SocketAddr>,
    },
}
