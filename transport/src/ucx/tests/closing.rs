use bytes::Bytes;

use super::*;

/// What fills the sockets of a tcp lane, and much more.
fn fill(pair: &mut Pair, from: usize) -> usize {
    let ep = if from == 0 { pair.ab } else { pair.ba };
    let mut pending = 0;
    let data = Bytes::from(pattern(60_000, 1));
    for token in 0..400 {
        let payload = Payload::Bytes(data.clone());
        let sent = pair.group.workers[from].send_owned(ep, b"bulk", payload, Mode::Eager, token).expect("sends");
        pending += usize::from(sent == Sent::Pending);
    }
    pending
}

/// One side closes with its socket full, then the other, which reads: its goodbye arrives together with room for the rest.
/// UCX, left to itself, uses the lane then that it has just freed.
pub(super) fn both_give_up() {
    for round in 0..30 {
        let mut pair = Pair::proven();
        assert!(fill(&mut pair, 0) > 0, "everything fitted into the sockets");
        if round % 3 == 2 {
            fill(&mut pair, 1);
        }
        pair.group.workers[0].close(pair.ab);
        for _ in 0..round % 5 {
            pair.group.workers[0].progress();
        }
        pair.group.workers[1].close(pair.ba);
        for _ in 0..=round % 7 {
            pair.group.workers[1].progress();
        }
        pair.group.until_all_zero();
        pair.group.end();
    }
}

/// A closed endpoint whose peer does not read waits, until its socket is reset; and the end of a worker does not wait at all.
pub(super) fn a_peer_that_does_not_read() {
    for ends in [false, true] {
        let mut pair = Pair::proven();
        assert!(fill(&mut pair, 0) > 0, "everything fitted into the sockets");
        pair.group.workers[0].close(pair.ab);
        let until = Instant::now() + Duration::from_millis(100);
        while Instant::now() < until {
            pair.group.workers[0].progress();
            while pair.group.workers[0].poll_event().is_some() {}
        }
        assert_eq!(pair.group.workers[0].inflight().endpoints, 1, "closed with data to send");
        assert!(matches!(pair.group.workers[0].closing(), Some(OnlyClosing(true))));
        let mut silent = pair.group.workers.pop().expect("two");
        if !ends {
            assert!(pair.group.workers[0].reset_sockets() > 0, "no socket was found");
            pair.group.until_all_zero();
        }
        assert!(pair.group.workers[0].closing().is_none() || ends);
        let started = Instant::now();
        pair.group.end();
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        // The other side sees a peer that has gone.
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut failed = false;
        while !failed {
            assert!(Instant::now() < deadline, "{:?}", silent.inflight());
            silent.progress();
            while let Some(event) = silent.poll_event() {
                failed |= matches!(event, Event::EndpointFailed { .. });
            }
        }
        assert!(silent.shutdown(Instant::now() + Duration::from_secs(5)));
    }
}

/// The kernel gives a full socket up after the limit, without our doing anything more.
pub(super) fn time_limit() {
    let mut pair = Pair::proven();
    assert!(fill(&mut pair, 0) > 0, "everything fitted into the sockets");
    pair.group.workers[0].close(pair.ab);
    pair.group.workers[0].limit_sockets(Duration::from_secs(1));
    let deadline = Instant::now() + Duration::from_secs(30);
    while pair.group.workers[0].inflight() != Counters::default() {
        assert!(Instant::now() < deadline, "{:?}", pair.group.workers[0].inflight());
        pair.group.workers[0].progress();
        while pair.group.workers[0].poll_event().is_some() {}
    }
    pair.group.workers[1].close(pair.ba);
    pair.group.until_all_zero();
    pair.group.end();
}
