//! brpc's RPC protocol on every ucrpc transport.
