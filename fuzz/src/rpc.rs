//! Checks of `ucrpc-rpc` on bytes that a peer chose. Each panics if something is wrong, whatever the bytes are.
//!
//! Used by the fuzz targets, and by `rpc/tests/corpus.rs`, which replays `corpus/`.

use std::time::Instant;

use bytes::Bytes;
use ucrpc_rpc::call::MethodName;
use ucrpc_rpc::codec::{CompressType, decode_request, decode_response};
use ucrpc_rpc::wire::stream::{Stream, StreamConfig};
use ucrpc_rpc::wire::{Limits, MessageBuf, RpcMeta, Step, StreamFrameMeta, StreamSettings, parse};
use ucrpc_rpc::{CallContext, PrpcFramer};
use ucrpc_transport::framing::{Cut, Framer};

/// What a message may become: small, so that the fuzzer finds what goes beyond.
const MAX_MESSAGE: usize = 64 << 10;

/// A target's name and its check.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 4] = [("prpc", prpc), ("strm", strm), ("meta", meta), ("decompress", decompress)];

/// One frame of any kind, whole or not: header, meta, message, attachment.
pub fn prpc(data: &[u8]) {
    let limits = Limits::DEFAULT;
    cut(data, &limits);
    let Ok(step) = parse(data, &limits) else { return };
    match step {
        Step::NeedMore(total) => assert!(total > data.len() && total <= 12 + limits.max_meta_size as usize),
        Step::Strm(head) => assert!(head.layout.message_len == 0 && head.layout.head_len() <= data.len()),
        Step::Reject { frame_len, .. } => assert!(frame_len <= 12 + u64::from(limits.max_body_size)),
        Step::Prpc(head) => {
            let layout = head.layout;
            assert!(layout.message_at() <= data.len());
            assert!(layout.frame_len() <= 12 + u64::from(limits.max_body_size));
            round_trip(&head.meta, &limits);
            let whole = usize::try_from(layout.frame_len()).ok().and_then(|len| data.get(..len));
            let Some(frame) = whole else { return };
            let message = Bytes::copy_from_slice(&frame[layout.message_at()..layout.head_len()]);
            let attachment = Bytes::copy_from_slice(&frame[layout.head_len()..]);
            if let Ok(message) = decode_request(&head.meta, message.clone(), &attachment, MAX_MESSAGE) {
                assert!(message.len() <= MAX_MESSAGE);
            }
            if let Some(request) = &head.meta.request {
                let name = MethodName::new(request.service_name.to_owned(), request.method_name.to_owned());
                let context = CallContext::from_request(name, &head.meta, request, attachment.clone(), Instant::now());
                assert_eq!(context.metadata().len(), head.meta.user_fields.len());
            }
            if let Ok(response) = decode_response(&head.meta, message, attachment.clone(), MAX_MESSAGE) {
                assert!(response.message.len() <= MAX_MESSAGE && response.attachment == attachment);
            }
        }
    }
}

/// The framer ends a frame where the parser does, whether it looked into the frame or at its sizes alone.
fn cut(data: &[u8], limits: &Limits) {
    let parsed = parse(data, limits);
    match PrpcFramer::new(*limits).cut(data) {
        Cut::NeedMore(total) => assert!(total > data.len()),
        Cut::Bad(_) => assert!(parsed.is_err()),
        Cut::Frame { head, body } => {
            let len = head as u64 + body;
            assert!(head >= 12 && len <= 12 + u64::from(limits.max_body_size));
            match parsed {
                Ok(Step::Prpc(prpc)) => assert_eq!(len, prpc.layout.frame_len()),
                Ok(Step::Strm(strm)) => assert_eq!(len, strm.layout.frame_len()),
                Ok(Step::Reject { frame_len, .. }) => assert_eq!(len, frame_len),
                Ok(Step::NeedMore(total)) => assert!(body == 0 && head >= total),
                // A short frame: who takes it apart finds what is wrong with it.
                Err(_) => assert_eq!(body, 0),
            }
        }
    }
}

/// Frames one after the other, given to a stream.
pub fn strm(data: &[u8]) {
    let Some((&flags, mut rest)) = data.split_first() else { return };
    let mut config = StreamConfig::default();
    config.window = 64;
    config.feedback_step = 16;
    config.max_message = 256;
    config.max_unconsumed = 512;
    config.max_segment = 8;
    let mut stream = Stream::client(1, config);
    if flags & 1 != 0 {
        let settings =
            StreamSettings { stream_id: 2, need_feedback: true, writable: true, ..StreamSettings::default() };
        stream.connect(&settings);
    }
    while let Ok(Step::Strm(head)) = parse(rest, &Limits::DEFAULT) {
        let Some(body) = rest.get(head.layout.head_len()..).and_then(|b| b.get(..head.layout.body_len as usize)) else {
            return;
        };
        let reply = head.meta.unknown_stream_reply();
        assert!(reply.is_none_or(|reply| reply.unknown_stream_reply().is_none()), "resets answer resets");
        let broken = stream.handle_frame(&head.meta, Bytes::copy_from_slice(body)).is_err();
        assert!(!broken || stream.is_closed());
        assert!(stream.is_closed() || stream.unconsumed() <= config.max_unconsumed);
        if let Ok(frames) = stream.write(vec![flags; usize::from(flags)].into()) {
            assert_eq!(frames.map(|(_, data)| data.len()).sum::<usize>(), usize::from(flags));
        }
        if flags & 2 != 0 {
            stream.consume(body.len());
        }
        if let Some(report) = stream.poll_feedback() {
            assert!(report.consumed_size.is_some_and(|consumed| consumed > 0));
        }
        rest = &rest[head.layout.head_len() + body.len()..];
    }
}

/// Metas without their frames.
pub fn meta(data: &[u8]) {
    if let Ok(meta) = RpcMeta::decode(data, &Limits::DEFAULT) {
        assert_eq!(meta.user_fields.iter().count(), meta.user_fields.len());
        round_trip(&meta, &Limits::DEFAULT);
    }
    if let Ok(meta) = StreamFrameMeta::decode(data) {
        let head = meta.encode_head(0, &Limits::DEFAULT).expect("it is small");
        assert_eq!(StreamFrameMeta::decode(&head[12..]), Ok(meta));
    }
}

/// The first byte says how the rest is compressed.
pub fn decompress(data: &[u8]) {
    let Some((&how, compressed)) = data.split_first() else { return };
    let Some(how) = CompressType::from_wire(i32::from(how % 5)) else { return };
    if let Ok(message) = how.decompress(Bytes::copy_from_slice(compressed), MAX_MESSAGE) {
        assert!(message.len() <= MAX_MESSAGE);
        let again = how.compress(MessageBuf::copy_from_slice(&message, 0), 0).expect("it is short");
        assert_eq!(how.decompress(again.freeze(), MAX_MESSAGE).expect("our own"), message);
    }
}

/// What was decoded can be encoded, and is the same then.
fn round_trip(meta: &RpcMeta<'_>, limits: &Limits) {
    let Ok(head) = MessageBuf::with_capacity(0, 0).into_head(meta, 0, limits) else {
        // Only what is spelled out longer than it came can be too long now.
        assert!(meta.encoded_len() + 12 > limits.max_meta_size as usize);
        return;
    };
    let Ok(Step::Prpc(again)) = parse(&head.bytes, limits) else { panic!("our own frame does not parse") };
    assert_eq!(again.meta, RpcMeta { attachment_size: 0, ..meta.clone() });
}
