//! Peers that speak the protocol wrongly, or stop in the middle: over raw TCP, byte by byte.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use ucrpc::rpc::channel::{RetryOn, RetryPolicy};
use ucrpc::rpc::wire::{
    FRAME_HEADER_LEN, Limits, MessageBuf, RequestMeta, ResponseMeta, RpcMeta, Step, StreamFrameKind, StreamFrameMeta,
    parse,
};
use ucrpc::{Channel, Code, Server};

use crate::bed::{Bed, Case};
use crate::echo::{EchoClient, EchoRequest, EchoServer, Seen, Service, Way};
use crate::ending::eventually;
use crate::unary::{bytes_of, request};

/// Only on `tcp`, where this file speaks for the peer.
pub const CASES: &[Case] = &[
    ("bad_requests", bad_requests),
    ("not_frames", not_frames),
    ("idle", idle),
    ("bad_responses", bad_responses),
    ("death_at_every_byte", death_at_every_byte),
    ("death_while_a_request_goes", death_while_a_request_goes),
    ("death_while_a_request_comes", death_while_a_request_comes),
];

/// A `PRPC` frame.
pub fn prpc(meta: &RpcMeta<'_>, message: &[u8], attachment: &[u8]) -> Vec<u8> {
    let head = MessageBuf::copy_from_slice(message, 200).into_head(meta, attachment.len(), &Limits::DEFAULT).unwrap();
    [&head.bytes[..], attachment].concat()
}

fn call(id: i64, method: &str, message: &[u8]) -> Vec<u8> {
    let request = RequestMeta { service_name: "ucrpc.example.Echo", method_name: method, ..RequestMeta::default() };
    prpc(&RpcMeta { request: Some(request), correlation_id: id, ..RpcMeta::default() }, message, &[])
}

/// A frame with any meta bytes.
fn raw_frame(meta: &[u8], payload: &[u8]) -> Vec<u8> {
    let body = (meta.len() + payload.len()) as u32;
    [b"PRPC", &body.to_be_bytes()[..], &(meta.len() as u32).to_be_bytes(), meta, payload].concat()
}

pub fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; FRAME_HEADER_LEN];
    stream.read_exact(&mut frame).ok()?;
    let body = u32::from_be_bytes(frame[4..8].try_into().unwrap()) as usize;
    frame.resize(FRAME_HEADER_LEN + body, 0);
    stream.read_exact(&mut frame[FRAME_HEADER_LEN..]).ok()?;
    Some(frame)
}

/// The correlation id and error code of the next response.
fn answer(stream: &mut TcpStream) -> Option<(i64, Code)> {
    let frame = read_frame(stream)?;
    let Ok(Step::Prpc(head)) = parse(&frame, &Limits::DEFAULT) else { panic!("no PRPC frame: {frame:?}") };
    let code = head.meta.response.expect("a response").error_code;
    Some((head.meta.correlation_id, Code::from_wire(code)))
}

