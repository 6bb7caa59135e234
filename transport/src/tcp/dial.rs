//! Non-blocking connects: started here, finished by a writable edge.

use std::{io, net::SocketAddr, path::Path};

use mio::net::{TcpStream, UnixStream};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::{SocketOptions, Stream};
use crate::error::{Error, ErrorKind, Result};

/// How far a connect has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The stream can be used.
    Connected,
    /// A writable edge will tell.
    Connecting,
}

/// Starts to connect. Register the stream for writing, then ask [`connected`] at each edge.
///
/// # Errors
/// What the kernel knows at once: no route, no descriptors, refused on loopback.
pub(crate) fn dial_tcp(address: SocketAddr, options: &SocketOptions) -> Result<Stream> {
    let start = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        let options_of = SockRef::from(&socket);
        options.set_buffers(&options_of)?;
        options.set_tcp(&options_of)?;
        start(&socket, &address.into())?;
        Ok(Stream::Tcp(TcpStream::from_std(socket.into())))
    };
    start().map_err(|e: io::Error| Error::from_io(&format!("connecting to {address}"), &e))
}

/// Starts to connect to a Unix socket; in fact this succeeds or fails at once.
///
/// # Errors
/// [`ErrorKind::Refused`] if nobody listens, or if the listener's queue is full: the kernel gives no event when there
/// is room again, so a caller that wants to wait tries again after a pause.
pub(crate) fn dial_unix(path: &Path, options: &SocketOptions) -> Result<Stream> {
    let dial = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        options.set_buffers(&SockRef::from(&socket))?;
        start(&socket, &SockAddr::unix(path)?)?;
        Ok(Stream::Unix(UnixStream::from_std(socket.into())))
    };
    dial().map_err(|e: io::Error| {
        if e.kind() == io::ErrorKind::WouldBlock {
            return Error::new(ErrorKind::Refused, format!("the accept queue of {} is full", path.display()));
        }
        Error::from_io(&format!("connecting to {}", path.display()), &e)
    })
}

/// An interrupted connect goes on by itself, like one in progress.
fn start(socket: &Socket, address: &SockAddr) -> io::Result<()> {
    match socket.connect(address) {
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::INPROGRESS | Errno::INTR)) => Ok(()),
        result => result,
    }
}

/// Looks at a connect that was started: call it at every writable or error edge until it is through.
///
/// # Errors
/// Why the connect failed; the stream is of no more use.
pub(crate) fn connected(stream: &Stream) -> Result<Progress> {
    let failed = |e: io::Error| Error::from_io("connecting", &e);
    if let Some(error) = stream.take_error().map_err(failed)? {
        return Err(failed(error));
    }
    let peer = match stream {
        Stream::Tcp(s) => s.peer_addr().map(Some),
        Stream::Unix(s) => s.peer_addr().map(|_| None),
    };
    match peer {
        Ok(Some(peer)) if own_address(stream) == Some(peer) => {
            Err(Error::new(ErrorKind::Refused, format!("nobody listens on {peer}: the socket met itself")))
        }
        Ok(_) => Ok(Progress::Connected),
        Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(Progress::Connecting),
        Err(e) => Err(failed(e)),
    }
}

/// A connect to a free port of the ephemeral range on this host may get that very port as its own and meet itself
/// (simultaneous open): it would look connected, and echo.
fn own_address(stream: &Stream) -> Option<SocketAddr> {
    match stream {
        Stream::Tcp(s) => s.local_addr().ok(),
        Stream::Unix(_) => None,
    }
}
