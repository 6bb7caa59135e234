//! PRPC frames: no bytes make the decoder panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ucrpc_fuzz::rpc::prpc(data));
