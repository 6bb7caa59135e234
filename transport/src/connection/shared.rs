//! What a connection's handles and its dispatcher share: phase, wish, end, and who waits for them.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
    },
    task::{Context, Poll, Waker},
};

use atomic_waker::AtomicWaker;

use super::{ConnectionInfo, Stall, sent::Completion};
use crate::{
    Error, Frame, Result,
    config::ConnectionConfig,
    dispatcher, driver,
    event::{pipe::ReadyPipe, poller::Key},
    queue::{self, Announce},
    stats::ConnectionCounters,
};

/// Life of a connection, in the order of the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    Opening,
    Open,
    /// A graceful close was asked for: what is queued still goes out.
    Closing,
    Closed,
}

/// How the last handle, or `close`, wants the connection to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum CloseWish {
    None,
    Graceful,
    Abort,
}

/// A frame on its way to the dispatcher.
pub(crate) struct Outgoing {
    pub(crate) frame: Frame,
    pub(crate) done: Option<Completion>,
}

impl Outgoing {
    /// The frame, for giving it back: its completion is disarmed.
    pub(super) fn into_frame(mut self) -> Frame {
        if let Some(done) = self.done.take() {
            done.forget();
        }
        self.frame
    }
}

/// What handles and the dispatcher share.
pub(crate) struct Shared {
    pub(crate) dispatcher: Arc<dispatcher::Shared>,
    key: AtomicU64,
    pub(crate) queue: queue::Sender<Outgoing>,
    pub(crate) announce: Announce,
    phase: AtomicU8,
    wish: AtomicU8,
    stall: AtomicU8,
    end: OnceLock<Error>,
    pub(crate) info: OnceLock<ConnectionInfo>,
    /// Bytes of the frame that found the queue full last: `ready` waits until it would find room.
    pub(super) refused_len: AtomicU64,
    /// Wakes the one receiver.
    pub(crate) reader: AtomicWaker,
    /// The receiver was polled last on the dispatcher's own thread, where its frames wait (`driver/inbox.rs`).
    pub(crate) reads_here: AtomicBool,
    /// Wakers of `opened`, `ready` and `closed`; `waiting` says whether there are any.
    waiters: Mutex<Vec<Waker>>,
    waiting: AtomicBool,
    /// Frames and bytes that the application has taken, ever. Written by the receiver only.
    pub(crate) consumed_frames: AtomicU64,
    pub(crate) consumed_bytes: AtomicU64,
    /// Frames and bytes after which the receiver tells the dispatcher that it consumed.
    pub(crate) tell_frames: AtomicU32,
    pub(crate) tell_bytes: AtomicU64,
    pub(crate) counters: ConnectionCounters,
    /// The sending half of a TCP connection, which callers' threads may use directly.
    pub(crate) direct: OnceLock<Arc<Mutex<driver::SendHalf>>>,
    /// Readiness pipes that the dispatcher has not taken yet. While a name is looked up it does not know the connection.
    pipes: Mutex<Vec<ReadyPipe>>,
}

/// The largest window of frames: what the queue of received frames holds.
pub(crate) const MAX_DELIVERED: u32 = (1 << 23) - 1;

/// In the place of a count of consumed frames: the receiver is gone, all frames count as consumed.
pub(crate) const NO_RECEIVER: u64 = u64::MAX;

/// Not yet in a dispatcher's table.
const NO_KEY: u64 = u64::MAX;

