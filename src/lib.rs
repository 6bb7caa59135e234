//! Messages over UCX (RDMA, shared memory, TCP) with a plain TCP fallback; on it, later, brpc's RPC.
//!
//! This package only brings the others together. What exists today is the [`transport`]: start with
//! [`transport::LocalDispatcher`] or [`transport::Dispatcher`], and with the guide in [`transport`] itself.
//! The RPC layer's channel and server are planned.
//!
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub use ucrpc_transport as transport;
