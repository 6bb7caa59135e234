//! The readiness pipe: a connection as a file descriptor.
//!
//! The outside holds the write end. It is writable exactly when the connection is open, it reports an error when the
//! connection has ended, and closing it closes the connection. No byte of it ever means data. Before the connection
//! opens the pipe is kept full, which is what makes its write end not writable; to open is to empty it.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// Size that the pipe is shrunk to, bytes: the least that Linux gives. Pipes count against a per-user limit
/// (`pipe-user-pages-soft`), and no byte of this one is of use.
const PIPE_BYTES: usize = 4096;

/// What the inner end says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PipeState {
    /// The outside still holds its end.
    Held,
    /// The outside closed its end: the connection is to be closed.
    Closed,
    /// The outside wrote into the pipe, which means a program took it for a data socket.
    Misused,
}

/// The dispatcher's end of a readiness pipe. Dropping it is the error signal.
#[derive(Debug)]
pub(crate) struct ReadyPipe {
    read: OwnedFd,
    open: bool,
    /// Bytes in it before it opens.
    filled: usize,
    /// More came out than we had put in: the outside writes as soon as there is room.
    misused: bool,
}

impl ReadyPipe {
    /// A pipe that is not ready, and the end for the outside (non-blocking, close-on-exec).
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Unprivileged users over their limit can't resize; a larger pipe works as well, it only takes longer to fill.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        let (filler, mut filled) = ([0_u8; PIPE_BYTES], 0);
        loop {
            match rustix::io::write(&write, &filler) {
                Ok(n) => filled += n,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok((Self { read, open: false, filled, misused: false }, write))
    }

    /// Makes the outside's end writable.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        self.open = true;
        let (bytes, _) = self.drain()?;
        self.misused = bytes > self.filled;
        Ok(())
    }

    /// Looks at the pipe after an edge.
    pub(crate) fn check(&mut self) -> io::Result<PipeState> {
        if !self.open {
            // Full of filler: only a hang-up can have made an edge, and reading it would make the pipe writable.
            return Ok(if self.hung_up()? { PipeState::Closed } else { PipeState::Held });
        }
        let (bytes, end) = self.drain()?;
        Ok(match (bytes, end) {
            (_, true) => PipeState::Closed,
            (0, false) if !self.misused => PipeState::Held,
            (_, false) => PipeState::Misused,
        })
    }

    fn hung_up(&self) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [PollFd::new(&self.read, PollFlags::empty())];
        loop {
            match poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Ok(_) => return Ok(fds[0].revents().contains(PollFlags::HUP)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn drain(&self) -> io::Result<(usize, bool)> {
        let (mut filler, mut total) = ([0_u8; PIPE_BYTES], 0);
        loop {
            match rustix::io::read(&self.read, &mut filler) {
                Ok(0) => return Ok((total, true)),
                Ok(n) => total += n,
                Err(rustix::io::Errno::AGAIN) => return Ok((total, false)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsRawFd for ReadyPipe {
    fn as_raw_fd(&self) -> RawFd {
        self.read.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn events(fd: &OwnedFd) -> PollFlags {
        let mut fds = [PollFd::new(fd, PollFlags::IN | PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        fds[0].revents()
    }

    #[test]
    fn writable_exactly_when_open_and_error_when_broken() {
        let (mut inner, outer) = ReadyPipe::new().unwrap();
        assert_eq!(events(&outer), PollFlags::empty());
        assert_eq!(inner.check().unwrap(), PipeState::Held);
        assert_eq!(events(&outer), PollFlags::empty(), "looking must not open it");
        inner.open().unwrap();
        assert_eq!(events(&outer), PollFlags::OUT);
        drop(inner);
        assert!(events(&outer).contains(PollFlags::ERR));
    }

    #[test]
    fn closing_the_outer_end_is_seen_before_and_after_opening() {
        let (mut inner, outer) = ReadyPipe::new().unwrap();
        drop(outer);
        assert_eq!(inner.check().unwrap(), PipeState::Closed);
        let (mut inner, outer) = ReadyPipe::new().unwrap();
        inner.open().unwrap();
        let copy = outer.try_clone().unwrap();
        drop(outer);
        assert_eq!(inner.check().unwrap(), PipeState::Held, "a duplicate still holds it");
        drop(copy);
        assert_eq!(inner.check().unwrap(), PipeState::Closed);
    }

    #[test]
    fn a_byte_written_into_it_is_misuse() {
        let (mut inner, outer) = ReadyPipe::new().unwrap();
        inner.open().unwrap();
        rustix::io::write(&outer, b"x").unwrap();
        assert_eq!(inner.check().unwrap(), PipeState::Misused);
    }
}
