//! Frames written by hand from the format tables, byte for byte. No encoder of ours had a part in the expected bytes.

mod util;

use std::time::Instant;

use bytes::Bytes;
use ucrpc_rpc::call::{CallOptions, MethodName, Reply, Trace};
use ucrpc_rpc::codec::{
    AttemptMeta, ChecksumType, CompressType, crc32c_value, decode_request, decode_response, encode_request,
    encode_response,
};
use ucrpc_rpc::wire::stream::response_frame;
use ucrpc_rpc::wire::{
    BadFrame, Limits, MessageBuf, MetaError, PrpcHead, RequestMeta, Step, StreamFrameKind, StreamFrameMeta,
    StreamSettings, WireError, parse,
};
use ucrpc_rpc::{CallContext, Code, Status};
use util::hex;

const METHOD: MethodName = MethodName::from_static("t.Echo", "Say");
const MESSAGE: &[u8] = b"\x0a\x02hi";
const LIMITS: Limits = Limits::DEFAULT;

/// What a test says of one request and its bytes.
fn check_request(options: &CallOptions, attempt: AttemptMeta<'_>, expected: &str) {
    let expected = hex(expected);
    let message = MessageBuf::copy_from_slice(MESSAGE, 0);
    let head = encode_request(&METHOD, message, options, attempt, Instant::now(), &LIMITS).unwrap();
    assert_eq!([&head.bytes[..], &options.attachment.clone().into_bytes()].concat(), expected);
    assert_eq!(&head.message()[..], MESSAGE);
}

fn prpc(frame: &[u8]) -> (PrpcHead<'_>, Bytes, Bytes) {
    let Ok(Step::Prpc(head)) = parse(frame, &LIMITS) else { panic!("no PRPC frame: {:?}", parse(frame, &LIMITS)) };
    let message = Bytes::copy_from_slice(&frame[head.layout.message_at()..head.layout.head_len()]);
    let attachment = Bytes::copy_from_slice(&frame[head.layout.head_len()..]);
    assert_eq!(head.layout.frame_len(), frame.len() as u64);
    (head, message, attachment)
}

fn attempt(correlation_id: i64) -> AttemptMeta<'static> {
    AttemptMeta { correlation_id, ..AttemptMeta::default() }
}

#[test]
fn a_plain_request() {
    // 2 + 13 for the request, 3 for correlation id 300: 18 bytes of meta.
    let expected = "'PRPC' 00000016 00000012
        0a 0d  0a 06 't.Echo'  12 03 'Say'
        20 ac02
        0a 02 'hi'";
    check_request(&CallOptions::default(), attempt(300), expected);
    let mut nothing_to_cover = CallOptions::default();
    nothing_to_cover.checksum_attachment = true;
    check_request(&nothing_to_cover, attempt(300), expected);
    let frame = hex(expected);
    let (head, message, attachment) = prpc(&frame);
    let request = RequestMeta { service_name: "t.Echo", method_name: "Say", ..RequestMeta::default() };
    assert_eq!(head.meta.request, Some(request));
    assert_eq!((head.meta.correlation_id, &message[..], attachment.len()), (300, MESSAGE, 0));
}

#[test]
fn a_request_with_everything() {
    // RpcRequestMeta: names 8 + 5, log_id 3, trace_id 2, span_id 2, parent_span_id 2, request_id 3 = 25 bytes.
    // RpcMeta: 2 + 25, correlation_id 2, attachment_size 2, authentication_data 5, stream_settings 8, user_fields 8 = 52.
    let expected = "'PRPC' 0000003b 00000034
        0a 19  0a 06 't.Echo'  12 03 'Say'  18 ac02  20 01  28 02  30 03  3a 01 'r'
        20 05
        28 03
        3a 03 'key'
        42 06  08 07  10 01  18 01
        4a 06  0a 01 'k'  12 01 'v'
        0a 02 'hi'
        'ATT'";
    let mut options = CallOptions::default();
    options.log_id = Some(300);
    options.trace = Some(Trace { trace_id: 1, span_id: 2, parent_span_id: 3 });
    options.request_id = Some("r".into());
    options.attachment = vec![Bytes::from_static(b"A"), Bytes::from_static(b"TT")].into();
    options.stream =
        Some(StreamSettings { stream_id: 7, need_feedback: true, writable: true, extra_stream_ids: vec![] });
    options.metadata.insert("k", "v").unwrap();
    check_request(
        &options,
        AttemptMeta { correlation_id: 5, authentication_data: Some(b"key"), ..AttemptMeta::default() },
        expected,
    );

    let frame = hex(expected);
    let (head, message, attachment) = prpc(&frame);
    assert_eq!((&message[..], &attachment[..]), (MESSAGE, &b"ATT"[..]));
    let context =
        CallContext::from_request(METHOD, &head.meta, &head.meta.request.unwrap(), attachment, Instant::now());
    assert_eq!(context.log_id(), options.log_id);
    assert_eq!(context.trace(), options.trace);
    assert_eq!(context.request_id(), Some("r"));
    assert_eq!(context.metadata().get("k"), Some("v"));
    assert_eq!(context.stream(), options.stream.as_ref());
    assert_eq!(context.authentication_data().unwrap(), "key");
}

