//! Closing an endpoint while the peer is getting to know it.

use super::*;

/// The paths over which UCX's own thread answers the peer's connection request, or the peer has no endpoint, or closes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// The accepting side closes what it has made, and the request has come meanwhile.
    Accepting,
    /// As before, but the dialling side has closed first.
    DiallingFirst,
    /// The dialling side never makes its endpoint.
    Alone,
    /// The dialling side makes its endpoint when the other one has been closed.
    TooLate,
}

/// A side that makes an endpoint and gives it up closes it without having sent anything. If the peer's request has come by then, its answer may still
/// be in a queue of UCX's: over UD, what UCX's own thread receives is answered by the next progress only.
pub(super) fn unproven() {
    let mut group = Group::of(2);
    let addresses: Vec<Vec<u8>> = group.workers.iter().map(|worker| worker.address().to_vec()).collect();
    for round in 0..48 {
        let order = [Order::Accepting, Order::DiallingFirst, Order::Alone, Order::TooLate][round % 4];
        // UCX's own thread looks every 100 ms.
        let pause = Duration::from_millis([120, 1, 8, 120][round / 4 % 4]);
        let ba = group.workers[1].connect(&addresses[0]).expect("reachable");
        let early = matches!(order, Order::Accepting | Order::DiallingFirst)
            .then(|| group.workers[0].connect(&addresses[1]).expect("reachable"));
        // The transport's own connecting is over then.
        group.spin_for(Duration::from_millis(20));
        if let Some(ab) = early {
            group.workers[0].prove(ab, b"prove", u64::MAX).expect("sends");
            if order == Order::DiallingFirst {
                group.workers[0].close(ab);
            }
            // The other side's own thread is alone with what comes.
            group.turn(0, pause);
        }
        group.workers[1].close(ba);
        let late = (order == Order::TooLate).then(|| {
            group.turn(1, pause);
            let ab = group.workers[0].connect(&addresses[1]).expect("reachable");
            group.workers[0].prove(ab, b"prove", u64::MAX).expect("sends");
            ab
        });
        if order == Order::Alone {
            group.until_all_zero();
            // UCX counts, on both sides.
            let spare = group.workers[0].connect(&addresses[1]).expect("reachable");
            group.workers[0].close(spare);
        }
        if round % 8 < 4 {
            group.turn(1, pause);
        }
        early.into_iter().chain(late).for_each(|ab| group.workers[0].close(ab));
        group.until_all_zero();
    }
    group.end();
}

/// A worker with too many endpoints that wait for their peers takes no more, until they are closed.
pub(super) fn crowded() {
    let mut group = Group::of(2);
    let address = group.workers[1].address().to_vec();
    let mut made = 0;
    while group.workers[0].has_room() {
        let ep = group.workers[0].connect(&address).expect("reachable");
        group.workers[0].close(ep);
        made += 1;
        assert_eq!(group.workers[0].inflight().endpoints, made, "a close did not wait");
    }
    assert_eq!(made, 32);
    group.until_all_zero();
    assert!(group.workers[0].has_room());
    group.end();
}

impl Group {
    /// Only one works.
    fn turn(&mut self, index: usize, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.workers[index].progress();
        }
    }

    fn spin_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.spin(1);
        }
    }
}
