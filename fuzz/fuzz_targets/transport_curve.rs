//! Curve's message headers and handshakes: no bytes make them panic, and what is read can be written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ucrpc_transport::proto::curve::{self, Command, Features, Header};

fuzz_target!(|bytes: &[u8]| {
    let (header, payload) = bytes.split_at(bytes.len().min(curve::HEADER));
    let Ok(read) = Header::decode(header) else { return };
    let again = read.encode();
    // All but the reserved field.
    assert_eq!((&again[..6], &again[8..]), (&header[..6], &header[8..]));
    let Ok(start) = read.content(payload.len()) else { return assert!(usize::from(read.pad) > payload.len()) };
    if matches!(read.command, Command::Hello | Command::HelloReply)
        && let Ok(features) = Features::decode(&payload[start..])
    {
        assert_eq!(features.encode(), payload[start..]);
        assert_eq!(features.agree(&Features::OURS).is_ok(), Features::OURS.agree(&features).is_ok());
    }
});
