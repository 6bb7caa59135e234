//! What holds for all inputs: our decoder and encoder agree with prost's, round trips, no panics.

mod util;

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use proptest::collection::{hash_map, vec};
use proptest::option::of;
use proptest::prelude::*;
use prost::Message;
use ucrpc_rpc::call::{CallOptions, MethodName};
use ucrpc_rpc::codec::{AttemptMeta, ChecksumType, CompressType, decode_request, encode_request};
use ucrpc_rpc::wire::{Limits, MessageBuf, RpcMeta, Segments, Step, StreamFrameKind, StreamFrameMeta, parse};
use util::oracle;

fn request() -> impl Strategy<Value = oracle::RpcRequestMeta> {
    let ids = (of(any::<i64>()), of(any::<i64>()), of(any::<i64>()), of(any::<i64>()));
    (".{0,40}", ".{0,20}", ids, of(".{0,20}"), of(any::<i32>())).prop_map(
        |(service_name, method_name, (log_id, trace_id, span_id, parent_span_id), request_id, timeout_ms)| {
            oracle::RpcRequestMeta {
                service_name,
                method_name,
                log_id,
                trace_id,
                span_id,
                parent_span_id,
                request_id,
                timeout_ms,
            }
        },
    )
}

fn settings() -> impl Strategy<Value = oracle::StreamSettings> {
    (any::<i64>(), of(any::<bool>()), of(any::<bool>()), vec(any::<i64>(), 0..5)).prop_map(
        |(stream_id, need_feedback, writable, extra_stream_ids)| oracle::StreamSettings {
            stream_id,
            need_feedback,
            writable,
            extra_stream_ids,
        },
    )
}

prop_compose! {
    fn meta()(
        request in of(request()),
        response in of((of(any::<i32>()), of(".{0,40}"))),
        numbers in (of(any::<i32>()), of(any::<i64>()), of(any::<i32>()), of(any::<i32>()), of(any::<i32>())),
        chunk_info in of(vec(any::<u8>(), 0..10)),
        authentication_data in of(vec(any::<u8>(), 0..40)),
        stream_settings in of(settings()),
        user_fields in hash_map(".{0,10}", ".{0,40}", 0..6),
        checksum_value in of(vec(any::<u8>(), 0..6)),
        checksum_with_attachment in of(any::<bool>()),
    ) -> oracle::RpcMeta {
        let (compress_type, correlation_id, attachment_size, content_type, checksum_type) = numbers;
        oracle::RpcMeta {
            request,
            response: response.map(|(error_code, error_text)| oracle::RpcResponseMeta { error_code, error_text }),
            compress_type, correlation_id, attachment_size,
            chunk_info, authentication_data, stream_settings, user_fields, content_type, checksum_type, checksum_value,
            checksum_with_attachment,
        }
    }
}

/// Fails unless `ours` says what `theirs` says.
fn compare(ours: &RpcMeta<'_>, theirs: &oracle::RpcMeta) -> Result<(), TestCaseError> {
    prop_assert_eq!(ours.request.is_some(), theirs.request.is_some());
    if let (Some(ours), Some(theirs)) = (&ours.request, &theirs.request) {
        prop_assert_eq!(ours.service_name, &theirs.service_name);
        prop_assert_eq!(ours.method_name, &theirs.method_name);
        prop_assert_eq!(ours.log_id, theirs.log_id);
        prop_assert_eq!(ours.trace_id, theirs.trace_id);
        prop_assert_eq!(ours.span_id, theirs.span_id);
        prop_assert_eq!(ours.parent_span_id, theirs.parent_span_id);
        prop_assert_eq!(ours.request_id, theirs.request_id.as_deref().map(str::as_bytes));
        prop_assert_eq!(ours.timeout_ms, theirs.timeout_ms);
    }
    prop_assert_eq!(ours.response.is_some(), theirs.response.is_some());
    if let (Some(ours), Some(theirs)) = (&ours.response, &theirs.response) {
        prop_assert_eq!(ours.error_code, theirs.error_code.unwrap_or(0));
        prop_assert_eq!(ours.error_text, theirs.error_text.as_deref().unwrap_or("").as_bytes());
    }
    prop_assert_eq!(ours.compress_type, theirs.compress_type.unwrap_or(0));
    prop_assert_eq!(ours.correlation_id, theirs.correlation_id.unwrap_or(0));
    prop_assert_eq!(ours.attachment_size, i64::from(theirs.attachment_size.unwrap_or(0)));
    prop_assert_eq!(ours.authentication_data, theirs.authentication_data.as_deref());
    prop_assert_eq!(ours.content_type, theirs.content_type.unwrap_or(0));
    prop_assert_eq!(ours.checksum_type, theirs.checksum_type.unwrap_or(0));
    prop_assert_eq!(ours.checksum_value, theirs.checksum_value.as_deref().unwrap_or(&[]));
    prop_assert_eq!(ours.checksum_with_attachment, theirs.checksum_with_attachment.unwrap_or(false));
    prop_assert_eq!(ours.stream_settings.is_some(), theirs.stream_settings.is_some());
    if let (Some(ours), Some(theirs)) = (&ours.stream_settings, &theirs.stream_settings) {
        prop_assert_eq!(ours.stream_id, theirs.stream_id);
        prop_assert_eq!(ours.need_feedback, theirs.need_feedback.unwrap_or(false));
        prop_assert_eq!(ours.writable, theirs.writable.unwrap_or(false));
        prop_assert_eq!(&ours.extra_stream_ids, &theirs.extra_stream_ids);
    }
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let fields: HashMap<_, _> = ours.user_fields.iter().map(|(key, value)| (text(key), text(value))).collect();
    prop_assert_eq!(ours.user_fields.len(), theirs.user_fields.len());
    prop_assert_eq!(&fields, &theirs.user_fields);
    Ok(())
}

