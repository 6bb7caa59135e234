//! What Apache brpc 1.17.0 sent on the wire, played to a server and to a channel, over raw TCP. The recorded frames carry this project's
//! own payloads: a service `interop.Work` with one method `Do`, whose messages have the payload in field 1.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ucrpc::rpc::call::{MethodName, Reply};
use ucrpc::rpc::client::{Call, RawCaller};
use ucrpc::rpc::codec::decode_request;
use ucrpc::rpc::service::{MethodDescriptor, MethodId, ReplyFuture, ServiceDescriptor, StreamOffer};
use ucrpc::rpc::streaming::{ByteStream, StreamConfig};
use ucrpc::rpc::wire::{
    Limits, MessageBuf, RequestMeta, RpcMeta, Signal, Step, StreamFrameKind, StreamFrameMeta, StreamSettings, parse,
};
use ucrpc::transport::spawn_local;
use ucrpc::{CallContext, Channel, Code, Server, Service, Status};

use crate::bed::{Bed, Case};
use crate::echo::{EchoRequest, EchoResponse};
use crate::ending::eventually;
use crate::hostile::{connect, prpc, read_frame};
use crate::unary::request;

/// Only on `tcp`, as `hostile`.
pub const CASES: &[Case] =
    &[("brpc_client", brpc_client), ("brpc_server", brpc_server), ("streams_of_one_call", streams_of_one_call)];

/// Payload `hi`, credentials `key`, 5 s.
const PLAIN: &str = "505250430000002e0000002a0a150a0c696e7465726f702e576f726b1202446f40882718002082808080103a036b6579500058006200\
    0a026869";
/// Payload of 40 `a`, gzip, crc32c, attachment `ATT`, log id 300, request id `rid`, metadata `k`: `v`, 1.5 s.
const EVERYTHING: &str = "5052504300000053000000370a1d0a0c696e7465726f702e576f726b1202446f18ac023a0372696440dc0b1802200628034a060a\
    016b120176500058016204e3d8e7c11f8b0800000000000003e3d248241200007948dbcc2a000000415454";
/// Opens a stream, whose id is 2; payload of another field.
const OPENS: &str = "50525043000000330000002d0a150a0c696e7465726f702e576f726b1202446f40b8171800208280808040420608021001180150005800\
    620042046563686f";
/// On that stream, to stream 1: `hello`, five bytes consumed, the end.
const CLIENT_DATA: &str = "5354524d0000000d00000008080110021803200068656c6c6f";
const CLIENT_FEEDBACK: &str = "5354524d0000000a0000000a0801100218042a020805";
const CLIENT_CLOSE: &str = "5354524d0000000600000006080110021802";

/// The answer to the first call of a channel: payload of 40 `a`, snappy, crc32c, attachment `ATT`, metadata `re-k`: `v`.
const ANSWER: &str = "505250430000003d000000211202080018012080804028034a090a0472652d6b1201765000580162048c3167763a080a28619a01003c2\
    086273a036b3d76480352046e6f6e65415454";
/// Accepts stream 1 of the third call of a channel, as stream 156.
const ACCEPTS: &str = "5354524d00000038000000090801109c011803200050525043000000230000001a120208001800208080c0014207089c01100118015\
    0005800620020882752046e6f6e65";
/// To and from that stream: `hello`. From it: the end.
const TO_SERVER: &str = "5354524d0000000e00000009089c0110011803200068656c6c6f";
const FROM_SERVER: &str = "5354524d0000000e000000090801109c011803200068656c6c6f";
const FEEDBACK_TO_SERVER: &str = "5354524d0000000b0000000b089c01100118042a020805";
const SERVER_CLOSE: &str = "5354524d00000007000000070801109c011802";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).unwrap() as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Answers with what it was sent, streams included, and writes down what it saw.
struct Work {
    seen: Arc<Mutex<Vec<String>>>,
    all_streams: bool,
}

impl Work {
    fn accept(&self, context: &mut CallContext) -> Result<(), Status> {
        let Ok(offer) = StreamOffer::<EchoRequest, EchoResponse>::from_context(context) else { return Ok(()) };
        let streams = match self.all_streams {
            true => offer.accept_all(context, StreamConfig::default())?,
            false => vec![offer.accept_bytes(context, StreamConfig::default())?],
        };
        for stream in streams {
            spawn_local(echo(stream, self.seen.clone())).unwrap();
        }
        Ok(())
    }
}

async fn echo(mut stream: ByteStream, seen: Arc<Mutex<Vec<String>>>) {
    while let Some(Ok(message)) = stream.next().await {
        stream.send(message).await.unwrap();
    }
    seen.lock().unwrap().push("closed".to_owned());
}

