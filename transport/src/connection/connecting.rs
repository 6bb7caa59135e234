//! The wait for a connection to open.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use super::Connection;
use crate::{Result, driver};

/// Future of [`crate::Dispatcher::connect`]: the connection when it is open.
///
/// # Cancel safety
/// Dropping it closes the connection.
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Connecting {
    connection: Option<Connection>,
}

impl Connecting {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection: Some(connection) }
    }

    /// The connection while it is still opening: it queues what is sent, and its readiness descriptor tells when it is
    /// open.
    pub fn into_connection(mut self) -> Connection {
        self.connection.take().expect("taken only when the future is ready")
    }

    /// Waits, blocking the calling thread.
    ///
    /// # Errors
    /// Why it could not be opened; [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) on the dispatcher's own thread.
    pub fn blocking(self) -> Result<Connection> {
        let dispatcher = self.connection.as_ref().map(|c| c.shared().dispatcher.clone());
        driver::block_elsewhere(&dispatcher.expect("not ready yet"), self)?
    }
}

impl Future for Connecting {
    type Output = Result<Connection>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let connection = self.connection.as_ref().expect("polled after it was ready");
        let opened = std::pin::pin!(connection.opened()).poll(cx);
        opened.map(|result| result.map(|()| self.connection.take().expect("checked above")))
    }
}
