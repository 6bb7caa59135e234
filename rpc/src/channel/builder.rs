//! What a channel is made of.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ucrpc_transport::{Address, ConnectionConfig, Error, ErrorKind};

use super::lane::Lane;
use super::policy::Budget;
use super::{Backoff, BudgetConfig, Channel, ConnectionType, Counters, Inner, RetryPolicy};
use crate::Status;
use crate::alarm::Alarm;
use crate::codec::MAX_MESSAGE_SIZE;
use crate::frames;
use crate::interceptor::ClientInterceptor;
use crate::place::{IntoAddress, Place};
use crate::wire::Limits;

/// What a channel is made of.
///
/// Mistakes (an address that cannot be parsed) are reported when it is built.
#[must_use = "no channel before `connect` or `connect_lazy`"]
pub struct ChannelBuilder {
    addresses: Vec<Address>,
    failed: Option<Error>,
    place: Option<Place>,
    connections: ConnectionType,
    transport: ConnectionConfig,
    limits: Limits,
    max_message: usize,
    max_streams: usize,
    timeout: Option<Duration>,
    wait_for_ready: bool,
    backoff: Backoff,
    retry: RetryPolicy,
    budget: BudgetConfig,
    hedge_after: Option<Duration>,
    credentials: Option<Bytes>,
    interceptors: Vec<Arc<dyn ClientInterceptor>>,
}

impl ChannelBuilder {
    pub(super) fn new() -> Self {
        Self {
            addresses: Vec::new(),
            failed: None,
            place: None,
            connections: ConnectionType::Shared(1),
            transport: ConnectionConfig::default(),
            limits: Limits::DEFAULT,
            max_message: MAX_MESSAGE_SIZE,
            max_streams: 1024,
            timeout: Some(Duration::from_secs(5)),
            wait_for_ready: false,
            backoff: Backoff { first: Duration::from_millis(20), max: Duration::from_secs(3), jitter: 0.5 },
            retry: RetryPolicy::default(),
            budget: BudgetConfig::default(),
            hedge_after: None,
            credentials: None,
            interceptors: Vec::new(),
        }
    }

    /// Adds the address of another replica: calls go to all in turn, retries and hedges to one that the call did not try.
    pub fn address(mut self, address: impl IntoAddress) -> Self {
        match address.into_address() {
            Ok(address) => self.addresses.push(address),
            Err(error) => drop(self.failed.get_or_insert(error)),
        }
        self
    }

    /// Connects on these dispatchers. Default: [`Place::process`].
    pub fn on(mut self, place: impl Into<Place>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// How connections are used. Default: one, shared.
    pub fn connections(mut self, connections: ConnectionType) -> Self {
        self.connections = connections;
        self
    }

    /// Configures the transport: windows, keepalive, the time to connect. Sizes and the framer are set from
    /// [`Self::limits`].
    pub fn transport(mut self, config: ConnectionConfig) -> Self {
        self.transport = config;
        self
    }

    /// What servers may send. Default: [`Limits::DEFAULT`].
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

    /// The time that a call without a deadline has, connecting and retries included; `None` for no limit. Default: 5 s.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// What calls do when the server is known to be dead: wait for it until their deadline (`true`), or fail at once
    /// (`false`, the default). A connection that is being made for the first time is waited for in any case.
    pub fn wait_for_ready(mut self, wait: bool) -> Self {
        self.wait_for_ready = wait;
        self
    }

    /// How long to wait between attempts to connect. As long as a server is dead, it is tried at these times. Default:
    /// 20 ms doubling up to 3 s, half of it random.
    pub fn reconnect(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// How calls are tried again.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// What retries and hedges may add to the load.
    pub fn budget(mut self, budget: BudgetConfig) -> Self {
        self.budget = budget;
        self
    }

    /// Sends a second request, to another address or connection, when a call had no answer for this long. The first answer
    /// counts, the other request is cancelled. Only for methods that may run twice. Default: never.
    pub fn hedge_after(mut self, after: Duration) -> Self {
        self.hedge_after = Some(after);
        self
    }

    /// What the first requests of each connection authenticate with.
    pub fn credentials(mut self, credentials: impl Into<Bytes>) -> Self {
        self.credentials = Some(credentials.into());
        self
    }

    /// Adds an interceptor.
    pub fn interceptor(mut self, interceptor: impl ClientInterceptor) -> Self {
        self.interceptors.push(Arc::new(interceptor));
        self
    }

    /// Builds the channel; it connects when the first call needs it.
    ///
    /// # Errors
    ///
    /// If the channel was built wrongly, or there is no dispatcher to be had.
    pub fn connect_lazy(self) -> Result<Channel, Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let place = self.place.map_or_else(Place::process, Ok)?;
        let (each, is_pooled) = match self.connections {
            ConnectionType::Shared(count) => (count, false),
            ConnectionType::Pooled(count) => (count, true),
        };
        if self.addresses.is_empty() || each == 0 {
            return Err(Error::new(ErrorKind::Invalid, "a channel needs an address and a connection"));
        }
        // Addresses take turns, so that an attempt on the next lane is one on another server.
        let lanes = (0..each).flat_map(|_| &self.addresses).cloned().map(Lane::new).collect();
        let inner = Inner {
            alarm: Alarm::start(place.home()),
            place,
            lanes,
            is_pooled,
            turn: AtomicUsize::new(0),
            queue: Mutex::default(),
            connection: frames::connection_config(&self.transport, &self.limits),
            limits: self.limits,
            max_message: self.max_message,
            max_streams: self.max_streams,
            timeout: self.timeout,
            wait_for_ready: self.wait_for_ready,
            backoff: self.backoff,
            retry: self.retry,
            hedge_after: self.hedge_after,
            credentials: self.credentials,
            interceptors: self.interceptors,
            budget: Budget::new(self.budget),
            attempts: AtomicU64::new(1),
            counters: Counters::default(),
            strays: Arc::default(),
        };
        Ok(Channel { inner: Arc::new(inner) })
    }

    /// Builds the channel and opens its first connection, within the channel's timeout.
    ///
    /// # Errors
    ///
    /// As [`Self::connect_lazy`], or why the connection could not be opened.
    pub async fn connect(self) -> Result<Channel, Status> {
        let channel = self.connect_lazy().map_err(|error| frames::status_of(&error))?;
        channel.connected().await?;
        Ok(channel)
    }
}

impl fmt::Debug for ChannelBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelBuilder").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}