impl Service for Work {
    fn descriptor(&self) -> &'static ServiceDescriptor {
        const METHOD: MethodDescriptor =
            MethodDescriptor { name: "Do", client_streaming: false, server_streaming: false };
        &ServiceDescriptor { name: "interop.Work", methods: &[METHOD] }
    }

    fn call(&self, _: MethodId, mut context: CallContext, message: bytes::Bytes) -> ReplyFuture {
        let left = context.deadline().remaining(Instant::now()).map(|left| left.as_secs_f32().ceil());
        let fields: Vec<_> = context.metadata().iter().map(|(k, v)| format!("{k:?}={v:?}")).collect();
        let (log_id, request_id) = (context.log_id(), context.request_id());
        self.seen.lock().unwrap().push(format!("{left:?} {log_id:?} {request_id:?} {fields:?}"));
        let attachment = context.take_attachment();
        context.set_attachment(attachment);
        let result = self.accept(&mut context).map(|()| MessageBuf::copy_from_slice(&message, 0));
        Box::pin(std::future::ready(Reply { result, context }))
    }
}

fn work(bed: &Bed, all_streams: bool) -> (Server, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let server = Server::builder().service(Work { seen: seen.clone(), all_streams });
    let verify = |data: &[u8]| if data == b"key" { Ok(()) } else { Err(Status::new(Code::EPERM, "no key")) };
    (bed.serve(server.authenticate(verify)), seen)
}

/// The stream frame's meta, and its data.
fn strm(frame: &[u8]) -> (StreamFrameMeta, &[u8]) {
    let Ok(Step::Strm(head)) = parse(frame, &Limits::DEFAULT) else { panic!("no STRM frame: {frame:?}") };
    (head.meta, &frame[head.layout.head_len()..])
}

/// Checks a response without compression, and gives back its message and attachment together, and its half of a stream.
fn response(frame: &[u8], id: i64) -> (Vec<u8>, Option<StreamSettings>) {
    let Ok(Step::Prpc(head)) = parse(frame, &Limits::DEFAULT) else { panic!("no PRPC frame: {frame:?}") };
    let meta = &head.meta;
    assert_eq!((meta.correlation_id, meta.response.unwrap().error_code, meta.compress_type), (id, 0, 0));
    assert_eq!(meta.signal, Signal::None, "brpc did not say that it understands signals");
    (frame[head.layout.message_at()..].to_vec(), meta.stream_settings.clone())
}

