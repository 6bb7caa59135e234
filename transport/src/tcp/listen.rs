//! Listeners: bind, accept within a budget, clean up.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use mio::{
    Interest, Registry, Token, event,
    net::{TcpListener, UnixListener, UnixStream},
};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::{SocketOptions, Stream, retry};
use crate::error::{Error, ErrorKind, Result};

/// Errors of the peer that is at the head of the queue, which Linux reports from accept(2): the next peer may do.
const PEERS_OWN: [Errno; 11] = [
    Errno::CONNABORTED,
    Errno::PERM,
    Errno::PROTO,
    Errno::NOPROTOOPT,
    Errno::OPNOTSUPP,
    Errno::NETDOWN,
    Errno::NETUNREACH,
    Errno::HOSTDOWN,
    Errno::HOSTUNREACH,
    Errno::NONET,
    Errno::TIMEDOUT,
];

/// Why [`Listener::accept`] stopped.
#[derive(Debug)]
pub(crate) enum AcceptEnd {
    /// Nobody waits any more: the next edge will tell.
    Drained,
    /// The budget is spent: call again, no edge will come for those who wait.
    Budget,
    /// The process or the machine has no descriptors or memory left. Peers still wait and **no edge will come for
    /// them**: try again after a pause.
    Exhausted(Error),
}

/// A non-blocking listening socket. Dropping it closes it; a Unix listener also removes its file.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: ListenSocket,
    options: SocketOptions,
}

#[derive(Debug)]
enum ListenSocket {
    Tcp(TcpListener),
    /// The file goes when the listener does.
    Unix(UnixListener, #[allow(dead_code, reason = "its destructor removes the file")] SocketFile),
}

impl Listener {
    /// Listens on a TCP address. `[::]` also takes IPv4 peers unless `only_v6`. At most `backlog` peers wait to be
    /// accepted (the kernel's `somaxconn` bounds it too).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`]: the address is in use, is not of this host, or may not be taken.
    pub(crate) fn bind_tcp(address: SocketAddr, only_v6: bool, backlog: u32, options: SocketOptions) -> Result<Self> {
        let bind = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            if address.is_ipv6() {
                socket.set_only_v6(only_v6)?;
            }
            // A restarted server must not wait for its old connections' TIME_WAIT.
            socket.set_reuse_address(true)?;
            options.set_buffers(&SockRef::from(&socket))?;
            socket.bind(&address.into())?;
            socket.listen(backlog.min(i32::MAX as u32) as i32)?;
            Ok(TcpListener::from_std(socket.into()))
        };
        let socket = bind().map_err(|e| cannot_listen(&address, &e))?;
        Ok(Self { socket: ListenSocket::Tcp(socket), options })
    }