#[test]
fn a_timeout_is_field_8_of_the_request() {
    // RpcRequestMeta: 13, timeout_ms 3 = 16. 1000 ms is e8 07.
    let frame = hex("'PRPC' 0000001a 00000014  0a 10 0a 06 't.Echo' 12 03 'Say' 40 e807  20 07  0a 02 'hi' 0000");
    let (head, ..) = prpc(&frame);
    assert_eq!(head.meta.request.unwrap().timeout_ms, Some(1000));
    // Ours: the milliseconds left, so that the bytes can only be compared for a deadline far away.
    let mut options = CallOptions::default();
    options.deadline = ucrpc_rpc::Deadline::after(Instant::now(), std::time::Duration::from_secs(1 << 40));
    // i32::MAX is ff ff ff ff 07.
    let expected = "'PRPC' 0000001b 00000017  0a 13 0a 06 't.Echo' 12 03 'Say' 40 ffffffff07 20 07 0a 02 'hi'";
    check_request(&options, attempt(7), expected);
}

fn reply(result: Result<&[u8], Status>) -> Reply {
    let result = result.map(|message| MessageBuf::copy_from_slice(message, 0));
    Reply { result, context: CallContext::new(METHOD) }
}

fn check_response(reply: Reply, correlation_id: i64, expected: &str) {
    let (head, attachment) = encode_response(reply, correlation_id, &LIMITS);
    assert_eq!([&head.bytes[..], &attachment.into_bytes()].concat(), hex(expected));
}

#[test]
fn responses() {
    let plain = "'PRPC' 0000000a 00000006  12 02 08 00  20 05  0a 02 'hi'";
    check_response(reply(Ok(MESSAGE)), 5, plain);

    let with_attachment = "'PRPC' 00000017 00000010
        12 02 08 00  20 05  28 03  4a 06 0a 01 'k' 12 01 'v'
        0a 02 'hi'  'ATT'";
    let mut full = reply(Ok(MESSAGE));
    full.context.set_attachment(&b"ATT"[..]);
    full.context.response.metadata.insert("k", "v").unwrap();
    check_response(full, 5, with_attachment);
    let frame = hex(with_attachment);
    let (head, message, attachment) = prpc(&frame);
    let response = decode_response(&head.meta, message, attachment, 100).unwrap();
    assert_eq!((&response.message[..], &response.attachment[..]), (MESSAGE, &b"ATT"[..]));
    assert_eq!(response.metadata.get("k"), Some("v"));

    // ELIMIT, 2004, is d4 0f. An error has neither message nor attachment.
    let error = "'PRPC' 0000000d 0000000d  12 09 08 d40f 12 04 'busy'  20 05";
    let mut failed = reply(Err(Status::new(Code::ELIMIT, "busy")));
    failed.context.set_attachment(&b"ATT"[..]);
    check_response(failed, 5, error);
    let frame = hex(error);
    let (head, message, attachment) = prpc(&frame);
    let status = decode_response(&head.meta, message, attachment, 100).unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::ELIMIT, "busy"));
}

#[test]
fn an_answer_as_brpc_writes_it_with_defaults_spelled_out() {
    // compress_type 0, content_type 0, checksum_type 0, checksum_value empty; and an error text that is not UTF-8.
    let frame = hex("'PRPC' 00000010 0000000e  12 02 08 00  18 00  20 05  50 00  58 00  62 00  0a 00");
    let (head, message, attachment) = prpc(&frame);
    assert_eq!(&decode_response(&head.meta, message, attachment, 100).unwrap().message[..], b"\x0a\x00");
    // error_code -1 takes ten bytes.
    let frame = hex("'PRPC' 00000012 00000012  12 0e 08 ffffffffffffffffff01 12 01 ff  20 05");
    let (head, message, attachment) = prpc(&frame);
    let status = decode_response(&head.meta, message, attachment, 100).unwrap_err();
    assert_eq!((status.code().to_wire(), status.message()), (-1, "\u{fffd}"));
}

