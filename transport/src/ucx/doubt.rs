//! Whether a worker's shared-memory receive queue is blocked.
//!
//! All peers on the host write into one queue: a sender takes the next place, fills it and marks it as filled. One that is killed in
//! between leaves a place that nobody will ever mark, and UCX (1.13 to 1.22) reads nothing that comes behind it, from whomever.
//! There is no call that tells. What can be seen is that UCX says busy when it is to be armed and that no message comes over shared
//! memory; but so it is for a moment while a sender writes, for longer while the system keeps a sender from running, and for as long as
//! a peer does not read what we send. So a doubt lasts, and ends with the first thing that a blocked queue does not do.

use std::time::{Duration, Instant};

/// So many looks must have found silence: the thread that looks may have been kept from running itself.
const LOOKS: u32 = 10;

/// Looks that come sooner after another are none.
const APART: Duration = Duration::from_millis(1);

/// A message that comes so long after the doubt began, and so many looks, was not in the queue when it did.
const LATER: Duration = Duration::from_millis(100);

/// Whether messages come through that queue over these lanes. A failed endpoint has lost its lanes: then nobody knows.
pub(crate) fn over_memory(lanes: &str) -> bool {
    ["posix", "sysv", "xpmem"].iter().any(|name| lanes.contains(name))
}

/// What a look says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is not blocked.
    Free,
    /// It may be: something is unread, and nothing has come for so long. Zero until there were enough looks.
    Silent(Duration),
}

/// A doubt about one receive queue.
#[derive(Debug)]
pub(crate) struct Doubt {
    began: Instant,
    looks: u32,
    last: Instant,
    /// Since when no message has come, and looks since then.
    silent: (Instant, u32),
    /// Messages that had come at the last look.
    heard: u64,
}

impl Doubt {
    /// Something was unread when `heard` messages had come over shared memory.
    pub(crate) fn new(now: Instant, heard: u64) -> Self {
        Self { began: now, looks: 0, last: now, silent: (now, 0), heard }
    }

    /// How long it has lasted.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// Another look: whether something is `unread`, and how many messages have come in all.
    pub(crate) fn look(&mut self, now: Instant, unread: bool, heard: u64) -> Verdict {
        if !unread {
            return Verdict::Free;
        }
        if now.saturating_duration_since(self.last) >= APART {
            self.last = now;
            self.looks = self.looks.saturating_add(1);
            self.silent.1 = self.silent.1.saturating_add(1);
        }
        if heard != self.heard {
            if self.looks > LOOKS && self.age(now) >= LATER {
                return Verdict::Free;
            }
            self.heard = heard;
            self.silent = (now, 0);
        }
        let (since, looks) = self.silent;
        Verdict::Silent(if looks < LOOKS { Duration::ZERO } else { now.saturating_duration_since(since) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_over_shared_memory_are_known() {
        for lanes in ["posix", "sysv+tcp/lo", "self+posix+cma", "xpmem"] {
            assert!(over_memory(lanes), "{lanes}");
        }
        for lanes in ["", "tcp/eth0", "rc_verbs/rxe0:1+ud_verbs/rxe0:1", "cma", "cm+tcp/lo"] {
            assert!(!over_memory(lanes), "{lanes}");
        }
    }

    const STEP: Duration = Duration::from_millis(2);

    #[test]
    fn a_queue_that_is_read_to_its_end_is_free() {
        let now = Instant::now();
        let mut doubt = Doubt::new(now, 7);
        assert_eq!(doubt.look(now + STEP, true, 7), Verdict::Silent(Duration::ZERO));
        assert_eq!(doubt.look(now + 2 * STEP, false, 7), Verdict::Free);
    }

    #[test]
    fn silence_counts_from_the_last_message_and_needs_looks() {
        let now = Instant::now();
        let mut doubt = Doubt::new(now, 0);
        // A thread that was kept from running for a second has looked once.
        let late = now + Duration::from_secs(1);
        assert_eq!(doubt.look(late, true, 0), Verdict::Silent(Duration::ZERO));
        for _ in 0..1000 {
            assert_eq!(doubt.look(late, true, 0), Verdict::Silent(Duration::ZERO), "no time has passed");
        }
        for n in 1..LOOKS - 1 {
            assert_eq!(doubt.look(late + n * APART, true, 0), Verdict::Silent(Duration::ZERO));
        }
        let at = late + (LOOKS - 1) * APART;
        assert_eq!(doubt.look(at, true, 0), Verdict::Silent(at - now));
    }

    #[test]
    fn what_was_in_the_queue_before_the_hole_refutes_nothing() {
        let now = Instant::now();
        let mut doubt = Doubt::new(now, 0);
        assert_eq!(doubt.look(now + STEP, true, 40), Verdict::Silent(Duration::ZERO));
        for n in 2..=LOOKS + 1 {
            let at = now + n * STEP;
            let silent = if n > LOOKS { at - (now + STEP) } else { Duration::ZERO };
            assert_eq!(doubt.look(at, true, 40), Verdict::Silent(silent), "look {n}");
        }
        // Nor does it for a thread that could not look earlier.
        let mut slow = Doubt::new(now, 0);
        assert_eq!(slow.look(now + Duration::from_secs(3), true, 40), Verdict::Silent(Duration::ZERO));
    }

    #[test]
    fn a_message_that_was_sent_later_refutes_it() {
        let now = Instant::now();
        let mut doubt = Doubt::new(now, 0);
        for n in 1..=60 {
            let _ = doubt.look(now + n * STEP, true, 0);
        }
        assert_eq!(doubt.look(now + 61 * STEP, true, 1), Verdict::Free);
    }
}
