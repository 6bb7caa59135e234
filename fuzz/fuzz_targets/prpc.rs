#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ucrpc_fuzz::rpc::prpc(data));
