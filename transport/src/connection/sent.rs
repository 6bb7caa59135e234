//! How a tracked send tells its end, exactly once.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use atomic_waker::AtomicWaker;

use crate::{Error, ErrorKind, Result};

struct CompletionState {
    result: OnceLock<Result<()>>,
    waker: AtomicWaker,
}

/// The dispatcher's side of [`Sent`]: completes exactly once, at the latest when it is dropped.
pub(crate) struct Completion(Option<Arc<CompletionState>>);

impl Completion {
    pub(crate) fn complete(mut self, result: Result<()>) {
        self.set(result);
    }

    pub(super) fn forget(mut self) {
        self.0 = None;
    }

    /// Completes with an error, and lives on without anybody to tell.
    pub(crate) fn fail(&mut self, error: Error) {
        self.set(Err(error));
    }

    fn set(&mut self, result: Result<()>) {
        if let Some(state) = self.0.take() {
            let _ = state.result.set(result);
            state.waker.wake();
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        self.set(Err(Error::new(ErrorKind::Closed, "the connection ended before the frame was sent")));
    }
}

/// Both halves of a tracked send.
pub(super) fn completion() -> (Completion, Sent) {
    let state = Arc::new(CompletionState { result: OnceLock::new(), waker: AtomicWaker::new() });
    (Completion(Some(state.clone())), Sent(state))
}

/// Future of [`Sender::send_tracked`](crate::Sender::send_tracked). Dropping it changes nothing: the frame is still sent.
#[must_use = "futures do nothing unless awaited"]
pub struct Sent(Arc<CompletionState>);

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sent").field(&self.0.result.get()).finish()
    }
}

impl Future for Sent {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.0.result.get() {
            return Poll::Ready(result.clone());
        }
        self.0.waker.register(cx.waker());
        self.0.result.get().map_or(Poll::Pending, |result| Poll::Ready(result.clone()))
    }
}
