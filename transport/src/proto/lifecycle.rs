//! Closing without losing what was sent.
//!
//! ```text
//!                close()             on_all_sent()              GOODBYE_ACK
//! Open ───────────────────▶ Draining ─────────────▶ GoodbyeSent ───────────▶ Closed(Ok)
//!   │ GOODBYE, and all that it counts arrived: GOODBYE_ACK
//!   └──────────────────────────────────────────────────────────────────────▶ Closed(PeerClosed)
//! ```
//!
//! There is no half-close: a GOODBYE says that its sender's application no longer reads either. So what the other side
//! has not sent by then ends with [`ErrorKind::PeerClosed`]. When both sides say GOODBYE at once, each waits for the
//! other's frames, acknowledges them and waits for its own ACK.
//!
//! [`Action::Finished`] comes last and once. A backend then lets the ACK before it go out and drops its endpoint by
//! force, on both sides.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{Error, ErrorKind, Result};

/// The longest time that closing may take: longer ones are cut, so that no `Instant` overflows.
pub const MAX_LINGER: Duration = Duration::from_secs(24 * 3600);

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send GOODBYE with this count of DATA frames.
    SendGoodbye(u32),
    /// Send `GOODBYE_ACK`.
    SendGoodbyeAck,
    /// The connection has ended: `Ok` if this side closed it and all that it sent has arrived.
    Finished(Result<()>),
}

/// Where a connection is on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Frames go both ways.
    Open,
    /// This side closes: what is queued still goes, nothing new is taken.
    Draining {
        /// When it gives up.
        deadline: Instant,
    },
    /// All has been sent and GOODBYE after it.
    GoodbyeSent {
        /// When it gives up.
        deadline: Instant,
    },
    /// The end.
    Closed,
}

