//! Every limit, its default and its reason.

use std::{fmt, sync::Arc, time::Duration};

use crate::{framing::Framer, memory::PoolConfig, plan::Planner};

/// How a dispatcher waits when it has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitPolicy {
    /// Never sleeps: lowest latency, one core fully used.
    Busy,
    /// Spins for `spin` after the last traffic, then sleeps. The default, with 50 us: longer than a round trip on one
    /// host, shorter than what waking another core costs.
    Adaptive {
        /// How long to spin; at most 4 s.
        spin: Duration,
    },
    /// Sleeps as soon as nothing is left to do: least CPU.
    Event,
}

impl Default for WaitPolicy {
    fn default() -> Self {
        Self::Adaptive { spin: Duration::from_micros(50) }
    }
}

/// How a silent peer is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// A peer that was silent for this long is asked for a sign of life. Default: 600 ms.
    pub interval: Duration,
    /// A peer that was silent for this long is gone. Default: 2300 ms, so that the application hears of it
    /// within 3 s even if this side is busy.
    pub deadline: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { interval: Duration::from_millis(600), deadline: Duration::from_millis(2300) }
    }
}

/// Configuration of a dispatcher.
#[derive(Debug, Clone)]
pub struct DispatcherConfig {
    /// Name of its thread and in logs. Default: `ucrpc`.
    pub name: String,
    /// How it waits. Can be changed while it runs.
    pub wait: WaitPolicy,
    /// The CPU to pin its thread to. Default: none.
    pub pin: Option<usize>,
    /// Whether it may use UCX at all. Default: yes; UCX is loaded when the first connection asks for it.
    pub ucx: bool,
    /// Its buffer pool.
    pub pool: PoolConfig,
    /// Bytes that one connection may read or write in one turn before the others are served. Default: 1 MiB: large
    /// enough that a large frame is not cut into many turns, small enough for fairness at 1 GB/s.
    pub turn_bytes: usize,
    /// Frames that one connection may send in one turn. Default: 256.
    pub turn_frames: usize,
    /// Longest sleep. A wake-up that only this timeout found is counted in `wake_detector_hits`: it is a detector for
    /// defects, not a way to work. Default: 100 ms.
    pub detector: Duration,
    /// Connections and handshakes at once; more are refused. Default: 65 536.
    pub max_connections: usize,
}

impl Default for DispatcherConfig {
    fn default() -> Self {
        Self {
            name: "ucrpc".to_owned(),
            wait: WaitPolicy::default(),
            pin: None,
            ucx: true,
            pool: PoolConfig::default(),
            turn_bytes: 1 << 20,
            turn_frames: 256,
            detector: Duration::from_millis(100),
            max_connections: 65_536,
        }
    }
}

/// Configuration of a connection. Both sides have their own; what must agree is agreed in the hello.
#[derive(Clone)]
pub struct ConnectionConfig {
    /// Largest frame (head and body) that this side accepts or sends, bytes. Default: 64 MiB, as brpc's
    /// `max_body_size`.
    pub max_message: u64,
    /// Largest head that this side accepts, bytes. Default: 4 MiB: an RPC message without an attachment is all head.
    pub max_head: u32,
    /// Frames that wait to be sent before `send` says `Full`. Default: 1024.
    pub send_queue_frames: u32,
    /// Bytes that wait to be sent before `send` says `Full`; a larger frame is taken when the queue is empty.
    /// Default: 16 MiB.
    pub send_queue_bytes: u64,
    /// Frames that the peer may send before this application has taken any. Default: 1024.
    pub recv_window_frames: u32,
    /// Bytes that the peer may send before this application has taken any; a larger frame comes alone.
    /// Default: 16 MiB.
    pub recv_window_bytes: u64,
    /// From address to open connection, everything together. Default: 5 s.
    pub connect_timeout: Duration,
    /// Part of it that UCX may use to prove its path before TCP takes over (`auto://`). Default: 2 s.
    pub prove_timeout: Duration,
    /// How a silent peer is found out. `None`: only by the socket's end.
    pub keepalive: Option<Keepalive>,
    /// How long a graceful close may take to send what is queued. Default: 5 s.
    pub linger: Duration,
    /// Decides where bodies go. Default: none, every body goes to the pool. Not asked on `ucx+cm://`, whose messages don't
    /// say what is head and what is body before they are here.
    pub planner: Option<Arc<dyn Planner>>,
    /// Frames are this protocol's own, without ucrpc's framing. For `tcp://` and `unix://` connections that are dialled, and
    /// for accepted ones whose first bytes it recognises. On `ucx+cm://` it cuts the frames out of each message; without it
    /// a message arrives as one frame that is all head, of up to `max_message` bytes.
    pub framer: Option<Arc<dyn Framer>>,
    /// From this many bytes a body goes by rendezvous over UCX; `None` chooses by transport. Default: `None`.
    pub rendezvous_from: Option<u64>,
}

impl ConnectionConfig {
    /// Whether even short bodies have to be asked about.
    #[inline]
    pub(crate) fn has_plans(&self) -> bool {
        self.planner.as_ref().is_some_and(|planner| !planner.is_idle())
    }
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self {
            max_message: 64 << 20,
            max_head: 4 << 20,
            send_queue_frames: 1024,
            send_queue_bytes: 16 << 20,
            recv_window_frames: 1024,
            recv_window_bytes: 16 << 20,
            connect_timeout: Duration::from_secs(5),
            prove_timeout: Duration::from_secs(2),
            keepalive: Some(Keepalive::default()),
            linger: Duration::from_secs(5),
            planner: None,
            framer: None,
            rendezvous_from: None,
        }
    }
}

impl fmt::Debug for ConnectionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionConfig")
            .field("max_message", &self.max_message)
            .field("max_head", &self.max_head)
            .field("send_queue", &(self.send_queue_frames, self.send_queue_bytes))
            .field("recv_window", &(self.recv_window_frames, self.recv_window_bytes))
            .field("connect_timeout", &self.connect_timeout)
            .field("prove_timeout", &self.prove_timeout)
            .field("keepalive", &self.keepalive)
            .field("linger", &self.linger)
            .field("planner", &self.planner.is_some())
            .field("framer", &self.framer.as_ref().map(|f| f.name()))
            .field("rendezvous_from", &self.rendezvous_from)
            .finish()
    }
}

/// Configuration of a listener.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// Configuration of each accepted connection.
    pub connection: ConnectionConfig,
    /// The system's queue of connections not yet accepted. Default: 1024.
    pub backlog: u32,
    /// Connections that are open and not yet taken with `accept`; at the limit the listener stops accepting.
    /// Default: 1024.
    pub accept_queue: usize,
    /// Connections that are still shaking hands; at the limit the listener stops accepting, and those that have taken more than
    /// a second give way to newcomers, the oldest first. Default: 1024.
    pub max_handshakes: usize,
    /// Whether clients may negotiate UCX here. Default: yes.
    pub ucx: bool,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            connection: ConnectionConfig::default(),
            backlog: 1024,
            accept_queue: 1024,
            max_handshakes: 1024,
            ucx: true,
        }
    }
}
