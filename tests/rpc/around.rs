//! What happens around a call: interceptors, layers, credentials, what travels beside the message, and where the answer lands.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use ucrpc::rpc::call::{RawResponse, Reply, Trace};
use ucrpc::rpc::client::{RawCall, RawCaller};
use ucrpc::rpc::codec::{ChecksumType, CompressType};
use ucrpc::rpc::service::StreamOffer;
use ucrpc::rpc::tower::{Layered, LayeredService};
use ucrpc::rpc::{ClientInterceptor, ServerInterceptor};
use ucrpc::transport::{AlignedBuf, RecvBuf};
use ucrpc::{CallContext, Channel, Code, Server, Status};

use crate::bed::{Bed, Case};
use crate::echo::{self, EchoClient, EchoRequest, EchoResponse, EchoServer, Seen, Service, Way};
use crate::ending::eventually;
use crate::unary::{bytes_of, request};

pub const CASES: &[Case] = &[
    ("interceptors", interceptors),
    ("layers", layers),
    ("credentials", credentials),
    ("beside_the_message", beside_the_message),
    ("received_in_place", received_in_place),
];

type Log = Arc<Mutex<Vec<String>>>;

/// Writes down what it sees; does what the metadata asks for.
struct Scribe {
    name: &'static str,
    log: Log,
}

impl Scribe {
    fn new(name: &'static str, log: &Log) -> Self {
        Self { name, log: log.clone() }
    }

    fn note(&self, what: &str) {
        self.log.lock().unwrap().push(format!("{} {what}", self.name));
    }
}

impl ServerInterceptor for Scribe {
    fn request(&self, context: &mut CallContext) -> Result<(), Status> {
        self.note("request");
        match context.metadata().get(self.name) {
            Some("refuse") => Err(Status::new(Code::EPERM, "not you")),
            Some("panic") => panic!("as asked"),
            _ => Ok(()),
        }
    }

    fn reply(&self, reply: &mut Reply) {
        self.note("reply");
        if reply.context.metadata().get(self.name) == Some("panic late") {
            panic!("as asked");
        }
        if reply.result.is_ok() {
            reply.context.response.metadata.insert("seen-by", self.name).unwrap();
        }
    }
}

impl ClientInterceptor for Scribe {
    fn request(&self, call: &mut RawCall) -> Result<(), Status> {
        self.note("request");
        if call.options.metadata.get(self.name) == Some("refuse") {
            return Err(Status::new(Code::EPERM, "not from here"));
        }
        call.options.metadata.insert("token", "sesame").unwrap();
        Ok(())
    }

    fn response(&self, result: &mut Result<RawResponse, Status>) {
        self.note(if result.is_ok() { "response" } else { "failure" });
    }
}

fn interceptors(bed: &Bed) {
    let log = Log::default();
    let (service, seen) = Service::new(Way::Local);
    let server = Server::builder().service(EchoServer::new(service));
    let server = server.interceptor(Scribe::new("s1", &log)).interceptor(Scribe::new("s2", &log));
    let server = bed.serve(server);
    let channel = bed.channel(&server).interceptor(Scribe::new("c1", &log)).interceptor(Scribe::new("c2", &log));
    let client = EchoClient::new(channel.connect_lazy().unwrap());
    let call = |key: &'static str, value: &'static str| {
        let result = client.echo(request(bytes_of(1, 9))).metadata(key, value).blocking();
        let log = std::mem::take(&mut *log.lock().unwrap());
        (result, log.join(", "))
    };
    let (response, order) = call("none", "");
    let response = response.unwrap();
    assert_eq!((response.payload.clone(), response.metadata().get("token")), (bytes_of(1, 9), Some("sesame")));
    assert_eq!(response.metadata().get("seen-by"), Some("s1"), "the first one is the last to see the reply");
    assert_eq!(order, "c1 request, c2 request, s1 request, s2 request, s2 reply, s1 reply, c2 response, c1 response");
    let (refused, order) = call("s1", "refuse");
    let refused = refused.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::EPERM, "not you"));
    assert_eq!(order, "c1 request, c2 request, s1 request, s2 reply, s1 reply, c2 failure, c1 failure");
    for (who, how) in [("s2", "panic"), ("s1", "panic late"), ("s2", "panic late")] {
        let (result, _) = call(who, how);
        assert_eq!(result.unwrap_err().code(), Code::EINTERNAL, "{who} {how}");
    }
    let started = Seen::get(&seen.started);
    let (refused, order) = call("c1", "refuse");
    assert_eq!(refused.unwrap_err().code(), Code::EPERM);
    assert_eq!(order, "c1 request, c2 failure, c1 failure", "it never left");
    assert_eq!((Seen::get(&seen.started), server.stats().running), (started, 0));
    assert_eq!(client.caller().stats().connects, 1, "no connection suffered");
}