pub fn connect(server: &Server) -> TcpStream {
    let at = server.address().host_port().unwrap();
    let stream = TcpStream::connect((at.host.as_str(), at.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn serve(bed: &Bed) -> Server {
    let (service, _) = Service::new(Way::Inline);
    bed.serve(Server::builder().service(EchoServer::new(service)).max_message(2 << 20))
}

/// 4 MiB of zeros, with gzip.
fn bomb() -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..4 {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap()
}

/// Wrong calls get their error, and the connection lives on.
fn bad_requests(bed: &Bed) {
    let server = serve(bed);
    // Before the connection: one that says nothing for long is closed.
    let bomb = bomb();
    let mut stream = connect(&server);
    let request = RequestMeta { service_name: "ucrpc.example.Echo", method_name: "Echo", ..RequestMeta::default() };
    let meta = |id| RpcMeta { request: Some(request), correlation_id: id, ..RpcMeta::default() };
    let encoded = |meta: &RpcMeta<'_>| {
        let frame = prpc(meta, &[], &[]);
        frame[FRAME_HEADER_LEN..].to_vec()
    };
    // The same meta with a field more: attachment_size = 1000 and -1.
    let longer = [encoded(&meta(11)), vec![0x28, 0xe8, 0x07]].concat();
    let negative = [encoded(&meta(12)), vec![0x28], vec![0xff; 9], vec![0x01]].concat();
    let none = RpcMeta { correlation_id: 17, ..RpcMeta::default() };
    let unrequested = RpcMeta { response: Some(ResponseMeta::default()), correlation_id: 99, ..RpcMeta::default() };
    let cases = [
        (call(10, "Echo", b"\x0a\x02hi"), Some((10, Code::OK))),
        (raw_frame(&longer, b"short"), Some((11, Code::EREQUEST))),
        (raw_frame(&negative, b"short"), Some((12, Code::EREQUEST))),
        (call(13, "Nothing", b""), Some((13, Code::ENOMETHOD))),
        (call(14, "Echo", b"\xff\xff"), Some((14, Code::EREQUEST))),
        (prpc(&RpcMeta { compress_type: 77, ..meta(15) }, b"", b""), Some((15, Code::EREQUEST))),
        (prpc(&RpcMeta { compress_type: 2, ..meta(16) }, &bomb, b""), Some((16, Code::EREQUEST))),
        (prpc(&none, b"", b""), Some((17, Code::EREQUEST))),
        (prpc(&unrequested, b"", b""), None),
        (
            prpc(&RpcMeta { checksum_type: 1, checksum_value: b"1234", ..meta(18) }, b"", b""),
            Some((18, Code::EREQUEST)),
        ),
        (prpc(&RpcMeta { content_type: 1, ..meta(19) }, b"{}", b""), Some((19, Code::EREQUEST))),
        (call(10, "Echo", b""), Some((10, Code::OK))),
    ];
    for (number, (frame, expected)) in cases.into_iter().enumerate() {
        stream.write_all(&frame).unwrap();
        if let Some(expected) = expected {
            assert_eq!(answer(&mut stream), Some(expected), "case {number}");
        }
    }
    // A stream that is not there is reset, once; feedback for one is dropped.
    let data = StreamFrameMeta::new(StreamFrameKind::Data, 4711, Some(5));
    stream.write_all(&data.encode_head(0, &Limits::DEFAULT).unwrap()).unwrap();
    let reset = read_frame(&mut stream).unwrap();
    let Ok(Step::Strm(head)) = parse(&reset, &Limits::DEFAULT) else { panic!("no STRM frame") };
    assert_eq!((head.meta.kind, head.meta.stream_id), (StreamFrameKind::Rst, 5));
    let mut feedback = StreamFrameMeta::new(StreamFrameKind::Feedback, 4711, Some(5));
    feedback.consumed_size = Some(1);
    stream.write_all(&feedback.encode_head(0, &Limits::DEFAULT).unwrap()).unwrap();
    // Calls with the same id at once: each is answered. All in one write, cut at every place.
    let twice = [call(20, "Echo", b""), call(20, "Echo", b"")].concat();
    for cut in 0..twice.len() {
        stream.write_all(&twice[..cut]).unwrap();
        stream.write_all(&twice[cut..]).unwrap();
        assert_eq!((answer(&mut stream), answer(&mut stream)), (Some((20, Code::OK)), Some((20, Code::OK))));
    }
    assert_eq!(server.stats().running, 0);
}

/// brpc's clients keep connections without a word for as long as they like: keepalive must not take them for dead.
fn idle(bed: &Bed) {
    let server = serve(bed);
    let mut stream = connect(&server);
    stream.write_all(&call(1, "Echo", b"")).unwrap();
    assert_eq!(answer(&mut stream), Some((1, Code::OK)));
    // Longer than the deadline of the keepalive; there is nothing to wait for but time.
    std::thread::sleep(Duration::from_secs(4));
    stream.write_all(&call(2, "Echo", b"")).unwrap();
    assert_eq!(answer(&mut stream), Some((2, Code::OK)));
}

/// What is no frame closes the connection, at once and alone.
fn not_frames(bed: &Bed) {
    let server = serve(bed);
    let client = EchoClient::new(bed.channel(&server).connect_lazy().unwrap());
    client.echo(request(bytes_of(1, 1))).blocking().unwrap();
    let limit = Limits::DEFAULT.max_body_size;
    let header =
        |magic: &[u8; 4], body: u32, meta: u32| [&magic[..], &body.to_be_bytes(), &meta.to_be_bytes()].concat();
    let cases = [
        header(b"PRPC", u32::MAX, 10),
        header(b"PRPC", limit + 1, 10),
        header(b"PRPC", 10, 11),
        header(b"PRPC", 1 << 20, 1 << 20),
        header(b"STRM", u32::MAX, 0),
        header(b"PRPC", 0x8000_0000, 0x8000_0000),
        raw_frame(&[0xff; 20], b""),
        raw_frame(&[0x08, 0x01], b""),
        b"HTTX/1.1 nothing of ours\r\n\r\n".to_vec(),
    ];
    let rest: Vec<Vec<u8>> =
        cases.iter().flat_map(|bad| [bad.clone(), [&call(1, "Echo", b"")[..], bad].concat()]).collect();
    for bad in rest {
        let mut stream = connect(&server);
        stream.write_all(&bad).unwrap();
        let mut back = Vec::new();
        let end = stream.read_to_end(&mut back);
        assert!(
            end.is_ok() || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
            "still open: {bad:?}"
        );
    }
    client.echo(request(bytes_of(1, 1))).blocking().unwrap();
    assert_eq!(client.caller().stats().connects, 1, "unharmed");
}

/// A server of this file's: for each request of a connection, what `respond` makes of it; `None` ends the connection.
fn fake_server(respond: impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut respond = respond;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            while let Some(frame) = read_frame(&mut stream) {
                let Some(response) = respond(&frame) else { break };
                if stream.write_all(&response).is_err() {
                    break;
                }
            }
        }
    });
    address
}

