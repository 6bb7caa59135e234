//! From calls and replies to frames.

use std::time::Instant;

use bytes::Bytes;

use super::{ChecksumType, CompressType, crc32c_value};
use crate::call::{CallOptions, MethodName, Reply};
use crate::wire::{EncodeError, Head, Limits, MessageBuf, RequestMeta, ResponseMeta, RpcMeta, Segments, Signal};
use crate::{Code, Status};

/// What differs between the attempts of one call.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttemptMeta<'a> {
    /// Names the attempt on its connection.
    pub correlation_id: i64,
    /// Credentials, if this is the first request of its connection.
    pub authentication_data: Option<&'a [u8]>,
    /// What is told to a peer that is ucrpc, too.
    pub signal: Signal,
}

/// Encodes a request's head. The frame is this head, then the attachment of `options`.
///
/// # Errors
///
/// [`Code::ERPCTIMEDOUT`] if the deadline passed before `now`, [`Code::EREQUEST`] if the request is above `limits` or
/// cannot be compressed.
pub fn encode_request(
    method: &MethodName,
    message: MessageBuf,
    options: &CallOptions,
    attempt: AttemptMeta<'_>,
    now: Instant,
    limits: &Limits,
) -> Result<Head, Status> {
    let refused = |error: EncodeError| Status::new(Code::EREQUEST, format!("cannot encode request: {error}"));
    let timeout_ms = options.deadline.to_wire(now)?;
    let metadata = options.metadata.as_user_fields();
    if metadata.len() > limits.max_user_fields {
        return Err(Status::new(Code::EREQUEST, "cannot encode request: too much metadata"));
    }
    let names = method.len() + options.metadata.bytes();
    let message = compress(options.compress, message, names, Code::EREQUEST)?;
    let covered = options.checksum_attachment.then_some(&options.attachment);
    let checksum = checksum(options.checksum, &message, covered);
    let meta = RpcMeta {
        request: Some(RequestMeta {
            service_name: &method.service,
            method_name: &method.method,
            log_id: options.log_id,
            trace_id: options.trace.map(|trace| trace.trace_id),
            span_id: options.trace.map(|trace| trace.span_id),
            parent_span_id: options.trace.map(|trace| trace.parent_span_id),
            request_id: options.request_id.as_deref().map(str::as_bytes),
            timeout_ms,
        }),
        compress_type: options.compress.to_wire(),
        correlation_id: attempt.correlation_id,
        authentication_data: attempt.authentication_data,
        stream_settings: options.stream.clone(),
        user_fields: metadata,
        checksum_type: options.checksum.to_wire(),
        checksum_value: checksum.as_ref().map_or(&[], |value| value),
        checksum_with_attachment: checksum.is_some() && options.checksum_attachment,
        signal: attempt.signal,
        ..RpcMeta::default()
    };
    message.into_head(&meta, options.attachment.len(), limits).map_err(refused)
}

/// Encodes a response: its head, and the attachment that follows.
///
/// It never fails: what cannot be encoded becomes an error response. A failed call's response has neither message nor
/// attachment nor metadata; an error text too long for the meta is cut.
pub fn encode_response(reply: Reply, correlation_id: i64, limits: &Limits) -> (Head, Segments) {
    encode_response_with(reply, correlation_id, Signal::None, limits)
}

/// As [`encode_response`], with a signal for a peer that is ucrpc, too.
pub fn encode_response_with(reply: Reply, correlation_id: i64, signal: Signal, limits: &Limits) -> (Head, Segments) {
    let Reply { mut result, mut context } = reply;
    let parts = &mut context.response;
    if signal == Signal::None && parts.is_plain() {
        result = match result.map(|message| message.into_plain_response(correlation_id, limits)) {
            Ok(Ok(head)) => return (head, Segments::new()),
            Ok(Err(message)) => Ok(message),
            Err(status) => Err(status),
        };
    }
    let encoded = result.and_then(|message| {
        let metadata = parts.user_fields();
        if metadata.len() > limits.max_user_fields {
            return Err(Status::new(Code::ERESPONSE, "cannot encode response: too much metadata"));
        }
        let message = compress(parts.compress, message, parts.metadata.bytes(), Code::ERESPONSE)?;
        let covered = parts.checksum_attachment.then_some(&parts.attachment);
        let checksum = checksum(parts.checksum, &message, covered);
        let meta = RpcMeta {
            response: Some(ResponseMeta::default()),
            compress_type: parts.compress.to_wire(),
            correlation_id,
            stream_settings: parts.stream.clone(),
            user_fields: metadata,
            checksum_type: parts.checksum.to_wire(),
            checksum_value: checksum.as_ref().map_or(&[], |value| value),
            checksum_with_attachment: checksum.is_some() && parts.checksum_attachment,
            signal,
            ..RpcMeta::default()
        };
        message
            .into_head(&meta, parts.attachment.len(), limits)
            .map_err(|error| Status::new(Code::ERESPONSE, format!("cannot encode response: {error}")))
    });
    match encoded {
        Ok(head) => (head, std::mem::take(&mut parts.attachment)),
        Err(status) => (encode_error(&status, correlation_id, signal, limits), Segments::new()),
    }
}

/// Room for what an error response's meta has beside its text.
const ERROR_META_ROOM: usize = 48;

pub(crate) fn encode_error(status: &Status, correlation_id: i64, signal: Signal, limits: &Limits) -> Head {
    let room = limits.max_meta_size.min(limits.max_body_size) as usize;
    let mut text = status.message();
    text = &text[..text.floor_char_boundary(room.saturating_sub(ERROR_META_ROOM))];
    let encode = |text: &str, limits: &Limits| {
        let response = ResponseMeta { error_code: status.code().to_wire(), error_text: text.as_bytes() };
        let meta = RpcMeta { response: Some(response), correlation_id, signal, ..RpcMeta::default() };
        MessageBuf::with_capacity(0, text.len()).into_head(&meta, 0, limits)
    };
    // Limits too small for any response at all are a mistake of this side's own configuration: the caller is told anyway.
    encode(text, limits)
        .or_else(|_| encode("", &Limits::DEFAULT))
        .unwrap_or(Head { bytes: Bytes::new(), message_at: 0 })
}

fn compress(how: CompressType, message: MessageBuf, names: usize, code: Code) -> Result<MessageBuf, Status> {
    how.compress(message, names).map_err(|error| Status::new(code, format!("cannot compress message: {error}")))
}

fn checksum(how: ChecksumType, message: &MessageBuf, attachment: Option<&Segments>) -> Option<[u8; 4]> {
    let pieces = attachment.map_or(&[][..], Segments::pieces).iter().map(|piece| piece.as_ref());
    match how {
        ChecksumType::None => None,
        ChecksumType::Crc32c => Some(crc32c_value(std::iter::once(message.as_slice()).chain(pieces))),
    }
}

/// A frame that is nothing but a signal.
pub(crate) fn encode_signal(signal: Signal, correlation_id: i64) -> Bytes {
    let meta = RpcMeta { correlation_id, signal, ..RpcMeta::default() };
    // A few bytes fit every limit.
    MessageBuf::with_capacity(0, 0)
        .into_head(&meta, 0, &Limits::DEFAULT)
        .map_or_else(|_| Bytes::new(), |head| head.bytes)
}
