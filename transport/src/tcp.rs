//! Non-blocking stream I/O: frames over TCP and Unix sockets.
//!
//! Nothing here waits, starts a thread or owns an epoll set: the driver registers the sources with mio and calls in
//! when an edge says so.
//!
//! # Why a short read or write ends the work of an edge
//!
//! Sockets are registered edge-triggered, so whoever is told "readable" must go on until nothing is left. `read(2)`
//! on a stream socket returns fewer bytes than asked for only when the receive queue is empty at that moment, and every
//! byte that comes later raises a new edge: another read, only to see `EAGAIN`, is a syscall wasted on each message.
//! The one thing that stays behind a short read is the end of the stream: a FIN or an error that was there already
//! when the edge was reported raises no further edge. The event itself tells (`EPOLLRDHUP`, `EPOLLHUP`, `EPOLLERR`;
//! in mio `is_read_closed() || is_error()`): the driver then calls [`Reader::expect_end`], and short reads count for
//! nothing any more. An end that comes after the event was taken raises an edge of its own, with those bits set.
//! (A peer that marks a byte urgent, or passes descriptors over a Unix socket, can make the kernel stop short with
//! bytes left. It delays its own bytes until its next edge, nothing else.)
//!
//! A short write means that the send buffer is full: the kernel has noted that somebody wants room (`SOCK_NOSPACE`)
//! and raises the writable edge when there is some.

mod dial;
mod lengths;
mod listen;
mod options;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    io::{self, IoSlice, IoSliceMut, Read},
    net::{Shutdown, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::Arc,
};

use mio::{
    Interest, Registry, Token, event,
    net::{TcpStream, UnixStream},
};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use crate::framing::Framer;

pub(crate) use dial::{Progress, connected, dial_tcp, dial_unix};
pub(crate) use lengths::ReadLimits;
pub(crate) use listen::{AcceptEnd, Listener};
pub(crate) use options::{Keepalive, SocketOptions};
pub(crate) use reader::{BufKind, Decision, ReadEnd, Reader, Sink, Target};
pub(crate) use writer::{FlushEnd, Writer};

/// Bytes of the length prefix of a native frame.
const PREFIX: usize = 8;
/// Bytes of the shortest frame header.
const MIN_HEADER: usize = 16;
/// Bytes of the longest frame header.
const MAX_HEADER: usize = 32;
/// The largest payload that the prefix can state, bytes.
const MAX_PAYLOAD: u64 = (1 << 56) - 1;

/// How frames lie in the stream.
#[derive(Clone)]
pub(crate) enum Mode {
    /// Length prefix, frame header, payload.
    Native,
    /// Head and body as they are; the framer finds their ends.
    Foreign(Arc<dyn Framer>),
}

fn encode_prefix(header_len: usize, payload_len: u64) -> [u8; PREFIX] {
    debug_assert!((MIN_HEADER..=MAX_HEADER).contains(&header_len) && payload_len <= MAX_PAYLOAD);
    (payload_len | (header_len as u64) << 56).to_le_bytes()
}

/// Bytes of header and payload.
fn decode_prefix(prefix: [u8; PREFIX]) -> (usize, u64) {
    let value = u64::from_le_bytes(prefix);
    ((value >> 56) as usize, value & MAX_PAYLOAD)
}

/// A connected (or connecting) non-blocking stream socket.
#[derive(Debug)]
pub(crate) enum Stream {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpStream),
    /// A Unix stream socket.
    Unix(UnixStream),
}

impl Stream {
    /// The peer's and this side's address, as far as they are IP addresses.
    pub(crate) fn addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        match self {
            Self::Tcp(s) => (s.peer_addr().ok(), s.local_addr().ok()),
            Self::Unix(_) => (None, None),
        }
    }

    /// Takes the error that the socket has been holding, if any.
    pub(crate) fn take_error(&self) -> io::Result<Option<io::Error>> {
        match self {
            Self::Tcp(s) => s.take_error(),
            Self::Unix(s) => s.take_error(),
        }
    }

    /// Ends one direction or both: the peer sees the end of the stream after the bytes sent so far. A socket that the
    /// peer has already ended is no error.
    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let done = match self {
            Self::Tcp(s) => s.shutdown(how),
            Self::Unix(s) => s.shutdown(how),
        };
        done.or_else(|e| if e.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(e) })
    }

    /// Reads what is there; `WouldBlock` if nothing is.
    ///
    /// `recv(2)`, straight to the kernel: libc's is a cancellation point, which costs in a program with threads.
    pub(crate) fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        retry(|| {
            let receive = || Ok(rustix::net::recv(self, &mut *buf, RecvFlags::empty())?.0);
            match self {
                Self::Tcp(s) => s.try_io(receive),
                Self::Unix(s) => s.try_io(receive),
            }
        })
    }

    fn read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        retry(|| match self {
            Self::Tcp(s) => (&*s).read_vectored(bufs),
            Self::Unix(s) => (&*s).read_vectored(bufs),
        })
    }

    /// Writes what the kernel takes; `WouldBlock` if nothing.
    ///
    /// `send(2)`, not `write(2)`: a peer that is gone must not raise SIGPIPE in a program that left it at its default.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let send = || Ok(rustix::net::send(self, bytes, SendFlags::NOSIGNAL)?);
        retry(|| match self {
            Self::Tcp(s) => s.try_io(send),
            Self::Unix(s) => s.try_io(send),
        })
    }

    /// `sendmsg(2)`, for the same reason.
    fn write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let send = || {
            let mut none = SendAncillaryBuffer::default();
            Ok(rustix::net::sendmsg(self, slices, &mut none, SendFlags::NOSIGNAL)?)
        };
        retry(|| match self {
            Self::Tcp(s) => s.try_io(send),
            Self::Unix(s) => s.try_io(send),
        })
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

fn retry<T>(mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match operation() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(s) => s.as_fd(),
            Self::Unix(s) => s.as_fd(),
        }
    }
}

impl event::Source for Stream {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.register(registry, token, interests),
            Self::Unix(s) => s.register(registry, token, interests),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.reregister(registry, token, interests),
            Self::Unix(s) => s.reregister(registry, token, interests),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.deregister(registry),
            Self::Unix(s) => s.deregister(registry),
        }
    }
}