fn id_of(frame: &[u8]) -> i64 {
    match parse(frame, &Limits::DEFAULT) {
        Ok(Step::Prpc(head)) => head.meta.correlation_id,
        other => panic!("no request: {other:?}"),
    }
}

fn answer_meta(id: i64) -> RpcMeta<'static> {
    RpcMeta { response: Some(ResponseMeta::default()), correlation_id: id, ..RpcMeta::default() }
}

fn response(id: i64, message: &[u8], attachment: &[u8]) -> Vec<u8> {
    prpc(&answer_meta(id), message, attachment)
}

fn no_retry() -> RetryPolicy {
    let mut policy = RetryPolicy::default();
    policy.on = RetryOn::Never;
    policy
}

fn bad_responses(bed: &Bed) {
    let (mut step, bomb) = (0, bomb());
    let address = fake_server(move |frame| {
        let id = id_of(frame);
        step += 1;
        let good = response(id, b"\x0a\x02ok", b"");
        Some(match step {
            // Unknown and duplicate ids around the right one, and signals that are none of ours.
            1 => [response(id + 1, b"", b""), response(-5, b"", b""), good.clone(), good, response(id, b"", b"")]
                .concat(),
            2 => response(id, b"\xff\xff", b""),
            3 => raw_frame(&[0x12, 0x00, 0x20, 0x00, 0x28, 0xe8, 0x07], b"x"),
            4 => [call(id, "Echo", b""), good].concat(),
            // An attachment longer than the frame, of a call that is known.
            5 => {
                let meta = &good[FRAME_HEADER_LEN..good.len() - 4];
                raw_frame(&[meta, &[0x28, 0xe8, 0x07][..]].concat(), b"\x0a\x02ok")
            }
            6 => {
                let meta = RpcMeta { compress_type: 2, ..answer_meta(id) };
                prpc(&meta, &bomb, b"")
            }
            7 => prpc(&RpcMeta { compress_type: 77, ..answer_meta(id) }, b"", b""),
            8 => prpc(&RpcMeta { checksum_type: 1, checksum_value: b"1234", ..answer_meta(id) }, b"", b""),
            9 => [&b"PRPC"[..], &u32::MAX.to_be_bytes(), &10_u32.to_be_bytes()].concat(),
            _ => vec![b'X'; 64],
        })
    });
    let builder = Channel::builder(&address).on(&bed.client).retry(no_retry()).max_message(2 << 20);
    let channel = builder.connect_lazy().unwrap();
    let client = EchoClient::new(channel.clone());
    let call = || client.echo(EchoRequest::default()).timeout(Duration::from_millis(500)).blocking();
    assert_eq!(call().unwrap().payload, &b"ok"[..]);
    eventually("strays were counted", || channel.stats().stray_responses == 4);
    assert_eq!(call().unwrap_err().code(), Code::ERESPONSE);
    // The rejected frame names no call that waits: the call times out, the connection lives.
    assert_eq!(call().unwrap_err().code(), Code::ERPCTIMEDOUT);
    assert_eq!(call().unwrap().payload, &b"ok"[..]);
    assert_eq!(channel.stats().stray_frames, 1);
    assert_eq!(channel.stats().connects, 1);
    for what in ["a long attachment", "a bomb", "an unknown compression", "a wrong checksum"] {
        assert_eq!(call().unwrap_err().code(), Code::ERESPONSE, "{what}");
    }
    assert_eq!((channel.stats().connects, channel.stats().in_flight), (1, 0), "the connection lives");
    for what in ["4 GiB", "no frame"] {
        let lost = call().unwrap_err();
        assert_eq!(lost.code(), Code::EPROTO, "{what}: {lost:?}");
    }
}