fn brpc_client(bed: &Bed) {
    let (server, seen) = work(bed, false);
    let mut stream = connect(&server);
    stream.write_all(&bytes(PLAIN)).unwrap();
    assert_eq!(response(&read_frame(&mut stream).unwrap(), 4294967298).0, b"\x0a\x02hi");
    stream.write_all(&bytes(EVERYTHING)).unwrap();
    let expected = [&b"\x0a\x28"[..], &[b'a'; 40], b"ATT"].concat();
    assert_eq!(response(&read_frame(&mut stream).unwrap(), 6).0, expected);
    let last = seen.lock().unwrap().last().cloned();
    assert_eq!(last.as_deref(), Some(r#"Some(2.0) Some(300) Some("rid") ["b\"k\"=b\"v\""]"#));
    // A byte of what the checksum covers.
    let mut corrupt = bytes(EVERYTHING);
    let at = corrupt.len() - 8;
    corrupt[at] ^= 1;
    let Ok(Step::Prpc(head)) = parse(&corrupt, &Limits::DEFAULT) else { panic!("a frame") };
    let message = corrupt[head.layout.message_at()..head.layout.head_len()].to_vec();
    let refused = decode_request(&head.meta, message.into(), b"ATT", 1000).unwrap_err();
    assert!(refused.message().contains("checksum"), "{refused:?}");

    stream.write_all(&bytes(OPENS)).unwrap();
    let frame = read_frame(&mut stream).unwrap();
    let (meta, inner) = strm(&frame);
    assert_eq!((meta.stream_id, meta.source_stream_id, meta.kind), (2, Some(1), StreamFrameKind::Data));
    let settings = response(inner, 17179869186).1.unwrap();
    assert_eq!((settings.stream_id, settings.need_feedback, settings.writable), (1, true, true));
    stream.write_all(&bytes(CLIENT_DATA)).unwrap();
    let frames = [read_frame(&mut stream).unwrap(), read_frame(&mut stream).unwrap()];
    let (mut data, mut consumed) = (None, None);
    for frame in &frames {
        let (meta, payload) = strm(frame);
        assert_eq!((meta.stream_id, meta.source_stream_id), (2, Some(1)));
        match meta.kind {
            StreamFrameKind::Data => data = Some(payload),
            _ => consumed = meta.consumed_size,
        }
    }
    assert_eq!((data, consumed), (Some(&b"hello"[..]), Some(5)));
    stream.write_all(&[bytes(CLIENT_FEEDBACK), bytes(CLIENT_CLOSE)].concat()).unwrap();
    eventually("the stream is closed", || seen.lock().unwrap().last().is_some_and(|last| last == "closed"));
    stream.write_all(&bytes(PLAIN)).unwrap();
    assert_eq!(response(&read_frame(&mut stream).unwrap(), 4294967298).0, b"\x0a\x02hi");
}

/// A listener of this test's own, and a channel to it.
fn listen(bed: &Bed) -> (TcpListener, Channel) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let _ = bed;
    (listener, Channel::builder(address.as_str()).connect_lazy().unwrap())
}

fn call(channel: &Channel) -> Call<Channel, EchoRequest, EchoResponse> {
    Call::new(channel.clone(), MethodName::from_static("interop.Work", "Do"), request("hi".into()))
}

/// Takes the first request of a connection, whose id is what the recorded answers have, and answers it.
fn accept(listener: &TcpListener, answer: &[u8]) -> TcpStream {
    let mut stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let frame = read_frame(&mut stream).unwrap();
    let Ok(Step::Prpc(head)) = parse(&frame, &Limits::DEFAULT) else { panic!("no PRPC frame: {frame:?}") };
    assert_eq!(head.meta.correlation_id, 1 << 20);
    stream.write_all(answer).unwrap();
    stream
}

fn brpc_server(bed: &Bed) {
    let (listener, channel) = listen(bed);
    let answering = std::thread::spawn(move || (accept(&listener, &bytes(ANSWER)), listener));
    let answer = call(&channel).blocking().unwrap();
    assert_eq!((&answer.payload[..], &answer.attachment()[..]), (&[b'a'; 40][..], &b"ATT"[..]));
    let metadata: Vec<_> = answer.metadata().iter().map(|(k, v)| (&k[..], &v[..])).collect();
    assert_eq!(metadata, [(&b"re-k"[..], &b"v"[..])]);
    drop(answering.join().unwrap());

    // The recorded id, 3 << 20, becomes 1 << 20 in as many bytes.
    let accepts = bytes(&ACCEPTS.replace("208080c001", "208080c000"));
    let (listener, channel) = listen(bed);
    let serving = std::thread::spawn(move || {
        let mut stream = accept(&listener, &accepts);
        assert_eq!(read_frame(&mut stream).unwrap(), bytes(TO_SERVER));
        stream.write_all(&bytes(FROM_SERVER)).unwrap();
        assert_eq!(read_frame(&mut stream).unwrap(), bytes(FEEDBACK_TO_SERVER));
        stream.write_all(&bytes(SERVER_CLOSE)).unwrap();
        stream
    });
    let (_, stream) = channel.block_on(call(&channel).open_stream(StreamConfig::default())).unwrap();
    let mut stream = stream.into_bytes();
    channel.block_on(stream.send(&b"hello"[..])).unwrap();
    assert_eq!(channel.block_on(stream.next()).unwrap().unwrap(), &b"hello"[..]);
    assert!(channel.block_on(stream.next()).is_none());
    drop(serving.join().unwrap());
}

/// A brpc client may ask for several streams with one call, and takes as many ids out of the response as it asked for.
fn streams_of_one_call(bed: &Bed) {
    let ask = RequestMeta { service_name: "interop.Work", method_name: "Do", ..RequestMeta::default() };
    let offered =
        StreamSettings { stream_id: 70, need_feedback: false, writable: true, extra_stream_ids: vec![71, 72] };
    let meta = RpcMeta { request: Some(ask), correlation_id: 5, stream_settings: Some(offered), ..RpcMeta::default() };
    let meta = RpcMeta { authentication_data: Some(b"key"), ..meta };
    let data = |to, from| {
        let meta = StreamFrameMeta::new(StreamFrameKind::Data, to, Some(from));
        [&meta.encode_head(3, &Limits::DEFAULT).unwrap()[..], b"abc"].concat()
    };
    for all in [true, false] {
        let (server, _) = work(bed, all);
        let mut stream = connect(&server);
        stream.write_all(&prpc(&meta, b"", b"")).unwrap();
        let frame = read_frame(&mut stream).unwrap();
        let (first, inner) = strm(&frame);
        let settings = response(inner, 5).1.unwrap();
        assert_eq!((first.stream_id, first.source_stream_id), (70, Some(settings.stream_id)));
        let expected = if all { vec![2, 3] } else { vec![-1, -1] };
        assert_eq!((settings.stream_id, settings.extra_stream_ids), (1, expected.clone()));
        for (mine, yours) in [70, 71, 72].into_iter().zip([1].into_iter().chain(expected)) {
            stream.write_all(&data(yours, mine)).unwrap();
            let frame = read_frame(&mut stream).unwrap();
            let (meta, payload) = strm(&frame);
            let echoed = (meta.stream_id, meta.kind, payload) == (mine, StreamFrameKind::Data, &b"abc"[..]);
            let reset = (meta.stream_id, meta.kind, payload) == (mine, StreamFrameKind::Rst, &b""[..]);
            assert!(if yours > 0 { echoed } else { reset }, "{meta:?}");
        }
    }
}
