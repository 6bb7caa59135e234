//! The lock-free queues between handles and dispatchers, and the ritual by which a dispatcher sleeps.
//!
//! This is the inside of the transport; it is public for benchmarks and for those who build on the
//! same parts, and it may change more often than the rest. It does no I/O and knows no connection.
//!
//! - [`bounded`]: the queue of a connection, bounded in messages and bytes.
//! - [`ready_ring`] and [`Announce`]: which connections have something in their queues.
//! - [`WakeState`]: whether the dispatcher has to be woken.
//!
//! Together, with `conn` a connection and `dispatcher` the one that owns it:
//!
//! ```
//! # use ucrpc_transport::queue::*;
//! # let write_event_fd = || {};
//! # let (ring, mut ready) = ready_ring();
//! # let wake = WakeState::new();
//! # let (sender, mut receiver) = bounded(Limits { messages: 8, bytes: 1024 });
//! # let announce = Announce::new();
//! // A producer, on any thread: push, announce, notify, in this order.
//! sender.push("frame", 5)?;
//! if announce.announce() && ring.push("conn") && wake.notify() {
//!     write_event_fd();
//! }
//!
//! // The dispatcher: token, begin_drain, drain, in this order.
//! while let Some(conn) = ready.pop() {
//!     announce.begin_drain();
//!     while let Some(frame) = receiver.pop() {
//!         assert_eq!((conn, frame), ("conn", "frame"));
//!     }
//! }
//! wake.begin_arming();
//! if !ready.is_empty() {
//!     wake.wake_up();
//! } else if wake.commit_sleep() {
//!     // epoll_wait
//!     wake.wake_up();
//! }
//! # Ok::<(), PushError<&str>>(())
//! ```

mod list;
mod mpsc;
mod primitive;
mod ring;
mod wake;

pub use mpsc::{Limits, PushError, Receiver, Sender, bounded};
pub use ring::{Announce, ReadyRing, RingReceiver, RingSender, ready_ring};
pub use wake::WakeState;

#[cfg(test)]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
