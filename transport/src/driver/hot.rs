//! Stream connections that were read lately: a spinning loop reads them again without waiting for their edges.

use super::{
    conn::Link,
    io::{Core, Hot},
};
use crate::{
    config::WaitPolicy,
    event::poller::{Edge, Key},
};

/// Stream connections that a spinning loop reads in each turn instead of waiting for their edges: a read that finds
/// nothing costs less than an epoll that finds nothing, and one that finds something saves the epoll.
const HOT_STREAMS: usize = 4;
/// Turns without a byte after which a stream connection is left to its edges again.
const COOLS_AFTER: u32 = 256;

impl Core {
    /// A socket had an edge: more may follow soon.
    pub(super) fn heat(&mut self, key: Key, edge: &Edge) {
        if self.io.hot.iter().any(|hot| hot.key == key) {
            return;
        }
        self.io.poll_often();
        let spins = self.io.shared.wait_policy() != WaitPolicy::Event;
        if spins
            && edge.readable
            && self.io.hot.len() < HOT_STREAMS
            && self.conns.get(key).is_some_and(|conn| matches!(conn.link, Link::Tcp(_)))
        {
            self.io.hot.push(Hot { key, idle: 0 });
        }
    }

    /// Reads the connections that were read lately. Their edges come all the same, and find nothing or more.
    pub(super) fn read_hot(&mut self) -> bool {
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