#[test]
fn each_compression_is_read() {
    // The message is 0a 14 and twenty times 'a'.
    let message = [&[0x0a, 0x14][..], &[b'a'; 20]].concat();
    let vectors = [
        (CompressType::None, "0a 14 'aaaaaaaaaaaaaaaaaaaa'"),
        // Length 22; a literal of 3; a copy of 19 from 1 back.
        (CompressType::Snappy, "16  08 0a 14 'a'  4a 01 00"),
        // Both from zlib itself.
        (CompressType::Gzip, "1f8b0800000000000003 e31249c40200 74589d4f 16000000"),
        (CompressType::Zlib, "789c e31249c40200 522807b3"),
        // Length 22; 3 literals and a match of 14 from 1 back; 5 literals.
        (CompressType::Lz4, "16  3a 0a 14 'a' 01 00  50 'aaaaa'"),
    ];
    for (number, (how, compressed)) in vectors.into_iter().enumerate() {
        assert_eq!(how.to_wire() as usize, number);
        assert_eq!(CompressType::from_wire(number as i32), Some(how));
        let compressed = hex(compressed);
        let meta = hex(&format!("0a 0d 0a 06 't.Echo' 12 03 'Say' 18 0{number} 20 05"));
        let sizes = [(meta.len() + compressed.len()) as u32, meta.len() as u32].map(u32::to_be_bytes).concat();
        let frame = [b"PRPC", &sizes[..], &meta, &compressed].concat();
        let (head, wire, attachment) = prpc(&frame);
        assert_eq!(decode_request(&head.meta, wire, &attachment, 22).unwrap(), message, "{how:?}");
        // And what we write says the same type, and reads back.
        let mut options = CallOptions::default();
        options.compress = how;
        let buf = MessageBuf::copy_from_slice(&message, 0);
        let ours = encode_request(&METHOD, buf, &options, attempt(5), Instant::now(), &LIMITS).unwrap();
        let (head, wire, attachment) = prpc(&ours.bytes);
        assert_eq!(head.meta.compress_type, how.to_wire());
        assert!(how == CompressType::None || wire.len() < message.len() || how == CompressType::Gzip);
        assert_eq!(decode_request(&head.meta, wire, &attachment, 22).unwrap(), message, "{how:?}");
    }
    assert_eq!(CompressType::from_wire(5), None);
}

#[test]
fn a_checksum_is_masked_crc32c_big_endian() {
    // CRC-32C of "123456789" is e3069283: the check value of the algorithm. Rotated right by 15 and a282ead8 added.
    assert_eq!(crc32c_value([&b"123"[..], b"456789"]), 0xc78ab0e5_u32.to_be_bytes());

    // crc32c(0a 02 'hi') = 4ad7f7bd, masked 91fd8087; crc32c(0a 02 'hi' 'ATT') = 3a463105, masked 048d5f64.
    let message_only = "'PRPC' 00000022 0000001b
        0a 0d 0a 06 't.Echo' 12 03 'Say'  20 05  28 03  58 01  62 04 91fd8087
        0a 02 'hi' 'ATT'";
    let with_attachment = "'PRPC' 00000024 0000001d
        0a 0d 0a 06 't.Echo' 12 03 'Say'  20 05  28 03  58 01  62 04 048d5f64  68 01
        0a 02 'hi' 'ATT'";
    for (covered, expected) in [(false, message_only), (true, with_attachment)] {
        let mut options = CallOptions::default();
        options.attachment = b"ATT"[..].into();
        options.checksum = ChecksumType::Crc32c;
        options.checksum_attachment = covered;
        check_request(&options, attempt(5), expected);
        let frame = hex(expected);
        let (head, message, attachment) = prpc(&frame);
        assert_eq!(&decode_request(&head.meta, message.clone(), &attachment, 100).unwrap()[..], MESSAGE);
        let broken = decode_request(&head.meta, message.clone(), b"AUT", 100);
        assert_eq!(broken.is_err(), covered, "only a covered attachment is verified");
        let broken = decode_request(&head.meta, Bytes::from_static(b"\x0a\x02ha"), &attachment, 100).unwrap_err();
        assert_eq!(broken.code(), Code::EREQUEST);
        let mut meta = head.meta.clone();
        meta.checksum_value = &[];
        assert!(decode_request(&meta, message.clone(), &attachment, 100).is_err(), "a checksum of the wrong length");
        meta.checksum_type = 9;
        assert!(decode_request(&meta, message, &attachment, 100).is_err(), "an unknown checksum");
    }
}

