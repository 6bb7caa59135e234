use std::io::Write;

use super::*;

fn read_all(framer: impl Framer, limits: ReadLimits, chunks: &[&[u8]]) -> (Result<ReadEnd, Error>, Memory) {
    let (ours, mut theirs) = unix_pair();
    let mut reader = Reader::new(Mode::Foreign(Arc::new(framer)), limits);
    let mut sink = Memory::new(|_| Choice::Bytes);
    let mut end = Ok(ReadEnd::Drained);
    for chunk in chunks {
        theirs.write_all(chunk).unwrap();
        end = pump(&mut reader, &ours, &mut [0; 65_536], usize::MAX, &mut sink);
    }
    (end, sink)
}

/// Lines; or, with `ahead`, frames of two bytes that want to see eight.
struct Text {
    ahead: bool,
}

impl Framer for Text {
    fn name(&self) -> &'static str {
        "text"
    }

    fn detect(&self, _first: &[u8]) -> Detect {
        Detect::Yes
    }

    fn cut(&self, bytes: &[u8]) -> Cut {
        if self.ahead {
            return if bytes.len() < 8 { Cut::NeedMore(8) } else { Cut::Frame { head: 2, body: 0 } };
        }
        match bytes.iter().position(|&b| b == b'\n') {
            Some(0) => Cut::Bad("an empty line".into()),
            Some(end) => Cut::Frame { head: end + 1, body: 0 },
            // Less than it has: such a framer must not make the reader spin.
            None => Cut::NeedMore(1),
        }
    }
}

#[test]
fn a_framer_that_looks_for_an_end_mark() {
    let text = b"first\nsecond line\nx\nand a longer last one\n";
    for first in 1..text.len() {
        for second in first..text.len() {
            let chunks = [&text[..first], &text[first..second], &text[second..]];
            let (end, sink) = read_all(Text { ahead: false }, LIMITS, &chunks);
            assert_eq!(end, Ok(ReadEnd::Drained));
            let lines: Vec<_> = sink.got.iter().map(|f| &f.head[..]).collect();
            assert_eq!(lines, text.split_inclusive(|&b| b == b'\n').collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_framer_that_looks_beyond_the_frame() {
    let text: Vec<u8> = (0..40).collect();
    for first in 1..text.len() {
        for second in first..text.len() {
            let chunks = [&text[..first], &text[first..second], &text[second..]];
            let (end, sink) = read_all(Text { ahead: true }, LIMITS, &chunks);
            assert_eq!(end, Ok(ReadEnd::Drained));
            // The last six bytes wait for more.
            let got: Vec<u8> = sink.got.iter().flat_map(|f| f.head.clone()).collect();
            assert_eq!(got, text[..34]);
        }
    }
}

#[test]
fn bad_frames_and_limits() {
    let limits = ReadLimits { max_head: 10, max_message: 20 };
    let kind = |chunks: &[&[u8]]| read_all(Text { ahead: false }, limits, chunks).0.unwrap_err();
    assert_eq!((kind(&[b"a\n\n"]).kind(), kind(&[b"\n"]).text()), (ErrorKind::Protocol, "an empty line"));
    // No end in sight: refused as soon as the head would be too long, in one piece or in many.
    assert_eq!(kind(&[b"0123456789"]).kind(), ErrorKind::Limit);
    assert_eq!(kind(&[b"01234", b"56789"]).kind(), ErrorKind::Limit);
    assert!(read_all(Text { ahead: false }, limits, &[b"012345678", b"\n"]).0.is_ok());
    let toy = |head: u16, body: u32| {
        let wire = [&head.to_be_bytes()[..], &body.to_be_bytes()].concat();
        read_all(Toy, limits, &[&wire]).0.map_err(|e| e.kind())
    };
    assert_eq!(toy(5, 0), Err(ErrorKind::Protocol));
    assert_eq!(toy(11, 0), Err(ErrorKind::Limit));
    assert_eq!(toy(10, 11), Err(ErrorKind::Limit));
    assert_eq!(toy(10, u32::MAX), Err(ErrorKind::Limit));
    assert_eq!(toy(10, 10), Ok(ReadEnd::Drained));
}

/// What a framer of somebody else may get wrong.
struct Broken(Cut);

impl Framer for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn detect(&self, _first: &[u8]) -> Detect {
        Detect::Yes
    }

    fn cut(&self, _bytes: &[u8]) -> Cut {
        self.0.clone()
    }
}

#[test]
fn a_framer_with_mistakes_ends_the_connection_only() {
    let kind = |cut| read_all(Broken(cut), LIMITS, &[b"x"]).0.map_err(|e| e.kind());
    assert_eq!(kind(Cut::Frame { head: 0, body: 5 }), Err(ErrorKind::Protocol));
    assert_eq!(kind(Cut::Frame { head: usize::MAX, body: u64::MAX }), Err(ErrorKind::Limit));
    assert_eq!(kind(Cut::Frame { head: 1, body: u64::MAX }), Err(ErrorKind::Limit));
    assert_eq!(kind(Cut::NeedMore(usize::MAX)), Err(ErrorKind::Limit));
    assert_eq!(kind(Cut::NeedMore(0)), Ok(ReadEnd::Drained));
}
