//! Decompression: no bytes make it panic or exceed its limit.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ucrpc_fuzz::rpc::decompress(data));
