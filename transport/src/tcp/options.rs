//! Socket options, and when each is set.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};

use super::Stream;

/// The longest interval that Linux takes for a keepalive probe.
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(32_767);
/// Sent bytes that stay unacknowledged this long break the connection. Not less: Linux also counts the time in which the
/// peer's window is closed, so a short limit would end the connection of a peer that is alive and slow to read.
const MIN_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// The most probes that Linux takes.
const MAX_PROBES: u32 = 127;

/// Watches over a peer that has no heartbeat of ours (a foreign protocol's).
///
/// Linux counts probes in whole seconds: shorter intervals are one second. TCP only; a Unix peer cannot vanish silently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalive {
    /// Silence before the first probe, and between probes.
    pub(crate) interval: Duration,
    /// The connection breaks when probes stay unanswered this long, or sent bytes this long and at least 30 s.
    pub(crate) deadline: Duration,
}

/// What is set on a socket beyond `TCP_NODELAY`, which is always on: frames are written whole, there is nothing to
/// wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SocketOptions {
    /// `SO_KEEPALIVE` and `TCP_USER_TIMEOUT`.
    pub(crate) keepalive: Option<Keepalive>,
    /// `SO_SNDBUF`, bytes; the kernel doubles it and applies its own limits. `None` leaves the kernel's tuning on.
    pub(crate) send_buffer: Option<usize>,
    /// `SO_RCVBUF`, bytes, likewise.
    pub(crate) receive_buffer: Option<usize>,
}

impl SocketOptions {
    /// Sets the buffer sizes. Before `connect` and `listen`, because the window scale is agreed in the handshake;
    /// accepted sockets inherit them from their listener.
    pub(super) fn set_buffers(&self, socket: &SockRef<'_>) -> io::Result<()> {
        if let Some(bytes) = self.send_buffer {
            socket.set_send_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        Ok(())
    }

    /// Sets what belongs to one TCP connection.
    pub(super) fn set_tcp(&self, socket: &SockRef<'_>) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        if let Some(keepalive) = &self.keepalive {
            keepalive.set(socket)?;
        }
        Ok(())
    }
}

impl Keepalive {
    fn set(&self, socket: &SockRef<'_>) -> io::Result<()> {
        let interval = self.interval.clamp(Duration::from_secs(1), MAX_PROBE_INTERVAL);
        let probes = self.deadline.as_millis().div_ceil(interval.as_millis()).clamp(1, u128::from(MAX_PROBES)) as u32;
        let probing = TcpKeepalive::new().with_time(interval).with_interval(interval).with_retries(probes);
        socket.set_tcp_keepalive(&probing)?;
        // Probes are sent only while nothing else is under way; this bounds sent bytes that nobody acknowledges.
        socket.set_tcp_user_timeout(Some(self.deadline.max(MIN_USER_TIMEOUT)))
    }
}

impl Stream {
    /// Turns keepalive on, once the first bytes have told that the peer speaks a foreign protocol.
    pub(crate) fn set_keepalive(&self, keepalive: &Keepalive) -> io::Result<()> {
        match self {
            Self::Tcp(s) => keepalive.set(&SockRef::from(s)),
            Self::Unix(_) => Ok(()),
        }
    }
}
