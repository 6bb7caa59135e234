use std::io::Write;

use proptest::prelude::*;

use super::*;

/// Sends `bytes` in pieces as the sizes in `cuts` say (over and over), and reads after each piece.
fn receive(
    mode: Mode,
    bytes: &[u8],
    cuts: &[usize],
    scratch: usize,
    budget: usize,
    sink: &mut Memory,
) -> Result<ReadEnd, Error> {
    let (ours, mut theirs) = unix_pair();
    let mut reader = Reader::new(mode, LIMITS);
    let mut scratch = vec![0; scratch];
    let (mut at, mut sizes) = (0, cuts.iter().cycle());
    while at < bytes.len() {
        // More would not fit the socket, and nobody reads while we write.
        let size = (*sizes.next().unwrap()).min(bytes.len() - at).min(65_536);
        theirs.write_all(&bytes[at..at + size]).unwrap();
        at += size;
        assert_eq!(pump(&mut reader, &ours, &mut scratch, budget, sink)?, ReadEnd::Drained);
    }
    assert_eq!(reader.pending_capacity(), 0, "an idle reader holds no buffer");
    hang_up(theirs, &ours);
    reader.expect_end();
    pump(&mut reader, &ours, &mut scratch, budget, sink)
}

fn check_all(frames: &[Sent], cuts: &[usize], scratch: usize) {
    let wire: Vec<u8> = frames.iter().flat_map(Sent::on_wire).collect();
    let mut sink = Memory::new(|_| Choice::Bytes);
    let end = receive(Mode::Native, &wire, cuts, scratch, usize::MAX, &mut sink).unwrap();
    assert_eq!(end, ReadEnd::Eof { mid_frame: false });
    assert_eq!(sink.headers, frames.len());
    assert!(sink.got == frames);
}

#[test]
fn sizes_around_every_threshold_arrive_whole() {
    let sizes = [0, 1, 2, 511, 4095, 4096, 4097, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 1 << 20];
    let around_scratch = (65_536 - 60..=65_536 + 4).step_by(4);
    for body in sizes.into_iter().chain(around_scratch) {
        let frames: Vec<_> = [0, 1, 200].iter().enumerate().map(|(i, &head)| frame(i, head, body)).collect();
        check_all(&frames, &[1 << 20], 65_536);
        check_all(&frames, &[65_536, 7, 4096], 65_536);
    }
    for head in [4095, 4096, 4097, 16_384, 65_535, 65_536] {
        check_all(&[frame(3, head, 0), frame(1, head, 20_000), frame(2, head, 5)], &[50_000], 65_536);
    }
}

#[test]
fn one_byte_at_a_time() {
    let frames = [frame(0, 0, 0), frame(1, 3, 0), frame(2, 0, 5), frame(3, 7, 300), frame(4, 2, 16_385)];
    check_all(&frames, &[1], 65_536);
}

#[test]
fn one_byte_of_scratch_and_budget() {
    let frames = [frame(0, 0, 0), frame(1, 3, 0), frame(2, 0, 5), frame(3, 2, 16_385), frame(1, 1, 1)];
    check_all(&frames, &[65_536], 1);
    let wire: Vec<u8> = frames.iter().flat_map(Sent::on_wire).collect();
    let mut sink = Memory::new(|_| Choice::Bytes);
    receive(Mode::Native, &wire, &[9000], 65_536, 1, &mut sink).unwrap();
    assert!(sink.got == frames);
}

#[test]
fn every_cut_between_two_frames() {
    let frames = [frame(0, 5, 9), frame(3, 4, 0), frame(1, 0, 3)];
    let wire: Vec<u8> = frames.iter().flat_map(Sent::on_wire).collect();
    for first in 1..wire.len() {
        for plan_all in [false, true] {
            let mut sink = Memory::new(|_| Choice::Own);
            sink.plan_all = plan_all;
            let end = receive(Mode::Native, &wire, &[first, wire.len()], 65_536, usize::MAX, &mut sink).unwrap();
            assert_eq!(end, ReadEnd::Eof { mid_frame: false });
            assert_eq!((&sink.got[..], sink.headers), (&frames[..], 3));
            assert_eq!(sink.placed.len(), if plan_all { 2 } else { 0 });
        }
    }
}

