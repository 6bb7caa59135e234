//! The receiver decides first: pool, own memory, later, refuse.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use ucrpc::transport::{
    AlignedBuf, Announcement, Body, Connection, ConnectionConfig, ErrorKind, Frame, Keepalive, PendingBody, Purpose,
    RecvBuf, RecvPlan, SendError,
};

use super::Case;
use crate::{
    bed::Bed,
    tools::{Sum, block_for, block_on, eventually, random_bytes},
};

pub const CASES: &[Case] = &[
    Case::all("plan_pool", plan_pool),
    Case::all("plan_into", plan_into).and_auto(),
    Case::all("plan_into_too_small", plan_into_too_small),
    Case::all("plan_later", plan_later).and_auto(),
    Case::all("plan_later_undecided", plan_later_undecided),
    Case::all("plan_later_and_close", plan_later_and_close),
    Case::all("plan_later_slowly", plan_later_slowly),
    Case::all("plan_refuse", plan_refuse),
    Case::all("plan_panics", plan_panics),
    Case::all("plan_once", plan_once),
    Case::all("send_of_pending", send_of_pending),
];

/// Bodies on either side of all that decides how they travel.
const SIZES: [usize; 10] = [1, 100, 4096, 8192, 9000, 16_384, 40_000, 262_144, 300_000, 2 << 20];

fn planned(plan: impl Fn(&Announcement<'_>) -> RecvPlan + Send + Sync + 'static) -> ConnectionConfig {
    ConnectionConfig { planner: Some(Arc::new(plan)), ..ConnectionConfig::default() }
}

/// A pair whose server has a planner.
fn pair(bed: &Bed, server: &ConnectionConfig) -> (Connection, Connection) {
    bed.pair_with(&ConnectionConfig::default(), server)
}

fn body(i: usize) -> Bytes {
    random_bytes(i as u64, SIZES[i])
}

fn send(client: &Connection, i: usize) {
    client.send(Frame::new(vec![i as u8], body(i))).unwrap();
}

fn expect_body(frame: Frame, i: usize) {
    assert_eq!(Sum::of_frame(frame), Sum::of(&[i as u8], &body(i)));
}

fn expect_pending(frame: Frame, i: usize) -> PendingBody {
    assert_eq!(frame.head, [i as u8].as_slice());
    let Body::Pending(pending) = frame.body else { panic!("the plan said later") };
    assert_eq!(pending.len(), SIZES[i] as u64);
    pending
}

fn plan_pool(bed: &Bed) {
    let (client, mut server) = pair(bed, &planned(|_| RecvPlan::Pool));
    for i in 0..SIZES.len() {
        send(&client, i);
        expect_body(server.recv_blocking().unwrap(), i);
    }
}

fn plan_into(bed: &Bed) {
    let pool = bed.server.pool().clone();
    let plan = move |a: &Announcement<'_>| {
        // By turns exactly as long as the body, and longer.
        let len = a.body_len as usize + (a.head[0] as usize % 2) * 777;
        RecvPlan::Into(match a.head[1] {
            0 => RecvBuf::Bytes(BytesMut::zeroed(len)),
            1 => RecvBuf::Aligned(AlignedBuf::new(len, 4096)),
            _ => RecvBuf::Pool(pool.get(len, Purpose::Receive).unwrap()),
        })
    };
    let (client, mut server) = pair(bed, &planned(plan));
    for i in 0..SIZES.len() {
        for kind in 0..3 {
            let head = [i as u8, kind];
            client.send(Frame::new(head.to_vec(), body(i))).unwrap();
            let frame = server.recv_blocking().unwrap();
            let Body::Buf(buf) = frame.body else { panic!("{:?} is not the plan's buffer", frame.body) };
            match (kind, &buf) {
                (0, RecvBuf::Bytes(_)) | (2, RecvBuf::Pool(_)) => {}
                (1, RecvBuf::Aligned(aligned)) => assert_eq!(aligned.as_ptr() as usize % 4096, 0),
                other => panic!("{other:?}"),
            }
            assert_eq!(Sum::of(&frame.head, buf.as_slice()), Sum::of(&head, &body(i)));
            // What was received into a buffer can be sent out of it.
            server.send(Frame::new(frame.head, Body::Buf(buf))).unwrap();
        }
    }
    let mut client = client;
    for i in 0..SIZES.len() {
        for kind in 0..3 {
            let frame = client.recv_blocking().unwrap();
            assert_eq!(Sum::of_frame(frame), Sum::of(&[i as u8, kind], &body(i)));
        }
    }
}

