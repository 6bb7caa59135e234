//! What a client of the tests' service must see, wherever the server is.

use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use ucrpc::rpc::call::{CallOptions, MethodName};
use ucrpc::rpc::client::{RawCall, RawCaller};
use ucrpc::rpc::codec::{ChecksumType, CompressType};
use ucrpc::rpc::streaming::{StreamConfig, StreamReader};
use ucrpc::rpc::wire::MessageBuf;
use ucrpc::{Channel, Code, Deadline};

use crate::echo::{EchoClient, EchoRequest, EchoResponse};

pub(crate) fn bytes_of(seed: usize, len: usize) -> Bytes {
    (0..len).map(|i| (seed.wrapping_mul(31).wrapping_add(i.wrapping_mul(7)) ^ i >> 8) as u8).collect()
}

pub(crate) fn request(payload: Bytes) -> EchoRequest {
    EchoRequest { payload, ..EchoRequest::default() }
}

/// Requests, responses and attachments of growing sizes, metadata, and every compression.
pub(crate) fn check_payloads(client: &EchoClient, transport: &str) {
    for i in 0..50 {
        let payload = bytes_of(i, i * 11);
        let attachment = bytes_of(i + 1, i * 13);
        let response = client
            .echo(request(payload.clone()))
            .attachment(attachment.clone())
            .metadata("key", "value")
            .blocking()
            .unwrap();
        assert_eq!(response.payload, payload);
        assert_eq!(response.attachment(), &attachment);
        assert_eq!(response.metadata().get("key"), Some("value"));
        let stats = response.stats();
        assert_eq!((stats.attempts, stats.retries, stats.transport), (1, 0, transport));
        assert!(stats.bytes_sent > (payload.len() + attachment.len()) as u64 && stats.bytes_received > 0);
        assert!(!stats.latency.is_zero());
    }
    let ways = [CompressType::Snappy, CompressType::Gzip, CompressType::Zlib, CompressType::Lz4];
    for (i, compress) in ways.into_iter().enumerate() {
        let payload = bytes_of(i, 10_000);
        let call = client.echo(request(payload.clone())).compress(compress).checksum(ChecksumType::Crc32c, false);
        assert_eq!(call.attachment(&b"beside"[..]).blocking().unwrap().payload, payload);
    }
}

/// Payloads and attachments around the sizes where something changes inside.
pub(crate) fn check_sizes(client: &EchoClient) {
    let around = [0_usize, 1 << 10, 8 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 5 << 20];
    for (i, middle) in around.into_iter().enumerate() {
        for len in [middle.max(1) - 1, middle, middle + 1] {
            let large = bytes_of(i, len);
            let response = client.echo(request(large.clone())).blocking().unwrap();
            assert!(response.payload == large, "payload of {len} bytes");
            let response = client.echo(request(Bytes::new())).attachment(large.clone()).blocking().unwrap();
            assert!(response.attachment() == &large, "attachment of {len} bytes");
            let pieces = vec![large.slice(..len / 3), large.slice(len / 3..)];
            let response = client.echo(request(large.clone())).attachment(pieces).blocking().unwrap();
            assert!(response.payload == large && response.attachment() == &large, "both of {len} bytes");
        }
    }
}

/// Every way in which a call fails that the server answers; its handler panics once.
pub(crate) fn check_failures(client: &EchoClient) {
    let beside = client.echo(EchoRequest { sleep_ms: 20, ..request(bytes_of(1, 9)) }).into_future();
    let failing = |code| client.echo(EchoRequest { fail_with: code, ..EchoRequest::default() }).blocking().unwrap_err();
    let status = failing(4242);
    assert_eq!((status.code(), status.message()), (Code::from_wire(4242), "as asked"));
    assert_eq!(status.stats().unwrap().attempts, 1);
    assert_eq!(failing(-1).code(), Code::EINTERNAL);
    let raw = |service: &'static str, method: &'static str, message: &[u8]| {
        let method = MethodName::from_static(service, method);
        let message = MessageBuf::copy_from_slice(message, 64);
        let mut options = Box::new(CallOptions::default());
        options.deadline = Deadline::after(Instant::now(), Duration::from_secs(20));
        let caller = client.caller();
        caller.block_on(caller.call(RawCall { method, message, options })).map(|response| response.message)
    };
    assert_eq!(raw("ucrpc.example.Nothing", "Echo", b"").unwrap_err().code(), Code::ENOSERVICE);
    assert_eq!(raw("ucrpc.example.Echo", "Nothing", b"").unwrap_err().code(), Code::ENOMETHOD);
    assert_eq!(raw("ucrpc.example.Echo", "Echo", b"\xff\xff\xff").unwrap_err().code(), Code::EREQUEST);
    assert_eq!(raw("ucrpc.example.Echo", "Echo", b"\x0a\x02hi").unwrap(), &b"\x0a\x02hi"[..]);
    assert_eq!(raw("Echo", "Echo", b"").unwrap(), Bytes::new(), "by bare name");
    assert_eq!(client.caller().block_on(beside).unwrap().payload, bytes_of(1, 9), "unharmed");
}

/// Messages both ways on one stream: one after the other, then all at once. Returns the reading half of what is still open.
pub(crate) fn check_stream(channel: &Channel, client: &EchoClient) -> StreamReader {
    let open = client.chat(request(Bytes::from_static(b"hello"))).open_stream(StreamConfig::default());
    let (response, mut stream) = channel.block_on(open).unwrap();
    assert_eq!(response.payload, &b"hello"[..]);
    // One after the other.
    for i in 0..50 {
        let got = channel.block_on(async {
            stream.send(&request(bytes_of(i, i * 7))).await.unwrap();
            stream.next().await.unwrap().unwrap()
        });
        assert_eq!(got.payload, bytes_of(i, i * 7));
    }
    // All at once, more than the window; messages of many frames among them.
    let (mut reader, mut writer) = stream.into_bytes().split();
    std::thread::scope(|scope| {
        let sending = channel.clone();
        scope.spawn(move || {
            for i in 0..300 {
                let len = if i % 100 == 99 { 3 << 20 } else { i * 100 };
                let message = request(bytes_of(i, len)).encode_to_vec();
                sending.block_on(writer.send(message)).unwrap();
            }
            writer
        });
        for i in 0..300 {
            let len = if i % 100 == 99 { 3 << 20 } else { i * 100 };
            let got = channel.block_on(reader.next()).unwrap().unwrap();
            assert!(EchoResponse::decode(got).unwrap().payload == bytes_of(i, len), "message {i}");
        }
    });
    reader
}