#[test]
fn each_stream_frame() {
    let meta = |kind, source, more, consumed_size| {
        let base = StreamFrameMeta::new(kind, 9, source);
        StreamFrameMeta { has_continuation: more, consumed_size, ..base }
    };
    let vectors = [
        (meta(StreamFrameKind::Rst, None, None, None), "'STRM' 00000004 00000004  08 09  18 01"),
        (meta(StreamFrameKind::Close, Some(7), None, None), "'STRM' 00000006 00000006  08 09  10 07  18 02"),
        (
            meta(StreamFrameKind::Data, Some(7), Some(true), None),
            "'STRM' 0000000b 00000008  08 09  10 07  18 03  20 01  'abc'",
        ),
        (
            meta(StreamFrameKind::Data, Some(7), Some(false), None),
            "'STRM' 0000000b 00000008  08 09  10 07  18 03  20 00  'abc'",
        ),
        (
            meta(StreamFrameKind::Feedback, Some(7), None, Some(4096)),
            "'STRM' 0000000b 0000000b  08 09  10 07  18 04  2a 03 08 8020",
        ),
        (
            // The answer of a server that accepted no stream.
            response_frame(9, None),
            "'STRM' 00000014 00000011  08 09  10 ffffffffffffffffff01  18 03  20 00  'abc'",
        ),
    ];
    for (meta, expected) in vectors {
        let frame = hex(expected);
        let Ok(Step::Strm(head)) = parse(&frame, &LIMITS) else { panic!("no STRM frame") };
        assert_eq!(head.meta, meta);
        let data = &frame[head.layout.head_len()..];
        assert_eq!(data, if meta.kind == StreamFrameKind::Data { &b"abc"[..] } else { b"" });
        assert_eq!([&meta.encode_head(data.len(), &LIMITS).unwrap()[..], data].concat(), frame);
    }
}

#[test]
fn stream_settings_with_extra_ids_packed_or_not() {
    for ids in ["20 08  20 09", "22 02 08 09"] {
        let meta = hex(&format!("12 02 08 00  20 05  42 0a  08 07  10 00  18 01  {ids}"));
        let sizes = [meta.len() as u32; 2].map(u32::to_be_bytes).concat();
        let frame = [b"PRPC", &sizes[..], &meta].concat();
        let (head, ..) = prpc(&frame);
        let settings = head.meta.stream_settings.unwrap();
        let expected =
            StreamSettings { stream_id: 7, need_feedback: false, writable: true, extra_stream_ids: vec![8, 9] };
        assert_eq!(settings, expected);
    }
}

#[test]
fn unknown_fields_of_every_kind_are_left_out() {
    // Field 100 as varint, fixed64, bytes, group with a nested group, fixed32; then the correlation id.
    let meta = "a006 01  a106 0102030405060708  a206 02 'xx'  a306 0b 08 01 0c a406  a506 01020304  20 05  12 00";
    let meta = hex(meta);
    let sizes = [meta.len() as u32; 2].map(u32::to_be_bytes).concat();
    let frame = [b"PRPC", &sizes[..], &meta].concat();
    let (head, ..) = prpc(&frame);
    assert_eq!(head.meta.correlation_id, 5);
}

