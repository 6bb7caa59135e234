//! What a server calls: services with methods, as serialized messages.
//!
//! Generated server wrappers implement [`Service`], and so do gateways and proxies, by hand.

use std::collections::hash_map::Entry;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::call::{CallContext, Reply};
use crate::streaming::{ByteStream, MessageStream, StreamConfig};
use crate::{Code, Status};

/// A method's place among its service's methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MethodId(pub u32);

impl MethodId {
    /// A method that is not in the descriptor, for services that take any name: the name is in the call's context.
    pub const DYNAMIC: Self = Self(u32::MAX);
}

/// A method, as its `.proto` file declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodDescriptor {
    /// Bare name, as on the wire.
    pub name: &'static str,
    /// Whether the request is declared as a stream.
    pub client_streaming: bool,
    /// Whether the response is declared as a stream.
    pub server_streaming: bool,
}

/// A service, as its `.proto` file declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceDescriptor {
    /// Full name: `package.Service`.
    pub name: &'static str,
    /// The methods; a [`MethodId`] is a place in this list.
    pub methods: &'static [MethodDescriptor],
}

impl ServiceDescriptor {
    /// The name without the package.
    pub fn bare_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// The method called `name`.
    pub fn method(&self, name: &str) -> Option<MethodId> {
        self.methods.iter().position(|method| method.name == name).map(|at| MethodId(at as u32))
    }
}

/// A handler at work. It may be polled where it was made, on the dispatcher's thread, and later anywhere; dropping it
/// cancels the call.
pub type ReplyFuture = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// A set of methods that take and give serialized messages.
pub trait Service: Send + Sync + 'static {
    /// Name and methods. The same each time.
    fn descriptor(&self) -> &'static ServiceDescriptor;

    /// The method called `name`, or `None`: the caller gets [`Code::ENOMETHOD`].
    fn method(&self, name: &str) -> Option<MethodId> {
        self.descriptor().method(name)
    }

    /// Starts a call. `message` is decompressed. Nothing may block here, nor when the future is polled.
    fn call(&self, method: MethodId, context: CallContext, message: Bytes) -> ReplyFuture;
}

/// The reply to a method that a service does not have: [`Code::ENOMETHOD`].
pub fn no_such_method(context: CallContext) -> ReplyFuture {
    let name = context.method();
    let text = format!("method {}/{} not found", name.service, name.method);
    Box::pin(std::future::ready(Reply { result: Err(Status::new(Code::ENOMETHOD, text)), context }))
}

/// A caller's half of a stream that it wants to open with its call, as a handler of a streaming method gets it.
///
/// Messages on a stream are bytes for brpc; methods declared with `stream` carry serialized `In` messages to the server and
/// `Out` messages to the client.
#[derive(Debug)]
pub struct StreamOffer<In, Out> {
    settings: crate::wire::StreamSettings,
    types: std::marker::PhantomData<fn(In) -> Out>,
}

impl<In, Out> StreamOffer<In, Out> {
    /// The offer in a call.
    ///
    /// # Errors
    ///
    /// [`Code::EREQUEST`] if the call offers no stream.
    pub fn from_context(context: &CallContext) -> Result<Self, Status> {
        match context.stream() {
            Some(settings) => Ok(Self { settings: settings.clone(), types: std::marker::PhantomData }),
            None => Err(Status::new(Code::EREQUEST, "this method needs a stream, and the call offers none")),
        }
    }

    /// The caller's settings.
    pub fn settings(&self) -> &crate::wire::StreamSettings {
        &self.settings
    }

    /// Accepts the stream; its settings travel with the response. Not accepting is to drop the offer.
    ///
    /// Nothing can be written before the handler has returned: the response goes first.
    ///
    /// # Errors
    ///
    /// [`Code::ELIMIT`] if the connection has too many streams; [`Code::EREQUEST`] if no server carries the call.
    pub fn accept(self, context: &mut CallContext, config: StreamConfig) -> Result<MessageStream<Out, In>, Status> {
        self.accept_bytes(context, config).map(ByteStream::into_messages)
    }

