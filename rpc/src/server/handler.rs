//! Where handlers run, and what a poll of one can end in.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll};

use crate::call::{Inherited, Reply};
use crate::service::ReplyFuture;
use crate::{Code, Status};

/// Where handlers run.
#[derive(Debug, Clone, Default)]
pub(super) enum Handlers {
    /// On the connection's dispatcher: polled at once, then local tasks.
    #[default]
    Dispatcher,
    #[cfg(feature = "tokio")]
    Tokio(tokio::runtime::Handle),
}

impl Handlers {
    /// The future to poll on the dispatcher for a handler.
    pub(super) fn place(&self, future: ReplyFuture, inherited: Inherited) -> ReplyFuture {
        match self {
            Self::Dispatcher => {
                let _ = inherited;
                future
            }
            #[cfg(feature = "tokio")]
            Self::Tokio(runtime) => super::on_tokio::spawn(runtime, future, inherited),
        }
    }
}

/// Runs a step of a handler; a panic becomes an error.
pub(super) fn guard<R>(step: impl FnOnce() -> R) -> Result<R, Status> {
    catch_unwind(AssertUnwindSafe(step)).map_err(|panic| panicked(&*panic))
}

/// Polls a handler.
pub(super) fn poll(
    future: &mut ReplyFuture,
    inherited: Inherited,
    cx: &mut Context<'_>,
) -> Poll<Result<Reply, Status>> {
    match guard(|| inherited.enter(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(status) => Poll::Ready(Err(status)),
    }
}

/// Drops a handler; what its destructors do must not harm others.
pub(super) fn discard(future: ReplyFuture) {
    if guard(move || drop(future)).is_err() {
        tracing::error!("a handler panicked while it was dropped");
    }
}

#[cold]
pub(super) fn panicked(panic: &(dyn Any + Send)) -> Status {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("no text");
    tracing::error!(text, "a handler panicked");
    // The text is for this side's logs: it may say what no client should know.
    Status::new(Code::EINTERNAL, "the handler panicked")
}
