use std::io::Read as _;

use proptest::prelude::*;

use super::*;

fn writer() -> Writer {
    Writer::new(&Mode::Native)
}

fn push(writer: &mut Writer, sent: &Sent) {
    writer.push(&sent.header, sent.head.clone().into(), sent.body.clone().into());
}

fn control(seed: usize) -> Sent {
    let mut sent = frame(seed, seed % 40, 0);
    *sent.header.last_mut().unwrap() = 0xc0;
    sent
}

/// Everything the writer holds, as the peer sees it, with `budget` bytes for each flush.
fn drain(writer: &mut Writer, stream: &Stream, peer: &mut impl std::io::Read, budget: usize) -> Vec<u8> {
    let (mut wire, mut buf) = (vec![], vec![0; 300_000]);
    loop {
        let (before, mut left) = (writer.pending_bytes(), budget);
        let end = writer.flush(stream, &mut left).unwrap();
        let sent = (before - writer.pending_bytes()) as usize;
        assert_eq!(budget - left, sent, "the budget counts what was sent");
        peer.read_exact(&mut buf[..sent]).unwrap();
        wire.extend_from_slice(&buf[..sent]);
        assert_eq!(end == FlushEnd::Done, writer.pending_bytes() == 0);
        match end {
            FlushEnd::Done => return wire,
            FlushEnd::Budget => assert_eq!(left, 0),
            FlushEnd::WouldBlock => assert!(left > 0),
        }
    }
}

fn on_wire<'a>(frames: impl IntoIterator<Item = &'a Sent>) -> Vec<u8> {
    frames.into_iter().flat_map(Sent::on_wire).collect()
}

#[test]
fn frames_of_every_kind_in_order() {
    let sizes = [0, 1, 511, 512, 513, 4095, 4096, 4097, 16_383, 16_385, 65_536, 200_000];
    let frames: Vec<_> = sizes.iter().enumerate().map(|(i, &body)| frame(i, i * 50, body)).collect();
    for budget in [1000, 4096, usize::MAX] {
        let (ours, mut theirs) = unix_pair();
        let mut writer = writer();
        frames.iter().for_each(|f| push(&mut writer, f));
        assert_eq!(writer.pending_bytes(), on_wire(&frames).len() as u64);
        assert!(drain(&mut writer, &ours, &mut theirs, budget) == on_wire(&frames));
        assert_eq!((writer.frames_done(), writer.frames_done()), (frames.len() as u64, 0));
        assert!(writer.is_idle(), "an idle writer holds no buffer");
    }
}

#[test]
fn a_break_at_every_byte() {
    let (ours, mut theirs) = unix_pair();
    let mut writer = writer();
    let frames = [frame(0, 0, 0), frame(1, 3, 2), frame(2, 600, 700), frame(3, 10, 5000), frame(4, 1, 1)];
    frames.iter().for_each(|f| push(&mut writer, f));
    assert!(drain(&mut writer, &ours, &mut theirs, 1) == on_wire(&frames));
    assert_eq!(writer.frames_done(), 5);
}

#[test]
fn segments_go_out_as_one_body() {
    let (ours, mut theirs) = unix_pair();
    let mut writer = writer();
    // More slices than one sendmsg takes, long and short ones, empty ones.
    let parts: Vec<Bytes> = (0..200).map(|i| Bytes::from(vec![i as u8; [0, 3, 600, 1000][i % 4]])).collect();
    let (body, empty) = (parts.concat(), Body::Segments(vec![]));
    let single = Body::Segments(vec![Bytes::from_static(b"one")]);
    let header = [7; 16];
    writer.push(&header, Bytes::from_static(b"head"), Body::Segments(parts));
    writer.push(&header, Bytes::new(), empty);
    writer.push(&header, Bytes::new(), single);
    let sent = |head: &[u8], body: &[u8]| Sent { header: header.to_vec(), head: head.into(), body: body.into() };
    let expected = on_wire(&[sent(b"head", &body), sent(b"", b""), sent(b"", b"one")]);
    assert!(drain(&mut writer, &ours, &mut theirs, usize::MAX) == expected);
    assert_eq!(writer.frames_done(), 3);
}

#[test]
fn control_goes_ahead_of_data_that_has_not_begun() {
    let (ours, mut theirs) = unix_pair();
    let mut writer = writer();
    let (data, ping, pong) = (frame(0, 3, 100_000), control(1), control(2));
    push(&mut writer, &data);
    writer.push_front_control(&ping.header, &ping.head);
    writer.push_front_control(&pong.header, &pong.head);
    assert!(drain(&mut writer, &ours, &mut theirs, usize::MAX) == on_wire(&[ping, pong, data]));
    assert_eq!(writer.frames_done(), 1, "control frames are not counted: they were not queued in front of anything");
}

