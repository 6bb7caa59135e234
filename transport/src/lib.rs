//! Edge-triggered message transport over UCX, TCP, Unix sockets and memory.
#![deny(unsafe_code)]

mod error;
mod frame;
pub mod framing;
mod memory;
mod plan;
mod ucx;

pub use error::{Error, ErrorKind, FallbackReason, Result, SendError};
pub use frame::{Body, Frame, RecvBuf};
pub use memory::{AlignedBuf, Pool, PoolBuf, PoolConfig, PoolStats, Purpose, QuotaExceeded, SizeClass};
pub use plan::{Announcement, PendingBody, Planner, RecvPlan};
