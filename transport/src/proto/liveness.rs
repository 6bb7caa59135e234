//! Whether the peer still answers.
//!
//! Sockets tell when a peer has ended, but not when it is stopped, hung or cut off. So after some silence the peer is
//! asked, and after more of it the connection is given up.

use std::time::{Duration, Instant};

/// The longest keepalive time: beyond it times are cut, so that no `Instant` overflows.
pub const MAX_KEEPALIVE: Duration = Duration::from_secs(24 * 3600);

/// A poll that comes later than one part in this many of the interval means that our own thread stood still.
const STALL_SHARE: u32 = 3;

/// How often in one silence a stall of our own may postpone the end, by its own length. A thread that stalls more often is too
/// sick to judge; without this limit a dead peer could stay for ever.
const MAX_GRACES: u8 = 3;

/// When to ask and when to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence after which the peer is asked. Zero: never, the peer is taken to be alive.
    pub interval: Duration,
    /// Silence after which it is dead. At least twice the interval, or it is moved there.
    pub deadline: Duration,
}

impl Keepalive {
    /// Never ask.
    pub const OFF: Self = Self { interval: Duration::ZERO, deadline: Duration::ZERO };
}

impl Default for Keepalive {
    /// 600 ms and 2300 ms: a dead peer is reported within 3 s, with 700 ms to spare for a busy machine and for what was
    /// under way when it died, and a live one has 1700 ms to answer.
    fn default() -> Self {
        Self { interval: Duration::from_millis(600), deadline: Duration::from_millis(2300) }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LivenessAction {
    /// Send a PING with this id.
    Ping(u64),
    /// Give the connection up: nothing was heard for this long.
    Dead(Duration),
}

/// One connection's view of its peer.
///
/// Read all that has arrived, and call [`Liveness::heard`] for it, before [`Liveness::poll`]: an answer that waits in
/// a socket buffer is an answer.
#[derive(Clone, Debug)]
pub struct Liveness {
    interval: Duration,
    /// How long the peer has to answer a ping.
    grace: Duration,
    last_heard: Instant,
    next_id: u64,
    /// The last ping, until its answer.
    ping: Option<(u64, Instant)>,
    state: State,
    graces: u8,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Quiet,
    /// A ping was sent and nothing heard since; `seen` is the last time that our own thread was seen to run.
    Asked {
        dead_at: Instant,
        seen: Instant,
    },
    Off,
}

impl Liveness {
    /// Starts with the peer heard at `now`.
    pub fn new(keepalive: Keepalive, now: Instant) -> Self {
        let interval = keepalive.interval.min(MAX_KEEPALIVE);
        let deadline = keepalive.deadline.min(2 * MAX_KEEPALIVE).max(2 * interval);
        Self {
            interval,
            grace: deadline - interval,
            last_heard: now,
            next_id: 1,
            ping: None,
            state: if interval.is_zero() { State::Off } else { State::Quiet },
            graces: MAX_GRACES,
        }
    }

    /// Something came from the peer, whatever it was. Once per batch is enough.
    #[inline]
    pub fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        if let State::Asked { .. } = self.state {
            self.state = State::Quiet;
            self.graces = MAX_GRACES;
        }
    }

    /// A PONG came; the round trip, if it answers the last ping. Counts as heard.
    pub fn on_pong(&mut self, id: u64, now: Instant) -> Option<Duration> {
        self.heard(now);
        let (_, sent) = self.ping.take_if(|(asked, _)| *asked == id)?;
        Some(now.saturating_duration_since(sent))
    }

    /// When [`Liveness::poll`] wants to be called, at the latest. It moves with every [`Liveness::heard`]: calling
    /// earlier is harmless, so a timer need not be moved along.
    pub fn next_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Quiet => Some(self.last_heard + self.interval),
            // While waiting for the answer look more often than needed: a gap between two looks shows that our own
            // thread was stopped in between, and then the silence is not the peer's fault.
            State::Asked { dead_at, seen } => Some(dead_at.min(seen + self.interval / STALL_SHARE)),
            State::Off => None,
        }
    }

    /// What to do at `now`. After [`LivenessAction::Dead`] there is nothing more to do.
    ///
    /// A peer that has died is found within the deadline plus the lateness of the caller. If our own thread stood
    /// still (SIGSTOP, a suspended machine, a handler that blocks), the peer is asked once more, and that time does not
    /// count: it may have been ours to take the answer.
    #[must_use]
    pub fn poll(&mut self, now: Instant) -> Option<LivenessAction> {
        let due = self.next_timeout().filter(|due| now >= *due)?;
        let late = now - due;
        let stalled = late > self.interval / STALL_SHARE;
        let mut dead_at = now + self.grace;
        match self.state {
            State::Asked { dead_at, .. } if !(stalled && self.graces > 0) => {
                if now >= dead_at {
                    self.state = State::Off;
                    return Some(LivenessAction::Dead(now.saturating_duration_since(self.last_heard)));
                }
                self.state = State::Asked { dead_at, seen: now };
                return None;
            }
            State::Asked { dead_at: before, .. } => {
                self.graces -= 1;
                dead_at = before + late;
            }
            State::Quiet | State::Off => {}
        }
        let id = self.next_id;
        self.next_id += 1;
        self.ping = Some((id, now));
        self.state = State::Asked { dead_at, seen: now };
        Some(LivenessAction::Ping(id))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Polls punctually from `from` on until something happens.
    fn next_action(live: &mut Liveness, from: Instant) -> (Instant, LivenessAction) {
        let mut now = from;
        for _ in 0..100 {
            if let Some(action) = live.poll(now) {
                return (now, action);
            }
            now = now.max(live.next_timeout().expect("alive"));
        }
        panic!("nothing happens");
    }

    #[test]
    fn a_dead_peer_is_found_within_three_seconds() {
        let start = Instant::now();
        let mut live = Liveness::new(Keepalive::default(), start);
        assert_eq!(live.next_timeout(), Some(start + ms(600)));
        assert_eq!(live.poll(start + ms(599)), None);
        assert_eq!(next_action(&mut live, start), (start + ms(600), LivenessAction::Ping(1)));
        let (when, action) = next_action(&mut live, start + ms(600));
        assert_eq!((when, action), (start + ms(2300), LivenessAction::Dead(ms(2300))));
        assert_eq!((live.next_timeout(), live.poll(start + ms(9000))), (None, None));
    }

    #[test]
    fn a_sloppy_caller_still_makes_three_seconds() {
        let start = Instant::now();
        let mut live = Liveness::new(Keepalive::default(), start);
        let late = ms(200);
        assert_eq!(live.poll(start + ms(600) + late), Some(LivenessAction::Ping(1)));
        let mut dead = None;
        while dead.is_none() {
            let now = live.next_timeout().unwrap() + late;
            dead = live.poll(now);
        }
        let Some(LivenessAction::Dead(silence)) = dead else { panic!("{dead:?}") };
        assert!(silence <= ms(2700), "{silence:?}");
    }

    /// Under load a turn may be long: the end is late by that, and not by a whole answer's time.
    #[test]
    fn a_short_stall_costs_its_own_length() {
        let start = Instant::now();
        for stall in [210, 370, 600] {
            let mut live = Liveness::new(Keepalive::default(), start);
            assert_eq!(live.poll(start + ms(600)), Some(LivenessAction::Ping(1)));
            let back = start + ms(800 + stall);
            assert_eq!(live.poll(back), Some(LivenessAction::Ping(2)));
            assert_eq!(
                next_action(&mut live, back),
                (start + ms(2300 + stall), LivenessAction::Dead(ms(2300 + stall)))
            );
        }
    }

    #[test]
    fn a_peer_that_answers_lives_for_ever() {
        let mut now = Instant::now();
        let mut live = Liveness::new(Keepalive::default(), now);
        for id in 1..50 {
            let (when, action) = next_action(&mut live, now);
            assert_eq!(action, LivenessAction::Ping(id));
            assert_eq!(when, now + ms(600));
            now = when + ms(1650);
            assert_eq!(live.on_pong(id + 1, now), None, "not our ping");
            assert_eq!(live.on_pong(id, now), Some(ms(1650)));
            assert_eq!(live.on_pong(id, now), None, "twice");
        }
    }

    #[test]
    fn traffic_saves_the_ping() {
        let start = Instant::now();
        let mut live = Liveness::new(Keepalive::default(), start);
        for step in 1..100 {
            let now = start + ms(550 * step);
            live.heard(now);
            assert_eq!(live.poll(now + ms(549)), None);
        }
        let now = start + ms(550 * 99);
        assert_eq!(live.poll(now + ms(600)), Some(LivenessAction::Ping(1)));
        live.heard(now + ms(601));
        assert_eq!(live.next_timeout(), Some(now + ms(1201)));
        assert_eq!(live.on_pong(1, now + ms(610)), Some(ms(10)), "a round trip even if other data came first");
    }

    #[test]
    fn our_own_stop_does_not_kill_the_peer() {
        let start = Instant::now();
        // Stopped before the ping.
        let mut live = Liveness::new(Keepalive::default(), start);
        let back = start + ms(10_000);
        assert_eq!(live.poll(back), Some(LivenessAction::Ping(1)));
        assert_eq!(live.on_pong(1, back + ms(1)), Some(ms(1)));
        // Stopped while the ping is out.
        let mut live = Liveness::new(Keepalive::default(), start);
        assert_eq!(live.poll(start + ms(600)), Some(LivenessAction::Ping(1)));
        assert_eq!(live.poll(back), Some(LivenessAction::Ping(2)));
        assert_eq!(live.poll(back + ms(200)), None);
        live.heard(back + ms(300));
        assert_eq!(live.next_timeout(), Some(back + ms(900)));
        // Stopped for most of the wait, and back just before it ends.
        let mut live = Liveness::new(Keepalive::default(), start);
        assert_eq!(live.poll(start + ms(600)), Some(LivenessAction::Ping(1)));
        assert_eq!(live.poll(start + ms(2310)), Some(LivenessAction::Ping(2)));
    }

    #[test]
    fn a_dead_peer_is_found_after_our_own_stop() {
        let start = Instant::now();
        let mut live = Liveness::new(Keepalive::default(), start);
        assert_eq!(live.poll(start + ms(600)), Some(LivenessAction::Ping(1)));
        let back = start + ms(60_000);
        assert_eq!(live.poll(back), Some(LivenessAction::Ping(2)));
        let (when, action) = next_action(&mut live, back);
        assert_eq!(when, back + ms(1500));
        assert_eq!(action, LivenessAction::Dead(ms(61_500)));
    }

    #[test]
    fn endless_stalls_of_our_own_do_not_keep_a_dead_peer() {
        let mut now = Instant::now();
        let mut live = Liveness::new(Keepalive::default(), now);
        let mut pings = 0;
        loop {
            now = live.next_timeout().unwrap() + ms(5000);
            match live.poll(now) {
                Some(LivenessAction::Ping(_)) => pings += 1,
                Some(LivenessAction::Dead(_)) => break,
                None => {}
            }
            assert!(pings <= 1 + MAX_GRACES);
        }
    }

    #[test]
    fn off_and_odd_settings() {
        let now = Instant::now();
        let mut live = Liveness::new(Keepalive::OFF, now);
        assert_eq!((live.next_timeout(), live.poll(now + ms(1_000_000))), (None, None));
        let mut live = Liveness::new(Keepalive { interval: ms(100), deadline: ms(1) }, now);
        assert_eq!(live.poll(now + ms(100)), Some(LivenessAction::Ping(1)));
        assert_eq!(next_action(&mut live, now + ms(100)).1, LivenessAction::Dead(ms(200)));
        let mut live = Liveness::new(Keepalive { interval: Duration::MAX, deadline: Duration::MAX }, now);
        assert_eq!(live.poll(now + MAX_KEEPALIVE), Some(LivenessAction::Ping(1)));
    }

    proptest! {
        /// The answer to a ping needs up to 1600 ms of our own running time (to be read, to be fetched), and our
        /// thread stops again and again: the peer is never declared dead for it.
        #[test]
        fn our_own_stops_never_kill(steps in prop::collection::vec((any::<bool>(), 300u64..9000, 0u64..1600), 1..200)) {
            let mut now = Instant::now();
            let mut live = Liveness::new(Keepalive::default(), now);
            let mut answer_needs: Option<Duration> = None;
            let mut stops = 0;
            for (stop, time, delay) in steps {
                let due = live.next_timeout().unwrap();
                let runs = due - now;
                now = due;
                if let Some(needs) = answer_needs.take() {
                    match needs.checked_sub(runs) {
                        Some(left) => answer_needs = Some(left),
                        None => {
                            live.heard(now);
                            stops = 0;
                            continue;
                        }
                    }
                }
                if stop && stops < MAX_GRACES {
                    stops += u8::from(answer_needs.is_some());
                    now += ms(time);
                }
                match live.poll(now) {
                    Some(LivenessAction::Ping(_)) => answer_needs = answer_needs.or(Some(ms(delay))),
                    Some(LivenessAction::Dead(silence)) => prop_assert!(false, "dead after {silence:?}"),
                    None => {}
                }
            }
        }
    }
}
