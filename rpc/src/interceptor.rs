//! What looks at calls on their way: on the server and in the client.

use crate::Status;
use crate::call::{CallContext, RawResponse, Reply};
use crate::client::RawCall;

/// Looks at each call that a server serves: for logs, metrics, authorization.
///
/// It runs on the dispatcher's thread: it must not block. A panic becomes an error of that call alone.
pub trait ServerInterceptor: Send + Sync + 'static {
    /// Before the handler, in the order in which interceptors were added. An error ends the call with it.
    ///
    /// # Errors
    ///
    /// What the caller gets in place of the handler's reply.
    fn request(&self, context: &mut CallContext) -> Result<(), Status> {
        let _ = context;
        Ok(())
    }

    /// After the handler, in reverse order.
    fn reply(&self, reply: &mut Reply) {
        let _ = reply;
    }
}

/// Looks at each call that a channel makes: for credentials, metadata, metrics.
///
/// It runs on the caller's thread: it must not block.
pub trait ClientInterceptor: Send + Sync + 'static {
    /// Before the call starts, in the order in which interceptors were added. An error ends the call with it.
    ///
    /// # Errors
    ///
    /// What the call ends with.
    fn request(&self, call: &mut RawCall) -> Result<(), Status> {
        let _ = call;
        Ok(())
    }

    /// After the call's end, retries included, in reverse order.
    fn response(&self, result: &mut Result<RawResponse, Status>) {
        let _ = result;
    }
}
