//! Generated code at work: client to server over real `PRPC` frames in memory.

#[path = "snapshots"]
#[allow(unreachable_pub, missing_docs)]
mod test {
    #[path = "ucrpc.test.shared.rs"]
    pub mod shared;
    include!("snapshots/ucrpc.test.rs");
}

use std::future::{Ready, ready};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use test::echo_service_client::EchoServiceClient;
use test::echo_service_server::{DESCRIPTOR, EchoService, EchoServiceServer};
use test::http_empty_v2_server::{HttpEmptyV2, HttpEmptyV2Server};
use test::{EchoRequest, EchoResponse, shared};
use ucrpc_rpc::call::{CallStats, Inherited, MethodName, RawResponse, Reply, Trace};
use ucrpc_rpc::client::{Call, RawCall, RawCaller};
use ucrpc_rpc::codec::{
    AttemptMeta, ChecksumType, CompressType, MAX_MESSAGE_SIZE, decode_request, decode_response, encode_request,
    encode_response,
};
use ucrpc_rpc::service::{RegisterError, StreamOffer};
use ucrpc_rpc::wire::{Limits, MessageBuf, PrpcHead, Step, StreamSettings, parse};
use ucrpc_rpc::{CallContext, Code, Deadline, Registry, Service, Status};

/// Carries each call to a registry as frames, and notes what went over.
#[derive(Clone)]
struct InMemory {
    registry: Arc<Registry>,
    next_id: Arc<AtomicI64>,
    limits: Limits,
    /// The last request's and response's frame.
    frames: Arc<Mutex<(Bytes, Bytes)>>,
}

impl InMemory {
    fn new(registry: Registry) -> Self {
        Self {
            registry: registry.into(),
            next_id: AtomicI64::new(1).into(),
            limits: Limits::DEFAULT,
            frames: Arc::default(),
        }
    }

    fn carry(&self, call: RawCall) -> Result<RawResponse, Status> {
        let started = Instant::now();
        let correlation_id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let attempt = AttemptMeta { correlation_id, authentication_data: Some(b"secret"), ..AttemptMeta::default() };
        let head = encode_request(&call.method, call.message, &call.options, attempt, started, &self.limits)?;
        let request = Bytes::from([head.bytes, call.options.attachment.into_bytes()].concat());
        let response = self.serve(request.clone());
        *self.frames.lock().unwrap() = (request, response.clone());
        let (head, message, attachment) = split(&response, &self.limits);
        assert_eq!(head.meta.correlation_id, correlation_id);
        let mut raw = decode_response(&head.meta, message, attachment, MAX_MESSAGE_SIZE)?;
        raw.stats = CallStats::from(started.elapsed());
        Ok(raw)
    }

    fn serve(&self, frame: Bytes) -> Bytes {
        let (head, message, attachment) = split(&frame, &self.limits);
        let meta = head.meta;
        let request = meta.request.expect("a request");
        let resolved = self.registry.resolve(request.service_name, request.method_name);
        let name = MethodName::new(request.service_name.to_owned(), request.method_name.to_owned());
        let context = CallContext::from_request(name, &meta, &request, attachment.clone(), Instant::now());
        let reply = match resolved {
            Err(status) => Reply { result: Err(status), context },
            Ok((service, method)) => match decode_request(&meta, message, &attachment, MAX_MESSAGE_SIZE) {
                Err(status) => Reply { result: Err(status), context },
                Ok(message) => {
                    let inherited = context.inherited();
                    let mut future = service.call(method, context, message);
                    let poll = |cx: &mut std::task::Context<'_>| inherited.enter(|| future.as_mut().poll(cx));
                    block_on(std::future::poll_fn(poll))
                }
            },
        };
        let (head, attachment) = encode_response(reply, meta.correlation_id, &self.limits);
        [head.bytes, attachment.into_bytes()].concat().into()
    }
}