#[test]
fn eof_inside_a_frame_is_told_from_a_clean_one() {
    let whole = frame(0, 5, 20_000).on_wire();
    for cut in 0..whole.len() {
        if cut > 100 && cut + 100 < whole.len() && cut % 997 != 0 {
            continue;
        }
        for choice in [Choice::Bytes, Choice::Discard] {
            let (ours, mut theirs) = unix_pair();
            theirs.write_all(&whole[..cut]).unwrap();
            hang_up(theirs, &ours);
            let mut reader = Reader::new(Mode::Native, LIMITS);
            reader.expect_end();
            let mut sink = Memory::new(move |_| choice);
            let end = pump(&mut reader, &ours, &mut [0; 4096], usize::MAX, &mut sink).unwrap();
            assert_eq!(end, ReadEnd::Eof { mid_frame: cut > 0 }, "cut at {cut}");
            assert_eq!(sink.got.len() + sink.discarded.len(), 0);
        }
    }
}

fn refused(wire: &[u8], limits: ReadLimits) -> (Error, Memory) {
    let (ours, mut theirs) = unix_pair();
    theirs.write_all(wire).unwrap();
    let mut sink = Memory::new(|_| Choice::Bytes);
    let mut reader = Reader::new(Mode::Native, limits);
    let error = reader.read(&ours, &mut [0; 4096], &mut usize::MAX.clone(), &mut sink).unwrap_err();
    assert!(reader.pending_capacity() <= 64, "memory was taken before the limit was checked");
    (error, sink)
}

#[test]
fn limits_hold_before_anything_is_taken() {
    let limits = ReadLimits { max_head: 100, max_message: 1000 };
    // The prefix alone is enough: neither header nor payload were sent.
    let (error, sink) = refused(&encode_prefix(16, 1001), limits);
    assert_eq!((error.kind(), sink.headers), (ErrorKind::Limit, 0));
    assert_eq!(refused(&encode_prefix(16, MAX_PAYLOAD), limits).0.kind(), ErrorKind::Limit);
    let all = ReadLimits { max_head: u32::MAX, max_message: u64::MAX };
    assert_eq!(refused(&[0xff; 8], all).0.kind(), ErrorKind::Protocol);
    for header in [0_u64, 15, 33, 255] {
        assert_eq!(refused(&(header << 56).to_le_bytes(), limits).0.kind(), ErrorKind::Protocol);
    }
    let (error, sink) = refused(&frame(0, 101, 0).on_wire()[..24], limits);
    assert_eq!((error.kind(), sink.headers), (ErrorKind::Limit, 1));
    // A head longer than the payload.
    let mut wire = frame(0, 10, 0).on_wire();
    wire[8] = 11;
    assert_eq!(refused(&wire, limits).0.kind(), ErrorKind::Protocol);
}

#[test]
fn exactly_the_limits_pass() {
    let (ours, mut theirs) = unix_pair();
    let sent = frame(0, 100, 900);
    theirs.write_all(&sent.on_wire()).unwrap();
    let mut sink = Memory::new(|_| Choice::Bytes);
    let mut reader = Reader::new(Mode::Native, ReadLimits { max_head: 100, max_message: 1000 });
    reader.read(&ours, &mut [0; 4096], &mut usize::MAX.clone(), &mut sink).unwrap();
    assert_eq!(sink.got, [sent]);
}

#[test]
fn the_budget_bounds_what_is_read() {
    let (ours, mut theirs) = unix_pair();
    let sent = frame(0, 10, 50_000);
    theirs.write_all(&sent.on_wire()).unwrap();
    let mut sink = Memory::new(|_| Choice::Bytes);
    let mut reader = Reader::new(Mode::Native, LIMITS);
    let mut scratch = vec![0; 65_536];
    for _ in 0..50 {
        let mut budget = 1000;
        let end = reader.read(&ours, &mut scratch, &mut budget, &mut sink).unwrap();
        assert_eq!((end, budget), (ReadEnd::Budget, 0));
    }
    assert!(sink.got.is_empty());
    let mut budget = 1000;
    assert_eq!(reader.read(&ours, &mut scratch, &mut budget, &mut sink).unwrap(), ReadEnd::Drained);
    assert_eq!((budget, &sink.got[..]), (1000 - 34, &[sent][..]));
}