/// tower's own layers on both sides.
fn layers(bed: &Bed) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let (service, seen) = Service::new(Way::Tokio);
    let layered = LayeredService::new(EchoServer::new(service), |inner| {
        let builder = tower::ServiceBuilder::new().load_shed().concurrency_limit(2);
        builder.timeout(Duration::from_millis(200)).service(inner)
    });
    let server = bed.serve(Server::builder().service(layered).handlers_on(runtime.handle().clone()));
    let channel = bed.channel(&server).connect_lazy().unwrap();
    let counted = Arc::new(AtomicU64::new(0));
    let count = counted.clone();
    let stack = tower::ServiceBuilder::new().concurrency_limit(64).map_request(move |mut call: RawCall| {
        count.fetch_add(1, Ordering::SeqCst);
        call.options.metadata.insert("layer", "was here").unwrap();
        call
    });
    let client = EchoClient::new(Layered::new(stack.service(channel.clone())));
    let response = client.echo(request(bytes_of(3, 300))).attachment(bytes_of(4, 40_000)).blocking().unwrap();
    assert_eq!((response.payload.clone(), response.attachment().len()), (bytes_of(3, 300), 40_000));
    assert_eq!(response.metadata().get("layer"), Some("was here"));
    // Statuses go through layers as they are; what is none becomes one.
    let status = client.echo(EchoRequest { fail_with: 4242, ..EchoRequest::default() }).blocking().unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::from_wire(4242), "as asked"));
    let slow = EchoRequest { sleep_ms: 60_000, ..EchoRequest::default() };
    let status = client.echo(slow.clone()).blocking().unwrap_err();
    assert_eq!(status.code(), Code::EINTERNAL, "the server's timeout layer: {status:?}");
    eventually("its handler was dropped", || Seen::get(&seen.dropped) == 1);
    // More at once than the layer lets in: shed at once, the others unharmed. The runtime drives the client's side here.
    let (done, shed) = runtime.block_on(async {
        let calls: Vec<_> = (0..6)
            .map(|_| {
                let wanted = EchoRequest { sleep_ms: 100, ..EchoRequest::default() };
                tokio::spawn(client.echo(wanted).into_future())
            })
            .collect();
        let (mut done, mut shed) = (0, 0);
        for call in calls {
            match call.await.unwrap() {
                Ok(_) => done += 1,
                Err(status) => {
                    assert_eq!(status.code(), Code::EINTERNAL, "{status:?}");
                    shed += 1;
                }
            }
        }
        (done, shed)
    });
    assert!(done >= 1 && shed >= 1 && done + shed == 6, "{done} done, {shed} shed");
    assert_eq!(counted.load(Ordering::SeqCst), 9);
    // A channel is a tower service itself, and a deadline of ours needs no runtime.
    let status = EchoClient::new(Layered::new(channel)).echo(slow).timeout(Duration::from_millis(30)).blocking();
    assert_eq!(status.unwrap_err().code(), Code::ERPCTIMEDOUT);
    eventually("nothing runs", || server.stats().running == 0);
}