#[test]
fn bad_frames() {
    let bad = |frame: &str| parse(&hex(frame), &LIMITS).unwrap_err();
    assert_eq!(bad("'GET '"), WireError::Magic { found: *b"GET " });
    assert_eq!(bad("'PX'"), WireError::Magic { found: *b"PX\0\0" });
    let claim = WireError::BodyTooLarge { size: u32::MAX, limit: 64 << 20 };
    assert_eq!(bad("'PRPC' ffffffff 00000001"), claim);
    assert_eq!(bad("'STRM' ffffffff ffffffff"), claim);
    assert_eq!(bad("'PRPC' 00000001 00000002"), WireError::MetaExceedsBody { meta: 2, body: 1 });
    assert_eq!(bad("'PRPC' 03ffffff 00010001"), WireError::MetaTooLarge { size: 65537, limit: 65536 });

    let meta = |meta: &str| {
        let meta = hex(meta);
        let sizes = [meta.len() as u32; 2].map(u32::to_be_bytes).concat();
        let WireError::Meta(error) = parse(&[b"PRPC", &sizes[..], &meta].concat(), &LIMITS).unwrap_err() else {
            panic!("not a meta error")
        };
        error
    };
    for (twice, field) in [
        ("20 05 20 05", 4),
        ("28 00 28 00", 5),
        ("12 00 12 00", 2),
        ("18 00 18 01", 3),
        ("62 00 62 00", 12),
        ("12 04 08 01 08 00", 1),
        ("0a 06 0a 01 'a' 12 01 'b'  0a 00", 1),
        ("0a 09 0a 01 'a' 12 01 'b' 0a 01 'c'", 1),
        ("42 04 08 01 08 01", 1),
        ("4a 06 0a 01 'a' 0a 01 'a'", 1),
    ] {
        assert_eq!(meta(twice), MetaError::Duplicate { field }, "{twice}");
    }
    assert_eq!(meta("0a 03 0a 01 'a'"), MetaError::Missing { field: "method_name" });
    assert_eq!(meta("42 02 10 01"), MetaError::Missing { field: "stream_id" });
    assert_eq!(meta("0a 06 0a 01 ff 12 01 'b'"), MetaError::NotUtf8 { field: 1 });
    assert_eq!(meta("22 00"), MetaError::WireType { field: 4, wire_type: 2 });
    assert_eq!(meta("20"), MetaError::Truncated);
    assert_eq!(meta("3a 05 'key'"), MetaError::Truncated);
    assert_eq!(meta("20 ffffffffffffffffff02"), MetaError::Varint);
    assert_eq!(meta("20 ffffffffffffffffffff01"), MetaError::Varint);
    assert_eq!(meta("00 00"), MetaError::Tag { tag: 0 });
    assert_eq!(meta("a7 06"), MetaError::Tag { tag: 0x327 });
    assert_eq!(meta("a4 06"), MetaError::Group);
    assert_eq!(meta("a3 06"), MetaError::Group);
    assert_eq!(meta(&"a306".repeat(40)), MetaError::Group);
    assert_eq!(meta(&"4a00".repeat(129)), MetaError::TooManyUserFields { limit: 128 });
    let ids = "2001".repeat(65);
    assert_eq!(meta(&format!("42 8401 08 01 {ids}")), MetaError::TooManyStreams { limit: 64 });
}

#[test]
fn a_wrong_attachment_size_costs_one_call_not_the_connection() {
    let reject = |frame: &str| {
        let frame = hex(frame);
        let Ok(Step::Reject { meta, frame_len, error }) = parse(&frame, &LIMITS) else { panic!("not rejected") };
        assert_eq!((meta.correlation_id, frame_len), (5, frame.len() as u64));
        error
    };
    let too_long = BadFrame::AttachmentExceedsPayload { attachment: 4, payload: 3 };
    assert_eq!(reject("'PRPC' 00000009 00000006  12 00 20 05 28 04  'abc'"), too_long);
    let negative = BadFrame::NegativeAttachment(-1);
    assert_eq!(reject("'PRPC' 00000012 0000000f  12 00 20 05 28 ffffffffffffffffff01  'abc'"), negative);
    // -1 as some encoders write it, in five bytes: as unsigned, it is too long.
    let wrapped = BadFrame::AttachmentExceedsPayload { attachment: 0xffff_ffff, payload: 3 };
    assert_eq!(reject("'PRPC' 0000000d 0000000a  12 00 20 05 28 ffffffff0f  'abc'"), wrapped);
}

#[test]
fn parts_are_known_as_soon_as_the_meta_is_there() {
    let frame = hex("'PRPC' 00000011 0000000a  12 02 08 00  20 05  28 03  50 00  0a 02 'hi'  'ATT'");
    for len in 0..frame.len() {
        let step = parse(&frame[..len], &LIMITS).unwrap();
        match len {
            0..12 => assert_eq!(step, Step::NeedMore(12)),
            12..22 => assert_eq!(step, Step::NeedMore(22)),
            _ => {
                let Step::Prpc(head) = step else { panic!("not a frame at {len}") };
                assert_eq!((head.layout.head_len(), head.layout.body_len), (26, 3));
            }
        }
    }
}
