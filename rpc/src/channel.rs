//! Calling: a channel to one or more servers.

mod attempt;
mod attempts;
mod builder;
mod calls;
mod conn;
mod info;
mod landings;
mod lane;
mod opening;
mod policy;

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use ucrpc_transport::{Connection, ConnectionConfig};

pub use self::attempts::ChannelCall;
pub use self::builder::ChannelBuilder;
use self::conn::{Conn, Strays};
use self::landings::Landings;
use self::lane::{Found, Lane};
pub use self::opening::OpenStream;
use self::policy::Budget;
pub use self::policy::{Backoff, BudgetConfig, RetryOn, RetryPolicy};
use crate::alarm::Alarm;
use crate::client::{RawCall, RawCaller, park_on};
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
    fn new_conn(&self, connection: &Connection, landings: Arc<Landings>) -> Arc<Conn> {
        Conn::new(connection, self.limits, self.max_message, self.max_streams, landings, self.strays.clone())
    }

    /// What a new connection is configured with, and where attachments that come on it may go.
    fn new_config(&self) -> (ConnectionConfig, Arc<Landings>) {
        let landings = Landings::new(self.limits, self.connection.planner.clone());
        (ConnectionConfig { planner: Some(landings.clone()), ..self.connection.clone() }, landings)
    }

    fn count_connect(&self, success: bool) {
        let counter = if success { &self.counters.connects } else { &self.counters.failed_connects };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// An open connection, if there is one.
    #[inline]
    fn open_lane(self: &Arc<Self>) -> Option<(usize, Arc<Conn>)> {
        if self.lanes.len() == 1 && !self.is_pooled {
            return self.lanes[0].open().map(|conn| (0, conn));
        }
        if !self.is_pooled {
            self.turn.fetch_add(1, Ordering::Relaxed);
        }
        self.open_lane_but(0)
    }

    /// An open connection of a lane that is not among `tried`. Shared lanes that would have had their turn are connected for
    /// later calls.
    fn open_lane_but(self: &Arc<Self>, tried: u64) -> Option<(usize, Arc<Conn>)> {
        let (first, count) = (self.first_turn(), self.lanes.len());
        for index in (0..count).map(|i| first.wrapping_add(i) % count).filter(|index| is_fresh(tried, *index)) {
            if self.is_pooled && !self.lanes[index].take() {
                continue;
            }
            if let Some(conn) = self.lanes[index].open() {
                return Some((index, conn));
            }
            if !self.is_pooled {
                self.lanes[index].warm_up(self);
            }
            self.put_back(index);
        }
        None
    }

    /// Where to begin to look: pooled connections are used again as soon as they can be, shared ones take turns. Only the
    /// start of a call moves the turn on: calls whose hedges did would always meet the same server first.
    fn first_turn(&self) -> usize {
        if self.is_pooled { 0 } else { self.turn.load(Ordering::Relaxed) }
    }

    /// The lane for an attempt: open ones first, then those that were not tried and are not known to be down. `None` if all
    /// pooled connections are taken; the waker was noted.
    fn choose(self: &Arc<Self>, tried: u64, cx: &Context<'_>) -> Option<(usize, Arc<Lane>)> {
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
        let (first, count) = (self.first_turn(), self.lanes.len());
        let cost = |index: usize| (self.lanes[index].is_down(), !is_fresh(tried, index));
        let mut order: Vec<_> = (0..count).map(|i| first.wrapping_add(i) % count).collect();
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
}

/// Whether a lane is not among those that a call tried.
fn is_fresh(tried: u64, index: usize) -> bool {
    tried >> (index % 64) & 1 == 0
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.alarm.close();
        self.lanes.iter().for_each(|lane| lane.close());
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
    /// A channel to `address`, as text or as an [`Address`](ucrpc_transport::Address).
    pub fn builder(address: impl IntoAddress) -> ChannelBuilder {
        ChannelBuilder::new().address(address)
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
