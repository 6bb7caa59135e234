//! A place for one connection: opens it when it is needed, opens it again when it was lost, and keeps trying while the peer
//! is dead.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use ucrpc_transport::{Address, Connection};

use super::Inner;
use super::conn::{Conn, Reader};
use super::landings::Landings;
use crate::alarm::OneTimer;
use crate::frames::status_of;
use crate::{Code, Status};

enum Phase {
    Idle,
    Connecting,
    Open(Arc<Conn>),
    /// The last attempts failed; the lane's task goes on trying.
    Down(Status),
    Closed,
}

struct State {
    phase: Phase,
    waiters: Vec<Waker>,
    /// The lane's task, where it waits to try again.
    task: Option<Waker>,
}

pub(super) struct Lane {
    pub(super) address: Address,
    state: Mutex<State>,
    /// Taken by one call, where connections are pooled.
    busy: AtomicBool,
}

/// What a lane has for a call right now.
pub(super) enum Found {
    Open(Arc<Conn>),
    /// It is being connected; the waker was noted.
    Wait,
    /// The peer does not answer.
    Down(Status),
}

impl Lane {
    pub(super) fn new(address: Address) -> Arc<Self> {
        let state = State { phase: Phase::Idle, waiters: Vec::new(), task: None };
        Arc::new(Self { address, state: Mutex::new(state), busy: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The open connection, if there is one.
    pub(super) fn open(&self) -> Option<Arc<Conn>> {
        match &self.lock().phase {
            Phase::Open(conn) if conn.is_usable() => Some(conn.clone()),
            _ => None,
        }
    }

    /// Starts to connect, if nobody does and nothing is known to be wrong. Nobody is woken when it is done.
    pub(super) fn warm_up(self: &Arc<Self>, inner: &Arc<Inner>) {
        {
            let mut state = self.lock();
            match &state.phase {
                Phase::Open(conn) if conn.is_usable() => return,
                Phase::Idle | Phase::Open(_) => state.phase = Phase::Connecting,
                Phase::Connecting | Phase::Down(_) | Phase::Closed => return,
            }
        }
        self.connect(inner);
    }

    pub(super) fn is_down(&self) -> bool {
        matches!(self.lock().phase, Phase::Down(_) | Phase::Closed)
    }

    pub(super) fn take(&self) -> bool {
        !self.busy.swap(true, Ordering::Acquire)
    }

    pub(super) fn put_back(&self) {
        self.busy.store(false, Ordering::Release);
    }

    /// The connection, or what has to be waited for; connects if nobody does.
    pub(super) fn find(self: &Arc<Self>, inner: &Arc<Inner>, wait_when_down: bool, cx: &Context<'_>) -> Found {
        let start = {
            let mut state = self.lock();
            let start = match &state.phase {
                Phase::Open(conn) if conn.is_usable() => return Found::Open(conn.clone()),
                Phase::Down(status) if !wait_when_down => return Found::Down(status.clone()),
                Phase::Closed => return Found::Down(Status::new(Code::ECLOSE, "the dispatcher of the channel ended")),
                Phase::Idle | Phase::Open(_) => true,
                Phase::Connecting | Phase::Down(_) => false,
            };
            if start {
                state.phase = Phase::Connecting;
            }
            if !state.waiters.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.waiters.push(cx.waker().clone());
            }
            start
        };
        if start {
            self.connect(inner);
        }
        Found::Wait
    }

    fn connect(self: &Arc<Self>, inner: &Arc<Inner>) {
        let (config, landings) = inner.new_config();
        let connection = inner.place.connect(&self.address, config).into_connection();
        let dispatcher = connection.dispatcher();
        let task = Task { lane: self.clone(), inner: Arc::downgrade(inner), landings, over: false };
        dispatcher.spawn_task(move || task.run(connection));
    }

    fn set(&self, phase: Phase) {
        let (before, waiters) = {
            let mut state = self.lock();
            (std::mem::replace(&mut state.phase, phase), std::mem::take(&mut state.waiters))
        };
        drop(before);
        waiters.into_iter().for_each(Waker::wake);
    }

    /// The channel is gone.
    pub(super) fn close(&self) {
        let (before, task) = {
            let mut state = self.lock();
            (std::mem::replace(&mut state.phase, Phase::Closed), state.task.take())
        };
        if let Phase::Open(conn) = before {
            conn.retire();
        }
        task.into_iter().for_each(Waker::wake);
    }
}

/// The life of a lane's connection, from one need for it to its end. On the connection's dispatcher.
struct Task {
    lane: Arc<Lane>,
    inner: Weak<Inner>,
    landings: Arc<Landings>,
    over: bool,
}

impl Task {
    async fn run(mut self, mut connection: Connection) {
        let dispatcher = connection.dispatcher();
        let mut failures = 0;
        loop {
            let opened = connection.opened().await;
            let Some(inner) = self.inner.upgrade() else { break };
            match opened {
                Ok(()) => {
                    let conn = inner.new_conn(&connection, self.landings.clone());
                    inner.count_connect(true);
                    self.lane.set(Phase::Open(conn.clone()));
                    drop(inner);
                    let reader = Reader::new(conn.clone(), connection);
                    let status = reader.run().await;
                    tracing::debug!(%status, address = %self.lane.address, "a connection ended");
                    self.lost(&conn);
                    break;
                }
                Err(error) => {
                    failures += 1;
                    inner.count_connect(false);
                    self.lane.set(Phase::Down(status_of(&error)));
                    let at = Instant::now() + inner.backoff.delay(failures);
                    drop((inner, connection));
                    if !self.pause(&dispatcher, at).await {
                        break;
                    }
                    let Some(inner) = self.inner.upgrade() else { break };
                    let (config, landings) = inner.new_config();
                    self.landings = landings;
                    connection = dispatcher.connect(&self.lane.address, config).into_connection();
                }
            }
        }
        self.over = true;
    }

    /// The connection ended: the next call that needs one connects again.
    fn lost(&self, conn: &Arc<Conn>) {
        let mut state = self.lane.lock();
        // A call may have found it unusable before, and started another task.
        if matches!(&state.phase, Phase::Open(current) if Arc::ptr_eq(current, conn)) {
            state.phase = Phase::Idle;
        }
    }

    /// Waits until `at`; false if the channel is gone.
    async fn pause(&self, dispatcher: &ucrpc_transport::Dispatcher, at: Instant) -> bool {
        let mut timer = OneTimer::default();
        std::future::poll_fn(|cx| {
            {
                let mut state = self.lane.lock();
                if matches!(state.phase, Phase::Closed) {
                    return Poll::Ready(false);
                }
                state.task = Some(cx.waker().clone());
            }
            if timer.poll(dispatcher, Some(at), cx) { Poll::Ready(true) } else { Poll::Pending }
        })
        .await
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if !self.over {
            // The dispatcher ended under it.
            self.lane.set(Phase::Closed);
        }
    }
}