#[test]
fn control_never_splits_a_frame() {
    let frames = [frame(0, 20, 30), frame(1, 600, 9000), frame(2, 5, 0)];
    let pings = [control(1), control(2)];
    let total = on_wire(&frames).len();
    for cut in 1..total {
        let (ours, mut theirs) = unix_pair();
        let mut writer = writer();
        frames.iter().for_each(|f| push(&mut writer, f));
        let mut wire = vec![0; cut];
        assert_eq!(writer.flush(&ours, &mut cut.clone()).unwrap(), FlushEnd::Budget);
        theirs.read_exact(&mut wire).unwrap();
        pings.iter().for_each(|p| writer.push_front_control(&p.header, &p.head));
        wire.extend(drain(&mut writer, &ours, &mut theirs, usize::MAX));
        // The pings follow the frame that the cut is in, or stand where the cut is between two frames.
        let mut begun = 0;
        while on_wire(&frames[..begun]).len() < cut {
            begun += 1;
        }
        let expected = on_wire(frames[..begun].iter().chain(&pings).chain(&frames[begun..]));
        assert!(wire == expected, "cut at {cut}");
        assert_eq!(writer.frames_done(), 3);
    }
}

#[test]
fn a_half_sent_control_frame_is_finished_first() {
    let (ours, mut theirs) = unix_pair();
    let mut writer = writer();
    let (data, ping, pong) = (frame(0, 3, 9), control(13), control(14));
    writer.push_front_control(&ping.header, &ping.head);
    assert_eq!(writer.flush(&ours, &mut 5).unwrap(), FlushEnd::Budget);
    push(&mut writer, &data);
    writer.push_front_control(&pong.header, &pong.head);
    let mut wire = vec![0; 5];
    theirs.read_exact(&mut wire).unwrap();
    wire.extend(drain(&mut writer, &ours, &mut theirs, 3));
    assert!(wire == on_wire(&[ping, pong, data]));
}

/// Fills the socket until it takes nothing more.
fn full_pair() -> (Stream, unix::net::UnixStream, usize) {
    let (ours, theirs) = unix_pair();
    let mut filled = 0;
    while let Ok(n) = ours.write(&[0; 1000]) {
        filled += n;
    }
    (ours, theirs, filled)
}

#[test]
fn sending_at_once_falls_back_to_the_queue() {
    for size in [0, 10, 500, 3000, 4096, 5000, 100_000] {
        let (ours, mut theirs, filled) = full_pair();
        let mut writer = writer();
        let sent = frame(0, 7, size);
        let send = |writer: &mut Writer, s: &Sent| {
            writer.send_now(&ours, &s.header, s.head.clone().into(), s.body.clone().into()).unwrap()
        };
        assert_eq!(send(&mut writer, &sent), FlushEnd::WouldBlock);
        assert_eq!(writer.pending_bytes(), sent.on_wire().len() as u64);
        assert_eq!(send(&mut writer, &frame(1, 2, 3)), FlushEnd::WouldBlock);
        assert_eq!(writer.frames_done(), 0);
        theirs.read_exact(&mut vec![0; filled]).unwrap();
        assert!(drain(&mut writer, &ours, &mut theirs, usize::MAX) == on_wire(&[sent.clone(), frame(1, 2, 3)]));
        assert_eq!(send(&mut writer, &sent), FlushEnd::Done);
        let mut wire = vec![0; sent.on_wire().len()];
        theirs.read_exact(&mut wire).unwrap();
        assert!(wire == sent.on_wire());
        assert_eq!((writer.frames_done(), writer.is_idle()), (3, true));
    }
}

#[test]
fn buffers_are_dropped_with_their_frame() {
    use crate::memory::{Pool, PoolConfig, Purpose};
    let pool = Pool::new(&PoolConfig::default());
    let (ours, mut theirs) = unix_pair();
    let mut writer = writer();
    for _ in 0..2 {
        let buf = pool.get(20_000, Purpose::Send).unwrap();
        writer.push(&[0; 16], Bytes::new(), Body::Buf(RecvBuf::Pool(buf)));
    }
    let one = pool.stats().send_in_use / 2;
    let frame = 20_000 + 24;
    writer.flush(&ours, &mut (frame - 1)).unwrap();
    assert_eq!((pool.stats().send_in_use, writer.frames_done()), (2 * one, 0));
    writer.flush(&ours, &mut 1).unwrap();
    assert_eq!((pool.stats().send_in_use, writer.frames_done()), (one, 1));
    writer.flush(&ours, &mut usize::MAX.clone()).unwrap();
    assert_eq!((pool.stats().send_in_use, writer.frames_done()), (0, 1));
    theirs.read_exact(&mut vec![0; 2 * frame]).unwrap();
}

#[test]
fn a_foreign_frame_goes_out_bare() {
    let (ours, mut theirs) = unix_pair();
    let mut writer = Writer::new(&Toy::mode());
    let frames = [Toy::frame(0, 3, 4), Toy::frame(1, 5, 50_000)];
    for f in &frames {
        writer.push(&[], f.head.clone().into(), f.body.clone().into());
    }
    let expected: Vec<u8> = frames.iter().flat_map(|f| [&f.head[..], &f.body].concat()).collect();
    assert!(drain(&mut writer, &ours, &mut theirs, usize::MAX) == expected);
    let f = &frames[0];
    writer.send_now(&ours, &[], f.head.clone().into(), f.body.clone().into()).unwrap();
    let mut wire = vec![0; f.head.len() + f.body.len()];
    theirs.read_exact(&mut wire).unwrap();
    assert_eq!((wire, writer.frames_done()), ([&f.head[..], &f.body].concat(), 3));
}

