//! The contract, case by case.

use bytes::Bytes;
use ucrpc::transport::{Connection, ConnectionConfig, ErrorKind, Frame};

use crate::bed::{Bed, block_on};

pub type Case = (&'static str, fn(&Bed));

pub const CASES: &[Case] =
    &[("echo", echo), ("sizes", sizes), ("close_with_data_in_flight", close_with_data_in_flight)];

/// Bytes that depend on a seed and are no repetition of a short pattern.
fn random_bytes(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

fn echo(bed: &Bed) {
    let (mut client, mut server) = bed.pair(ConnectionConfig::default());
    for i in 0..1000_u32 {
        client.send(i.to_le_bytes().to_vec()).unwrap();
        let frame = server.recv_blocking().unwrap();
        assert_eq!(frame.head, i.to_le_bytes().as_slice());
        server.send(frame).unwrap();
        assert_eq!(client.recv_blocking().unwrap().head, i.to_le_bytes().as_slice());
    }
    block_on(client.close()).unwrap();
    assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
}

fn exchange(from: &Connection, to: &mut Connection, head: Bytes, body: Bytes) {
    let (sum_head, sum_body) = (crc32c::crc32c(&head), crc32c::crc32c(&body));
    let lengths = (head.len(), body.len());
    block_on(from.send_wait(Frame::new(head, body))).unwrap();
    let got = to.recv_blocking().unwrap();
    let body = got.body.into_bytes().unwrap();
    assert_eq!((got.head.len(), body.len()), lengths);
    assert_eq!((crc32c::crc32c(&got.head), crc32c::crc32c(&body)), (sum_head, sum_body));
}

fn sizes(bed: &Bed) {
    let config = ConnectionConfig { max_message: 256 << 20, ..ConnectionConfig::default() };
    let (mut client, mut server) = bed.pair(config);
    let around =
        [0, 1, 64, 92, 512, 1 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20];
    for (i, middle) in around.into_iter().enumerate() {
        for len in [middle.max(1) - 1, middle, middle + 1] {
            let body = random_bytes(i as u64 + 7, len);
            exchange(&client, &mut server, Bytes::new(), body.clone());
            exchange(&server, &mut client, Bytes::from_static(b"head"), body.clone());
            if len <= 1 << 20 {
                exchange(&client, &mut server, body.clone(), Bytes::new());
                exchange(&client, &mut server, body.slice(..len.min(5000)), body);
            }
        }
    }
    exchange(&client, &mut server, Bytes::from_static(b"largest"), random_bytes(3, (256 << 20) - 7));
}

fn close_with_data_in_flight(bed: &Bed) {
    let (client, mut server) = bed.pair(ConnectionConfig::default());
    let frames = 500_usize;
    let sender = client.sender();
    let sending = std::thread::spawn(move || {
        for i in 0..frames {
            let body = random_bytes(i as u64, i * 97 % 70_000);
            block_on(sender.send_wait(Frame::new(i.to_le_bytes().to_vec(), body))).unwrap();
        }
        block_on(sender.close())
    });
    for i in 0..frames {
        let frame = server.recv_blocking().unwrap();
        assert_eq!(frame.head, i.to_le_bytes().as_slice());
        assert_eq!(frame.body.into_bytes().unwrap(), random_bytes(i as u64, i * 97 % 70_000));
    }
    assert_eq!(server.recv_blocking().unwrap_err().kind(), ErrorKind::PeerClosed);
    sending.join().unwrap().unwrap();
    drop(client);
}
