//! What the hot paths take from the heap.

use std::io::{Read as _, Write as _};

use allocation_counter::measure;

use super::*;

struct Count(usize);

impl Sink for Count {
    fn on_header(&mut self, header: &[u8], _: u64) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(*header.first_chunk().unwrap()))
    }

    fn place(&mut self, _: &[u8], _: &Bytes, len: u64) -> Result<Decision, Error> {
        Ok(Decision::Into(target(len, BufKind::Bytes)))
    }

    fn on_frame(&mut self, _: &[u8], _: Bytes, _: Body) -> Result<(), Error> {
        self.0 += 1;
        Ok(())
    }

    fn on_discarded(&mut self, _: &[u8], _: Bytes) -> Result<(), Error> {
        unreachable!("nothing was refused")
    }
}

#[test]
fn small_frames_are_received_without_allocation() {
    let (ours, mut theirs) = unix_pair();
    let mut reader = Reader::new(Mode::Native, LIMITS);
    let (mut scratch, mut sink) = (vec![0; 65_536], Count(0));
    let mut receive = |sent: &Sent| {
        theirs.write_all(&sent.on_wire()).unwrap();
        let taken = measure(|| {
            let end = reader.read(&ours, &mut scratch, &mut usize::MAX.clone(), &mut sink).unwrap();
            assert_eq!(end, ReadEnd::Drained);
        });
        taken.count_total
    };
    // The first take the thread's chunks, which are used again when the frames cut from them are gone.
    assert!((0..1000).map(|_| receive(&frame(0, 64, 0))).sum::<u64>() > 0);
    let small = [frame(0, 64, 0), frame(0, 0, 64), frame(0, 0, 0), frame(0, 32, 64)];
    assert_eq!((0..100).flat_map(|_| &small).map(&mut receive).sum::<u64>(), 0);
    assert_eq!(receive(&frame(0, 1000, 0)), 1);
    // Head and body share one buffer; the second allocation is the count that `Bytes` keeps of its sharers.
    assert_eq!(receive(&frame(0, 1000, 64)), 2);
    assert_eq!(sink.0, 1402);
}

#[test]
fn small_frames_are_sent_without_allocation() {
    let (ours, mut theirs) = unix_pair();
    let mut writer = Writer::new(&Mode::Native);
    let payload = Bytes::from(vec![1; 64]).slice(..);
    let larger = Bytes::from(vec![2; 3000]).slice(..);
    let mut sink = vec![0; 300_000];
    let mut round = || {
        let taken = measure(|| {
            for _ in 0..20 {
                writer.push(&[0; 16], payload.clone(), Body::Empty);
                writer.push(&[0; 16], payload.clone(), Body::Bytes(larger.clone()));
                writer.push_front_control(&[0; 32], &[9; 8]);
            }
            assert_eq!(writer.flush(&ours, &mut usize::MAX.clone()).unwrap(), FlushEnd::Done);
            for body in [Body::Empty, Body::Bytes(larger.clone())] {
                assert_eq!(writer.send_now(&ours, &[0; 16], payload.clone(), body).unwrap(), FlushEnd::Done);
            }
        });
        assert!(theirs.read(&mut sink).unwrap() > 60_000);
        taken.count_total
    };
    // The first round warms the queue, which then waits among the thread's spares.
    assert!(round() > 0);
    assert_eq!((0..10).map(|_| round()).sum::<u64>(), 0);
    assert!(writer.is_idle());
}

#[test]
fn idle_connections_are_small() {
    assert!(size_of::<Reader>() <= 136, "{}", size_of::<Reader>());
    assert!(size_of::<Writer>() <= 48, "{}", size_of::<Writer>());
    let made = measure(|| drop((Reader::new(Mode::Native, LIMITS), Writer::new(&Mode::Native))));
    assert_eq!(made.count_total, 0);
}
