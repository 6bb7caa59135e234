//! The edge-triggered poller: mio, with typed tokens that are never mistaken for an earlier source's.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    time::Duration,
};

use mio::{Interest, Token, unix::SourceFd};

/// Events taken from the system at once. More wait for the next call.
const EVENTS: usize = 1024;

/// A source's key: an index into the driver's table and the generation of that entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl Key {
    /// The key of the waker, which is no entry of the table.
    pub(crate) const WAKER: Self = Self { index: u32::MAX, generation: 0 };

    fn token(self) -> Token {
        // 64-bit targets only: both halves fit.
        Token((self.generation as usize) << 32 | self.index as usize)
    }

    fn of(token: Token) -> Self {
        Self { index: token.0 as u32, generation: (token.0 >> 32) as u32 }
    }
}

/// What a source's edge says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edge {
    pub(crate) key: Key,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer will send no more, or an error is pending.
    pub(crate) closed: bool,
}

/// The poller of one dispatcher.
pub(crate) struct Poller {
    poll: mio::Poll,
    events: mio::Events,
}

impl Poller {
    /// A poller and the waker that ends its sleep from another thread.
    pub(crate) fn new() -> io::Result<(Self, Arc<mio::Waker>)> {
        let poll = mio::Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), Key::WAKER.token())?;
        Ok((Self { poll, events: mio::Events::with_capacity(EVENTS) }, Arc::new(waker)))
    }

    /// Watches a descriptor for both directions, edge-triggered. The caller keeps it open until it is removed.
    pub(crate) fn add(&self, fd: &impl AsRawFd, key: Key) -> io::Result<()> {
        self.register(fd.as_raw_fd(), key, Interest::READABLE | Interest::WRITABLE)
    }

    /// Watches a descriptor for input only.
    pub(crate) fn add_readable(&self, fd: &impl AsRawFd, key: Key) -> io::Result<()> {
        self.register(fd.as_raw_fd(), key, Interest::READABLE)
    }

    fn register(&self, fd: RawFd, key: Key, interest: Interest) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&fd), key.token(), interest)
    }

    /// Another descriptor of the same set, for a poller of somebody else: readable when edges wait.
    #[cfg(feature = "tokio")]
    pub(crate) fn duplicate(&self) -> io::Result<std::os::fd::OwnedFd> {
        use std::os::fd::AsFd;
        self.poll.registry().as_fd().try_clone_to_owned()
    }

    /// Stops watching.
    pub(crate) fn remove(&self, fd: &impl AsRawFd) {
        // A descriptor that is closed already is gone from the set too.
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd.as_raw_fd()));
    }

    /// Waits for edges, at most `timeout` (`None`: for ever).
    pub(crate) fn poll(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            other => other,
        }
    }

    /// Whether the last [`Poller::poll`] has found nothing.
    pub(crate) fn is_silent(&self) -> bool {
        self.events.is_empty()
    }

    /// Moves the edges of the last [`Poller::poll`] to `out`.
    pub(crate) fn take(&mut self, out: &mut Vec<Edge>) {
        out.extend(self.events.iter().map(|event| Edge {
            key: Key::of(event.token()),
            readable: event.is_readable(),
            writable: event.is_writable(),
            closed: event.is_read_closed() || event.is_write_closed() || event.is_error(),
        }));
        self.events.clear();
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }
}
