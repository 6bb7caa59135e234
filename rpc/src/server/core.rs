//! What all connections of a server share.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use slab::Slab;

use super::admission::Admission;
use super::handler::Handlers;
use crate::interceptor::ServerInterceptor;
use crate::wire::Limits;
use crate::{Registry, Status};

/// Life of a server, in the order of the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Phase {
    Running,
    /// No new calls; those that run go on.
    Draining,
    /// Nothing goes on.
    Stopped,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a server.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct ServerStats {
            $($(#[$doc])* pub $name: u64,)*
            /// Calls that run.
            pub running: u64,
            /// Connections and listeners at work.
            pub tasks: u64,
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            fn snapshot(&self) -> ServerStats {
                ServerStats { $($name: self.$name.load(Ordering::Relaxed),)* ..ServerStats::default() }
            }
        }
    };
}

counters! {
    /// Connections taken.
    connections,
    /// Calls that a handler was started for.
    started,
    /// Calls that were not let in because of a limit.
    limited,
    /// Calls that came when the server was stopping.
    too_late,
    /// Handlers dropped because the caller cancelled or its connection ended.
    cancelled,
    /// Handlers dropped because their deadline passed.
    expired,
    /// Handlers that panicked.
    panicked,
    /// Frames that made no sense: bad requests, responses to nothing.
    bad_frames,
}

pub(crate) type Authenticator = dyn Fn(&[u8]) -> Result<(), Status> + Send + Sync;

pub(crate) struct Core {
    pub(super) registry: Registry,
    pub(super) limits: Limits,
    pub(super) max_message: usize,
    pub(super) max_streams: usize,
    pub(super) admission: Admission,
    pub(super) handlers: Handlers,
    pub(super) interceptors: Vec<Arc<dyn ServerInterceptor>>,
    pub(super) authenticator: Option<Arc<Authenticator>>,
    pub(super) counters: Counters,
    phase: AtomicU8,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    wakers: Slab<Waker>,
    waiting: Vec<Waker>,
}

pub(super) struct Parts {
    pub(super) registry: Registry,
    pub(super) limits: Limits,
    pub(super) max_message: usize,
    pub(super) max_streams: usize,
    pub(super) admission: Admission,
    pub(super) handlers: Handlers,
    pub(super) interceptors: Vec<Arc<dyn ServerInterceptor>>,
    pub(super) authenticator: Option<Arc<Authenticator>>,
}

impl Core {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let Parts { registry, limits, max_message, max_streams, admission, handlers, interceptors, authenticator } =
            parts;
        Arc::new(Self {
            registry,
            limits,
            max_message,
            max_streams,
            admission,
            handlers,
            interceptors,
            authenticator,
            counters: Counters::default(),
            phase: AtomicU8::new(Phase::Running as u8),
            tasks: Mutex::default(),
        })
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Draining,
            _ => Phase::Stopped,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Moves on to `phase`, never back, and tells every task.
    pub(super) fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
        let wakers: Vec<_> = self.lock().wakers.iter().map(|(_, waker)| waker.clone()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Counts a task from now until the ticket is dropped.
    pub(super) fn enroll(self: &Arc<Self>) -> Ticket {
        Ticket { core: self.clone(), key: self.lock().wakers.insert(Waker::noop().clone()), noted: false }
    }

    pub(super) fn poll_empty(&self, cx: &Context<'_>) -> Poll<()> {
        let mut tasks = self.lock();
        if tasks.wakers.is_empty() {
            return Poll::Ready(());
        }
        if !tasks.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            tasks.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(super) fn stats(&self) -> ServerStats {
        let tasks = self.lock().wakers.len() as u64;
        ServerStats { running: self.admission.running() as u64, tasks, ..self.counters.snapshot() }
    }
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A task's place in the list of those that [`Core::advance`] wakes.
pub(super) struct Ticket {
    core: Arc<Core>,
    key: usize,
    noted: bool,
}

impl Ticket {
    /// Notes whom to wake. A task's waker stays the same: once is enough.
    pub(super) fn note(&mut self, cx: &Context<'_>) {
        if !std::mem::replace(&mut self.noted, true) {
            self.core.lock().wakers[self.key] = cx.waker().clone();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let (own, waiting) = {
            let mut tasks = self.core.lock();
            let own = tasks.wakers.try_remove(self.key);
            let empty = tasks.wakers.is_empty();
            (own, if empty { std::mem::take(&mut tasks.waiting) } else { Vec::new() })
        };
        drop(own);
        waiting.into_iter().for_each(Waker::wake);
    }
}