fn plan_into_too_small(bed: &Bed) {
    for i in [1, 4, 8] {
        let plan = |a: &Announcement<'_>| RecvPlan::Into(RecvBuf::Bytes(BytesMut::zeroed(a.body_len as usize - 1)));
        let (client, mut server) = pair(bed, &planned(plan));
        send(&client, i);
        let error = server.recv_blocking().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.text().contains(&SIZES[i].to_string()), "{error}");
        block_for(Duration::from_secs(10), client.closed()).expect("the peer hears of it");
    }
}

fn plan_later(bed: &Bed) {
    let (client, mut server) = pair(bed, &planned(|_| RecvPlan::Later));
    for (i, size) in SIZES.into_iter().enumerate() {
        for how in 0..6 {
            send(&client, i);
            client.send(&b"next"[..]).unwrap();
            let pending = expect_pending(server.recv_blocking().unwrap(), i);
            let fetched = match how {
                0 => Some(pending.fetch(RecvBuf::Bytes(BytesMut::zeroed(size)))),
                1 => Some(pending.fetch(RecvBuf::Aligned(AlignedBuf::new(size + 9, 4096)))),
                2 => Some(pending.fetch_pooled()),
                3 => {
                    pending.refuse();
                    None
                }
                4 => {
                    drop(pending);
                    None
                }
                _ => {
                    let error = block_on(pending.fetch(RecvBuf::Bytes(BytesMut::zeroed(SIZES[i] - 1)))).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Invalid);
                    None
                }
            };
            if let Some(fetch) = fetched {
                let buf = block_on(fetch).unwrap();
                assert_eq!(Sum::of(&[], buf.as_slice()), Sum::of(&[], &body(i)), "fetched in way {how}");
            }
            assert_eq!(server.recv_blocking().unwrap().head, "next", "after a body of {} in way {how}", SIZES[i]);
        }
    }
}

/// Several bodies wait for a decision at once where the transport lets frames pass each other; everywhere they are
/// decided in any order without harm to the rest.
fn plan_later_undecided(bed: &Bed) {
    let (client, mut server) = pair(bed, &planned(|_| RecvPlan::Later));
    let sizes = 0..SIZES.len();
    for i in sizes.clone() {
        send(&client, i);
    }
    if bed.backend.is_ucx() {
        let mut waiting: Vec<_> = sizes.clone().map(|i| expect_pending(server.recv_blocking().unwrap(), i)).collect();
        for i in sizes.rev() {
            let buf = block_on(waiting.pop().unwrap().fetch_pooled()).unwrap();
            assert_eq!(Sum::of(&[], buf.as_slice()), Sum::of(&[], &body(i)));
        }
    } else {
        for i in sizes {
            let pending = expect_pending(server.recv_blocking().unwrap(), i);
            assert!(server.try_recv().unwrap().is_none(), "frames pass a body that is not fetched");
            drop(pending.fetch_pooled());
        }
    }
    client.send(&b"end"[..]).unwrap();
    assert_eq!(server.recv_blocking().unwrap().head, "end");
}

/// A body that is pending when the connection ends: fetching it fails, and nothing leaks.
fn plan_later_and_close(bed: &Bed) {
    for abort in [true, false] {
        for i in [1, 4, 9] {
            let (client, mut server) = pair(bed, &planned(|_| RecvPlan::Later));
            send(&client, i);
            let pending = expect_pending(server.recv_blocking().unwrap(), i);
            if abort {
                client.abort();
                server.abort();
                block_on(client.closed());
                block_on(server.closed());
                let error = block_on(pending.fetch_pooled()).unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::Closed | ErrorKind::Reset), "{error}");
            } else {
                // An orderly close waits for the decision: the body was promised.
                let sender = client.sender();
                let closing = std::thread::spawn(move || block_on(sender.close()));
                let buf = block_on(pending.fetch_pooled()).unwrap();
                assert_eq!(Sum::of(&[], buf.as_slice()), Sum::of(&[], &body(i)));
                closing.join().unwrap().unwrap();
                assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
            }
        }
    }
}

