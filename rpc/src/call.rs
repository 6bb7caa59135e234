//! What belongs to a call beside its message: deadline, metadata, trace, attachments.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

mod deadline;
mod inherit;
mod metadata;

pub use deadline::Deadline;
pub use inherit::{Inherited, Trace};
pub use metadata::{Metadata, MetadataError};

use crate::codec::{ChecksumType, CompressType};
use crate::streaming::{self, ByteStream, StreamConfig, Streams};
use crate::wire::stream::INVALID_STREAM_ID;
use crate::wire::{RequestMeta, RpcMeta, Segments, StreamSettings, UserFields};
use crate::{Code, Status};

/// The name of a method on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MethodName {
    /// The service's full name: `package.Service`.
    pub service: Cow<'static, str>,
    /// The method's bare name.
    pub method: Cow<'static, str>,
}

impl MethodName {
    /// A name known at compile time.
    pub const fn from_static(service: &'static str, method: &'static str) -> Self {
        Self { service: Cow::Borrowed(service), method: Cow::Borrowed(method) }
    }

    /// A name known at run time.
    pub fn new(service: impl Into<Cow<'static, str>>, method: impl Into<Cow<'static, str>>) -> Self {
        Self { service: service.into(), method: method.into() }
    }

    pub(crate) fn len(&self) -> usize {
        self.service.len() + self.method.len()
    }
}

/// What a client says about one call beside its message.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct CallOptions {
    /// When the caller stops waiting.
    pub deadline: Deadline,
    /// Custom metadata for the server.
    pub metadata: Metadata,
    /// Bytes that travel beside the message, without copies.
    pub attachment: Segments,
    /// How the message is compressed.
    pub compress: CompressType,
    /// How message and attachment are protected against corruption.
    pub checksum: ChecksumType,
    /// Whether the checksum covers the attachment, too.
    pub checksum_attachment: bool,
    /// A number to find this call in logs.
    pub log_id: Option<i64>,
    /// The trace this call is part of.
    pub trace: Option<Trace>,
    /// A name for the request.
    pub request_id: Option<Arc<str>>,
    /// Opens a stream with the call: this side's half.
    pub stream: Option<StreamSettings>,
    /// Memory for the response's attachment: see [`crate::client::Call::receive_into`].
    pub receive_into: Option<ucrpc_transport::RecvBuf>,
}

/// What a response has beside its message.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ResponseParts {
    /// Bytes that travel beside the message, without copies.
    pub attachment: Segments,
    /// Custom metadata.
    pub metadata: Metadata,
    /// How the message is compressed.
    pub compress: CompressType,
    /// How message and attachment are protected against corruption.
    pub checksum: ChecksumType,
    /// Whether the checksum covers the attachment, too.
    pub checksum_attachment: bool,
    /// This side's half of the stream that the call asked for, if it was accepted.
    pub stream: Option<StreamSettings>,
}

/// What a handler learns about the call it serves, and where it puts what its response has beside the message.
#[derive(Debug)]
pub struct CallContext(Box<ContextParts>);

/// What a [`CallContext`] has, in one place that does not move while the context does.
#[derive(Debug)]
#[non_exhaustive]
pub struct ContextParts {
    method: MethodName,
    deadline: Deadline,
    metadata: Metadata,
    attachment: Bytes,
    log_id: Option<i64>,
    trace: Option<Trace>,
    request_id: Option<Arc<str>>,
    authentication_data: Option<Bytes>,
    stream: Option<StreamSettings>,
    streams: Option<StreamHost>,
    /// What goes into the response. Not sent if the call fails.
    pub response: ResponseParts,
}

impl std::ops::Deref for CallContext {
    type Target = ContextParts;

    fn deref(&self) -> &ContextParts {
        &self.0
    }
}

impl std::ops::DerefMut for CallContext {
    fn deref_mut(&mut self) -> &mut ContextParts {
        &mut self.0
    }
}

/// Where a handler's streams would live: the connection that its call came on.
pub(crate) struct StreamHost {
    streams: Arc<Streams>,
    sender: ucrpc_transport::Sender,
    accepted: Vec<Accepted>,
}

