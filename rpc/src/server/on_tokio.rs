//! Handlers on a tokio runtime.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::call::{CallContext, Inherited, MethodName, Reply};
use crate::service::ReplyFuture;
use crate::{Code, Status};

/// Starts a handler on the runtime. What comes back is its result; dropping that aborts the handler.
pub(super) fn spawn(runtime: &Handle, mut future: ReplyFuture, inherited: Inherited) -> ReplyFuture {
    let run = std::future::poll_fn(move |cx| inherited.enter(|| future.as_mut().poll(cx)));
    Box::pin(Remote(runtime.spawn(run)))
}

struct Remote(JoinHandle<Reply>);

impl Future for Remote {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        Pin::new(&mut self.0).poll(cx).map(|result| {
            result.unwrap_or_else(|error| {
                let status = match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Status::new(Code::ELOGOFF, "the runtime that handlers run on was shut down"),
                };
                Reply { result: Err(status), context: CallContext::new(MethodName::from_static("", "")) }
            })
        })
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.0.abort();
    }
}