#[test]
fn a_pause_keeps_what_follows_and_reads_nothing() {
    let (ours, mut theirs) = unix_pair();
    let frames = [frame(0, 1, 20_000), frame(1, 2, 20_000), frame(2, 3, 4), frame(3, 4, 17_000)];
    let wire: Vec<u8> = frames.iter().flat_map(Sent::on_wire).collect();
    theirs.write_all(&wire).unwrap();
    let mut sink = Memory::new(|_| Choice::Later);
    let mut reader = Reader::new(Mode::Native, LIMITS);
    let mut scratch = vec![0; 65_536];
    let mut read = |reader: &mut Reader, sink: &mut Memory| {
        let mut budget = 1 << 20;
        let end = reader.read(&ours, &mut scratch, &mut budget, sink).unwrap();
        (end, (1 << 20) - budget)
    };
    assert_eq!(read(&mut reader, &mut sink), (ReadEnd::Paused, wire.len()));
    assert_eq!(read(&mut reader, &mut sink), (ReadEnd::Paused, 0));
    assert!(reader.is_paused() && sink.got.is_empty());
    reader.resume(target(20_000, BufKind::Own));
    assert_eq!(read(&mut reader, &mut sink), (ReadEnd::Paused, 0));
    assert_eq!((sink.got.len(), sink.placed.len()), (1, 2));
    reader.refuse();
    assert_eq!(read(&mut reader, &mut sink), (ReadEnd::Paused, 0));
    assert_eq!((sink.got.len(), sink.discarded.len()), (2, 1));
    reader.resume(target(17_000, BufKind::Bytes));
    assert_eq!(read(&mut reader, &mut sink), (ReadEnd::Drained, 0));
    assert_eq!(sink.got, [frames[0].clone(), frames[2].clone(), frames[3].clone()]);
    assert_eq!(sink.discarded, [Sent { body: vec![], ..frames[1].clone() }]);
    assert_eq!(sink.kinds, [Choice::Own, Choice::Bytes, Choice::Bytes]);
    assert_eq!(reader.pending_capacity(), 0);
}

