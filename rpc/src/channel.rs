//! Calling: a channel to one or more servers.

mod attempts;
mod calls;
mod conn;
mod info;
mod lane;
mod opening;
mod policy;

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use ucrpc_transport::{Address, Connection, ConnectionConfig, Error, ErrorKind};

pub use self::attempts::ChannelCall;
use self::conn::{Conn, Strays};
use self::lane::{Found, Lane};
pub use self::opening::OpenStream;
use self::policy::Budget;
pub use self::policy::{Backoff, BudgetConfig, RetryOn, RetryPolicy};
use crate::alarm::Alarm;
use crate::client::{RawCall, RawCaller, park_on};
use crate::codec::MAX_MESSAGE_SIZE;
use crate::frames;
use crate::interceptor::ClientInterceptor;
use crate::place::{IntoAddress, Place};
use crate::streaming::StreamConfig;
use crate::wire::Limits;
use crate::{Code, Deadline, Status};

/// How a channel uses connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionType {
    /// All calls share this many connections to each address, in turn. Default: one.
    Shared(usize),
    /// Each call has a connection to itself; at most this many to each address. Calls wait for one.
    Pooled(usize),
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a channel.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct ChannelStats {
            $($(#[$doc])* pub $name: u64,)*
            /// Attempts under way.
            pub in_flight: u64,
            /// Responses to calls that had ended or never were: dropped.
            pub stray_responses: u64,
            /// Other frames that made no sense: dropped.
            pub stray_frames: u64,
        }

        #[derive(Debug, Default)]
        struct Counters {
            $($name: AtomicU64,)*
        }

        impl Counters {
            fn snapshot(&self) -> ChannelStats {
                ChannelStats { $($name: self.$name.load(Ordering::Relaxed),)* ..ChannelStats::default() }
            }
        }
    };
}

counters! {
    /// Calls started.
    calls,
    /// Calls that failed.
    failed,
    /// Attempts after a failed one.
    retries,
    /// Attempts beside a slow one.
    hedges,
    /// Retries and hedges that the budget did not allow.
    budget_refused,
    /// Connections opened.
    connects,
    /// Connections that could not be opened.
    failed_connects,
}

struct Inner {
    place: Place,
    lanes: Vec<Arc<Lane>>,
    is_pooled: bool,
    turn: AtomicUsize,
    /// Calls that wait for a pooled connection.
    queue: Mutex<Vec<Waker>>,
    connection: ConnectionConfig,
    limits: Limits,
    max_message: usize,
    max_streams: usize,
    timeout: Option<Duration>,
    wait_for_ready: bool,
    backoff: Backoff,
    retry: RetryPolicy,
    hedge_after: Option<Duration>,
    credentials: Option<Bytes>,
    interceptors: Vec<Arc<dyn ClientInterceptor>>,
    budget: Budget,
    alarm: Alarm,
    /// Attempts of all calls, ever: the source of correlation ids.
    attempts: AtomicU64,
    counters: Counters,
    strays: Arc<Strays>,
}

impl Inner {
    fn new_conn(&self, connection: &Connection) -> Arc<Conn> {
        Conn::new(connection, self.limits, self.max_message, self.max_streams, self.strays.clone())
    }

    fn count_connect(&self, success: bool) {
        let counter = if success { &self.counters.connects } else { &self.counters.failed_connects };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// An open connection, if the next lane has one.
    #[inline]
    fn open_lane(&self) -> Option<(usize, Arc<Conn>)> {
        if self.lanes.len() == 1 && !self.is_pooled {
            return self.lanes[0].open().map(|conn| (0, conn));
        }
        self.open_lane_but(0)
    }

    /// An open connection of a lane that is not among `tried`.
    fn open_lane_but(&self, tried: u64) -> Option<(usize, Arc<Conn>)> {
        let first = if self.is_pooled { 0 } else { self.turn.fetch_add(1, Ordering::Relaxed) };
        let fresh = |index: usize| tried >> (index % 64) & 1 == 0;
        (0..self.lanes.len()).map(|i| (first.wrapping_add(i)) % self.lanes.len()).filter(|&i| fresh(i)).find_map(
            |index| {
                if self.is_pooled && !self.lanes[index].take() {
                    return None;
                }
                match self.lanes[index].open() {
                    Some(conn) => Some((index, conn)),
                    None => {
                        self.put_back(index);
                        None
                    }
                }
            },
        )
    }

    /// The lane for an attempt: open ones first, then those that were not tried and are not known to be down. `None` if all
    /// pooled connections are taken; the waker was noted.
    fn choose(&self, tried: u64, cx: &Context<'_>) -> Option<(usize, Arc<Lane>)> {
        if let Some((index, _)) = self.open_lane_but(tried) {
            return Some((index, self.lanes[index].clone()));
        }
        if let Some(found) = self.choose_closed(tried) {
            return Some(found);
        }
        {
            let mut queue = self.queue.lock().unwrap_or_else(|e| e.into_inner());
            if !queue.iter().any(|waker| waker.will_wake(cx.waker())) {
                queue.push(cx.waker().clone());
            }
        }
        // One may have been put back since.
        self.choose_closed(tried)
    }

    fn choose_closed(&self, tried: u64) -> Option<(usize, Arc<Lane>)> {
        let first = if self.is_pooled { 0 } else { self.turn.fetch_add(1, Ordering::Relaxed) };
        let cost = |index: usize| (self.lanes[index].is_down(), tried >> (index % 64) & 1);
        let mut order: Vec<_> = (0..self.lanes.len()).map(|i| (first.wrapping_add(i)) % self.lanes.len()).collect();
        order.sort_by_key(|&index| cost(index));
        let index = order.into_iter().find(|&index| !self.is_pooled || self.lanes[index].take())?;
        Some((index, self.lanes[index].clone()))
    }

    /// A call is done with a lane.
    fn put_back(&self, index: usize) {
        if !self.is_pooled {
            return;
        }
        self.lanes[index].put_back();
        let waiting = std::mem::take(&mut *self.queue.lock().unwrap_or_else(|e| e.into_inner()));
        waiting.into_iter().for_each(Waker::wake);
    }

    fn any_up(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.is_down())
    }