impl StreamHost {
    pub(crate) fn new(streams: Arc<Streams>, sender: ucrpc_transport::Sender) -> Self {
        Self { streams, sender, accepted: Vec::new() }
    }
}

impl std::fmt::Debug for StreamHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamHost").field("accepted", &self.accepted.len()).finish_non_exhaustive()
    }
}

/// A stream that a handler accepted, until its response is on its way. If no response ever is, because the handler failed, panicked
/// or was dropped, the stream ends with it.
pub(crate) struct Accepted(Arc<streaming::Core>);

impl Accepted {
    /// The response is on its way: the stream may write.
    pub(crate) fn open(self) {
        self.0.open_gate();
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        if self.0.is_gated() {
            self.0.fail(Status::new(Code::ECLOSE, "the call that would open the stream failed"));
        }
    }
}

impl CallContext {
    /// A context with nothing but the method's name; no deadline. For tests and in-process calls.
    pub fn new(method: MethodName) -> Self {
        Self(Box::new(ContextParts {
            method,
            deadline: Deadline::NEVER,
            metadata: Metadata::new(),
            attachment: Bytes::new(),
            log_id: None,
            trace: None,
            request_id: None,
            authentication_data: None,
            stream: None,
            streams: None,
            response: ResponseParts::default(),
        }))
    }

    /// The context of a request that came at `received`, with its attachment. Metadata is copied out of the meta; a call
    /// without it, without request id and without authentication data allocates the context alone.
    pub fn from_request(
        method: MethodName,
        meta: &RpcMeta<'_>,
        request: &RequestMeta<'_>,
        attachment: Bytes,
        received: Instant,
    ) -> Self {
        Self(Box::new(ContextParts {
            method,
            deadline: Deadline::from_wire(request.timeout_ms, received),
            metadata: Metadata::from(meta.user_fields),
            attachment,
            log_id: request.log_id,
            trace: Trace::from_wire(request),
            request_id: request.request_id.map(|id| String::from_utf8_lossy(id).into()),
            authentication_data: meta.authentication_data.map(Bytes::copy_from_slice),
            stream: meta.stream_settings.clone(),
            streams: None,
            response: ResponseParts::default(),
        }))
    }

    /// The method that was called.
    pub fn method(&self) -> &MethodName {
        &self.method
    }

    /// When the caller stops waiting.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// The caller's metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The request's attachment.
    pub fn attachment(&self) -> &Bytes {
        &self.attachment
    }

    /// The request's attachment, leaving an empty one.
    pub fn take_attachment(&mut self) -> Bytes {
        std::mem::take(&mut self.attachment)
    }

    /// The number that the caller gave this call for logs.
    pub fn log_id(&self) -> Option<i64> {
        self.log_id
    }

    /// The trace that this call is part of.
    pub fn trace(&self) -> Option<Trace> {
        self.trace
    }

    /// The caller's name for the request.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }

    /// What the client authenticates with: there on the first request of a connection.
    pub fn authentication_data(&self) -> Option<&Bytes> {
        self.authentication_data.as_ref()
    }

    /// The caller's half of the stream that it wants to open with this call.
    pub fn stream(&self) -> Option<&StreamSettings> {
        self.stream.as_ref()
    }

    /// What the response has beside its message.
    pub(crate) fn into_response(self) -> ResponseParts {
        self.0.response
    }

    pub(crate) fn set_stream_host(&mut self, host: StreamHost) {
        self.streams = Some(host);
    }

    /// The streams that the handler accepted: whoever has them decides what becomes of them.
    pub(crate) fn take_accepted(&mut self) -> Vec<Accepted> {
        self.streams.as_mut().map(|host| std::mem::take(&mut host.accepted)).unwrap_or_default()
    }

