//! Calls with one request and one response.

use std::time::Duration;

use bytes::Bytes;
use ucrpc::rpc::client::RawCaller;
use ucrpc::rpc::codec::{ChecksumType, CompressType};
use ucrpc::{Code, ConnectionType, Server};

use crate::bed::{Bed, Case};
use crate::echo::{EchoClient, EchoRequest, EchoServer, Seen, Service, Way};

pub const CASES: &[Case] = &[("unary", unary), ("concurrent", concurrent), ("sizes", sizes), ("failures", failures)];

pub fn bytes_of(seed: usize, len: usize) -> Bytes {
    (0..len).map(|i| (seed.wrapping_mul(31).wrapping_add(i.wrapping_mul(7)) ^ i >> 8) as u8).collect()
}

pub fn request(payload: Bytes) -> EchoRequest {
    EchoRequest { payload, ..EchoRequest::default() }
}

const CONNECTIONS: [ConnectionType; 3] =
    [ConnectionType::Shared(1), ConnectionType::Shared(3), ConnectionType::Pooled(3)];

/// Runs `check` with each kind of connection and each way that handlers run.
fn everywhere(bed: &Bed, check: impl Fn(&EchoClient, &Server)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    for way in [Way::Inline, Way::Local, Way::Tokio] {
        let (service, seen) = Service::new(way);
        let mut server = Server::builder().service(EchoServer::new(service));
        if way == Way::Tokio {
            server = server.handlers_on(runtime.handle().clone());
        }
        let server = bed.serve(server);
        for connections in CONNECTIONS {
            let channel = bed.channel(&server).connections(connections).connect_lazy().unwrap();
            let client = EchoClient::new(channel.clone());
            check(&client, &server);
            assert!(channel.transports().iter().all(|t| *t == bed.backend.transport), "{:?}", channel.transports());
            assert_eq!((channel.stats().in_flight, channel.stats().stray_responses), (0, 0));
        }
        assert_eq!(Seen::get(&seen.started), Seen::get(&seen.ended) + Seen::get(&seen.dropped));
        assert_eq!(server.stats().running, 0);
    }
}

fn unary(bed: &Bed) {
    everywhere(bed, |client, _| {
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
            assert_eq!((stats.attempts, stats.retries, stats.transport), (1, 0, bed.backend.transport));
            assert!(stats.bytes_sent > (payload.len() + attachment.len()) as u64 && stats.bytes_received > 0);
            assert!(!stats.latency.is_zero());
        }
        let ways = [CompressType::Snappy, CompressType::Gzip, CompressType::Zlib, CompressType::Lz4];
        for (i, compress) in ways.into_iter().enumerate() {
            let payload = bytes_of(i, 10_000);
            let call = client.echo(request(payload.clone())).compress(compress).checksum(ChecksumType::Crc32c, false);
            assert_eq!(call.attachment(&b"beside"[..]).blocking().unwrap().payload, payload);
        }
    });
}

fn concurrent(bed: &Bed) {
    everywhere(bed, |client, _| {
        let calls: Vec<_> = (0..200).map(|i| client.echo(request(bytes_of(i, 64))).into_future()).collect();
        for (i, call) in calls.into_iter().enumerate() {
            assert_eq!(client.caller().block_on(call).unwrap().payload, bytes_of(i, 64));
        }
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for i in 0..50 {
                        let payload = bytes_of(thread * 1000 + i, 100);
                        assert_eq!(client.echo(request(payload.clone())).blocking().unwrap().payload, payload);
                    }
                });
            }
        });
    });
}

fn sizes(bed: &Bed) {
    let (service, _) = Service::new(Way::Inline);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)));
    let client = EchoClient::new(bed.channel(&server).connect_lazy().unwrap());
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

fn failures(bed: &Bed) {
    use ucrpc::rpc::call::{CallOptions, MethodName};
    use ucrpc::rpc::client::RawCall;
    use ucrpc::rpc::wire::MessageBuf;
    everywhere(bed, |client, server| {
        let beside = client.echo(EchoRequest { sleep_ms: 20, ..request(bytes_of(1, 9)) }).into_future();
        let failing =
            |code| client.echo(EchoRequest { fail_with: code, ..EchoRequest::default() }).blocking().unwrap_err();
        let status = failing(4242);
        assert_eq!((status.code(), status.message()), (Code::from_wire(4242), "as asked"));
        assert_eq!(status.stats().unwrap().attempts, 1);
        let panicked = server.stats().panicked;
        assert_eq!(failing(-1).code(), Code::EINTERNAL);
        assert_eq!(server.stats().panicked, panicked + 1);
        let raw = |service: &'static str, method: &'static str, message: &[u8]| {
            let method = MethodName::from_static(service, method);
            let message = MessageBuf::copy_from_slice(message, 64);
            let mut options = Box::new(CallOptions::default());
            options.deadline = ucrpc::Deadline::after(std::time::Instant::now(), Duration::from_secs(20));
            let caller = client.caller();
            caller.block_on(caller.call(RawCall { method, message, options })).map(|response| response.message)
        };
        assert_eq!(raw("ucrpc.example.Nothing", "Echo", b"").unwrap_err().code(), Code::ENOSERVICE);
        assert_eq!(raw("ucrpc.example.Echo", "Nothing", b"").unwrap_err().code(), Code::ENOMETHOD);
        assert_eq!(raw("ucrpc.example.Echo", "Echo", b"\xff\xff\xff").unwrap_err().code(), Code::EREQUEST);
        assert_eq!(raw("ucrpc.example.Echo", "Echo", b"\x0a\x02hi").unwrap(), &b"\x0a\x02hi"[..]);
        assert_eq!(raw("Echo", "Echo", b"").unwrap(), Bytes::new(), "by bare name");
        assert_eq!(client.caller().block_on(beside).unwrap().payload, bytes_of(1, 9), "unharmed");
    });
}
