//! Serving: services on addresses.

mod admission;
mod core;
mod handler;
#[cfg(feature = "tokio")]
mod on_tokio;
mod replies;
mod session;

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ucrpc_transport::{Address, ConnectionConfig, ErrorKind, ListenConfig};

use self::admission::Admission;
pub use self::core::ServerStats;
use self::core::{Authenticator, Core, Parts, Phase};
use self::handler::Handlers;
use crate::codec::MAX_MESSAGE_SIZE;
use crate::interceptor::ServerInterceptor;
use crate::place::{IntoAddress, Place};
use crate::service::RegisterError;
use crate::wire::Limits;
use crate::{Registry, Service, Status, frames};

/// What a server is made of.
///
/// Mistakes (an address that cannot be parsed, a service twice) are reported by [`Self::start`].
#[must_use = "nothing is served before `start` or `serve`"]
pub struct ServerBuilder {
    registry: Registry,
    failed: Option<ServeError>,
    addresses: Vec<Address>,
    place: Option<Place>,
    limits: Limits,
    max_message: usize,
    max_streams: usize,
    admission: Admission,
    handlers: Handlers,
    interceptors: Vec<Arc<dyn ServerInterceptor>>,
    authenticator: Option<Arc<Authenticator>>,
    listen: ListenConfig,
}

/// A server that cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// An address cannot be used, or something is wrong with the dispatchers.
    #[error(transparent)]
    Transport(#[from] ucrpc_transport::Error),
    /// A service cannot be added.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// A limit names a method that no service has.
    #[error("there is no method {0} to limit")]
    NoSuchMethod(String),
}

impl ServerBuilder {
    /// Adds a service.
    pub fn service(self, service: impl Service) -> Self {
        self.shared_service(Arc::new(service))
    }

    /// Adds a service that others use, too.
    pub fn shared_service(mut self, service: Arc<dyn Service>) -> Self {
        let result = self.registry.add(service);
        self.note(result)
    }

    /// Sets the service that gets the calls to services that are not there: a gateway.
    pub fn fallback(mut self, service: impl Service) -> Self {
        let result = self.registry.set_fallback(Arc::new(service));
        self.note(result)
    }

    fn note<E: Into<ServeError>>(mut self, result: Result<(), E>) -> Self {
        if let Err(error) = result {
            self.failed.get_or_insert(error.into());
        }
        self
    }

    /// Listens on `address`, as text or as an [`Address`]: `auto://`, `ucx://`, `tcp://`, `unix://`, `mem://`. One port takes brpc's clients and
    /// ucrpc's, over TCP and UCX: what a client asks for decides (on `tcp://`, never UCX). May be called several times.
    pub fn listen(mut self, address: impl IntoAddress) -> Self {
        let result = address.into_address().map(|address| self.addresses.push(address));
        self.note(result)
    }

    /// Serves on these dispatchers. Default: [`Place::process`].
    pub fn on(mut self, place: impl Into<Place>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// Runs handlers on a tokio runtime rather than on the dispatcher: for those that block, or need tokio.
    #[cfg(feature = "tokio")]
    pub fn handlers_on(mut self, runtime: tokio::runtime::Handle) -> Self {
        self.handlers = Handlers::Tokio(runtime);
        self
    }

    /// Lets at most `max` calls run at once; more are refused at once with [`ELIMIT`](crate::Code::ELIMIT). Default: no limit.
    pub fn max_concurrency(mut self, max: usize) -> Self {
        self.admission.max = Some(max);
        self
    }

    /// As [`Self::max_concurrency`], for one method of a service that was added before.
    pub fn max_method_concurrency(mut self, service: &str, method: &str, max: usize) -> Self {
        match self.registry.resolve(service, method) {
            Ok((found, id)) => self.admission.limit_method(found.descriptor().name, id, max),
            Err(_) => drop(self.failed.get_or_insert(ServeError::NoSuchMethod(format!("{service}/{method}")))),
        }
        self
    }

    /// What peers may send. Default: [`Limits::DEFAULT`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// What a message may become when it is decompressed, bytes. Default: 64 MiB.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.max_message = bytes;
        self
    }

    /// Streams at once on one connection. Default: 1024.
    pub fn max_streams(mut self, max: usize) -> Self {
        self.max_streams = max;
        self
    }

    /// Adds an interceptor.
    pub fn interceptor(mut self, interceptor: impl ServerInterceptor) -> Self {
        self.interceptors.push(Arc::new(interceptor));
        self
    }