    /// Accepts the first stream that the call offers, or all.
    ///
    /// brpc's client takes an id for each stream that it asked for out of the response without looking how many there are. So those that
    /// are not accepted get the invalid one.
    pub(crate) fn accept_streams(&mut self, config: StreamConfig, all: bool) -> Result<Vec<ByteStream>, Status> {
        let none = || Status::new(Code::EREQUEST, "the call offers no stream, or it was accepted before");
        let parts = &mut *self.0;
        let host = parts.streams.as_mut().filter(|host| host.accepted.is_empty()).ok_or_else(none)?;
        let offered = parts.stream.as_ref().ok_or_else(none)?;
        let mut peer = StreamSettings { extra_stream_ids: Vec::new(), ..offered.clone() };
        let first = Accepted(host.streams.open(&host.sender, config, Some(&peer))?);
        let mut settings = first.0.settings();
        let mut accepted = vec![first];
        for &id in &offered.extra_stream_ids {
            if !all {
                settings.extra_stream_ids.push(INVALID_STREAM_ID);
                continue;
            }
            peer.stream_id = id;
            let stream = Accepted(host.streams.open(&host.sender, config, Some(&peer))?);
            settings.extra_stream_ids.push(stream.0.id());
            accepted.push(stream);
        }
        parts.response.stream = Some(settings);
        let streams = accepted.iter().map(|stream| ByteStream::new(stream.0.clone())).collect();
        host.accepted = accepted;
        Ok(streams)
    }

    /// Shortens the deadline; one that is later than the caller's changes nothing.
    pub fn limit_deadline(&mut self, deadline: Deadline) {
        self.deadline = self.deadline.min(deadline);
    }

    /// Puts an attachment into the response.
    pub fn set_attachment(&mut self, attachment: impl Into<Segments>) {
        self.response.attachment = attachment.into();
    }

    /// What calls made while serving this one take over.
    pub fn inherited(&self) -> Inherited {
        Inherited { deadline: self.deadline, log_id: self.log_id, trace: self.trace }
    }
}

/// A response without its message decoded: what a raw call gets.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RawResponse {
    /// The serialized message, decompressed.
    pub message: Bytes,
    /// The attachment.
    pub attachment: Bytes,
    /// The server's metadata.
    pub metadata: Metadata,
    /// The server's half of the stream that the call opened, if it accepted one.
    pub stream: Option<StreamSettings>,
    /// What the call took.
    pub stats: CallStats,
}

/// A response on its way from its frame to its caller: what a [`RawResponse`] is made of, small because it moves a lot.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) message: Bytes,
    pub(crate) attachment: Bytes,
    pub(crate) metadata: Metadata,
    pub(crate) stream: Option<Box<StreamSettings>>,
}

impl Decoded {
    pub(crate) fn with_stats(self, stats: CallStats) -> RawResponse {
        let Self { message, attachment, metadata, stream } = self;
        RawResponse { message, attachment, metadata, stream: stream.map(|stream| *stream), stats }
    }
}

/// What a call took.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CallStats {
    /// From the start of the call to its end, retries included.
    pub latency: std::time::Duration,
    /// Attempts that were sent, hedged ones included.
    pub attempts: u32,
    /// Attempts after a failed one.
    pub retries: u32,
    /// Bytes of all frames sent for the call.
    pub bytes_sent: u64,
    /// Bytes of the response's frame.
    pub bytes_received: u64,
    /// The transport that carried the response, as in an address: `tcp`, `ucx`, `unix`, `mem`.
    pub transport: &'static str,
}

/// A decoded response. Dereferences to its message.
#[derive(Debug, Clone)]
pub struct Response<T> {
    /// The message.
    pub message: T,
    /// What came beside it; its `message` is empty.
    pub raw: RawResponse,
}

impl<T> Response<T> {
    /// The message alone.
    pub fn into_message(self) -> T {
        self.message
    }

    /// The attachment.
    pub fn attachment(&self) -> &Bytes {
        &self.raw.attachment
    }

    /// The server's metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.raw.metadata
    }

    /// What the call took.
    pub fn stats(&self) -> &CallStats {
        &self.raw.stats
    }
}

impl<T> std::ops::Deref for Response<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.message
    }
}

/// A handler's answer: the serialized message or what went wrong, and the context with the response's other parts.
#[derive(Debug)]
pub struct Reply {
    /// The message, not compressed.
    pub result: Result<crate::wire::MessageBuf, Status>,
    /// The call's context.
    pub context: CallContext,
}

impl ResponseParts {
    pub(crate) fn user_fields(&self) -> UserFields<'_> {
        self.metadata.as_user_fields()
    }
}