fn credentials(bed: &Bed) {
    let (service, seen) = Service::new(Way::Inline);
    let asked = Arc::new(AtomicU64::new(0));
    let count = asked.clone();
    let server = bed.serve(Server::builder().service(EchoServer::new(service)).authenticate(move |data| {
        count.fetch_add(1, Ordering::SeqCst);
        if data == b"sesame" { Ok(()) } else { Err(Status::new(Code::EPERM, "who are you?")) }
    }));
    let good = EchoClient::new(bed.channel(&server).credentials("sesame").connect_lazy().unwrap());
    for i in 0..5 {
        good.echo(request(bytes_of(i, i))).blocking().unwrap();
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "once for each connection");
    let bad = EchoClient::new(bed.channel(&server).credentials("guess").connect_lazy().unwrap());
    let none = EchoClient::new(bed.channel(&server).connect_lazy().unwrap());
    for client in [&bad, &none] {
        let status = client.echo(request(bytes_of(1, 1))).blocking().unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::ERPCAUTH, "who are you?"), "{status:?}");
        // The next ones are asked again: none meets the end of the connection that was refused.
        for _ in 0..10 {
            assert_eq!(client.echo(request(bytes_of(1, 1))).blocking().unwrap_err().code(), Code::ERPCAUTH);
        }
        eventually("the connections are closed", || client.caller().transports().is_empty());
    }
    assert_eq!((asked.load(Ordering::SeqCst), Seen::get(&seen.started)), (23, 5));
    good.echo(request(bytes_of(1, 1))).blocking().unwrap();
    assert_eq!(good.caller().stats().connects, 1);
}

/// Says what it was called with.
struct Mirror;

impl echo::echo_server::Echo for Mirror {
    async fn echo(&self, context: &mut CallContext, request: EchoRequest) -> Result<EchoResponse, Status> {
        let fields: Vec<_> = context.metadata().iter().map(|(k, v)| format!("{k:?}={v:?}")).collect();
        let trace = context.trace().unwrap_or_default();
        let text = format!(
            "{} {:?} {:?} {}/{}/{} {}",
            context.method().method,
            context.log_id(),
            context.request_id(),
            trace.trace_id,
            trace.span_id,
            trace.parent_span_id,
            fields.join(" ")
        );
        context.response.metadata.insert("said", text).unwrap();
        // Every answer is packed another way.
        let ways =
            [CompressType::None, CompressType::Snappy, CompressType::Gzip, CompressType::Zlib, CompressType::Lz4];
        context.response.compress = ways[request.sleep_ms as usize % 5];
        context.response.checksum = ChecksumType::Crc32c;
        context.response.checksum_attachment = request.sleep_ms >= 5;
        let attachment = context.take_attachment();
        context.set_attachment(attachment);
        Ok(EchoResponse { payload: request.payload })
    }

    async fn chat(
        &self,
        _: &mut CallContext,
        _: EchoRequest,
        _: StreamOffer<EchoRequest, EchoResponse>,
    ) -> Result<EchoResponse, Status> {
        Err(Code::ENOMETHOD.into())
    }
}

