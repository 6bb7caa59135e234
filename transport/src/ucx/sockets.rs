//! The TCP sockets of a worker's tcp lanes, which UCX keeps to itself.
//!
//! A peer that is not there any more, or does not read, holds an endpoint over tcp for as long as TCP is patient: minutes.
//! UCX has no setting for that and no way to give up earlier that it survives (see [`super::endpoint`]). But the sockets
//! can be found: the worker's event descriptor is an epoll set that holds the epoll set of each tcp interface, and the kernel
//! lists what a set holds in `/proc/self/fdinfo` (proc(5)). A socket that was shut down looks to UCX like one whose peer has
//! gone, which it handles well.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::worker::Worker;

impl Worker {
    /// Resets the sockets of all tcp lanes: every endpoint over tcp fails soon, and those that wait to be closed are. Says how many
    /// there were. Without `/proc` there are none.
    #[cold]
    pub(crate) fn reset_sockets(&mut self) -> usize {
        let mut count = 0;
        self.each_socket(|socket| {
            // One that is not connected any more is what is wanted.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
            count += 1;
        });
        count
    }

    /// Has the kernel give up connections of all tcp lanes on which nothing that was sent is confirmed for `timeout`. Their
    /// endpoints fail then.
    #[cold]
    pub(crate) fn limit_sockets(&mut self, timeout: Duration) {
        let timeout = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        self.each_socket(|socket| {
            if let Err(error) = sockopt::set_tcp_user_timeout(socket, timeout) {
                tracing::debug!(%error, "a ucx socket has no user timeout");
            }
        });
    }

    fn each_socket(&mut self, mut act: impl FnMut(BorrowedFd<'_>)) {
        for set in members(self.event_fd().as_raw_fd()).unwrap_or_default() {
            // Shared memory has a socket of its own in the worker's set; only sets in it belong to tcp.
            for fd in members(set).unwrap_or_default() {
                // SAFETY: an epoll set lists open descriptors only. This one is UCX's, and of this worker, whose one thread is this
                // one: nobody closes it meanwhile.
                let socket = unsafe { BorrowedFd::borrow_raw(fd) };
                let tcp = matches!(sockopt::socket_domain(socket), Ok(AddressFamily::INET | AddressFamily::INET6))
                    && sockopt::socket_type(socket) == Ok(SocketType::STREAM);
                if tcp {
                    act(socket);
                }
            }
        }
    }
}

/// The descriptors that an epoll set holds; none if it is no epoll set.
fn members(set: RawFd) -> io::Result<Vec<RawFd>> {
    Ok(parse(&std::fs::read_to_string(format!("/proc/self/fdinfo/{set}"))?))
}

/// The lines are such as `tfd:        5 events:       19 data: 7f3c80  pos:0 ino:1 sdev:9`.
fn parse(text: &str) -> Vec<RawFd> {
    text.lines().filter_map(|line| line.strip_prefix("tfd:")?.split_whitespace().next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::event::poller::{Key, Poller};

    #[test]
    fn a_set_lists_what_it_holds() {
        let (poller, _waker) = Poller::new().expect("a poller");
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let before = members(poller.as_raw_fd()).expect("procfs");
        poller.add_readable(&socket, Key { index: 1, generation: 1 }).expect("adds");
        let after = members(poller.as_raw_fd()).expect("procfs");
        assert!(!before.contains(&socket.as_raw_fd()) && after.contains(&socket.as_raw_fd()), "{before:?} {after:?}");
        assert_eq!(members(socket.as_raw_fd()).expect("procfs"), Vec::<RawFd>::new());
    }

    #[test]
    fn other_lines_are_passed_over() {
        let text = "pos:\t0\nflags:\t02\ntfd:       12 events:       19 data:  1  pos:0 ino:7 sdev:9\ntfd: x\n";
        assert_eq!(parse(text), [12]);
    }
}
