//! Short reads count as drained: nothing may be lost for it under edge-triggered epoll.

use std::{
    io::Write,
    net::Shutdown,
    thread,
    time::{Duration, Instant},
};

use mio::{Events, Poll};

use super::*;

trait Peer: Write + Send + Sized + 'static {
    fn close_sending(&self);
}

impl Peer for unix::net::UnixStream {
    fn close_sending(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

impl Peer for net::TcpStream {
    fn close_sending(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

/// A driver's loop until the end of the stream. Every wait must be ended by an edge.
fn drive(mut stream: Stream, sink: &mut Memory) -> ReadEnd {
    let mut poll = Poll::new().unwrap();
    poll.registry().register(&mut stream, Token(0), Interest::READABLE | Interest::WRITABLE).unwrap();
    let mut reader = Reader::new(Mode::Native, LIMITS);
    let (mut events, mut scratch) = (Events::with_capacity(8), vec![0; 65_536]);
    loop {
        let asleep = Instant::now();
        poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
        assert!(asleep.elapsed() < Duration::from_secs(20), "an edge was lost");
        for event in &events {
            if event.is_read_closed() || event.is_error() {
                reader.expect_end();
            }
            if event.is_readable() || event.is_read_closed() {
                let end = pump(&mut reader, &stream, &mut scratch, usize::MAX, sink).unwrap();
                if end != ReadEnd::Drained {
                    return end;
                }
            }
        }
    }
}

fn data_with_the_end(pair: (Stream, impl Peer)) {
    let (ours, mut theirs) = pair;
    // Both are there before the first edge is taken: the end raises no edge of its own.
    theirs.write_all(&frame(0, 5, 6).on_wire()).unwrap();
    theirs.close_sending();
    let mut sink = Memory::new(|_| Choice::Bytes);
    assert_eq!(drive(ours, &mut sink), ReadEnd::Eof { mid_frame: false });
    assert_eq!(sink.got, [frame(0, 5, 6)]);
}

fn a_stream_of_frames(pair: (Stream, impl Peer), count: usize) {
    let (ours, mut theirs) = pair;
    let size = |i: usize| if i.is_multiple_of(17) { 16_384 + i % 70_000 } else { i % 200 };
    let sender = thread::spawn(move || {
        for i in 0..count {
            let wire = frame(i, i % 50, size(i)).on_wire();
            let cut = i * 7 % wire.len();
            theirs.write_all(&wire[..cut]).unwrap();
            theirs.write_all(&wire[cut..]).unwrap();
            if i.is_multiple_of(64) {
                thread::yield_now();
            }
        }
        // Dropped here: the end races with the last data.
    });
    let mut sink = Memory::new(|_| Choice::Bytes);
    assert_eq!(drive(ours, &mut sink), ReadEnd::Eof { mid_frame: false });
    sender.join().unwrap();
    assert_eq!(sink.got.len(), count);
    assert!(sink.got.iter().enumerate().all(|(i, got)| *got == frame(i, i % 50, size(i))));
}

#[test]
fn the_end_is_seen_when_it_comes_together_with_data() {
    for _ in 0..200 {
        data_with_the_end(unix_pair());
        data_with_the_end(tcp_pair());
    }
}

#[test]
fn no_edge_is_lost_over_a_long_stream() {
    for _ in 0..3 {
        a_stream_of_frames(unix_pair(), 3000);
        a_stream_of_frames(tcp_pair(), 3000);
    }
}

#[test]
fn the_end_is_seen_when_it_races_with_a_single_frame() {
    for _ in 0..200 {
        a_stream_of_frames(unix_pair(), 1);
        a_stream_of_frames(tcp_pair(), 1);
    }
}

/// Pushes frames and flushes at writable edges only, while the peer reads at its own pace.
fn write_by_edges(pair: (Stream, impl std::io::Read + Send + 'static), count: usize) {
    let (mut ours, mut theirs) = pair;
    let frame_of = |i: usize| frame(i, i % 300, i * 977 % 40_000);
    let total: usize = (0..count).map(|i| frame_of(i).on_wire().len()).sum();
    let peer = thread::spawn(move || {
        let (mut wire, mut buf) = (Vec::with_capacity(total), vec![0; 70_000]);
        while wire.len() < total {
            let size = 1 + wire.len() * 31 % buf.len();
            let n = theirs.read(&mut buf[..size]).unwrap();
            assert!(n > 0);
            wire.extend_from_slice(&buf[..n]);
        }
        wire
    });
    let mut poll = Poll::new().unwrap();
    poll.registry().register(&mut ours, Token(0), Interest::READABLE | Interest::WRITABLE).unwrap();
    let (mut events, mut writer, mut pushed) = (Events::with_capacity(8), Writer::new(&Mode::Native), 0);
    while pushed < count || writer.pending_bytes() > 0 {
        poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
        assert!(events.iter().any(|e| e.is_writable()), "an edge was lost");
        loop {
            while pushed < count && writer.pending_bytes() < 500_000 {
                let f = frame_of(pushed);
                writer.push(&f.header, f.head.into(), f.body.into());
                pushed += 1;
            }
            let end = writer.flush(&ours, &mut 100_000).unwrap();
            if end == FlushEnd::WouldBlock || (end == FlushEnd::Done && pushed == count) {
                break;
            }
        }
    }
    assert_eq!(writer.frames_done(), count as u64);
    let wire = peer.join().unwrap();
    assert!(wire == (0..count).flat_map(|i| frame_of(i).on_wire()).collect::<Vec<_>>());
}

#[test]
fn no_writable_edge_is_lost() {
    for _ in 0..3 {
        write_by_edges(unix_pair(), 500);
        write_by_edges(tcp_pair(), 500);
    }
}