fn split<'a>(frame: &'a Bytes, limits: &Limits) -> (PrpcHead<'a>, Bytes, Bytes) {
    let Step::Prpc(head) = parse(frame, limits).unwrap() else { panic!("not a PRPC frame") };
    assert_eq!(head.layout.frame_len(), frame.len() as u64);
    let (message_at, body_at) = (head.layout.message_at(), head.layout.head_len());
    (head, frame.slice(message_at..body_at), frame.slice(body_at..))
}

impl RawCaller for InMemory {
    type Future = Ready<Result<RawResponse, Status>>;

    fn call(&self, call: RawCall) -> Self::Future {
        ready(self.carry(call))
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    InMemory::new(Registry::new()).block_on(future)
}

struct Echo {
    /// For nested calls, to itself.
    caller: Mutex<Option<InMemory>>,
}

impl EchoService for Echo {
    async fn echo(&self, context: &mut CallContext, request: EchoRequest) -> Result<EchoResponse, Status> {
        match request.text.as_str() {
            "fail" => return Err(Status::new(Code::from_wire(4242), "as asked")),
            "nested" => {
                let caller = self.caller.lock().unwrap().clone().expect("set by the test");
                let inner = EchoRequest { text: "context".into(), payload: Vec::new() };
                return EchoServiceClient::new(caller).echo(inner).await.map(|r| r.into_message());
            }
            "context" => {
                let left = context.deadline().remaining(Instant::now()).map(|left| left.as_millis());
                let text = format!("{:?} {:?} {}", context.log_id(), context.trace(), left.unwrap_or(0));
                return Ok(EchoResponse { text, stamp: None });
            }
            _ => {}
        }
        assert_eq!(context.authentication_data().map(|d| &d[..]), Some(&b"secret"[..]));
        let attachment = context.take_attachment();
        context.set_attachment(vec![Bytes::from_static(b"<"), attachment, Bytes::from_static(b">")]);
        if let Some(value) = context.metadata().get("key").map(str::to_owned) {
            context.response.metadata.insert("key-back", value).unwrap();
        }
        context.response.compress = CompressType::Snappy;
        context.response.checksum = ChecksumType::Crc32c;
        context.response.checksum_attachment = true;
        Ok(EchoResponse { text: request.text, stamp: Some(shared::Stamp { seconds: 7 }) })
    }

    async fn ping(&self, _: &mut CallContext, (): ()) -> Result<(), Status> {
        Ok(())
    }

    fn new(
        &self,
        _: &mut CallContext,
        request: EchoRequest,
    ) -> impl Future<Output = Result<shared::Stamp, Status>> + Send {
        ready(Ok(shared::Stamp { seconds: request.text.len() as i64 }))
    }

    async fn r#type(&self, context: &mut CallContext, _: EchoRequest) -> Result<EchoResponse, Status> {
        Ok(EchoResponse { text: context.request_id().unwrap_or("none").to_owned(), stamp: None })
    }

    async fn chat(
        &self,
        context: &mut CallContext,
        request: EchoRequest,
        stream: StreamOffer<EchoRequest, EchoResponse>,
    ) -> Result<EchoResponse, Status> {
        let stream_id = stream.settings().stream_id + 1000;
        stream.accept_with_settings(context, StreamSettings { stream_id, writable: true, ..StreamSettings::default() });
        Ok(EchoResponse { text: request.text, stamp: None })
    }
}

struct Nothing;
impl HttpEmptyV2 for Nothing {}

fn request(text: &str) -> EchoRequest {
    EchoRequest { text: text.into(), payload: vec![7; 300] }
}

fn client() -> (EchoServiceClient<InMemory>, InMemory) {
    let echo = Arc::new(Echo { caller: Mutex::default() });
    let mut registry = Registry::new();
    registry.add(Arc::new(EchoServiceServer::from_arc(Arc::clone(&echo)))).unwrap();
    let caller = InMemory::new(registry);
    *echo.caller.lock().unwrap() = Some(caller.clone());
    (EchoServiceClient::new(caller.clone()), caller)
}