impl Shared {
    /// The shared half of a connection that is opening.
    pub(super) fn new(
        dispatcher: Arc<dispatcher::Shared>,
        queue: queue::Sender<Outgoing>,
        config: &ConnectionConfig,
    ) -> Self {
        Self {
            dispatcher,
            key: AtomicU64::new(NO_KEY),
            queue,
            announce: Announce::new(),
            phase: AtomicU8::new(Phase::Opening as u8),
            wish: AtomicU8::new(CloseWish::None as u8),
            stall: AtomicU8::new(0),
            end: OnceLock::new(),
            info: OnceLock::new(),
            refused_len: AtomicU64::new(1),
            reader: AtomicWaker::new(),
            reads_here: AtomicBool::new(false),
            waiters: Mutex::new(Vec::new()),
            waiting: AtomicBool::new(false),
            consumed_frames: AtomicU64::new(0),
            consumed_bytes: AtomicU64::new(0),
            tell_frames: AtomicU32::new((config.recv_window_frames / 8).max(1)),
            tell_bytes: AtomicU64::new((config.recv_window_bytes / 8).max(1)),
            counters: ConnectionCounters::default(),
            direct: OnceLock::new(),
            pipes: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn key(&self) -> Option<Key> {
        match self.key.load(Ordering::Acquire) {
            NO_KEY => None,
            packed => Some(unpack(packed)),
        }
    }

    pub(crate) fn set_key(&self, key: Key) {
        self.key.store(pack(key), Ordering::Release);
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Opening,
            1 => Phase::Open,
            2 => Phase::Closing,
            _ => Phase::Closed,
        }
    }

    /// Moves on to `phase`; never back.
    pub(crate) fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// The terminal error. `None` while the connection lives.
    pub(crate) fn end(&self) -> Option<&Error> {
        self.end.get()
    }

    /// Ends the connection for its handles: exactly one reason, everyone is woken.
    pub(crate) fn finish(&self, error: Error) {
        let _ = self.end.set(error);
        self.advance(Phase::Closed);
        self.queue.close();
        // Dropping them is the error signal.
        drop(self.take_pipes());
        self.reader.wake();
        self.wake_waiters();
    }

    /// Leaves a readiness pipe for the dispatcher.
    ///
    /// # Errors
    /// The connection's end.
    pub(super) fn add_pipe(&self, pipe: ReadyPipe) -> Result<()> {
        self.pipes.lock().unwrap_or_else(|e| e.into_inner()).push(pipe);
        // After the push: whoever ends the connection takes the pipes after it has set the end.
        self.end().map_or(Ok(()), |end| {
            drop(self.take_pipes());
            Err(end.clone())
        })
    }

    /// The readiness pipes that nobody has taken yet.
    pub(crate) fn take_pipes(&self) -> Vec<ReadyPipe> {
        std::mem::take(&mut *self.pipes.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// What the watchdog last found; `true` if that is news.
    pub(crate) fn set_stall(&self, stall: Option<Stall>) -> bool {
        let number = stall.map_or(0, |stall| stall as u8);
        self.stall.swap(number, Ordering::Relaxed) != number
    }

    pub(crate) fn stall(&self) -> Option<Stall> {
        Stall::ALL.into_iter().find(|stall| *stall as u8 == self.stall.load(Ordering::Relaxed))
    }

    pub(crate) fn wish(&self) -> CloseWish {
        match self.wish.load(Ordering::Acquire) {
            0 => CloseWish::None,
            1 => CloseWish::Graceful,
            _ => CloseWish::Abort,
        }
    }

    pub(super) fn want_close(&self, wish: CloseWish) {
        if self.wish.fetch_max(wish as u8, Ordering::AcqRel) < wish as u8 {
            self.advance(Phase::Closing);
            // At once, not when the dispatcher comes by: after `close` no further frame is taken.
            self.queue.close();
            self.announce();
        }
    }

    /// The outside closed the readiness descriptor.
    pub(crate) fn close_by_pipe(&self) {
        self.want_close(CloseWish::Graceful);
    }

    /// Puts the connection on its dispatcher's ready ring, if it is not there.
    pub(crate) fn announce(&self) {
        if self.announce.announce() {
            match self.key() {
                Some(key) => self.dispatcher.ready(key),
                // The dispatcher looks at the queue when it takes the connection in. That it may do so between
                // our look at the key and now is why the key is looked at again.
                None => {
                    fence(Ordering::SeqCst);
                    if let Some(key) = self.key() {
                        self.dispatcher.ready(key);
                    }
                }
            }
        }
    }

    /// Wakes whoever waits for room, opening or the end. Called after the state that they wait for has changed.
    pub(crate) fn wake_waiters(&self) {
        // Pairs with the fence in `wait`: either the waiter sees the new state, or we see the waiter.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) {
            let wakers = {
                let mut waiters = self.waiters.lock().unwrap_or_else(|e| e.into_inner());
                self.waiting.store(false, Ordering::Relaxed);
                std::mem::take(&mut *waiters)
            };
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Polls `ready`, registering the waker if it says nothing yet: check, register, check again.
    pub(super) fn wait<T>(&self, cx: &Context<'_>, ready: impl Fn() -> Option<T>) -> Poll<T> {
        if let Some(value) = ready() {
            return Poll::Ready(value);
        }
        {
            let mut waiters = self.waiters.lock().unwrap_or_else(|e| e.into_inner());
            if !waiters.iter().any(|w| w.will_wake(cx.waker())) {
                waiters.push(cx.waker().clone());
            }
            self.waiting.store(true, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        ready().map_or(Poll::Pending, Poll::Ready)
    }
}

pub(crate) fn pack(key: Key) -> u64 {
    u64::from(key.generation) << 32 | u64::from(key.index)
}

pub(crate) fn unpack(packed: u64) -> Key {
    Key { index: packed as u32, generation: (packed >> 32) as u32 }
}

/// The dispatcher's half of a new connection.
pub(crate) struct DriverHalf {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: queue::Receiver<Outgoing>,
    pub(crate) deliver: queue::Sender<Frame>,
    pub(crate) config: ConnectionConfig,
}
