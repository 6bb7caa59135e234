//! RPC and stream metas: no bytes make the decoders panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ucrpc_fuzz::rpc::meta(data));
