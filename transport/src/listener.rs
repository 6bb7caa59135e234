//! Listeners as the application holds them.

use std::{
    future::Future,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    Address, Connection, Dispatcher, Error, ErrorKind, Result,
    config::ListenConfig,
    dispatcher::Placement,
    driver::{self, CmListen, Command, ListenSocket, ListenerShared},
    resolve, tcp,
};

/// Accepts connections. Dropping it stops listening; connections that were accepted stay.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<ListenerShared>,
}

impl Listener {
    pub(crate) fn bind(
        places: Vec<Dispatcher>,
        placement: Placement,
        address: &Address,
        config: ListenConfig,
    ) -> Result<Self> {
        let home = places.first().cloned();
        let home = home.ok_or_else(|| Error::new(ErrorKind::Invalid, "no dispatcher to listen on"))?;
        let options = tcp::SocketOptions::default();
        let address = &address.clone().with_override()?;
        let (socket, bound) = match address {
            Address::Mem(name) => {
                let shared = ListenerShared::new(address.clone(), config, places, placement);
                driver::register_mem(name, &shared)?;
                home.shared.command(Command::Listen { listener: shared.clone(), socket: ListenSocket::Mem });
                return Ok(Self { shared });
            }
            Address::Unix(path) => {
                let socket = tcp::Listener::bind_unix(path, config.backlog, options)?;
                (ListenSocket::Stream(socket), address.clone())
            }
            Address::UcxCm(hp) => {
                let at = first(&resolve::now(hp)?)?;
                let ask = CmListen { address: address.clone(), at, config, places, placement };
                return Ok(Self { shared: driver::listen_cm(&home.shared, ask)? });
            }
            Address::Auto(hp) | Address::Ucx(hp) | Address::Tcp(hp) => {
                let at = first(&resolve::now(hp)?)?;
                // `[::]` takes IPv4 clients too.
                let only_v6 = at.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED);
                let socket = tcp::Listener::bind_tcp(at, only_v6, config.backlog, options)?;
                let bound = socket.local_addr().map_or_else(|| address.clone(), |at| address.with_socket_addr(at));
                (ListenSocket::Stream(socket), bound)
            }
        };
        let shared = ListenerShared::new(bound, config, places, placement);
        home.shared.command(Command::Listen { listener: shared.clone(), socket });
        Ok(Self { shared })
    }

    /// The address that clients can use, with the port that the system chose if 0 was asked for.
    pub fn local_address(&self) -> &Address {
        self.shared.address()
    }

    /// The next connection, open and ready to use.
    ///
    /// # Errors
    /// Why the listener ended.
    ///
    /// # Cancel safety
    /// Dropping the future loses no connection.
    pub fn accept(&mut self) -> Accepting<'_> {
        Accepting { listener: self }
    }

    /// The next connection if one is there.
    ///
    /// # Errors
    /// Why the listener ended.
    pub fn try_accept(&mut self) -> Result<Option<Connection>> {
        self.shared.take()
    }

    /// Polls for the next connection; what [`Listener::accept`] is made of.
    ///
    /// # Errors
    /// Why the listener ended.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Connection>> {
        if let Some(connection) = self.shared.take()? {
            return Poll::Ready(Ok(connection));
        }
        self.shared.register(cx.waker());
        match self.shared.take() {
            Ok(Some(connection)) => Poll::Ready(Ok(connection)),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Waits for the next connection, blocking the calling thread.
    ///
    /// # Errors
    /// Why the listener ended; [`ErrorKind::Invalid`] on the dispatcher's own thread.
    pub fn accept_blocking(&mut self) -> Result<Connection> {
        let dispatcher = self.shared.home().clone();
        driver::block_elsewhere(&dispatcher, self.accept())?
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.close(Error::new(ErrorKind::Closed, "the listener was dropped"));
        let home = self.shared.home().clone();
        home.command(Command::Unlisten { listener: self.shared.clone() });
    }
}

fn first(found: &[SocketAddr]) -> Result<SocketAddr> {
    found.first().copied().ok_or_else(|| Error::new(ErrorKind::Unreachable, "the name has no address"))
}

/// Future of [`Listener::accept`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Accepting<'a> {
    listener: &'a mut Listener,
}

impl Future for Accepting<'_> {
    type Output = Result<Connection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().listener.poll_accept(cx)
    }
}
