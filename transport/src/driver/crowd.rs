//! A listener full of handshakes: the oldest that don't get on give way to newcomers.
//!
//! Without this, peers that connect and say nothing could keep everybody out for a whole `connect_timeout` at a time.

use std::{sync::Arc, time::Duration};

use super::{Command, accept::ListenerShared, io::Core};
use crate::{Error, ErrorKind, event::poller::Key};

/// A handshake that is older may have to give way. An honest one takes milliseconds, so in a burst of those newcomers wait.
const PATIENCE: Duration = Duration::from_secs(1);
/// When a listener that found none that old looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Handshakes noted beyond twice those that there are.
const SLACK: usize = 64;

impl Core {
    /// Notes a handshake of the accepting side, which has just begun.
    pub(super) fn note_accepted(&mut self, key: Key) {
        if self.io.accepting.len() > SLACK + 2 * self.io.handshakes as usize {
            self.forget_finished();
        }
        self.io.accepting.push_back((key, self.io.now));
    }

    fn forget_finished(&mut self) {
        let conns = &self.conns;
        self.io.accepting.retain(|(key, _)| conns.get(*key).is_some_and(|conn| !conn.link.is_open()));
    }

    /// A listener is full of handshakes: make room on every dispatcher that has some, and look again.
    pub(super) fn make_way(&mut self, listening: Key, listener: &Arc<ListenerShared>) {
        self.end_oldest(listener);
        for place in listener.places().iter().filter(|place| place.shared.id != self.io.shared.id) {
            place.shared.command(Command::MakeWay { listener: listener.clone() });
        }
        self.accept_later(listening, LOOK_AGAIN);
    }

    /// Ends the oldest handshake of a listener on this dispatcher, if it is still full of them.
    pub(super) fn end_oldest(&mut self, listener: &Arc<ListenerShared>) {
        if !listener.is_full_of_handshakes() {
            return;
        }
        self.forget_finished();
        let is_of = |key: Key| {
            let accepted = self.conns.get(key).and_then(|conn| conn.core.accepted.as_ref());
            accepted.is_some_and(|(_, theirs)| Arc::ptr_eq(theirs, listener))
        };
        let mut old = self.io.accepting.iter().filter(|(_, at)| self.io.now.saturating_duration_since(*at) >= PATIENCE);
        let oldest = old.find(|(key, _)| is_of(*key)).map(|(key, _)| *key);
        if let Some(key) = oldest {
            let text = format!("a handshake that took more than {PATIENCE:?} gave way to newer ones");
            self.end(key, Error::new(ErrorKind::TimedOut, text));
        }
    }
}
