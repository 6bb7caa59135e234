use bytes::Bytes;

use super::*;

const PENDING: std::ops::Range<u64> = 100..110;
const UNFETCHED: u64 = 50;

/// The process that gets killed: it announces payloads, accepts none, and works until then.
pub(super) fn victim() {
    let mut worker = Worker::new().expect("UCX");
    println!("ADDRESS {}", hex(worker.address()));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("text");
    let ep = worker.connect(&unhex(line.trim())).expect("connects");
    for token in 0..2 {
        let payload = Payload::Bytes(Bytes::from(pattern(4 << 20, token)));
        let _ = worker.send_owned(ep, b"from the victim", payload, Mode::Rendezvous, token).expect("sends");
    }
    let mut kept = Vec::new();
    loop {
        worker.progress();
        while let Some(event) = worker.poll_event() {
            if let Event::Announced { rndv, .. } = event {
                kept.push(rndv);
                if kept.len() == PENDING.count() {
                    println!("READY ");
                }
            }
        }
    }
}

/// kill -9 of the peer with sends pending and fetches to come: a failure event, and each operation ends once.
pub(super) fn killed_peer() {
    let mut group = Group::of(1);
    let mut peer = Peer::start("victim");
    let address = unhex(&peer.hear("ADDRESS "));
    peer.say(&hex(group.workers[0].address()));
    let ep = group.workers[0].connect(&address).expect("connects");
    let mut ends = Ends::default();
    for token in PENDING {
        let payload = Payload::Bytes(Bytes::from(pattern(1 << 20, token)));
        let sent = group.workers[0].send_owned(ep, b"pending", payload, Mode::Rendezvous, token).expect("sends");
        assert_eq!(sent, Sent::Pending);
    }
    let mut announced = Vec::new();
    group.until("the victim's announcements", |_, event| {
        match event {
            Event::Announced { rndv, .. } => announced.push(rndv),
            other => panic!("unexpected: {other:?}"),
        }
        (announced.len() == 2).then_some(())
    });
    // The victim prints READY when it has all announcements; keep the link moving meanwhile.
    let waiter = std::thread::spawn(move || {
        peer.hear("READY ");
        peer
    });
    while !waiter.is_finished() {
        group.spin(10);
    }
    let peer = waiter.join().expect("hears");
    println!("lanes: {}", group.workers[0].endpoint_info(ep));
    assert_eq!(group.workers[0].inflight().sends, PENDING.count());
    // One fetch is started before the death, one after it.
    let mut announced = announced.into_iter();
    group.workers[0].fetch(announced.next().expect("two"), target(4 << 20), UNFETCHED).expect("fetches");
    let killed = Instant::now();
    peer.kill();
    let (mut failed, mut last) = (0, announced.next());
    let mut tokens: Vec<u64> = PENDING.collect();
    tokens.push(UNFETCHED);
    let total = tokens.len() + 1;
    let mut after_failure = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(15);
    while failed == 0 || ends.ended.len() < total {
        assert!(
            Instant::now() < deadline,
            "{failed} failures, {} ended: {:?}",
            ends.ended.len(),
            group.workers[0].inflight()
        );
        group.workers[0].progress();
        while let Some(event) = group.workers[0].poll_event() {
            match event {
                Event::EndpointFailed { ep: which, error } => {
                    println!("failed after {:?}: {error}", killed.elapsed());
                    assert_eq!(which, ep);
                    failed += 1;
                }
                Event::SendDone { token, result } => ends.note(token, result.is_err()),
                Event::FetchDone { token, result, .. } => {
                    println!("fetch {token} ended after {:?}: {result:?}", killed.elapsed());
                    ends.note(token, result.is_err());
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
        if failed > 0
            && let Some(rndv) = last.take()
        {
            // A fetch from a dead peer fails, now or by an event, and not silently.
            match group.workers[0].fetch(rndv, target(4 << 20), UNFETCHED + 1) {
                Ok(()) => {}
                Err((error, buf)) => {
                    println!("refused: {error}");
                    assert_eq!(buf.len(), 4 << 20);
                    ends.note(UNFETCHED + 1, true);
                }
            }
            after_failure.push(group.workers[0].send_copy(ep, b"late", [b"", b""], 7).expect_err("it has failed"));
        }
    }
    tokens.push(UNFETCHED + 1);
    ends.assert_exactly(&tokens);
    assert!(ends.failed >= PENDING.count(), "{} failed", ends.failed);
    assert_eq!(failed, 1);
    group.workers[0].close(ep);
    group.spin(100);
    assert_eq!(group.workers[0].inflight(), Counters::default());
    group.end();
}
