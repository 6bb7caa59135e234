//! Between this crate and tower's layers: feature `tower`.
//!
//! - [`Channel`] is a `tower_service::Service<RawCall>`. Stack layers onto it, and give the stack to a generated client as a [`Layered`].
//! - [`LayeredService`] puts layers around a [`Service`] on the server.
//!
//! ```
//! # use ucrpc_rpc::{testing, Server, tower::Layered};
//! # let (_server, channel) = testing::pair(Server::builder(), |channel| channel).unwrap();
//! let stack = tower::ServiceBuilder::new().concurrency_limit(8).service(channel);
//! let caller = Layered::new(stack); // EchoClient::new(caller)
//! # drop(caller);
//! ```
//!
//! Layers that use tokio's timers (`tower::timeout`) need its runtime around them: on the client where the call is polled, on the server
//! [`handlers_on`](crate::server::ServerBuilder). Deadlines of this crate need none.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use tower_service::Service as TowerService;

use crate::call::{CallContext, RawResponse, Reply};
use crate::channel::ChannelCall;
use crate::client::{RawCall, RawCaller};
use crate::service::{MethodId, ReplyFuture, Service, ServiceDescriptor};
use crate::{Channel, Code, Status};

type BoxError = Box<dyn Error + Send + Sync>;

impl TowerService<RawCall> for Channel {
    type Response = RawResponse;
    type Error = Status;
    type Future = ChannelCall;

    /// Always ready: calls wait for connections themselves, within their deadlines.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: RawCall) -> ChannelCall {
        RawCaller::call(self, call)
    }
}

/// A stack of tower layers as what generated clients call. Clones share the stack; each call has a clone of its service.
///
/// An error that is no [`Status`] becomes one of [`Code::EINTERNAL`] with its text, unless a layer of the stack maps it.
pub struct Layered<T> {
    service: Arc<Mutex<T>>,
}

impl<T> Layered<T> {
    /// Calls go through `service`.
    pub fn new(service: T) -> Self {
        Self { service: Arc::new(Mutex::new(service)) }
    }
}

impl<T> Clone for Layered<T> {
    fn clone(&self) -> Self {
        Self { service: self.service.clone() }
    }
}

impl<T> fmt::Debug for Layered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layered").finish_non_exhaustive()
    }
}

impl<T> RawCaller for Layered<T>
where
    T: TowerService<RawCall, Response = RawResponse> + Clone + Send + 'static,
    T::Error: Into<BoxError>,
    T::Future: Send,
{
    /// Starts when it is first polled.
    type Future = Pin<Box<dyn Future<Output = Result<RawResponse, Status>> + Send>>;

    fn call(&self, call: RawCall) -> Self::Future {
        let mut service = clone_of(&self.service);
        Box::pin(async move {
            poll_fn(|cx| service.poll_ready(cx)).await.map_err(to_status)?;
            service.call(call).await.map_err(to_status)
        })
    }
}

/// A call as layers on the server see it.
#[derive(Debug)]
pub struct ServerCall {
    /// The method; its name is in the context.
    pub method: MethodId,
    /// What came beside the message, and what goes beside the reply.
    pub context: CallContext,
    /// The serialized message, decompressed.
    pub message: Bytes,
}

/// The innermost service of a server's stack: the one that layers are put around.
#[derive(Clone)]
pub struct Innermost(Arc<dyn Service>);

impl fmt::Debug for Innermost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Innermost").field(&self.0.descriptor().name).finish()
    }
}

impl TowerService<ServerCall> for Innermost {
    type Response = Reply;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: ServerCall) -> Answering {
        Answering(self.0.call(call.method, call.context, call.message))
    }
}

/// Future of [`Innermost`]: the handler at work.
#[must_use = "dropping it cancels the call"]
pub struct Answering(ReplyFuture);

impl Future for Answering {
    type Output = Result<Reply, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answering")
    }
}

/// A service with tower layers around it: give it to [`ServerBuilder::service`](crate::server::ServerBuilder::service).
///
/// A layer's error ends the call with the [`Status`] that it is, or with [`Code::EINTERNAL`] and its text.
pub struct LayeredService<T> {
    inner: Arc<dyn Service>,
    stack: Mutex<T>,
}

impl<T> LayeredService<T> {
    /// Puts what `layer` makes of it around `service`: `|inner| ServiceBuilder::new().concurrency_limit(8).service(inner)`.
    pub fn new(service: impl Service, layer: impl FnOnce(Innermost) -> T) -> Self {
        let inner: Arc<dyn Service> = Arc::new(service);
        let stack = Mutex::new(layer(Innermost(inner.clone())));
        Self { inner, stack }
    }
}

impl<T> fmt::Debug for LayeredService<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayeredService").field("inner", &self.inner.descriptor().name).finish_non_exhaustive()
    }
}

impl<T> Service for LayeredService<T>
where
    T: TowerService<ServerCall, Response = Reply> + Clone + Send + 'static,
    T::Error: Into<BoxError>,
    T::Future: Send,
{
    fn descriptor(&self) -> &'static ServiceDescriptor {
        self.inner.descriptor()
    }

    fn method(&self, name: &str) -> Option<MethodId> {
        self.inner.method(name)
    }

    fn call(&self, method: MethodId, context: CallContext, message: Bytes) -> ReplyFuture {
        let mut stack = clone_of(&self.stack);
        Box::pin(async move {
            let name = context.method().clone();
            let served = async {
                poll_fn(|cx| stack.poll_ready(cx)).await?;
                stack.call(ServerCall { method, context, message }).await
            };
            served.await.unwrap_or_else(|error: T::Error| Reply {
                result: Err(to_status(error)),
                context: CallContext::new(name),
            })
        })
    }
}

fn clone_of<T: Clone>(service: &Mutex<T>) -> T {
    service.lock().unwrap_or_else(|e| e.into_inner()).clone()
}

fn to_status(error: impl Into<BoxError>) -> Status {
    match error.into().downcast::<Status>() {
        Ok(status) => *status,
        Err(other) => Status::new(Code::EINTERNAL, other.to_string()),
    }
}