/// An application may take longer to decide than a silent peer may be silent: neither side is silent.
fn plan_later_slowly(bed: &Bed) {
    let keepalive = Some(Keepalive { interval: Duration::from_millis(300), deadline: Duration::from_millis(1000) });
    let server = ConnectionConfig { keepalive, ..planned(|_| RecvPlan::Later) };
    let client = ConnectionConfig { keepalive, ..ConnectionConfig::default() };
    let (client, mut server) = bed.pair_with(&client, &server);
    send(&client, 9);
    client.send(&b"next"[..]).unwrap();
    let pending = expect_pending(server.recv_blocking().unwrap(), 9);
    for end in [client.sender(), server.sender()] {
        let early = block_for(Duration::from_millis(1500), end.closed());
        assert!(early.is_none(), "{early:?} while the application thinks");
    }
    let buf = block_on(pending.fetch_pooled()).unwrap();
    assert_eq!(Sum::of(&[], buf.as_slice()), Sum::of(&[], &body(9)));
    assert_eq!(server.recv_blocking().unwrap().head, "next");
}

fn plan_refuse(bed: &Bed) {
    let plan = |a: &Announcement<'_>| {
        if a.head[0].is_multiple_of(2) { RecvPlan::Refuse("even".into()) } else { RecvPlan::Pool }
    };
    let (client, mut server) = pair(bed, &planned(plan));
    let (rounds, mut refused) = (20, 0);
    for _ in 0..rounds {
        for i in 0..SIZES.len() {
            let head = vec![i as u8];
            // More than the window altogether: what is refused gives its credit back.
            let sending = client.send_wait(Frame::new(head, body(i)));
            block_for(Duration::from_secs(20), sending).expect("refused frames keep their credit").unwrap();
            if i % 2 == 0 {
                refused += 1;
            } else {
                expect_body(server.recv_blocking().unwrap(), i);
            }
        }
    }
    client.send(&b"last"[..]).unwrap();
    assert_eq!(server.recv_blocking().unwrap().head, "last");
    assert_eq!(server.stats().refused, refused);
    assert_eq!(bed.server.stats().refused_bodies, refused);
    eventually("the sender hears of each refusal", || client.stats().refused_by_peer == refused);
    assert!(server.try_recv().unwrap().is_none());
    block_on(client.close()).unwrap();
}

/// A planner that panics ends its own connection and no other.
fn plan_panics(bed: &Bed) {
    // The panic is meant; its message would only confuse.
    std::panic::set_hook(Box::new(|info| {
        if std::thread::current().name() != Some("server") {
            eprintln!("{info}");
        }
    }));
    let plan = |a: &Announcement<'_>| if a.head[0] == 4 { panic!("a bad planner") } else { RecvPlan::Pool };
    let mut listener = bed.listen_as(&planned(plan));
    let (bad_client, mut bad_server) = bed.pair_on(&mut listener, &ConnectionConfig::default());
    let (client, mut server) = bed.pair_on(&mut listener, &ConnectionConfig::default());
    send(&bad_client, 1);
    expect_body(bad_server.recv_blocking().unwrap(), 1);
    send(&bad_client, 4);
    let error = bad_server.recv_blocking().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.text().contains("panicked"), "{error}");
    block_for(Duration::from_secs(10), bad_client.closed()).expect("the peer hears of it");
    for i in [1, 5, 9] {
        send(&client, i);
        expect_body(server.recv_blocking().unwrap(), i);
    }
    block_on(client.close()).unwrap();
}

/// The planner is asked once for every frame with a body, with its head and length, and never for others.
fn plan_once(bed: &Bed) {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let plan = move |a: &Announcement<'_>| {
        assert_eq!(a.body_len, SIZES[a.head[0] as usize] as u64);
        count.fetch_add(1, Ordering::SeqCst);
        RecvPlan::Pool
    };
    let (client, mut server) = pair(bed, &planned(plan));
    for (i, size) in SIZES.into_iter().enumerate() {
        send(&client, i);
        client.send(vec![0; size.min(100_000)]).unwrap();
        expect_body(server.recv_blocking().unwrap(), i);
        assert_eq!(server.recv_blocking().unwrap().body.len(), 0);
    }
    assert_eq!(asked.load(Ordering::SeqCst), SIZES.len() as u32);
}

/// A pending body is no data yet: sending it is refused, and the connection that it came on is not harmed.
fn send_of_pending(bed: &Bed) {
    let (client, mut server) = pair(bed, &planned(|_| RecvPlan::Later));
    send(&client, 8);
    let pending = expect_pending(server.recv_blocking().unwrap(), 8);
    let sent = server.send(Frame::new(vec![1], Body::Pending(pending)));
    let Err(SendError::Invalid(back, error)) = sent else { panic!("a pending body was sent") };
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let Body::Pending(pending) = back.body else { panic!("it comes back") };
    assert_eq!(Sum::of(&[], block_on(pending.fetch_pooled()).unwrap().as_slice()), Sum::of(&[], &body(8)));
}
