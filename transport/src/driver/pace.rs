//! How often a spinning loop looks where: it asks the poller seldom, and reads some sockets without asking.

use super::{
    conn::Link,
    io::{Core, Io, WorkerSlot},
};
use crate::{
    config::WaitPolicy,
    event::poller::{Edge, Key},
};

/// Turns of a spinning loop between two looks at the clock and the sockets while UCX is in use: epoll costs as much as
/// ten empty turns of UCX over shared memory. The distance doubles from the first to the second of these while the
/// sockets are silent (about 5 us), and starts over when one of them has something.
const TURNS_PER_POLL: [u32; 2] = [1, 256];
/// The same while stream connections are read without being asked for: such a turn costs a system call by itself.
const TURNS_PER_POLL_HOT: u32 = 64;
/// The same in a loop that sleeps as soon as it has nothing to do: its sleep asks the poller, and so only one that always has
/// something to do needs to be reminded. Eight turns that found work.
const TURNS_PER_POLL_EVENT: u32 = 8 * WORKING_TURN;
/// As many idle turns count for one that found work: it may have taken long.
const WORKING_TURN: u32 = 8;
/// Stream connections that a spinning loop reads in each turn instead of waiting for their edges: a read that finds
/// nothing costs less than an epoll that finds nothing, and one that finds something saves the epoll.
const HOT_STREAMS: usize = 4;
/// Turns without a byte after which a stream connection is left to its edges again.
const COOLS_AFTER: u32 = 256;

/// A stream connection that was read lately.
pub(crate) struct Hot {
    key: Key,
    /// Turns since it had something.
    idle: u32,
}

impl Core {
    /// A socket had an edge: more may follow soon.
    pub(super) fn heat(&mut self, key: Key, edge: &Edge) {
        if self.io.hot.iter().any(|hot| hot.key == key) {
            return;
        }
        if self.io.shared.wait_policy() == WaitPolicy::Event {
            return;
        }
        self.io.poll_often();
        if edge.readable
            && self.io.hot.len() < HOT_STREAMS
            && self.conns.get(key).is_some_and(|conn| matches!(conn.link, Link::Tcp(_)))
        {
            self.io.hot.push(Hot { key, idle: 0 });
        }
    }

    /// Reads the connections that were read lately. Their edges come all the same, and find nothing or more.
    #[inline]
    pub(super) fn read_hot(&mut self) -> bool {
        if self.io.hot.is_empty() {
            return false;
        }
        let mut worked = false;
        let mut index = 0;
        while let Some(hot) = self.io.hot.get_mut(index) {
            hot.idle += 1;
            let (key, idle) = (hot.key, hot.idle);
            let read = self.read_ahead_of_edge(key);
            worked |= read == Some(true);
            match read {
                Some(true) => self.io.hot[index].idle = 0,
                Some(false) if idle < COOLS_AFTER => {}
                _ => {
                    self.io.hot.swap_remove(index);
                    continue;
                }
            }
            index += 1;
        }
        worked
    }

    /// Whether something was read; `None` if the connection is not to be read.
    fn read_ahead_of_edge(&mut self, key: Key) -> Option<bool> {
        let conn = self.conns.get_mut(key)?;
        let Link::Tcp(link) = &mut conn.link else { return None };
        if conn.core.shared.end().is_some() || link.eof {
            return None;
        }
        match link.read(&mut conn.core, &mut self.io) {
            Ok(false) => Some(false),
            result => {
                self.after_socket(key, result.map(drop));
                Some(true)
            }
        }
    }
}

impl Io {
    /// Whether this turn looks at the clock and the sockets.
    #[inline]
    pub(super) fn due_for_poll(&mut self, worked: bool) -> bool {
        let sleeps = self.shared.wait_policy() == WaitPolicy::Event;
        let longest = match self.worker {
            _ if sleeps => TURNS_PER_POLL_EVENT,
            _ if !self.hot.is_empty() => TURNS_PER_POLL_HOT,
            WorkerSlot::Ready(_) => TURNS_PER_POLL[1],
            _ => return true,
        };
        self.turns_to_poll = self.turns_to_poll.saturating_sub(if worked { WORKING_TURN } else { 1 });
        if self.turns_to_poll == 0 {
            let shortest = if sleeps { longest } else { TURNS_PER_POLL[0] };
            self.poll_distance = (self.poll_distance * 2).clamp(shortest, longest);
            self.turns_to_poll = self.poll_distance;
            return true;
        }
        false
    }

    /// The poller was asked by a sleep.
    pub(super) fn polled(&mut self) {
        if self.shared.wait_policy() == WaitPolicy::Event {
            self.turns_to_poll = TURNS_PER_POLL_EVENT;
        }
    }

    /// A socket had something: more may follow soon.
    fn poll_often(&mut self) {
        self.poll_distance = TURNS_PER_POLL[0];
        self.turns_to_poll = TURNS_PER_POLL[0];
    }
}