#[test]
fn a_call_carries_message_attachment_and_metadata_both_ways() {
    let (client, caller) = client();
    for compress in
        [CompressType::None, CompressType::Snappy, CompressType::Gzip, CompressType::Zlib, CompressType::Lz4]
    {
        let call = client
            .echo(request("hello"))
            .timeout(Duration::from_secs(5))
            .attachment(vec![Bytes::from_static(b"att"), Bytes::from_static(b"ached")])
            .metadata("key", "value")
            .compress(compress)
            .checksum(ChecksumType::Crc32c, true)
            .request_id("r-1");
        let response = block_on(call.into_future()).unwrap();
        assert_eq!(response.text, "hello");
        assert_eq!(response.stamp, Some(shared::Stamp { seconds: 7 }));
        assert_eq!(&response.attachment()[..], b"<attached>");
        assert_eq!(response.metadata().get("key-back"), Some("value"));
        assert_eq!(response.stats().attempts, 1);
        let sent = caller.frames.lock().unwrap().0.clone();
        let meta = split(&sent, &Limits::DEFAULT).0.meta;
        assert_eq!(meta.compress_type, compress.to_wire());
        assert_eq!(meta.checksum_value.len(), 4);
        let timeout = meta.request.unwrap().timeout_ms.unwrap();
        assert!((4000..=5000).contains(&timeout), "{timeout}");
        // A bit flipped anywhere in message or attachment is found.
        let mut broken = sent.to_vec();
        *broken.last_mut().unwrap() ^= 1;
        let answer = caller.serve(broken.into());
        let error = split(&answer, &Limits::DEFAULT).0.meta.response.unwrap();
        assert_eq!(error.error_code, Code::EREQUEST.to_wire());
    }
}

