//! What a client calls: typed calls over anything that carries raw ones.
//!
//! Generated clients return a [`Call`] from each method. Nothing happens until it is awaited or [`Call::blocking`] is called.

use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use ucrpc_transport::RecvBuf;

use crate::call::{
    CallOptions, CallStats, Deadline, Inherited, Metadata, MetadataError, MethodName, RawResponse, Response, Trace,
};
use crate::codec::{ChecksumType, CompressType, decode_response_message};
use crate::wire::{MessageBuf, Segments, StreamSettings};
use crate::{Code, Status};

/// A call with its message serialized.
#[derive(Debug)]
pub struct RawCall {
    /// What is called.
    pub method: MethodName,
    /// The serialized request, not compressed.
    pub message: MessageBuf,
    /// All else.
    pub options: Box<CallOptions>,
}

/// Something that carries calls to a server: a channel, or a test's double of one.
///
/// Clones are handles to the same thing and cheap.
pub trait RawCaller: Clone + Send + Sync + 'static {
    /// A call under way. Dropping it cancels the call.
    type Future: Future<Output = Result<RawResponse, Status>> + Send + Unpin;

    /// Starts a call. An implementation fills in [`RawResponse::stats`], and applies its own default timeout to a call
    /// without a deadline.
    fn call(&self, call: RawCall) -> Self::Future;

    /// Runs a future to its end on this thread. By default the thread is parked between polls; an implementation with an
    /// event loop of its own may drive that instead.
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        park_on(future)
    }
}

/// A typed call that has not started: options, then `.await` or [`Self::blocking`].
///
/// Deadline, log id and trace come from the call that is being served on this thread, if there is one
/// ([`Inherited::current`]), at the time the call starts.
#[derive(Debug)]
#[must_use = "a call does nothing unless it is awaited or `blocking` is called"]
pub struct Call<C, Req, Resp> {
    caller: C,
    method: MethodName,
    request: Req,
    options: Box<CallOptions>,
    timeout: Option<Duration>,
    refused: Option<MetadataError>,
    response: PhantomData<fn() -> Resp>,
}

impl<C: RawCaller, Req: Message, Resp: Message + Default> Call<C, Req, Resp> {
    /// A call of `method` with `request`.
    pub fn new(caller: C, method: MethodName, request: Req) -> Self {
        Self { caller, method, request, options: Box::default(), timeout: None, refused: None, response: PhantomData }
    }

    /// Limits the time from the start of the call to its end, connecting and retries included.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Limits the call to a point in time. The earliest of this, the timeout and the inherited deadline counts.
    pub fn deadline(mut self, deadline: Deadline) -> Self {
        self.options.deadline = deadline;
        self
    }

    /// Sends bytes beside the message, without copies.
    pub fn attachment(mut self, attachment: impl Into<Segments>) -> Self {
        self.options.attachment = attachment.into();
        self
    }

    /// Adds custom metadata. An entry longer than [`Metadata::MAX_ENTRY`] makes the call fail with
    /// [`Code::EREQUEST`] when it starts.
    pub fn metadata(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        if let Err(error) = self.options.metadata.insert(key, value) {
            self.refused = Some(error);
        }
        self
    }

    /// Sends this metadata in place of what was added.
    pub fn all_metadata(mut self, metadata: Metadata) -> Self {
        self.options.metadata = metadata;
        self
    }

    /// Compresses the message.
    pub fn compress(mut self, how: CompressType) -> Self {
        self.options.compress = how;
        self
    }

    /// Sends a checksum of the message, and of the attachment, too, if `with_attachment`. No release of brpc up to 1.17
    /// knows the latter: it takes the checksum as one of the message alone, and refuses a call with an attachment.
    pub fn checksum(mut self, how: ChecksumType, with_attachment: bool) -> Self {
        self.options.checksum = how;
        self.options.checksum_attachment = with_attachment;
        self
    }

    /// Sets a number to find the call in logs.
    pub fn log_id(mut self, log_id: i64) -> Self {
        self.options.log_id = Some(log_id);
        self
    }

    /// Sets the call's place in a trace.
    pub fn trace(mut self, trace: Trace) -> Self {
        self.options.trace = Some(trace);
        self
    }

