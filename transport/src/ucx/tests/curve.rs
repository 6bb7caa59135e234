//! A peer that speaks Curve's wire by hand against a dispatcher's `ucx+cm://`, both ways round.

use std::net::SocketAddr;

use bytes::Bytes;

use super::*;
use crate::{
    Address, Connection, ConnectionConfig, Dispatcher, DispatcherConfig, ErrorKind, Frame, ListenConfig, Listener,
};

fn header(ver: u16, cmd: u16, pad: u16, sn: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [ver, cmd, pad, 0] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(&sn.to_le_bytes());
    bytes
}

const NO_FEATURES: [u8; 16] = [0; 16];

/// The hand-made peer.
struct Hand {
    group: Group,
}

impl Hand {
    fn send(&mut self, ep: EndpointId, header: &[u8], payload: &[u8]) {
        let _ = self.group.workers[0].send_copy(ep, header, [payload, b""], 0).expect("sends");
    }

    fn announce(&mut self, ep: EndpointId, header: &[u8], payload: Vec<u8>) {
        let payload = Payload::Bytes(Bytes::from(payload));
        let _ = self.group.workers[0].send_owned(ep, header, payload, Mode::Rendezvous, 0).expect("sends");
    }

    fn dial(&mut self, to: &Address) -> EndpointId {
        let hp = to.host_port().expect("has a port");
        self.group.workers[0].connect_cm(hp.literal().expect("an address")).expect("dials")
    }

    /// The next message, whatever else happens.
    fn hear(&mut self, ep: EndpointId) -> (Vec<u8>, Bytes) {
        self.group.until("a message", |_, event| match event {
            Event::Message { header, data, from } if from == Some(ep) => Some((header.to_vec(), data)),
            Event::EndpointFailed { ep: failed, error } if failed == ep => panic!("{error}"),
            _ => None,
        })
    }

    fn open(&mut self, listener: &mut Listener) -> (EndpointId, Connection) {
        let ep = self.dial(listener.local_address());
        // Their filler is at the front of handshakes, too.
        self.send(ep, &header(0, 3, 3, 0), &[&[9; 3][..], &NO_FEATURES].concat());
        let (reply, content) = self.hear(ep);
        assert_eq!((reply, &content[..]), (header(0, 4, 0, 0), &NO_FEATURES[..]));
        (ep, self.wait("accept", || listener.try_accept().expect("listens")))
    }

    fn wait<T>(&mut self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < deadline, "timed out: {what}");
            self.group.spin(10);
        }
    }

    fn frame(&mut self, connection: &mut Connection) -> Bytes {
        self.wait("a frame", || connection.try_recv().expect("open")).head
    }

    fn ended(&mut self, ep: EndpointId) {
        self.group.until("the end", |_, event| match event {
            Event::EndpointFailed { ep: failed, .. } if failed == ep => Some(()),
            _ => None,
        });
        self.group.workers[0].close(ep);
    }
}

fn dispatcher() -> Dispatcher {
    Dispatcher::spawn(DispatcherConfig::default()).expect("starts")
}

pub(super) fn accepting() {
    let dispatcher = dispatcher();
    let connection = ConnectionConfig { max_message: 1 << 20, ..ConnectionConfig::default() };
    let config = ListenConfig { connection, ..ListenConfig::default() };
    let address = "ucx+cm://127.0.0.1:0".parse().expect("an address");
    let mut listener = dispatcher.listen(&address, config).expect("listens");
    let mut hand = Hand { group: Group::of(1) };
    let (ep, mut good) = hand.open(&mut listener);
    talk(&mut hand, ep, &mut good);
    refuse_handshakes(&mut hand, &listener);
    refuse_messages(&mut hand, &mut listener);
    hand.send(ep, &header(0, 0, 0, 7), b"still here");
    assert_eq!(hand.frame(&mut good), "still here", "one peer's mistakes are nobody else's");
    hand.group.workers[0].close(ep);
    let end = hand.wait("the end", || good.error().cloned());
    assert_eq!(end.kind(), ErrorKind::Reset);
    assert!(end.text().contains("does not tell"), "{end}");
    drop((good, listener));
    hand.group.until_all_zero();
    dispatcher.shutdown();
    hand.group.end();
}

/// Data, filler, order, pings.
fn talk(hand: &mut Hand, ep: EndpointId, good: &mut Connection) {
    hand.send(ep, &header(0, 0, 2, 1), b"..data");
    assert_eq!(hand.frame(good), "data");
    let large = pattern(400_000, 5);
    hand.announce(ep, &header(0, 0, 4, 2), [b"....", &large[..]].concat());
    hand.send(ep, &header(0, 0, 0, 3), b"");
    assert!(hand.frame(good) == large);
    assert_eq!(hand.frame(good), "");
    // Numbered the other way round.
    hand.send(ep, &header(0, 0, 0, 5), b"second");
    hand.send(ep, &header(0, 0, 1, 4), b".first");
    assert_eq!((hand.frame(good), hand.frame(good)), (Bytes::from("first"), Bytes::from("second")));
    hand.send(ep, &header(0, 1, 1, 6), b".whatever it is");
    let (reply, content) = hand.hear(ep);
    assert_eq!((reply, content), (header(0, 2, 0, 1), Bytes::from("whatever it is")));
    good.send(Frame::new(&b"head"[..], Bytes::from("body"))).expect("open");
    let (reply, content) = hand.hear(ep);
    assert_eq!((reply, content), (header(0, 0, 0, 2), Bytes::from("headbody")));
}