#[test]
fn all_methods_are_reached_blocking_too() {
    let (client, _) = client();
    client.ping(()).blocking().unwrap();
    assert_eq!(client.new_(request("four")).blocking().unwrap().seconds, 4);
    assert_eq!(client.r#type(request("")).request_id("abc").blocking().unwrap().text, "abc");
    let settings = StreamSettings { stream_id: 5, need_feedback: true, writable: true, extra_stream_ids: vec![] };
    let response = client.chat(request("hi")).stream(settings).blocking().unwrap();
    assert_eq!(response.raw.stream.as_ref().unwrap().stream_id, 1005);
}

#[test]
fn failures_carry_their_code_and_text() {
    let (client, caller) = client();
    let status = client.echo(request("fail")).blocking().unwrap_err();
    assert_eq!((status.code().to_wire(), status.message()), (4242, "as asked"));
    // A streaming method without a stream.
    assert_eq!(client.chat(request("hi")).blocking().unwrap_err().code(), Code::EREQUEST);
    // A deadline that passed is not even sent.
    let past = Deadline::at(Instant::now());
    assert_eq!(client.echo(request("x")).deadline(past).blocking().unwrap_err().code(), Code::ERPCTIMEDOUT);
    // Metadata that no meta has room for.
    let long = client.echo(request("x")).metadata("k", vec![b'v'; 40 << 10]).blocking().unwrap_err();
    assert_eq!(long.code(), Code::EREQUEST);
    let raw = |service: &'static str, method: &'static str, message: &[u8]| {
        let message = MessageBuf::copy_from_slice(message, 0);
        let call = RawCall { method: MethodName::from_static(service, method), message, options: Default::default() };
        caller.carry(call).map_err(|status| status.code())
    };
    assert_eq!(raw("ucrpc.test.NoService", "Echo", b"").unwrap_err(), Code::ENOSERVICE);
    assert_eq!(raw("ucrpc.test.EchoService", "NoMethod", b"").unwrap_err(), Code::ENOMETHOD);
    assert_eq!(raw("ucrpc.test.EchoService", "echo", b"").unwrap_err(), Code::ENOMETHOD);
    assert_eq!(raw("ucrpc.test.EchoService", "Echo", b"\xff\xff").unwrap_err(), Code::EREQUEST);
    assert!(raw("EchoService", "Ping", b"").is_ok(), "the bare name is enough");
}

#[test]
fn a_nested_call_inherits_deadline_log_id_and_trace() {
    let (client, _) = client();
    let trace = Trace { trace_id: 1, span_id: 2, parent_span_id: 3 };
    let call = client.echo(request("nested")).timeout(Duration::from_millis(800)).log_id(99).trace(trace);
    let response = call.blocking().unwrap();
    let (rest, left) = response.text.rsplit_once(' ').unwrap();
    let nested = Trace { trace_id: 1, span_id: 0, parent_span_id: 2 };
    assert_eq!(rest, format!("{:?} {:?}", Some(99), Some(nested)));
    assert!((1..=800).contains(&left.parse::<u32>().unwrap()), "{left}");
    assert_eq!(Inherited::current(), Inherited::NONE, "nothing is left behind on the thread");
}

#[test]
fn the_registry_knows_full_and_bare_names() {
    let echo = || Arc::new(EchoServiceServer::new(Echo { caller: Mutex::default() }));
    let mut registry = Registry::new();
    registry.add(echo()).unwrap();
    registry.add(Arc::new(HttpEmptyV2Server::new(Nothing))).unwrap();
    assert_eq!(registry.add(echo()), Err(RegisterError::Duplicate("ucrpc.test.EchoService")));
    assert!(registry.resolve("ucrpc.test.EchoService", "Chat").is_ok());
    assert!(registry.resolve("EchoService", "Chat").is_ok());
    let code = |service: &str, method: &str| registry.resolve(service, method).err().map(|status| status.code());
    assert_eq!(code("HTTPEmptyV2", "Any"), Some(Code::ENOMETHOD));
    assert_eq!(code("test.EchoService", "Chat"), Some(Code::ENOSERVICE));
    assert!(DESCRIPTOR.methods[4].client_streaming && !DESCRIPTOR.methods[0].server_streaming);
}

/// A gateway: takes any method of any service, as bytes.
struct Gateway;

impl Service for Gateway {
    fn descriptor(&self) -> &'static ucrpc_rpc::service::ServiceDescriptor {
        &ucrpc_rpc::service::ServiceDescriptor { name: "other.EchoService", methods: &[] }
    }

    fn method(&self, _: &str) -> Option<ucrpc_rpc::service::MethodId> {
        Some(ucrpc_rpc::service::MethodId::DYNAMIC)
    }

    fn call(
        &self,
        _: ucrpc_rpc::service::MethodId,
        context: CallContext,
        message: Bytes,
    ) -> ucrpc_rpc::service::ReplyFuture {
        let text = format!("{}/{}:{}", context.method().service, context.method().method, message.len());
        Box::pin(ready(Reply { result: Ok(MessageBuf::copy_from_slice(text.as_bytes(), 0)), context }))
    }
}

#[test]
fn a_raw_service_takes_what_no_other_has_and_shared_bare_names_find_nothing() {
    let mut registry = Registry::new();
    registry.add(Arc::new(EchoServiceServer::new(Echo { caller: Mutex::default() }))).unwrap();
    registry.add(Arc::new(Gateway)).unwrap();
    let code = registry.resolve("EchoService", "Echo").err().map(|status| status.code());
    assert_eq!(code, Some(Code::ENOSERVICE), "two services have this bare name");
    registry.set_fallback(Arc::new(Gateway)).unwrap();
    assert_eq!(registry.set_fallback(Arc::new(Gateway)), Err(RegisterError::DuplicateFallback));
    let caller = InMemory::new(registry);
    let method = MethodName::from_static("no.such.Service", "Any");
    let call = RawCall { method, message: MessageBuf::copy_from_slice(b"12345", 0), options: Default::default() };
    assert_eq!(&caller.carry(call).unwrap().message[..], b"no.such.Service/Any:5");
}

#[test]
fn calls_can_be_made_without_generated_code() {
    let (_, caller) = client();
    let method = MethodName::from_static("ucrpc.test.EchoService", "New");
    let call: Call<_, EchoRequest, shared::Stamp> = Call::new(caller, method, request("abc"));
    assert_eq!(call.blocking().unwrap().seconds, 3);
}