/// The server dies after each byte of its response: the call ends once, with an error, and the next one goes on a new connection.
fn death_at_every_byte(bed: &Bed) {
    let whole = response(1 << 20, b"\x0a\x05hello", b"beside").len();
    let (tell, hear) = std::sync::mpsc::channel::<usize>();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let Some(frame) = read_frame(&mut stream) else { continue };
            let response = response(id_of(&frame), b"\x0a\x05hello", b"beside");
            let Ok(cut) = hear.recv() else { return };
            stream.write_all(&response[..cut.min(response.len())]).unwrap();
        }
    });
    let channel = Channel::builder(&address).on(&bed.client).retry(no_retry()).connect_lazy().unwrap();
    let client = EchoClient::new(channel.clone());
    for cut in 0..whole + 3 {
        tell.send(cut).unwrap();
        let result = client.echo(EchoRequest::default()).timeout(Duration::from_secs(20)).blocking();
        match result {
            // Correlation ids grow: a few bytes more than `whole` may be needed.
            Ok(response) => {
                assert!(cut >= whole, "a response that was cut off after {cut} of {whole} bytes");
                assert_eq!(
                    (response.payload.clone(), response.attachment().clone()),
                    ("hello".into(), Bytes::from_static(b"beside"))
                );
            }
            Err(status) => {
                assert!(cut < whole + 3, "{status:?}");
                assert!([Code::EEOF, Code::ECONNRESET].contains(&status.code()), "after {cut} bytes: {status:?}");
            }
        }
        assert_eq!(channel.stats().in_flight, 0);
    }
    drop((client, channel));
}

/// Closes with a reset in place of an end, if `reset`.
fn end(stream: TcpStream, reset: bool) {
    if reset {
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    }
    drop(stream);
}

/// The server dies after it took each byte of the request: the call ends once, with an error.
fn death_while_a_request_goes(bed: &Bed) {
    let (tell, hear) = std::sync::mpsc::channel::<(usize, bool)>();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let Ok((cut, reset)) = hear.recv() else { return };
            let taken = stream.read_exact(&mut vec![0; cut]);
            taken.expect("the request is at least as long");
            end(stream, reset);
        }
    });
    let channel = Channel::builder(&address).on(&bed.client).retry(no_retry()).connect_lazy().unwrap();
    let client = EchoClient::new(channel.clone());
    // What the shortest of the requests is long: a few bytes more or less for the id.
    let whole = call(1 << 20, "Echo", b"\x0a\x05hello").len();
    for (cut, reset) in (1..whole).flat_map(|cut| [(cut, false), (cut, true)]) {
        // Not before the first byte: a call that finds its connection gone before it left takes another one.
        tell.send((cut, reset)).unwrap();
        let result = client.echo(request("hello".into())).timeout(Duration::from_secs(20)).blocking();
        let status = result.expect_err("nobody answered");
        let broken = [Code::EEOF, Code::ECONNRESET, Code::from_wire(32)];
        assert!(broken.contains(&status.code()), "after {cut} bytes: {status:?}");
        assert_eq!((status.stats().unwrap().attempts, channel.stats().in_flight), (1, 0));
    }
}

/// The client dies after it sent each byte of its request: a handler runs for whole ones alone, and other clients see nothing.
fn death_while_a_request_comes(bed: &Bed) {
    let (service, seen) = Service::new(Way::Local);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)));
    let client = EchoClient::new(bed.channel(&server).connect_lazy().unwrap());
    client.echo(request(bytes_of(1, 1))).blocking().unwrap();
    let whole = {
        let request = RequestMeta { service_name: "ucrpc.example.Echo", method_name: "Echo", ..RequestMeta::default() };
        let meta = RpcMeta { request: Some(request), correlation_id: 9, ..RpcMeta::default() };
        // It would take a minute: whoever is gone does not wait for it.
        prpc(&meta, b"\x0a\x05hello\x10\xe0\xd4\x03", b"beside")
    };
    for (cut, reset) in (0..=whole.len()).flat_map(|cut| [(cut, false), (cut, true)]) {
        let mut stream = connect(&server);
        stream.write_all(&whole[..cut]).unwrap();
        end(stream, reset);
    }
    client.echo(request(bytes_of(1, 1))).blocking().unwrap();
    eventually("nothing runs", || server.stats().running == 0 && server.stats().tasks == 2);
    let started = Seen::get(&seen.started);
    // After a reset the last bytes may never have been read.
    assert!(started == 3 || started == 4, "{started} handlers for whole requests");
    assert_eq!(Seen::get(&seen.ended) + Seen::get(&seen.dropped), started);
    assert_eq!((Seen::get(&seen.ended), client.caller().stats().connects), (2, 1), "unharmed");
}
