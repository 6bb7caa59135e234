//! Edge-triggered message transport over UCX, TCP, Unix sockets and memory.
#![deny(unsafe_code)]

mod address;
mod backend;
pub mod config;
mod connection;
mod dispatcher;
mod driver;
mod error;
mod event;
mod frame;
pub mod framing;
mod listener;
mod memory;
mod plan;
#[doc(hidden)]
pub mod proto;
#[allow(unsafe_code, reason = "lock-free nodes; `queue/list.rs` holds all of it")]
#[doc(hidden)]
pub mod queue;
mod resolve;
mod stats;
mod tcp;
#[allow(unsafe_code, reason = "the only user of ucx-sys")]
mod ucx;

pub use address::{Address, HostPort};
pub use config::{ConnectionConfig, DispatcherConfig, Keepalive, ListenConfig, WaitPolicy};
pub use connection::{Connecting, Connection, ConnectionInfo, Recv, Sender, Sent, Transport};
pub use dispatcher::{Dispatcher, Dispatchers, Placement, Sleep};
pub use driver::{LocalDispatcher, spawn_local};
pub use error::{Error, ErrorKind, FallbackReason, Result, SendError};
pub use frame::{Body, Frame, RecvBuf};
pub use listener::{Accepting, Listener};
pub use memory::{AlignedBuf, Pool, PoolBuf, PoolConfig, PoolStats, Purpose, QuotaExceeded, SizeClass};
pub use plan::{Announcement, Fetch, PendingBody, Planner, RecvPlan};
pub use stats::{ConnectionStats, DispatcherStats};
