//! The UCX room: one context per process, workers, endpoints, active messages, rendezvous. The only user of `ucx-sys`.
//!
//! Rules that everything in here keeps:
//! - UCX calls back inside `ucp_worker_progress`, but also inside `ucp_ep_close_nbx` and `ucp_am_send_nbx`. Callbacks only
//!   push to the worker's event queue, and nothing is borrowed while a UCX call is on the stack.
//! - Callbacks are `extern "C"`, so a panic in one aborts the process with a message and never unwinds into C.
//! - What UCX may touch (header, payload, target buffer) belongs to an [`op::Op`] from the call until its completion was
//!   taken from the event queue. There is no cancel: only closing the endpoint ends an operation early.
//! - Memory that UCX lent us (descriptors) goes back on the worker's thread, whoever drops it: see [`returns`].
//! - UCX trusts its peers. Whoever can reach its sockets or segments can crash the process; our negotiation decides who
//!   learns a worker address, and [`address`] checks the addresses that we are given.

mod address;
mod am;
mod callback;
mod cm;
mod context;
mod doubt;
mod endpoint;
mod event;
mod ids;
pub(crate) mod inspect;
mod memlock;
mod op;
mod ports;
mod returns;
mod sockets;
mod status;
#[cfg(test)]
mod tests;
mod worker;

pub(crate) use cm::{CmListener, ConnRequest};
pub(crate) use context::Context;
pub(crate) use doubt::{Doubt, Verdict, over_memory};
pub(crate) use event::Event;
pub(crate) use ids::{EndpointId, WorkerId};
pub(crate) use op::{Mode, Payload, Sent};
pub(crate) use returns::Rendezvous;
pub(crate) use worker::{Armed, OnlyClosing, Worker, parked_workers};

/// Largest AM header that is sent or accepted, bytes. UCX's own limit depends on the lanes (8.1 KiB here), is not checked
/// by it, and is fatal when a rendezvous announcement exceeds it.
pub(crate) const MAX_AM_HEADER: usize = 1024;