fn beside_the_message(bed: &Bed) {
    let server = bed.serve(Server::builder().service(EchoServer::new(Mirror)));
    let client = EchoClient::new(bed.channel(&server).connect_lazy().unwrap());
    let ways = [CompressType::Lz4, CompressType::Zlib, CompressType::Gzip, CompressType::Snappy, CompressType::None];
    for (i, compress) in (0..10).zip(ways.into_iter().cycle()) {
        let payload = bytes_of(i, i * 20_000);
        let asked = EchoRequest { payload: payload.clone(), sleep_ms: i as u32, ..EchoRequest::default() };
        let response = client
            .echo(asked)
            .compress(compress)
            .checksum(ChecksumType::Crc32c, i % 2 == 0)
            .attachment(bytes_of(i, 30_000))
            .log_id(-7)
            .request_id("order 66")
            .trace(Trace { trace_id: 1, span_id: 2, parent_span_id: 3 })
            .metadata("user", "ada")
            .metadata("raw", &b"\xff\x00"[..])
            .blocking()
            .unwrap();
        assert!(response.payload == payload && response.attachment() == &bytes_of(i, 30_000), "round {i}");
        let said = response.metadata().get("said").unwrap();
        assert_eq!(said, r#"Echo Some(-7) Some("order 66") 1/2/3 b"user"=b"ada" b"raw"=b"\xff\0""#);
        let stats = response.stats();
        assert!(stats.bytes_sent > 30_000 && stats.bytes_received > 30_000, "{stats:?}");
    }
    let bare = client.echo(EchoRequest::default()).blocking().unwrap();
    assert_eq!(bare.metadata().get("said"), Some("Echo None None 0/0/0 "));
    let long = client.echo(EchoRequest::default()).metadata("k", vec![7; 40_000]).blocking().unwrap_err();
    assert_eq!(long.code(), Code::EREQUEST, "{long:?}");
}

/// The memory of an answer's attachment is the memory that the caller supplied.
fn received_in_place(bed: &Bed) {
    let (service, _) = Service::new(Way::Inline);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)));
    let client = EchoClient::new(bed.channel(&server).connect_lazy().unwrap());
    let mut buf = BytesMut::zeroed(3 << 20);
    let address = buf.as_ptr();
    for (round, len) in [1, 100, 5_000, 20_000, 300_000, 3 << 20, 64].into_iter().enumerate() {
        let sent = bytes_of(round, len);
        buf.resize(3 << 20, 0);
        let call = client.echo(request(bytes_of(round, 10))).attachment(sent.clone());
        let mut response = call.receive_into(RecvBuf::Bytes(buf)).blocking().unwrap();
        assert!(response.attachment() == &sent && response.payload == bytes_of(round, 10), "{len} bytes");
        assert_eq!(response.attachment().as_ptr(), address, "{len} bytes arrived elsewhere");
        buf = std::mem::take(&mut response.raw.attachment).try_into_mut().expect("nobody else has it");
    }
    // Aligned memory, as direct I/O needs it.
    let aligned = AlignedBuf::new(1 << 20, 4096);
    let address = aligned.as_ptr();
    let call = client.echo(EchoRequest::default()).attachment(bytes_of(1, 1 << 20));
    let response = call.receive_into(RecvBuf::Aligned(aligned)).blocking().unwrap();
    assert!(response.attachment() == &bytes_of(1, 1 << 20) && response.attachment().as_ptr() == address);
    // Too short, or nothing to put there: as if there were none.
    let small = |call: ucrpc::rpc::client::Call<Channel, _, _>| {
        call.receive_into(RecvBuf::Bytes(BytesMut::zeroed(100))).blocking()
    };
    let long = small(client.echo(EchoRequest::default()).attachment(bytes_of(2, 50_000))).unwrap();
    assert!(long.attachment() == &bytes_of(2, 50_000));
    assert!(small(client.echo(request(bytes_of(3, 200_000)))).unwrap().attachment().is_empty());
    let failed = small(client.echo(EchoRequest { fail_with: 4242, ..EchoRequest::default() }));
    assert_eq!(failed.unwrap_err().code(), Code::from_wire(4242));
    // Many at once, each its own; some are dropped while their attachments come.
    let mut calls: Vec<_> = (0..40_usize)
        .map(|i| {
            let buf = BytesMut::zeroed(100_000 + i);
            let address = buf.as_ptr();
            let call = client.echo(EchoRequest::default()).attachment(bytes_of(i, 100_000 + i));
            (i, address, call.receive_into(RecvBuf::Bytes(buf)).into_future())
        })
        .collect();
    calls.retain(|(i, ..)| i % 4 != 3);
    for (i, address, call) in calls {
        let response = client.caller().block_on(call).unwrap();
        assert!(response.attachment() == &bytes_of(i, 100_000 + i) && response.attachment().as_ptr() == address);
    }
    let late = client.echo(EchoRequest { sleep_ms: 60_000, ..EchoRequest::default() });
    let late = late.receive_into(RecvBuf::Bytes(BytesMut::zeroed(9))).timeout(Duration::from_millis(20)).blocking();
    assert_eq!(late.unwrap_err().code(), Code::ERPCTIMEDOUT);
    let start = Instant::now();
    eventually("nothing is left", || client.caller().stats().in_flight == 0);
    assert!(start.elapsed() < Duration::from_secs(5));
    let _: Bytes = client.echo(request(bytes_of(1, 1))).blocking().unwrap().into_message().payload;
}