/// The close machine of one connection: `on_*` and [`Lifecycle::close`] take what happened, [`Lifecycle::poll`]
/// returns what to do, until `None`.
#[derive(Debug)]
pub struct Lifecycle {
    state: State,
    linger: Duration,
    acked: bool,
    goodbye: PeerGoodbye,
    actions: VecDeque<Action>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerGoodbye {
    NotYet,
    /// The peer has sent this many DATA frames, and not all are here.
    Incomplete(u32),
    Acked,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle {
    /// An open connection.
    pub fn new() -> Self {
        Self {
            state: State::Open,
            linger: Duration::ZERO,
            acked: false,
            goodbye: PeerGoodbye::NotYet,
            actions: VecDeque::new(),
        }
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the application may still send.
    pub fn is_open(&self) -> bool {
        self.state == State::Open && self.goodbye == PeerGoodbye::NotYet
    }

    /// Whether frames from the peer still count: after the end they are dropped.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// This side closes and gives itself `linger` (cut to [`MAX_LINGER`]) to send what is queued and to hear that it
    /// arrived. Again: only a shorter time changes anything.
    ///
    /// Then call [`Lifecycle::on_all_sent`] as soon as nothing is queued or in flight, at once if so.
    pub fn close(&mut self, now: Instant, linger: Duration) {
        let linger = linger.min(MAX_LINGER);
        let ends = now + linger;
        match &mut self.state {
            State::Open => self.state = State::Draining { deadline: ends },
            State::Draining { deadline } | State::GoodbyeSent { deadline } if ends < *deadline => *deadline = ends,
            _ => return,
        }
        self.linger = linger;
    }

    /// Everything that was queued when this side closed has been handed over; `sent` DATA frames in all, wrapping.
    /// Without effect unless it is draining.
    pub fn on_all_sent(&mut self, sent: u32) {
        if let State::Draining { deadline } = self.state {
            self.state = State::GoodbyeSent { deadline };
            self.actions.push_back(Action::SendGoodbye(sent));
        }
    }

    /// GOODBYE came: the peer has sent `count` DATA frames, of which `received` have arrived and were delivered,
    /// refused or dropped. Both count from the start and wrap.
    pub fn on_goodbye(&mut self, count: u32, received: u32) {
        match (self.state, self.goodbye) {
            (State::Closed, _) => {}
            (_, PeerGoodbye::NotYet) => {
                self.goodbye = PeerGoodbye::Incomplete(count);
                self.on_received(received);
            }
            _ => self.finish(Err(Error::new(ErrorKind::Protocol, "peer said goodbye twice"))),
        }
    }

    /// More of the peer's DATA frames have arrived, `received` in all. Needed only while [`Lifecycle::is_completing`].
    pub fn on_received(&mut self, received: u32) {
        let PeerGoodbye::Incomplete(count) = self.goodbye else { return };
        if self.state == State::Closed {
            return;
        }
        let missing = count.wrapping_sub(received);
        if missing >= 1 << 31 {
            return self.finish(Err(Error::new(ErrorKind::Protocol, "peer sent data after its goodbye")));
        }
        if missing > 0 {
            return;
        }
        self.goodbye = PeerGoodbye::Acked;
        self.actions.push_back(Action::SendGoodbyeAck);
        match self.state {
            State::GoodbyeSent { .. } => self.finish_if_both_acked(),
            _ => self.finish(Err(Error::new(ErrorKind::PeerClosed, "the peer closed the connection"))),
        }
    }

    /// Whether the peer has said goodbye and frames are missing: then [`Lifecycle::on_received`] wants to know of
    /// each.
    pub fn is_completing(&self) -> bool {
        matches!(self.goodbye, PeerGoodbye::Incomplete(_)) && self.state != State::Closed
    }

    /// Whether both sides have said goodbye and the peer's is acknowledged: if its end comes now, instead of its
    /// acknowledgement, that says the same, because it does not end before it has everything.
    pub fn is_mutual(&self) -> bool {
        matches!(self.state, State::GoodbyeSent { .. }) && self.goodbye == PeerGoodbye::Acked
    }

    /// `GOODBYE_ACK` came.
    pub fn on_goodbye_ack(&mut self) {
        match self.state {
            State::GoodbyeSent { .. } if !self.acked => {
                self.acked = true;
                self.finish_if_both_acked();
            }
            State::Closed => {}
            _ => self.finish(Err(Error::new(ErrorKind::Protocol, "peer acknowledged a goodbye that was not said"))),
        }
    }

    /// The transport failed, or the peer broke the protocol.
    pub fn on_error(&mut self, error: Error) {
        self.finish(Err(error));
    }

    /// When [`Lifecycle::on_timeout`] wants to be called.
    pub fn next_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Draining { deadline } | State::GoodbyeSent { deadline } => Some(deadline),
            State::Open | State::Closed => None,
        }
    }

    /// Time has passed: ends the connection if closing took too long.
    pub fn on_timeout(&mut self, now: Instant) {
        if self.next_timeout().is_some_and(|deadline| now >= deadline) {
            self.finish(Err(Error::timed_out("close", self.linger)));
        }
    }

    /// The next thing to do, in order.
    #[must_use]
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn finish_if_both_acked(&mut self) {
        // A peer that never said goodbye itself closes when it has acknowledged ours.
        if self.acked && !matches!(self.goodbye, PeerGoodbye::Incomplete(_)) {
            self.finish(Ok(()));
        }
    }

    fn finish(&mut self, result: Result<()>) {
        if self.state != State::Closed {
            self.state = State::Closed;
            self.actions.push_back(Action::Finished(result));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINGER: Duration = Duration::from_secs(1);

    fn actions(life: &mut Lifecycle) -> Vec<Action> {
        std::iter::from_fn(|| life.poll()).collect()
    }

    #[test]
    fn the_end_of_a_peer_that_closed_too_is_its_acknowledgement() {
        let mut life = Lifecycle::new();
        life.close(Instant::now(), LINGER);
        life.on_all_sent(0);
        assert!(!life.is_mutual(), "the peer may not have everything");
        life.on_goodbye(2, 1);
        assert!(!life.is_mutual(), "a frame of the peer is missing");
        life.on_received(2);
        assert!(life.is_mutual());
    }

    fn kind(action: Option<Action>) -> Option<ErrorKind> {
        match action {
            Some(Action::Finished(Err(error))) => Some(error.kind()),
            other => panic!("{other:?} is no failure"),
        }
    }

    #[test]
    fn one_side_closes() {
        let now = Instant::now();
        let (mut a, mut b) = (Lifecycle::new(), Lifecycle::new());
        a.close(now, LINGER);
        assert!(!a.is_open());
        assert_eq!(a.poll(), None, "not before all is sent");
        a.on_all_sent(7);
        assert_eq!(actions(&mut a), [Action::SendGoodbye(7)]);
        b.on_goodbye(7, 5);
        assert!(b.is_completing() && !b.is_open());
        assert_eq!(b.poll(), None, "two frames are under way");
        b.on_received(6);
        assert_eq!(b.poll(), None);
        b.on_received(7);
        assert_eq!(b.poll(), Some(Action::SendGoodbyeAck));
        assert_eq!(kind(b.poll()), Some(ErrorKind::PeerClosed));
        a.on_goodbye_ack();
        assert_eq!(actions(&mut a), [Action::Finished(Ok(()))]);
        assert!(a.is_closed() && b.is_closed());
        a.on_error(Error::new(ErrorKind::Reset, "late"));
        assert_eq!(a.poll(), None, "finished once");
    }

    #[test]
    fn both_close_at_once() {
        let now = Instant::now();
        let (mut a, mut b) = (Lifecycle::new(), Lifecycle::new());
        for side in [&mut a, &mut b] {
            side.close(now, LINGER);
            side.on_all_sent(3);
            assert_eq!(actions(side), [Action::SendGoodbye(3)]);
        }
        a.on_goodbye(3, 3);
        assert_eq!(actions(&mut a), [Action::SendGoodbyeAck]);
        b.on_goodbye(3, 2);
        b.on_goodbye_ack();
        assert_eq!(b.poll(), None, "acknowledged, but a frame from the other side is under way");
        b.on_received(3);
        assert_eq!(actions(&mut b), [Action::SendGoodbyeAck, Action::Finished(Ok(()))]);
        a.on_goodbye_ack();
        assert_eq!(actions(&mut a), [Action::Finished(Ok(()))]);
    }

    #[test]
    fn the_peer_closes_while_we_drain() {
        let now = Instant::now();
        let mut life = Lifecycle::new();
        life.close(now, LINGER);
        life.on_goodbye(0, 0);
        assert_eq!(life.poll(), Some(Action::SendGoodbyeAck));
        assert_eq!(kind(life.poll()), Some(ErrorKind::PeerClosed), "what is queued can't be read any more");
        life.on_all_sent(9);
        assert_eq!((life.poll(), life.next_timeout()), (None, None));
    }

    #[test]
    fn linger_ends() {
        let now = Instant::now();
        for sent in [false, true] {
            let mut life = Lifecycle::new();
            life.close(now, LINGER);
            life.close(now, 2 * LINGER);
            if sent {
                life.on_all_sent(1);
                assert_eq!(life.poll(), Some(Action::SendGoodbye(1)));
            }
            assert_eq!(life.next_timeout(), Some(now + LINGER));
            life.close(now, LINGER / 2);
            assert_eq!(life.next_timeout(), Some(now + LINGER / 2));
            life.on_timeout(now + LINGER / 2 - Duration::from_nanos(1));
            assert_eq!(life.poll(), None);
            life.on_timeout(now + LINGER / 2);
            assert_eq!(kind(life.poll()), Some(ErrorKind::TimedOut));
        }
        let mut life = Lifecycle::new();
        life.close(now, Duration::MAX);
        assert_eq!(life.next_timeout(), Some(now + MAX_LINGER));
    }

    #[test]
    fn a_peer_out_of_turn_is_caught() {
        let mut life = Lifecycle::new();
        life.on_goodbye_ack();
        assert_eq!(kind(life.poll()), Some(ErrorKind::Protocol));
        let mut life = Lifecycle::new();
        life.on_goodbye(5, 3);
        life.on_goodbye(5, 3);
        assert_eq!(kind(life.poll()), Some(ErrorKind::Protocol));
        let mut life = Lifecycle::new();
        life.on_goodbye(5, 6);
        assert_eq!(kind(life.poll()), Some(ErrorKind::Protocol));
        let mut life = Lifecycle::new();
        life.on_goodbye(1, u32::MAX);
        assert!(life.is_completing(), "counts wrap");
        life.on_received(0);
        life.on_received(1);
        assert_eq!(life.poll(), Some(Action::SendGoodbyeAck));
    }

    #[test]
    fn a_transport_error_ends_every_state() {
        let now = Instant::now();
        for step in 0..4 {
            let mut life = Lifecycle::new();
            if step > 0 {
                life.close(now, LINGER)
            }
            if step > 1 {
                life.on_all_sent(0)
            }
            if step > 2 {
                life.on_goodbye(2, 1)
            }
            let _ = actions(&mut life);
            life.on_error(Error::new(ErrorKind::Reset, "reset"));
            assert_eq!(kind(life.poll()), Some(ErrorKind::Reset));
            assert_eq!((life.poll(), life.next_timeout()), (None, None));
        }
    }

    /// One side with its ordered wire to the other.
    struct Side {
        life: Lifecycle,
        sent: u32,
        received: u32,
        wire: VecDeque<Wire>,
        result: Option<Result<()>>,
        closing: bool,
    }

    #[derive(Clone, Copy)]
    enum Wire {
        Data,
        Goodbye(u32),
        Ack,
    }

    impl Side {
        fn new() -> Self {
            Self { life: Lifecycle::new(), sent: 0, received: 0, wire: VecDeque::new(), result: None, closing: false }
        }

        fn act(&mut self) {
            while let Some(action) = self.life.poll() {
                assert!(self.result.is_none(), "{action:?} after the end");
                match action {
                    Action::SendGoodbye(count) => self.wire.push_back(Wire::Goodbye(count)),
                    Action::SendGoodbyeAck => self.wire.push_back(Wire::Ack),
                    Action::Finished(result) => self.result = Some(result),
                }
            }
        }

        fn hear(&mut self, from: &mut Self) {
            let Some(wire) = from.wire.pop_front() else { return };
            match wire {
                _ if self.life.is_closed() => {}
                Wire::Data => {
                    self.received += 1;
                    self.life.on_received(self.received);
                }
                Wire::Goodbye(count) => self.life.on_goodbye(count, self.received),
                Wire::Ack => self.life.on_goodbye_ack(),
            }
            self.act();
        }
    }

    proptest! {
        /// Whatever the schedule, once one side has closed both end, and a side that ends with `Ok` has had all its
        /// frames received.
        #[test]
        fn both_sides_always_end(steps in prop::collection::vec((any::<bool>(), 0u8..5), 0..60), last in any::<bool>()) {
            let now = Instant::now();
            let (mut a, mut b) = (Side::new(), Side::new());
            for (first, step) in steps.into_iter().chain([(last, 3), (last, 4)]) {
                let (this, other) = if first { (&mut a, &mut b) } else { (&mut b, &mut a) };
                match step {
                    0 if this.life.is_open() => {
                        this.sent += 1;
                        this.wire.push_back(Wire::Data);
                    }
                    0..=2 => this.hear(other),
                    3 => {
                        this.life.close(now, LINGER);
                        this.closing = true;
                    }
                    _ if this.closing => {
                        this.life.on_all_sent(this.sent);
                        this.act();
                    }
                    _ => {}
                }
            }
            for side in [&mut a, &mut b] {
                if side.closing {
                    side.life.on_all_sent(side.sent);
                    side.act();
                }
            }
            for _ in 0..200 {
                a.hear(&mut b);
                b.hear(&mut a);
            }
            for (this, other) in [(&a, &b), (&b, &a)] {
                match this.result.as_ref() {
                    None => prop_assert!(false, "a side never ends: {:?}", this.life),
                    Some(Ok(())) => prop_assert_eq!(this.sent, other.received),
                    Some(Err(error)) => prop_assert_eq!(error.kind(), ErrorKind::PeerClosed),
                }
            }
        }
    }
}
