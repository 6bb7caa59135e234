//! The receiver decides first: where a body goes, before its bytes move.

use std::{borrow::Cow, fmt};

use bytes::Bytes;

use crate::frame::RecvBuf;

/// What is known of a frame when its body is announced.
#[derive(Debug)]
#[non_exhaustive]
pub struct Announcement<'a> {
    /// The whole head.
    pub head: &'a Bytes,
    /// Bytes of the body; above zero, at most the connection's limit.
    pub body_len: u64,
}

/// Where an announced body goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum RecvPlan {
    /// Into a buffer of the dispatcher's pool (the default without a planner).
    Pool,
    /// Into this memory, which must be at least as long as the body. It comes back as [`crate::Body::Buf`].
    Into(RecvBuf),
    /// Deliver the frame now with [`crate::Body::Pending`]; the application fetches or refuses the body itself.
    /// On TCP, later frames of this connection wait for that.
    Later,
    /// Don't receive it. The body is thrown away as it comes (over rendezvous it never moves), and the frame is
    /// counted as refused and not delivered.
    Refuse(Cow<'static, str>),
}

/// Chooses a [`RecvPlan`] for every frame that has a body.
///
/// It runs on the dispatcher's thread between two messages: it must not block. A panic ends the connection.
pub trait Planner: Send + Sync + 'static {
    /// Decides about one announced body.
    fn plan(&self, announcement: &Announcement<'_>) -> RecvPlan;
}

impl<F> Planner for F
where
    F: Fn(&Announcement<'_>) -> RecvPlan + Send + Sync + 'static,
{
    fn plan(&self, announcement: &Announcement<'_>) -> RecvPlan {
        self(announcement)
    }
}

/// A body that the peer announced and that has not been fetched: see [`RecvPlan::Later`].
pub struct PendingBody {
    len: u64,
}

impl PendingBody {
    /// Bytes announced.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: an empty body is not announced.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for PendingBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingBody({} bytes)", self.len)
    }
}
