//! What reader and writer cost over bare syscalls: run in release with `--nocapture` to see the numbers.

use std::{
    io::{Read as _, Write as _},
    time::{Duration, Instant},
};

use super::*;
use crate::memory::{Pool, PoolConfig, Purpose};

/// Takes bodies into a pool, as the driver does, and keeps the last frame.
struct Take {
    pool: Pool,
    last: Option<(Bytes, Body)>,
}

impl Sink for Take {
    fn on_header(&mut self, header: &[u8], _: u64) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(*header.first_chunk().unwrap()))
    }

    fn place(&mut self, _: &[u8], _: &Bytes, len: u64) -> Result<Decision, Error> {
        let buf = RecvBuf::Pool(self.pool.get(len as usize, Purpose::Receive).unwrap());
        Ok(Decision::Into(Target { buf, returned_as: BufKind::Bytes }))
    }

    fn on_frame(&mut self, _: &[u8], head: Bytes, body: Body) -> Result<(), Error> {
        self.last = Some((head, body));
        Ok(())
    }

    fn on_discarded(&mut self, _: &[u8], _: Bytes) -> Result<(), Error> {
        unreachable!("nothing was refused")
    }
}

fn raw(rounds: u32, size: usize) -> Duration {
    let (mut one, mut other) = unix::net::UnixStream::pair().unwrap();
    let (message, mut buf) = (vec![7; size + 24], vec![0; size + 24]);
    let start = Instant::now();
    for _ in 0..rounds {
        one.write_all(&message).unwrap();
        other.read_exact(&mut buf).unwrap();
        other.write_all(&buf).unwrap();
        one.read_exact(&mut buf).unwrap();
    }
    start.elapsed()
}

fn framed(rounds: u32, size: usize, queued: bool) -> Duration {
    let (one, other) = UnixStream::pair().unwrap();
    let sides = [Stream::Unix(one), Stream::Unix(other)];
    let mut readers = [0; 2].map(|_| Reader::new(Mode::Native, LIMITS));
    let mut writers = [0; 2].map(|_| Writer::new(&Mode::Native));
    let mut scratch = vec![0; 65_536];
    let mut sink = Take { pool: Pool::new(&PoolConfig::default()), last: None };
    // Small ones are all head, like an RPC without an attachment.
    let head_len = if size <= 4096 { size } else { 0 };
    let mut header = [0; 16];
    header[..8].copy_from_slice(&(head_len as u64).to_le_bytes());
    let payload = Bytes::from(vec![7; size]);
    let (mut head, mut body) = (payload.slice(..head_len), Body::from(payload.slice(head_len..)));
    let start = Instant::now();
    for _ in 0..rounds {
        for (from, to) in [(0, 1), (1, 0)] {
            let mut all = usize::MAX;
            if queued {
                writers[from].push(&header, head, body);
                assert_eq!(writers[from].flush(&sides[from], &mut all).unwrap(), FlushEnd::Done);
            } else {
                assert_eq!(writers[from].send_now(&sides[from], &header, head, body).unwrap(), FlushEnd::Done);
            }
            let mut all = usize::MAX;
            assert_eq!(readers[to].read(&sides[to], &mut scratch, &mut all, &mut sink).unwrap(), ReadEnd::Drained);
            (head, body) = sink.last.take().unwrap();
        }
    }
    let took = start.elapsed();
    assert_eq!(head.len() as u64 + body.len(), size as u64);
    assert!(head.iter().all(|&b| b == 7) && body.into_bytes().unwrap().iter().all(|&b| b == 7));
    took
}

/// Both ends on this thread: the numbers are CPU time, without a scheduler in between. The three take turns, and the
/// best of each counts, because other work on the machine only ever adds.
#[test]
fn ping_pong_against_bare_syscalls() {
    let (turns, rounds) = if cfg!(debug_assertions) { (3, 50) } else { (60, 300) };
    for size in [64, 1024, 4096, 16_384, 65_536, 131_072] {
        let mut best = [Duration::MAX; 3];
        for _ in 0..turns {
            let took = [raw(rounds, size), framed(rounds, size, false), framed(rounds, size, true)];
            best.iter_mut().zip(took).for_each(|(best, took)| *best = took.min(*best));
        }
        let [bare, direct, queued] = best.map(|b| b / rounds);
        let ratio = |took: Duration| took.as_secs_f64() / bare.as_secs_f64();
        println!(
            "{size:>7} B round trip: bare {bare:?}, send_now {direct:?} (x{:.3}), push+flush {queued:?} (x{:.3})",
            ratio(direct),
            ratio(queued)
        );
    }
}