    /// Sets a name for the request.
    pub fn request_id(mut self, id: impl Into<Arc<str>>) -> Self {
        self.options.request_id = Some(id.into());
        self
    }

    /// Receives the response's attachment straight into this memory, if it is long enough: it arrives there by rendezvous or
    /// by the read of the socket, and [`Response::attachment`] is that memory. An attachment that is longer than the buffer, and any after a
    /// first attempt that broke while its attachment came, goes where it goes without.
    ///
    /// `Bytes::try_into_mut` makes ordinary memory writable again for the next call, without a copy. While the
    /// attachment arrives the memory belongs to the transport: dropping the call then drops the buffer when it is complete.
    pub fn receive_into(mut self, buf: RecvBuf) -> Self {
        self.options.receive_into = Some(buf);
        self
    }

    /// Offers a stream to the server with the call: this side's half.
    pub fn stream(mut self, settings: StreamSettings) -> Self {
        self.options.stream = Some(settings);
        self
    }

    /// Makes the call and waits for its end on this thread.
    ///
    /// Not for async code: it blocks the thread. Waiting inside a handler that runs on a dispatcher's thread keeps that
    /// dispatcher from all its work.
    ///
    /// # Errors
    ///
    /// As awaiting it.
    pub fn blocking(self) -> Result<Response<Resp>, Status> {
        let caller = self.caller.clone();
        caller.block_on(self.into_future())
    }

    fn start(self) -> Result<C::Future, Status> {
        self.into_raw().map(|(caller, call)| caller.call(call))
    }

    /// The call with its message serialized and its deadline known.
    pub(crate) fn into_raw(mut self) -> Result<(C, RawCall), Status> {
        if let Some(error) = self.refused {
            return Err(Status::new(Code::EREQUEST, error.to_string()));
        }
        let inherited = Inherited::current();
        let options = &mut self.options;
        if let Some(timeout) = self.timeout {
            options.deadline = options.deadline.min(Deadline::after(Instant::now(), timeout));
        }
        options.deadline = options.deadline.min(inherited.deadline);
        options.log_id = options.log_id.or(inherited.log_id);
        options.trace = options.trace.or(inherited.trace.map(|parent| Trace {
            parent_span_id: parent.span_id,
            span_id: 0,
            ..parent
        }));
        let names = self.method.len() + options.metadata.bytes();
        let message = MessageBuf::encode(&self.request, names);
        Ok((self.caller, RawCall { method: self.method, message, options: self.options }))
    }
}

impl<C: RawCaller, Req: Message, Resp: Message + Default> IntoFuture for Call<C, Req, Resp> {
    type Output = Result<Response<Resp>, Status>;
    type IntoFuture = CallFuture<C, Resp>;

    fn into_future(self) -> Self::IntoFuture {
        let state = match self.start() {
            Ok(future) => State::Running(future),
            Err(status) => State::Refused(Some(status)),
        };
        CallFuture { state, response: PhantomData }
    }
}

/// A typed call under way. Dropping it cancels the call.
#[derive(Debug)]
#[must_use = "dropping it cancels the call"]
pub struct CallFuture<C: RawCaller, Resp> {
    state: State<C::Future>,
    response: PhantomData<fn() -> Resp>,
}

#[derive(Debug)]
enum State<F> {
    Running(F),
    Refused(Option<Status>),
}

impl<C: RawCaller, Resp: Message + Default> Future for CallFuture<C, Resp> {
    type Output = Result<Response<Resp>, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = match &mut self.state {
            State::Running(future) => std::task::ready!(Pin::new(future).poll(cx)),
            State::Refused(status) => Err(status.take().unwrap_or(Code::EINTERNAL.into())),
        };
        Poll::Ready(result.and_then(|mut raw| {
            let message = decode_response_message(std::mem::take(&mut raw.message))?;
            Ok(Response { message, raw })
        }))
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls a future on this thread, parked between polls.
pub(crate) fn park_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        thread::park();
    }
}

/// Statistics of a call that no network carried.
impl From<Duration> for CallStats {
    fn from(latency: Duration) -> Self {
        Self { latency, attempts: 1, ..Self::default() }
    }
}
