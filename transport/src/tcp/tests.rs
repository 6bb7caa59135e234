//! What the tests of this room share: connected pairs, a sink that remembers, frames and their bytes.

mod allocations;
mod bench;
mod edges;
mod foreign;
mod reading;
mod sockets;
mod writing;

use std::{net, os::fd::AsFd, os::unix, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::*;
use crate::{
    error::{Error, ErrorKind},
    frame::{Body, RecvBuf},
    framing::{Cut, Detect},
};

const LIMITS: ReadLimits = ReadLimits { max_head: 64 << 10, max_message: 8 << 20 };

/// Ends the peer's side, and waits until that is seen at ours: a test beside this one may just start a process, which then holds
/// a copy of every descriptor for a moment.
fn hang_up(theirs: impl AsFd, ours: &Stream) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    drop(theirs);
    let mut fds = [PollFd::new(ours, PollFlags::RDHUP)];
    let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1, "nobody sees the peer's end");
}

/// A non-blocking stream of ours and the peer's blocking end.
fn unix_pair() -> (Stream, unix::net::UnixStream) {
    let (ours, theirs) = unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Stream::Unix(UnixStream::from_std(ours)), theirs)
}

fn tcp_pair() -> (Stream, net::TcpStream) {
    let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    theirs.set_nodelay(true).unwrap();
    let (ours, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    ours.set_nodelay(true).unwrap();
    (Stream::Tcp(TcpStream::from_std(ours)), theirs)
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    header: Vec<u8>,
    head: Vec<u8>,
    body: Vec<u8>,
}

/// A frame whose bytes all depend on `seed` and their place, so that a mix-up shows.
fn frame(seed: usize, head: usize, body: usize) -> Sent {
    let mut header = (head as u64).to_le_bytes().to_vec();
    header.resize([16, 20, 28, 32][seed % 4], seed as u8);
    let pattern = |salt: usize, len: usize| (0..len).map(|i| (i * 31 + i / 251 + seed * 7 + salt) as u8).collect();
    Sent { header, head: pattern(1, head), body: pattern(2, body) }
}

impl Sent {
    fn on_wire(&self) -> Vec<u8> {
        let payload = (self.head.len() + self.body.len()) as u64;
        let prefix = encode_prefix(self.header.len(), payload);
        [&prefix[..], &self.header, &self.head, &self.body].concat()
    }
}

/// What the sink says to a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Bytes,
    Own,
    Discard,
    /// Pause, then receive.
    Later,
    /// Pause, then refuse.
    LaterRefused,
}

struct Memory {
    choice: Box<dyn FnMut(u64) -> Choice>,
    plan_all: bool,
    headers: usize,
    placed: Vec<(Choice, u64)>,
    got: Vec<Sent>,
    /// How each body came: `Own` for `Body::Buf`, else `Bytes`.
    kinds: Vec<Choice>,
    discarded: Vec<Sent>,
}

impl Memory {
    fn new(choice: impl FnMut(u64) -> Choice + 'static) -> Self {
        let (placed, got, kinds, discarded) = (vec![], vec![], vec![], vec![]);
        Self { choice: Box::new(choice), plan_all: false, headers: 0, placed, got, kinds, discarded }
    }
}

fn target(len: u64, returned_as: BufKind) -> Target {
    // Longer than needed: the reader must cut it.
    Target { buf: RecvBuf::Bytes(BytesMut::zeroed(len as usize + 3)), returned_as }
}

impl Sink for Memory {
    fn wants_plan(&self) -> bool {
        self.plan_all
    }

    fn on_header(&mut self, header: &[u8], _payload_len: u64) -> Result<u64, Error> {
        self.headers += 1;
        Ok(u64::from_le_bytes(*header.first_chunk().unwrap()))
    }

    fn place(&mut self, _header: &[u8], _head: &Bytes, body_len: u64) -> Result<Decision, Error> {
        let choice = (self.choice)(body_len);
        self.placed.push((choice, body_len));
        Ok(match choice {
            Choice::Bytes => Decision::Into(target(body_len, BufKind::Bytes)),
            Choice::Own => Decision::Into(target(body_len, BufKind::Own)),
            Choice::Discard => Decision::Discard,
            Choice::Later | Choice::LaterRefused => Decision::Pause,
        })
    }

    fn on_frame(&mut self, header: &[u8], head: Bytes, body: Body) -> Result<(), Error> {
        self.kinds.push(if matches!(body, Body::Buf(_)) { Choice::Own } else { Choice::Bytes });
        let body = body.into_bytes().unwrap().to_vec();
        self.got.push(Sent { header: header.to_vec(), head: head.to_vec(), body });
        Ok(())
    }

    fn on_discarded(&mut self, header: &[u8], head: Bytes) -> Result<(), Error> {
        self.discarded.push(Sent { header: header.to_vec(), head: head.to_vec(), body: vec![] });
        Ok(())
    }
}

/// Reads like a driver: at once again after a spent budget, and after an answer to a pause.
fn pump(
    reader: &mut Reader,
    stream: &Stream,
    scratch: &mut [u8],
    budget: usize,
    sink: &mut Memory,
) -> Result<ReadEnd, Error> {
    loop {
        match reader.read(stream, scratch, &mut budget.clone(), sink)? {
            ReadEnd::Budget => {}
            ReadEnd::Paused => match *sink.placed.last().unwrap() {
                (Choice::Later, len) => reader.resume(target(len, BufKind::Own)),
                _ => reader.refuse(),
            },
            end => return Ok(end),
        }
    }
}

/// `u16` length of the head (these six bytes too), `u32` length of the body, then both.
struct Toy;

impl Framer for Toy {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn detect(&self, _first: &[u8]) -> Detect {
        Detect::Yes
    }

    fn cut(&self, bytes: &[u8]) -> Cut {
        let Some(lengths) = bytes.first_chunk::<6>() else { return Cut::NeedMore(6) };
        let head = usize::from(u16::from_be_bytes([lengths[0], lengths[1]]));
        let body = u64::from(u32::from_be_bytes([lengths[2], lengths[3], lengths[4], lengths[5]]));
        if head < 6 { Cut::Bad("head too short".into()) } else { Cut::Frame { head, body } }
    }
}

impl Toy {
    fn frame(seed: usize, head: usize, body: usize) -> Sent {
        let mut sent = frame(seed, head + 6, body);
        sent.header.clear();
        sent.head[..2].copy_from_slice(&(head as u16 + 6).to_be_bytes());
        sent.head[2..6].copy_from_slice(&(body as u32).to_be_bytes());
        sent
    }

    fn mode() -> Mode {
        Mode::Foreign(Arc::new(Self))
    }
}