proptest! {
    #[test]
    fn our_decoder_reads_what_prost_writes(theirs in meta()) {
        let bytes = theirs.encode_to_vec();
        compare(&RpcMeta::decode(&bytes, &Limits::DEFAULT).unwrap(), &theirs)?;
    }

    #[test]
    fn prost_reads_what_our_encoder_writes(theirs in meta(), message in vec(any::<u8>(), 0..50), attachment in 0..50_usize) {
        let bytes = theirs.encode_to_vec();
        let mut ours = RpcMeta::decode(&bytes, &Limits::DEFAULT).unwrap();
        let head = MessageBuf::copy_from_slice(&message, 0).into_head(&ours, attachment, &Limits::DEFAULT).unwrap();
        ours.attachment_size = attachment as i64;
        prop_assert_eq!(head.message_at, 12 + ours.encoded_len());
        prop_assert_eq!(&head.message()[..], &message[..]);
        compare(&ours, &oracle::RpcMeta::decode(&head.bytes[12..head.message_at]).unwrap())?;
        // And so do we.
        let Ok(Step::Prpc(parsed)) = parse(&head.bytes, &Limits::DEFAULT) else { panic!("not a frame") };
        prop_assert_eq!(parsed.meta, ours);
        prop_assert_eq!(parsed.layout.frame_len(), (head.bytes.len() + attachment) as u64);
    }

    #[test]
    fn what_prost_rejects_or_reads_we_reject_or_read_the_same(mut bytes in meta().prop_map(|m| m.encode_to_vec()),
                                                              flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        for (at, value) in flips {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        // We are stricter: duplicates, sizes, limits. But what we take, prost takes, and says the same, but for texts
        // that we do not require to be UTF-8 and field numbers of enums.
        if let Ok(ours) = RpcMeta::decode(&bytes, &Limits::DEFAULT) {
            let texts = ours.user_fields.iter().flat_map(|(key, value)| [key, value])
                .chain(ours.response.map(|r| r.error_text)).chain(ours.request.and_then(|r| r.request_id));
            let all_utf8 = texts.into_iter().all(|text| std::str::from_utf8(text).is_ok());
            let i32_size = i32::try_from(ours.attachment_size).is_ok();
            if all_utf8 && i32_size {
                let theirs = oracle::RpcMeta::decode(&bytes[..]);
                prop_assert!(theirs.is_ok(), "{:?} but prost: {:?}", ours, theirs);
                if ours.user_fields.len() == theirs.as_ref().unwrap().user_fields.len() {
                    compare(&ours, &theirs.unwrap())?;
                }
            }
        }
    }

    #[test]
    fn stream_metas_agree_with_prost(stream_id: i64, source_stream_id: Option<i64>, kind in 1..5_i32,
                                     has_continuation: Option<bool>, consumed_size: Option<i64>, data in 0..100_usize) {
        let feedback = consumed_size.map(|size| oracle::Feedback { consumed_size: Some(size) });
        let theirs = oracle::StreamFrameMeta {
            stream_id, source_stream_id, frame_type: Some(kind), has_continuation, feedback,
        };
        let bytes = theirs.encode_to_vec();
        let ours = StreamFrameMeta::decode(&bytes).unwrap();
        let kinds = [StreamFrameKind::Rst, StreamFrameKind::Close, StreamFrameKind::Data, StreamFrameKind::Feedback];
        let expected = StreamFrameMeta {
            has_continuation, consumed_size, ..StreamFrameMeta::new(kinds[kind as usize - 1], stream_id, source_stream_id)
        };
        prop_assert_eq!(ours, expected);
        let head = ours.encode_head(data, &Limits::DEFAULT).unwrap();
        prop_assert_eq!(&head[12..], &bytes[..]);
        let Ok(Step::Strm(parsed)) = parse(&head, &Limits::DEFAULT) else { panic!("not a frame") };
        prop_assert_eq!((parsed.meta, parsed.layout.body_len as usize), (ours, data));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), strm: bool, body in 0..300_u32, meta in 0..200_u32) {
        let _ = parse(&bytes, &Limits::DEFAULT);
        let _ = RpcMeta::decode(&bytes, &Limits::DEFAULT);
        let _ = StreamFrameMeta::decode(&bytes);
        let magic = if strm { b"STRM" } else { b"PRPC" };
        let framed = [magic, &body.to_be_bytes()[..], &meta.to_be_bytes(), &bytes].concat();
        match parse(&framed, &Limits::DEFAULT) {
            Ok(Step::NeedMore(total)) => prop_assert!(total > framed.len() && total <= 12 + body as usize),
            Ok(Step::Prpc(head)) => prop_assert_eq!(head.layout.frame_len(), 12 + u64::from(body)),
            Ok(Step::Strm(head)) => prop_assert_eq!(head.layout.frame_len(), 12 + u64::from(body)),
            Ok(Step::Reject { frame_len, .. }) => prop_assert_eq!(frame_len, 12 + u64::from(body)),
            Err(_) => {}
        }
        for how in 0..5 {
            let how = CompressType::from_wire(how).unwrap();
            if let Ok(message) = how.decompress(Bytes::copy_from_slice(&bytes), 1000) {
                prop_assert!(message.len() <= 1000);
            }
        }
    }

    #[test]
    fn requests_survive_compression_checksum_and_headroom(
        message in prop_oneof![vec(any::<u8>(), 0..3000), vec(0..3_u8, 0..3000)],
        attachment in vec(vec(any::<u8>(), 0..20), 0..4),
        how in 0..5_i32, checksum: bool, covered: bool, room in 0..200_usize, flip in of(any::<prop::sample::Index>()),
    ) {
        let mut options = CallOptions::default();
        options.compress = CompressType::from_wire(how).unwrap();
        options.checksum = if checksum { ChecksumType::Crc32c } else { ChecksumType::None };
        options.checksum_attachment = covered;
        options.attachment = attachment.iter().cloned().map(Bytes::from).collect();
        let name = MethodName::new("a.very.long.name.of.a.Service".repeat(3), "Method");
        let buf = MessageBuf::copy_from_slice(&message, room);
        let head = encode_request(&name, buf, &options, AttemptMeta::default(), Instant::now(), &Limits::DEFAULT).unwrap();
        let Ok(Step::Prpc(parsed)) = parse(&head.bytes, &Limits::DEFAULT) else { panic!("not a frame") };
        let mut wire = head.bytes.slice(parsed.layout.message_at()..).to_vec();
        let unpacked = decode_request(&parsed.meta, wire.clone().into(), &attachment.concat(), message.len());
        prop_assert_eq!(&unpacked.unwrap()[..], &message[..]);
        if let (Some(flip), true, false) = (flip, checksum, wire.is_empty()) {
            let at = flip.index(wire.len());
            wire[at] ^= 0x10;
            prop_assert!(decode_request(&parsed.meta, wire.into(), &attachment.concat(), message.len()).is_err());
        }
        // One byte less than it takes is refused.
        if !message.is_empty() {
            let wire = head.bytes.slice(parsed.layout.message_at()..);
            prop_assert!(decode_request(&parsed.meta, wire, &attachment.concat(), message.len() - 1).is_err());
        }
    }

    #[test]
    fn segments_split_anywhere(pieces in vec(vec(any::<u8>(), 0..10), 0..6), at in 0..70_usize) {
        let whole = pieces.concat();
        let mut back: Segments = pieces.into_iter().map(Bytes::from).collect();
        let front = back.split_to(at);
        let at = at.min(whole.len());
        prop_assert_eq!((front.len(), back.len()), (at, whole.len() - at));
        prop_assert_eq!(&front.into_bytes()[..], &whole[..at]);
        prop_assert_eq!(&back.into_bytes()[..], &whole[at..]);
    }
}