    /// Listens on a Unix socket. The file of a listener that is gone is replaced; that of a living one, or a file that
    /// is no socket, is left alone. Two processes that start on one path at the same moment are not kept apart.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`]: the path is in use, too long, or may not be written.
    pub(crate) fn bind_unix(path: &Path, backlog: u32, options: SocketOptions) -> Result<Self> {
        // The kernel takes an empty path as "choose a name for me".
        if path.as_os_str().is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "the path of a unix socket is empty"));
        }
        let failed = |e: io::Error| cannot_listen(&path.display(), &e);
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).map_err(failed)?;
        options.set_buffers(&SockRef::from(&socket)).map_err(failed)?;
        let address = SockAddr::unix(path).map_err(failed)?;
        match socket.bind(&address) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                socket.bind(&address).map_err(failed)?;
            }
            result => result.map_err(failed)?,
        }
        let file = SocketFile::of(path);
        socket.listen(backlog.min(i32::MAX as u32) as i32).map_err(failed)?;
        Ok(Self { socket: ListenSocket::Unix(UnixListener::from_std(socket.into()), file), options })
    }

    /// The TCP address it listens on, with the port that the kernel chose for port 0.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            ListenSocket::Tcp(s) => s.local_addr().ok(),
            ListenSocket::Unix(..) => None,
        }
    }

    /// Accepts until nobody waits or `budget` attempts are spent, and hands each stream to `on_accept`.
    ///
    /// # Errors
    /// The listener itself is of no more use.
    pub(crate) fn accept(&self, budget: &mut usize, on_accept: &mut dyn FnMut(Stream)) -> Result<AcceptEnd> {
        while *budget > 0 {
            *budget -= 1;
            match retry(|| self.accept_one()) {
                // A peer that is gone before its options are set is no loss.
                Ok(stream) => self.set_up(stream).into_iter().for_each(&mut *on_accept),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(AcceptEnd::Drained),
                Err(e) => match Errno::from_io_error(&e) {
                    Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                        return Ok(AcceptEnd::Exhausted(Error::from_io("accepting", &e)));
                    }
                    Some(errno) if PEERS_OWN.contains(&errno) => {}
                    _ => return Err(Error::from_io("accepting", &e)),
                },
            }
        }
        Ok(AcceptEnd::Budget)
    }

    fn accept_one(&self) -> io::Result<Stream> {
        match &self.socket {
            ListenSocket::Tcp(s) => s.accept().map(|(stream, _)| Stream::Tcp(stream)),
            ListenSocket::Unix(s, _) => s.accept().map(|(stream, _)| Stream::Unix(stream)),
        }
    }

    fn set_up(&self, stream: Stream) -> Option<Stream> {
        let socket = SockRef::from(&stream);
        match &stream {
            Stream::Tcp(_) => self.options.set_tcp(&socket),
            // Unlike a TCP socket, it does not inherit them.
            Stream::Unix(_) => self.options.set_buffers(&socket),
        }
        .ok()
        .map(|()| stream)
    }
}

impl event::Source for Listener {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match &mut self.socket {
            ListenSocket::Tcp(s) => s.register(registry, token, interests),
            ListenSocket::Unix(s, _) => s.register(registry, token, interests),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match &mut self.socket {
            ListenSocket::Tcp(s) => s.reregister(registry, token, interests),
            ListenSocket::Unix(s, _) => s.reregister(registry, token, interests),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match &mut self.socket {
            ListenSocket::Tcp(s) => s.deregister(registry),
            ListenSocket::Unix(s, _) => s.deregister(registry),
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match &self.socket {
            ListenSocket::Tcp(s) => s.as_raw_fd(),
            ListenSocket::Unix(s, _) => s.as_raw_fd(),
        }
    }
}

fn cannot_listen(address: &dyn fmt::Display, error: &io::Error) -> Error {
    Error::new(ErrorKind::Invalid, format!("can't listen on {address}: {error}"))
}

/// The file of a Unix listener, known by its inode: it is removed only while it is still this listener's.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

impl SocketFile {
    /// Right after `bind`. A name of the abstract namespace has no file.
    fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), inode: inode(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.inode.is_some() && inode(&self.path) == self.inode {
            // Somebody else may have removed it in between; nobody is left to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let file = fs::symlink_metadata(path).ok()?;
    file.file_type().is_socket().then(|| (file.dev(), file.ino()))
}

/// Removes the socket file at `path` if nobody listens behind it.
fn remove_stale(path: &Path) -> Result<()> {
    let in_use = |why: &str| Error::new(ErrorKind::Invalid, format!("can't listen on {}: {why}", path.display()));
    let before = inode(path).ok_or_else(|| in_use("it is not a socket, or an abstract name in use"))?;
    // Non-blocking, so a listener whose queue is full (EAGAIN) is seen as alive, too.
    match retry(|| UnixStream::connect(path)) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(in_use(&e.to_string())),
        _ => return Err(in_use("another process listens there")),
    }
    if inode(path) != Some(before) {
        return Err(in_use("another process took it just now"));
    }
    fs::remove_file(path).map_err(|e| in_use(&e.to_string()))
}
