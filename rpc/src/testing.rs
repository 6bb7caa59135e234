//! Servers and channels in one process, for tests of services and of what calls them: no sockets, no ports.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::channel::{Channel, ChannelBuilder};
use crate::server::{ServeError, Server, ServerBuilder};

/// An address in this process that nobody else has.
pub fn address() -> ucrpc_transport::Address {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    ucrpc_transport::Address::Mem(format!("ucrpc-testing-{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Starts a server in memory, and makes a channel to it. Both run on the process's dispatchers, unless they say otherwise.
///
/// ```
/// # use ucrpc_rpc::{Server, testing};
/// let (server, channel) = testing::pair(Server::builder(), |channel| channel).unwrap();
/// assert_eq!(server.stats().started, channel.stats().calls);
/// ```
///
/// # Errors
///
/// If the server cannot be started, or the channel was built wrongly.
pub fn pair(
    server: ServerBuilder,
    channel: impl FnOnce(ChannelBuilder) -> ChannelBuilder,
) -> Result<(Server, Channel), ServeError> {
    let address = address();
    let server = server.listen(&address).start()?;
    let channel = channel(Channel::builder(&address)).connect_lazy()?;
    Ok((server, channel))
}