    /// Accepts the stream as one of bytes.
    ///
    /// # Errors
    ///
    /// As [`Self::accept`].
    pub fn accept_bytes(self, context: &mut CallContext, config: StreamConfig) -> Result<ByteStream, Status> {
        let no_stream = || Status::new(Code::EINTERNAL, "no stream was accepted");
        context.accept_streams(config, false)?.pop().ok_or_else(no_stream)
    }

    /// How many streams the caller asks for: one, unless it is a brpc client that creates several with one call.
    pub fn count(&self) -> usize {
        1 + self.settings.extra_stream_ids.len()
    }

    /// Accepts all streams that the caller asks for, in its order, as streams of bytes. [`Self::accept`] takes the first alone, and what the caller writes on the
    /// others is answered with a reset.
    ///
    /// # Errors
    ///
    /// As [`Self::accept`].
    pub fn accept_all(self, context: &mut CallContext, config: StreamConfig) -> Result<Vec<ByteStream>, Status> {
        context.accept_streams(config, true)
    }

    /// Accepts the stream with settings of the caller's own making, for who carries streams by hand.
    pub fn accept_with_settings(self, context: &mut CallContext, settings: crate::wire::StreamSettings) {
        context.response.stream = Some(settings);
    }
}

/// A service cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// There is one with the same full name already.
    #[error("service {0} is there already")]
    Duplicate(&'static str),
    /// There is a fallback already.
    #[error("there is a fallback service already")]
    DuplicateFallback,
}

/// The services of a server, found by full name (`package.Service`) or by bare name.
///
/// A bare name that several services share finds none of them: those need their full names.
#[derive(Clone, Default)]
pub struct Registry {
    /// Under full and bare names; `None` under a bare name that is ambiguous.
    /// No peer chooses what is in it: the quick hash will do.
    services: FxHashMap<&'static str, Option<Arc<dyn Service>>>,
    fallback: Option<Arc<dyn Service>>,
}

impl Registry {
    /// No services.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a service.
    ///
    /// # Errors
    ///
    /// If there is one with its full name.
    pub fn add(&mut self, service: Arc<dyn Service>) -> Result<(), RegisterError> {
        let descriptor = service.descriptor();
        let (full, bare) = (descriptor.name, descriptor.bare_name());
        let taken = |entry: &Option<Arc<dyn Service>>| entry.as_ref().is_some_and(|s| s.descriptor().name == full);
        if self.services.get(full).is_some_and(taken) {
            return Err(RegisterError::Duplicate(full));
        }
        // A service without a package owns its bare name, which is its full one.
        self.services.insert(full, Some(Arc::clone(&service)));
        if bare != full {
            match self.services.entry(bare) {
                Entry::Vacant(free) => drop(free.insert(Some(service))),
                Entry::Occupied(mut other) => {
                    let owned = other.get().as_ref().is_some_and(|s| s.descriptor().name == bare);
                    if !owned {
                        other.insert(None);
                    }
                }
            }
        }
        Ok(())
    }

    /// Sets the service that gets the calls to services that are not there: a gateway.
    ///
    /// # Errors
    ///
    /// If there is one.
    pub fn set_fallback(&mut self, service: Arc<dyn Service>) -> Result<(), RegisterError> {
        if self.fallback.is_some() {
            return Err(RegisterError::DuplicateFallback);
        }
        self.fallback = Some(service);
        Ok(())
    }

    /// Finds a method.
    ///
    /// # Errors
    ///
    /// [`Code::ENOSERVICE`] or [`Code::ENOMETHOD`].
    pub fn resolve(&self, service: &str, method: &str) -> Result<(&Arc<dyn Service>, MethodId), Status> {
        let found =
            self.services.get(service).and_then(Option::as_ref).or(self.fallback.as_ref()).ok_or_else(|| {
                let text = match self.services.get(service) {
                    Some(_) => format!("several services are called {service}: use the full name"),
                    None => format!("service {service} not found"),
                };
                Status::new(Code::ENOSERVICE, text)
            })?;
        match found.method(method) {
            Some(id) => Ok((found, id)),
            None => Err(Status::new(Code::ENOMETHOD, format!("method {service}/{method} not found"))),
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("names", &self.services.keys().collect::<Vec<_>>())
            .field("fallback", &self.fallback.as_ref().map(|service| service.descriptor().name))
            .finish()
    }
}