#[test]
fn a_target_that_is_too_short_is_an_error() {
    struct Short;
    impl Sink for Short {
        fn on_header(&mut self, header: &[u8], _: u64) -> Result<u64, Error> {
            Ok(u64::from(header[0]))
        }
        fn place(&mut self, _: &[u8], head: &Bytes, len: u64) -> Result<Decision, Error> {
            let buf = RecvBuf::Bytes(BytesMut::zeroed(len as usize - 1));
            let short = Target { buf, returned_as: BufKind::Own };
            Ok(if head.len() == 1 { Decision::Pause } else { Decision::Into(short) })
        }
        fn on_frame(&mut self, _: &[u8], _: Bytes, _: Body) -> Result<(), Error> {
            unreachable!("no frame can be complete")
        }
        fn on_discarded(&mut self, _: &[u8], _: Bytes) -> Result<(), Error> {
            unreachable!("nothing was refused")
        }
    }
    for head in [0, 1] {
        let (ours, mut theirs) = unix_pair();
        theirs.write_all(&frame(0, head, 20_000).on_wire()).unwrap();
        let mut reader = Reader::new(Mode::Native, LIMITS);
        let mut scratch = vec![0; 65_536];
        let mut read = |reader: &mut Reader| reader.read(&ours, &mut scratch, &mut usize::MAX.clone(), &mut Short);
        let mut result = read(&mut reader);
        if head == 1 {
            assert_eq!(result, Ok(ReadEnd::Paused));
            reader.resume(Target { buf: RecvBuf::Bytes(BytesMut::zeroed(19_999)), returned_as: BufKind::Own });
            result = read(&mut reader);
        }
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[test]
fn bytes_read_by_the_negotiation_come_first() {
    let frames = [frame(0, 3, 4), frame(1, 5, 20_000), frame(2, 7, 8)];
    let wire: Vec<u8> = frames.iter().flat_map(Sent::on_wire).collect();
    for split in [0, 1, 7, 8, 20, 31, 40, 100, 10_000, wire.len() - 1, wire.len()] {
        let (ours, mut theirs) = unix_pair();
        let mut reader = Reader::new(Mode::Native, LIMITS);
        reader.prepend(&wire[..split / 2]);
        reader.prepend(&wire[split / 2..split]);
        theirs.write_all(&wire[split..]).unwrap();
        let mut sink = Memory::new(|_| Choice::Bytes);
        pump(&mut reader, &ours, &mut [0; 4096], usize::MAX, &mut sink).unwrap();
        assert_eq!(sink.got, frames);
        assert_eq!(reader.pending_capacity(), 0);
    }
}

#[test]
fn a_reset_is_an_error_of_that_kind() {
    let (ours, theirs) = tcp_pair();
    socket2::SockRef::from(&theirs).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    hang_up(theirs, &ours);
    let mut reader = Reader::new(Mode::Native, LIMITS);
    let mut sink = Memory::new(|_| Choice::Bytes);
    let error = pump(&mut reader, &ours, &mut [0; 64], usize::MAX, &mut sink).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Reset);
}

/// Sizes that sit around the thresholds, and others.
fn sizes() -> impl Strategy<Value = (usize, usize)> {
    let head = prop_oneof![8 => 0..300_usize, 1 => 4090..4100_usize, 1 => 0..20_000_usize];
    let body = prop_oneof![4 => Just(0), 6 => 0..600_usize, 2 => 16_380..16_390_usize, 2 => 0..100_000_usize];
    (head, body)
}

fn chunks() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![4 => 1..50_usize, 2 => 1..2000_usize, 2 => 2000..65_536_usize], 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_frames_in_any_pieces(
        sizes in prop::collection::vec(sizes(), 1..8),
        chunks in chunks(),
        scratch in prop_oneof![1..200_usize, 4096..70_000_usize],
        budget in prop_oneof![Just(usize::MAX), 1..5000_usize],
        foreign: bool,
        plan_all: bool,
        choices in prop::collection::vec(0..5_usize, 1..6),
    ) {
        let make = |(i, &(head, body)): (usize, &(usize, usize))| {
            if foreign { Toy::frame(i, head, body) } else { frame(i, head, body) }
        };
        let frames: Vec<_> = sizes.iter().enumerate().map(make).collect();
        let wire: Vec<u8> = frames.iter()
            .flat_map(|f| if foreign { [&f.head[..], &f.body].concat() } else { f.on_wire() })
            .collect();
        let all = [Choice::Bytes, Choice::Own, Choice::Discard, Choice::Later, Choice::LaterRefused];
        let mut cycle: Vec<_> = choices.iter().map(|&i| all[i]).collect();
        let mut next = cycle.clone().into_iter().cycle();
        let mut sink = Memory::new(move |_| next.next().unwrap());
        sink.plan_all = plan_all;
        let mode = if foreign { Toy::mode() } else { Mode::Native };
        let end = receive(mode, &wire, &chunks, scratch, budget, &mut sink).unwrap();
        prop_assert_eq!(end, ReadEnd::Eof { mid_frame: false });

        let (mut got, mut discarded, mut turn) = (vec![], vec![], 0);
        for frame in frames {
            let direct = frame.body.len() >= 16 << 10 || (plan_all && !frame.body.is_empty());
            let choice = cycle[turn % cycle.len()];
            turn += usize::from(direct);
            if direct && matches!(choice, Choice::Discard | Choice::LaterRefused) {
                discarded.push(Sent { body: vec![], ..frame });
            } else {
                got.push(frame);
            }
        }
        cycle.clear();
        prop_assert_eq!(sink.placed.len(), turn);
        prop_assert!(sink.got == got);
        prop_assert!(sink.discarded == discarded);
    }
}
