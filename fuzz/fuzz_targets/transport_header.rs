//! Frame headers, stream prefixes and control payloads: no bytes make them panic, and what is read can be written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ucrpc_transport::proto::{control, header};

fuzz_target!(|bytes: &[u8]| {
    if let Ok((read, used)) = header::decode(bytes) {
        let mut out = [0; header::MAX_HEADER];
        let len = read.encode(&mut out);
        assert_eq!(out[..len], bytes[..used]);
    }
    if let Ok((read, head)) = header::decode_with_head(bytes) {
        assert_eq!(header::decode_exact(bytes).is_ok(), read.place != header::HeadPlace::InHeader);
        assert!(head.is_empty() || read.head_len == Some(head.len() as u32));
    }
    if let Some(prefix) = bytes.first_chunk()
        && let Ok((header_len, payload_len)) = header::decode_prefix(*prefix)
    {
        assert_eq!(header::encode_prefix(header_len, payload_len), *prefix);
    }
    if let Ok(id) = control::decode_ping(bytes) {
        assert_eq!(control::encode_ping(id), bytes);
    }
    if let Ok((seq, text)) = control::decode_refused(bytes) {
        assert_eq!(control::encode_refused(seq, text), bytes);
    }
});