    /// Connects a lane that is not among `tried`, for the next time.
    fn warm_up(self: &Arc<Self>, tried: u64, cx: &Context<'_>) {
        let fresh = |index: &usize| tried >> (index % 64) & 1 == 0;
        if let Some(index) = (0..self.lanes.len()).find(fresh) {
            let _ = Lane::find(&self.lanes[index], self, true, cx);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.alarm.close();
        self.lanes.iter().for_each(|lane| lane.close());
    }
}

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

/// Carries calls to a server, or to several replicas of it. Clones share it; any thread may use it.
///
/// Calls may be awaited on any executor. On the channel's own dispatcher ([`ucrpc_transport::LocalDispatcher::block_on`], local tasks,
/// handlers) no other thread takes part. When the last clone and the last call are gone, connections are closed.
#[derive(Clone)]
pub struct Channel {
    inner: Arc<Inner>,
}

impl Channel {
    /// A channel to `address`, as text or as an [`Address`].
    pub fn builder(address: impl IntoAddress) -> ChannelBuilder {
        let builder = ChannelBuilder {
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
        };
        builder.address(address)
    }

    /// A channel to `address` with all defaults, connected.
    ///
    /// # Errors
    ///
    /// As [`ChannelBuilder::connect`].
    pub async fn connect(address: impl IntoAddress) -> Result<Self, Status> {
        Self::builder(address).connect().await
    }

    /// Waits until a connection is open, within the channel's timeout.
    ///
    /// # Errors
    ///
    /// Why none could be opened.
    pub async fn connected(&self) -> Result<(), Status> {
        let inner = &self.inner;
        let deadline = inner.timeout.map_or(Deadline::NEVER, |t| Deadline::after(std::time::Instant::now(), t));
        let mut alarm = None;
        std::future::poll_fn(|cx| {
            let mut down = None;
            for lane in &inner.lanes {
                match Lane::find(lane, inner, inner.wait_for_ready, cx) {
                    Found::Open(_) => return std::task::Poll::Ready(Ok(())),
                    Found::Wait => {
                        if let Some(at) = deadline.instant() {
                            if deadline.is_expired(std::time::Instant::now()) {
                                let status = Status::new(Code::ERPCTIMEDOUT, "no connection in time");
                                return std::task::Poll::Ready(Err(status));
                            }
                            inner.alarm.set(&mut alarm, at, cx);
                        }
                        return std::task::Poll::Pending;
                    }
                    Found::Down(status) => down = Some(status),
                }
            }
            std::task::Poll::Ready(Err(down.unwrap_or(Code::EHOSTDOWN.into())))
        })
        .await
    }

    /// Makes a call of serialized messages that opens a stream.
    pub fn open_raw(&self, call: RawCall, config: StreamConfig) -> OpenStream {
        OpenStream::new(ChannelCall::start(self.clone(), call, Some(config)))
    }

    /// Its counters.
    pub fn stats(&self) -> ChannelStats {
        let inner = &self.inner;
        let in_flight = |lane: &Arc<Lane>| lane.open().map_or(0, |conn| conn.calls().waiting() as u64);
        ChannelStats {
            in_flight: inner.lanes.iter().map(in_flight).sum(),
            stray_responses: inner.strays.responses.load(Ordering::Relaxed),
            stray_frames: inner.strays.frames.load(Ordering::Relaxed),
            ..inner.counters.snapshot()
        }
    }

    /// What the open connections run over, as in an address.
    pub fn transports(&self) -> Vec<&'static str> {
        self.inner.lanes.iter().filter_map(|lane| lane.open()).map(|conn| conn.transport).collect()
    }
}

impl RawCaller for Channel {
    type Future = ChannelCall;

    fn call(&self, call: RawCall) -> ChannelCall {
        ChannelCall::start(self.clone(), call, None)
    }

    /// Parks this thread between polls.
    ///
    /// # Panics
    ///
    /// On a thread that runs one of the channel's dispatchers: it would wait for itself.
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        assert!(
            !self.inner.place.is_current(),
            "a blocking call on the dispatcher's own thread would wait for itself: use .await"
        );
        park_on(future)
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self.inner.lanes.iter().map(|lane| lane.address.to_string()).collect();
        f.debug_struct("Channel").field("addresses", &addresses).finish_non_exhaustive()
    }
}
