//! RPC over UCX (RDMA, shared memory, TCP) with a plain TCP fallback, speaking brpc's protocol.
pub use ucrpc_transport as transport;
