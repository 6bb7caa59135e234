//! Edge-triggered message transport over UCX, TCP, Unix sockets and memory.
#![deny(unsafe_code)]

mod error;
mod frame;
pub mod framing;
mod memory;
mod plan;
#[doc(hidden)]
pub mod proto;
#[allow(unsafe_code, reason = "lock-free nodes; `queue/list.rs` holds all of it")]
#[doc(hidden)]
pub mod queue;

pub use error::{Error, ErrorKind, FallbackReason, Result, SendError};
pub use frame::{Body, Frame, RecvBuf};
pub use memory::{AlignedBuf, Pool, PoolBuf, PoolConfig, PoolStats, Purpose, QuotaExceeded, SizeClass};
pub use plan::{Announcement, PendingBody, Planner, RecvPlan};
