//! Edge-triggered message transport over UCX, TCP, Unix sockets and memory.
//!
//! An application has **dispatchers**, threads that drive sockets and UCX, and **connections**, handles that any thread may
//! use. A connection carries [`Frame`]s in order, both ways. The [`Address`] chooses what carries them, and the rest of the
//! program does not notice.
//!
//! # A dispatcher on this thread
//!
//! [`LocalDispatcher::block_on`] drives everything on the caller's thread: no hand-over between threads, the lowest latency.
//!
//! ```
//! use ucrpc_transport::{Address, ConnectionConfig, DispatcherConfig, ListenConfig, LocalDispatcher, spawn_local};
//!
//! let local = LocalDispatcher::new(DispatcherConfig::default())?;
//! let dispatcher = local.handle();
//! local.block_on(async {
//!     let address: Address = "tcp://127.0.0.1:0".parse()?;
//!     let mut listener = dispatcher.listen(&address, ListenConfig::default())?;
//!     let bound = listener.local_address().clone();
//!     spawn_local(async move {
//!         while let Ok(mut connection) = listener.accept().await {
//!             while let Ok(frame) = connection.recv().await {
//!                 let _ = connection.send_wait(frame).await;
//!             }
//!         }
//!     })?;
//!     let mut client = dispatcher.connect(&bound, ConnectionConfig::default()).await?;
//!     client.send(&b"ping"[..])?;
//!     assert_eq!(client.recv().await?.head, "ping");
//!     client.close().await
//! })?;
//! # Ok::<(), ucrpc_transport::Error>(())
//! ```
//!
//! # Dispatchers on threads of their own
//!
//! [`Dispatcher::spawn`] starts one, [`Dispatchers::spawn`] several that share the connections. Their connections work
//! from any thread and any executor; the `_blocking` calls need none.
//!
//! ```
//! use ucrpc_transport::{Address, ConnectionConfig, DispatcherConfig, Dispatchers, Frame, ListenConfig, Placement};
//!
//! let dispatchers = Dispatchers::spawn(2, &DispatcherConfig::default(), Placement::RoundRobin)?;
//! let address: Address = "unix:///tmp/ucrpc-doc-spawn.sock".parse()?;
//! # let address: Address = format!("unix:///tmp/ucrpc-doc-spawn-{}.sock", std::process::id()).parse()?;
//! let mut listener = dispatchers.listen(&address, ListenConfig::default())?;
//! let client = dispatchers.connect(&address, ConnectionConfig::default()).blocking()?;
//! let mut server = listener.accept_blocking()?;
//! client.send(Frame::new("head", vec![1; 100_000]))?;
//! assert_eq!(server.recv_blocking()?.body.len(), 100_000);
//! dispatchers.shutdown();
//! # Ok::<(), ucrpc_transport::Error>(())
//! ```
//!
//! # The receiver decides where a body goes
//!
//! A [`Planner`] sees the head and the length of each body before its bytes move, and says where they go: into the
//! dispatcher's pool, into memory of the application, nowhere yet, or not at all ([`RecvPlan`]).
//!
//! ```
//! use std::sync::Arc;
//! use ucrpc_transport::{
//!     AlignedBuf, Address, Announcement, Body, ConnectionConfig, DispatcherConfig, Frame, ListenConfig, LocalDispatcher, RecvBuf,
//!     RecvPlan,
//! };
//!
//! let planner = |announced: &Announcement<'_>| match &announced.head[..] {
//!     b"block" => RecvPlan::Into(RecvBuf::Aligned(AlignedBuf::new(announced.body_len as usize, 4096))),
//!     b"spam" => RecvPlan::Refuse("no thanks".into()),
//!     _ => RecvPlan::Pool,
//! };
//! let receiving = ConnectionConfig { planner: Some(Arc::new(planner)), ..ConnectionConfig::default() };
//! let local = LocalDispatcher::new(DispatcherConfig::default())?;
//! let dispatcher = local.handle();
//! local.block_on(async {
//!     let address: Address = "tcp://127.0.0.1:0".parse()?;
//!     let config = ListenConfig { connection: receiving, ..ListenConfig::default() };
//!     let mut listener = dispatcher.listen(&address, config)?;
//!     let client = dispatcher.connect(listener.local_address(), ConnectionConfig::default()).await?;
//!     let mut server = listener.accept().await?;
//!     client.send(Frame::new("spam", vec![0; 65536]))?;
//!     client.send(Frame::new("block", vec![5; 65536]))?;
//!     let frame = server.recv().await?;
//!     assert_eq!(frame.head, "block");
//!     let Body::Buf(buffer) = frame.body else { panic!("it went into the planned buffer") };
//!     assert_eq!(buffer.as_slice().as_ptr() as usize % 4096, 0);
//!     Ok::<(), ucrpc_transport::Error>(())
//! })?;
//! # Ok::<(), ucrpc_transport::Error>(())
//! ```
//!
//! # Flow control
//!
//! [`Sender::send`] never waits. When the queue is full, because the peer's application does not read and its credit is used
//! up, it gives the frame back as [`SendError::Full`]; [`Sender::ready`] waits for room, [`Sender::send_wait`] does both.
//!
//! ```
//! use ucrpc_transport::{Address, ConnectionConfig, DispatcherConfig, ListenConfig, LocalDispatcher, SendError};
//!
//! let small = ConnectionConfig { send_queue_frames: 4, recv_window_frames: 4, ..ConnectionConfig::default() };
//! let local = LocalDispatcher::new(DispatcherConfig::default())?;
//! let dispatcher = local.handle();
//! local.block_on(async {
//!     let address: Address = "mem://doc-flow-control".parse()?;
//!     let config = ListenConfig { connection: small.clone(), ..ListenConfig::default() };
//!     let mut listener = dispatcher.listen(&address, config)?;
//!     let client = dispatcher.connect(&address, small).await?;
//!     let mut server = listener.accept().await?;
//!     let mut sent = 0;
//!     let back = loop {
//!         match client.send(&b"x"[..]) {
//!             Ok(()) => sent += 1,
//!             Err(SendError::Full(frame)) => break frame,
//!             Err(error) => return Err(error.into()),
//!         }
//!     };
//!     for _ in 0..sent {
//!         server.recv().await?;
//!     }
//!     client.ready().await?;
//!     client.send_wait(back).await
//! })?;
//! # Ok::<(), ucrpc_transport::Error>(())
//! ```
//!
//! # A connection as a file descriptor
//!
//! [`Sender::readiness_fd`] is for event loops that are not ours: writable exactly when the connection is open, `EPOLLERR` when
//! it has ended, and closing it closes the connection.
//!
//! ```
//! use rustix::event::{PollFd, PollFlags, poll};
//! use ucrpc_transport::{Address, ConnectionConfig, Dispatcher, DispatcherConfig, ListenConfig};
//!
//! let dispatcher = Dispatcher::spawn(DispatcherConfig::default())?;
//! let address: Address = "tcp://127.0.0.1:0".parse()?;
//! let listener = dispatcher.listen(&address, ListenConfig::default())?;
//! let client = dispatcher.connect(listener.local_address(), ConnectionConfig::default()).into_connection();
//! let fd = client.readiness_fd()?;
//! let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
//! poll(&mut fds, None)?;
//! assert_eq!(fds[0].revents(), PollFlags::OUT);
//! assert!(client.info().is_some(), "it is open");
//! dispatcher.shutdown();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What ends how
//!
//! [`Sender::close`] sends what is queued, tells the peer and waits for its answer; [`Sender::abort`] does not; dropping the last
//! handle is a graceful close that nobody waits for. Each connection has one terminal [`Error`]; [`ErrorKind`] is what a
//! program matches on. A future that is dropped loses nothing but the wait: each says so under "Cancel safety".
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
#[doc(hidden)]
pub mod small;
mod stats;
mod tcp;
#[allow(unsafe_code, reason = "the only user of ucx-sys")]
mod ucx;

pub use address::{Address, HostPort};
pub use config::{ConnectionConfig, DispatcherConfig, Keepalive, ListenConfig, WaitPolicy};
pub use connection::{Connecting, Connection, ConnectionInfo, Recv, Sender, Sent, Stall, Transport};
pub use dispatcher::{Dispatcher, Dispatchers, Placement, Sleep};
pub use driver::{LocalDispatcher, spawn_local};
pub use error::{Error, ErrorKind, FallbackReason, Result, SendError};
pub use frame::{Body, Frame, RecvBuf};
pub use listener::{Accepting, Listener};
pub use memory::{AlignedBuf, Pool, PoolBuf, PoolConfig, PoolStats, Purpose, QuotaExceeded, SizeClass};
pub use plan::{Announcement, Fetch, PendingBody, Planner, RecvPlan};
pub use stats::{ConnectionStats, DispatcherStats};
pub use ucx::inspect::{UcxLibrary, UcxReport, UcxResource, UcxSetting, ucx_report};
pub use ucx_sys::our_default as ucx_default;