    /// Verifies the credentials that come with the first call of a connection (empty if none come). An error refuses that call
    /// with [`ERPCAUTH`](crate::Code::ERPCAUTH) and closes the connection.
    pub fn authenticate(mut self, verify: impl Fn(&[u8]) -> Result<(), Status> + Send + Sync + 'static) -> Self {
        self.authenticator = Some(Arc::new(verify));
        self
    }

    /// Configures the transport: windows, keepalive, backlog. Sizes and the framer are set from [`Self::limits`].
    pub fn transport(mut self, config: ListenConfig) -> Self {
        self.listen = config;
        self
    }

    /// Starts to serve. It does not wait.
    ///
    /// # Errors
    ///
    /// If an address cannot be bound, or the server was built wrongly.
    pub fn start(self) -> Result<Server, ServeError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.addresses.is_empty() {
            let error = ucrpc_transport::Error::new(ErrorKind::Invalid, "a server needs an address to listen on");
            return Err(error.into());
        }
        let place = self.place.map_or_else(Place::process, Ok)?;
        let core = Core::new(Parts {
            registry: self.registry,
            limits: self.limits,
            max_message: self.max_message,
            max_streams: self.max_streams,
            admission: self.admission,
            handlers: self.handlers,
            interceptors: self.interceptors,
            authenticator: self.authenticator,
        });
        let connection: ConnectionConfig = frames::connection_config(&self.listen.connection, &self.limits);
        let config = ListenConfig { connection, ..self.listen };
        // All are bound before any is served.
        let bind = |address| place.listen(address, config.clone());
        let listeners = self.addresses.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
        let addresses = listeners.iter().map(|listener| listener.local_address().clone()).collect();
        for listener in listeners {
            let ticket = core.enroll();
            let core = core.clone();
            place.home().spawn_task(move || session::accept(core, ticket, listener));
        }
        Ok(Server { core, addresses, place })
    }

    /// Serves until the server is stopped, or the future is dropped.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub async fn serve(self) -> Result<(), ServeError> {
        let server = self.start()?;
        server.stopped().await;
        Ok(())
    }
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBuilder")
            .field("services", &self.registry)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// A server at work. Dropping it stops it at once, without grace.
pub struct Server {
    core: Arc<Core>,
    addresses: Vec<Address>,
    place: Place,
}

impl Server {
    /// A server without services or addresses.
    pub fn builder() -> ServerBuilder {
        ServerBuilder {
            registry: Registry::new(),
            failed: None,
            addresses: Vec::new(),
            place: None,
            limits: Limits::DEFAULT,
            max_message: MAX_MESSAGE_SIZE,
            max_streams: 1024,
            admission: Admission::default(),
            handlers: Handlers::default(),
            interceptors: Vec::new(),
            authenticator: None,
            listen: ListenConfig::default(),
        }
    }

    /// The addresses that clients can use, in the order of [`ServerBuilder::listen`], with the ports that the system chose.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The first address.
    pub fn address(&self) -> &Address {
        &self.addresses[0]
    }

    /// Its counters.
    pub fn stats(&self) -> ServerStats {
        self.core.stats()
    }

    /// Stops gracefully: accepts no more connections, tells ucrpc's clients to go elsewhere, refuses new calls with
    /// [`ELOGOFF`](crate::Code::ELOGOFF), and lets calls and streams end within `grace`. What runs then is dropped, and its callers get
    /// [`ELOGOFF`](crate::Code::ELOGOFF). Ready when all connections are closed.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the server takes no new calls; without the future it does not stop those that run.
    pub async fn shutdown(&self, grace: Duration) {
        self.core.advance(Phase::Draining);
        let mut timer = std::pin::pin!(self.place.home().sleep_until(Instant::now() + grace));
        let mut stopping = false;
        poll_fn(|cx| {
            if !stopping && timer.as_mut().poll(cx).is_ready() {
                stopping = true;
                self.core.advance(Phase::Stopped);
            }
            self.core.poll_empty(cx)
        })
        .await;
        self.core.advance(Phase::Stopped);
    }

    /// Waits until the server has stopped.
    pub async fn stopped(&self) {
        poll_fn(|cx| self.core.poll_empty(cx)).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.core.advance(Phase::Stopped);
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses).field("stats", &self.stats()).finish()
    }
}