fn refuse_handshakes(hand: &mut Hand, listener: &Listener) {
    let hellos = [
        (header(0, 0, 0, 0), vec![0; 16]),
        (header(0, 4, 0, 0), vec![0; 16]),
        (header(1, 3, 0, 0), vec![0; 16]),
        (header(0, 3, 17, 0), vec![0; 16]),
        (header(0, 3, 0, 0), vec![0; 15]),
        (header(0, 3, 0, 0), [&1_u64.to_le_bytes()[..], &[0; 8]].concat()),
        (b"short".to_vec(), vec![0; 16]),
    ];
    for (header, payload) in hellos {
        let ep = hand.dial(listener.local_address());
        hand.send(ep, &header, &payload);
        hand.ended(ep);
    }
    let ep = hand.dial(listener.local_address());
    hand.announce(ep, &header(0, 3, 0, 0), vec![0; 16]);
    hand.ended(ep);
}

fn refuse_messages(hand: &mut Hand, listener: &mut Listener) {
    let messages = [
        (header(1, 0, 0, 1), vec![0; 9], ErrorKind::Protocol),
        (header(0, 5, 0, 1), vec![], ErrorKind::Protocol),
        (header(0, 0, 10, 1), vec![0; 9], ErrorKind::Protocol),
        (header(0, 0, 0, 0), vec![], ErrorKind::Protocol),
        (header(0, 0, 0, 1 << 32 | 1), vec![], ErrorKind::Protocol),
        (header(0, 0, 0, u64::MAX), vec![], ErrorKind::Protocol),
        (header(0, 3, 0, 1), vec![0; 16], ErrorKind::Protocol),
        (header(0, 1, 0, 1), vec![0; 1025], ErrorKind::Protocol),
        (header(0, 0, 0, 1)[..15].to_vec(), vec![], ErrorKind::Protocol),
        ([&header(0, 0, 0, 1)[..], b"x"].concat(), vec![], ErrorKind::Protocol),
        (vec![], vec![], ErrorKind::Protocol),
        (header(0, 0, 0, 1), vec![0; (1 << 20) + 1], ErrorKind::Limit),
    ];
    for (header, payload, kind) in messages {
        let (ep, server) = hand.open(listener);
        hand.send(ep, &header, &payload);
        hand.ended(ep);
        let end = server.error().expect("ended");
        assert_eq!(end.kind(), kind, "{header:?}: {end}");
    }
    for (header, len, kind) in [
        (header(0, 0, 0, 1), (1 << 20) + 1, ErrorKind::Limit),
        (header(0, 0, 5, 1), 4, ErrorKind::Protocol),
        (header(0, 1, 0, 1), 8, ErrorKind::Protocol),
        (header(0, 0, 0, 1 << 20), 8, ErrorKind::Protocol),
    ] {
        let (ep, server) = hand.open(listener);
        hand.announce(ep, &header, vec![0; len]);
        hand.ended(ep);
        let end = server.error().expect("ended");
        assert_eq!(end.kind(), kind, "{header:?}: {end}");
    }
}

pub(super) fn dialling() {
    let dispatcher = dispatcher();
    let mut hand = Hand { group: Group::of(1) };
    let at = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = hand.group.workers[0].listen_cm(at).expect("listens");
    let address: Address = format!("ucx+cm://127.0.0.1:{}", listener.addr().port()).parse().expect("an address");
    let needed = [&4_u64.to_le_bytes()[..], &4_u64.to_le_bytes()].concat();
    for (answer, content, kind) in [
        (header(0, 4, 0, 0), NO_FEATURES.to_vec(), None),
        (header(0, 4, 0, 0), needed, Some(ErrorKind::Version)),
        (header(0, 3, 0, 0), NO_FEATURES.to_vec(), Some(ErrorKind::Protocol)),
        (header(0, 0, 0, 0), b"early".to_vec(), Some(ErrorKind::Protocol)),
        (header(0, 4, 0, 0), vec![0; 3], Some(ErrorKind::Protocol)),
    ] {
        let mut client = dispatcher.connect(&address, ConnectionConfig::default()).into_connection();
        let request = hand.group.until("a request", |_, event| match event {
            Event::ConnRequest { request, .. } => Some(request),
            _ => None,
        });
        let ep = hand.group.workers[0].accept_cm(request).expect("accepts");
        let (hello, features) = hand.hear(ep);
        assert_eq!((hello, &features[..]), (header(0, 3, 0, 0), &NO_FEATURES[..]));
        hand.send(ep, &answer, &content);
        if let Some(kind) = kind {
            hand.ended(ep);
            let end = client.error().expect("ended");
            assert_eq!(end.kind(), kind, "{end}");
            continue;
        }
        hand.wait("open", || client.is_open().then_some(()));
        hand.send(ep, &header(0, 0, 0, 1), b"hello");
        assert_eq!(hand.frame(&mut client), "hello");
        // A close waits for the answer to a ping, after everything else.
        client.send(&b"last"[..]).expect("open");
        drop(client);
        assert_eq!(hand.hear(ep), (header(0, 0, 0, 1), Bytes::from("last")));
        let (ping, content) = hand.hear(ep);
        assert_eq!(ping, header(0, 1, 0, 2));
        hand.send(ep, &header(0, 2, 0, 2), &content);
        hand.ended(ep);
    }
    hand.group.workers[0].close_listener(listener);
    hand.group.until_all_zero();
    dispatcher.shutdown();
    hand.group.end();
}