#[test]
fn a_peer_that_is_gone_is_an_error_and_no_signal() {
    for size in [10, 2000, 100_000] {
        let (ours, theirs) = unix_pair();
        hang_up(theirs, &ours);
        let mut writer = writer();
        let error = writer.send_now(&ours, &[0; 16], vec![0; size].into(), Body::Empty).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Reset);
    }
}

#[test]
fn a_long_backlog_does_not_keep_what_was_sent() {
    let (ours, mut theirs) = unix_pair();
    let mut writer = writer();
    let one = frame(0, 500, 500);
    let wire = one.on_wire().len();
    for _ in 0..300 {
        push(&mut writer, &one);
    }
    // The queue never runs dry, and 20 times its length goes through.
    for _ in 0..6000 {
        push(&mut writer, &one);
        assert_eq!(writer.flush(&ours, &mut wire.clone()).unwrap(), FlushEnd::Budget);
        theirs.read_exact(&mut vec![0; wire]).unwrap();
    }
    assert_eq!(writer.pending_bytes(), 300 * wire as u64);
    assert!(writer.staging_capacity() < 4 * 300 * wire, "{} bytes", writer.staging_capacity());
}

fn sizes() -> impl Strategy<Value = (usize, usize)> {
    let head = prop_oneof![8 => 0..300_usize, 1 => 4090..4100_usize, 1 => 0..20_000_usize];
    let body = prop_oneof![4 => Just(0), 6 => 0..600_usize, 2 => 3900..4200_usize, 2 => 0..60_000_usize];
    (head, body)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Over a socket with the smallest send buffer there is, through the reader at the other end.
    #[test]
    fn any_frames_through_a_narrow_socket(
        actions in prop::collection::vec((sizes(), 0..4_usize, 1..20_000_usize), 1..40),
        over_tcp: bool,
    ) {
        let (ours, peer) = narrow_pair(over_tcp);
        let mut writer = writer();
        let mut reader = Reader::new(Mode::Native, LIMITS);
        let mut sink = Memory::new(|_| Choice::Bytes);
        let mut scratch = vec![0; 8192];
        let (mut data, mut pings) = (vec![], vec![]);
        let mut done = 0;
        for (i, ((head, body), action, amount)) in actions.into_iter().enumerate() {
            match action {
                0 => {
                    let ping = control(i);
                    writer.push_front_control(&ping.header, &ping.head);
                    pings.push(ping);
                }
                1 => {
                    let f = data_frame(i, head, body);
                    writer.send_now(&ours, &f.header, f.head.clone().into(), f.body.clone().into()).unwrap();
                    data.push(f);
                }
                _ => {
                    let f = data_frame(i, head, body);
                    let (one, two) = f.body.split_at(f.body.len() / 3);
                    let parts = vec![Bytes::copy_from_slice(one), Bytes::copy_from_slice(two)];
                    writer.push(&f.header, f.head.clone().into(), Body::Segments(parts));
                    data.push(f);
                }
            }
            writer.flush(&ours, &mut amount.clone()).unwrap();
            reader.read(&peer, &mut scratch, &mut amount.clone(), &mut sink).unwrap();
            done += writer.frames_done();
        }
        let started = std::time::Instant::now();
        while sink.got.len() < data.len() + pings.len() {
            prop_assert!(started.elapsed().as_secs() < 20, "frames got lost");
            writer.flush(&ours, &mut usize::MAX.clone()).unwrap();
            reader.read(&peer, &mut scratch, &mut usize::MAX.clone(), &mut sink).unwrap();
        }
        done += writer.frames_done();
        prop_assert_eq!(done, data.len() as u64);
        prop_assert_eq!(writer.pending_bytes(), 0);
        let (got_pings, got_data): (Vec<_>, Vec<_>) = sink.got.into_iter().partition(|f| f.header.ends_with(&[0xc0]));
        prop_assert!(got_data == data);
        prop_assert!(got_pings == pings);
    }
}

fn data_frame(seed: usize, head: usize, body: usize) -> Sent {
    let mut sent = frame(seed, head, body);
    *sent.header.last_mut().unwrap() = 0xda;
    sent
}

fn narrow_pair(over_tcp: bool) -> (Stream, Stream) {
    let (ours, peer) = if over_tcp {
        let (ours, theirs) = tcp_pair();
        theirs.set_nonblocking(true).unwrap();
        (ours, Stream::Tcp(TcpStream::from_std(theirs)))
    } else {
        let (ours, theirs) = unix_pair();
        theirs.set_nonblocking(true).unwrap();
        (ours, Stream::Unix(UnixStream::from_std(theirs)))
    };
    socket2::SockRef::from(&ours).set_send_buffer_size(1).unwrap();
    (ours, peer)
}
