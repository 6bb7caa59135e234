//! From a byte stream to frames.
//!
//! Bytes are read into the dispatcher's shared scratch buffer and frames are parsed there; complete small frames are
//! copied out. Only what cannot be finished stays with the connection, and a large body is read straight into its
//! target, so an idle connection owns no buffer.

use std::{
    io::{self, IoSliceMut},
    mem,
};

use bytes::{Buf, Bytes, BytesMut};

use super::{
    MAX_HEADER, Mode, PREFIX, Stream,
    lengths::{Found, Lengths, ReadLimits, find_lengths},
};
use crate::{
    error::{Error, ErrorKind},
    frame::{Body, RecvBuf},
};

/// Bytes read at a frame's start after a large body: another one is likely, and what of it comes through the scratch
/// buffer is copied once more. Enough for prefix, header and most heads.
const LOOKAHEAD: usize = 4 << 10;
/// Bodies of this many bytes make that worth a possible second read.
const LARGE_BODY: usize = 32 << 10;

/// Why [`Reader::read`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadEnd {
    /// Nothing is left: the next edge will tell.
    Drained,
    /// The budget is spent: read again, no edge will come for what is left.
    Budget,
    /// The sink asked to wait with a body: read again after [`Reader::resume`] or [`Reader::refuse`]; no edge will
    /// come for what is left.
    Paused,
    /// The peer sends no more.
    Eof {
        /// It stopped inside a frame.
        mid_frame: bool,
    },
}

/// Takes the frames of one connection.
///
/// An error from any of these ends the reading; the reader must not be used after it.
pub(crate) trait Sink {
    /// Whether a place is wanted for every body, however short: there is a planner.
    fn wants_plan(&self) -> bool {
        false
    }

    /// Native only, once per frame: checks the frame header and says how many bytes of the payload are the head.
    fn on_header(&mut self, header: &[u8], payload_len: u64) -> Result<u64, Error>;

    /// Where does this body go? Asked for bodies of [`DIRECT_BODY`] and more, and for all with [`Sink::wants_plan`];
    /// never for an empty one.
    fn place(&mut self, header: &[u8], head: &Bytes, body_len: u64) -> Result<Decision, Error>;

    /// A whole frame. The header is empty in foreign mode.
    fn on_frame(&mut self, header: &[u8], head: Bytes, body: Body) -> Result<(), Error>;

    /// A frame whose body was refused and is now thrown away completely.
    fn on_discarded(&mut self, header: &[u8], head: Bytes) -> Result<(), Error>;
}

/// What becomes of a body.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Receive it here.
    Into(Target),
    /// Throw it away as it comes.
    Discard,
    /// Read nothing more until somebody has decided.
    Pause,
}

/// Memory for one body.
#[derive(Debug)]
pub(crate) struct Target {
    /// At least as long as the body.
    pub(crate) buf: RecvBuf,
    /// How it is handed out.
    pub(crate) returned_as: BufKind,
}

/// How a received body is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BufKind {
    /// Frozen, as [`Body::Bytes`].
    Bytes,
    /// As [`Body::Buf`], to its owner.
    Own,
}

/// Reads the frames of one stream.
pub(crate) struct Reader {
    mode: Mode,
    limits: ReadLimits,
    /// Of an incomplete frame; or, if `unread`, bytes that nobody has looked at.
    pending: BytesMut,
    unread: bool,
    to_the_end: bool,
    /// The last frame had a large body.
    bulk: bool,
    step: Step,
}

enum Step {
    /// At a frame's start, with less in `pending` than the `need` bytes that tell its lengths.
    Start {
        need: usize,
    },
    /// `pending` is filled up to `Lengths::together`.
    Gather(Lengths),
    Body(Box<Direct>),
    Discard(Box<Held>),
    Paused(Box<Held>),
}

/// A frame that waits for its body.
struct Held {
    header: Header,
    head: Bytes,
    /// Bytes that are still to come; of a frame being received, all bytes of the body.
    body_len: u64,
}

/// A body that is being received.
struct Direct {
    held: Held,
    target: Target,
    len: usize,
    filled: usize,
}

#[derive(Clone, Copy)]
struct Header {
    bytes: [u8; MAX_HEADER],
    len: usize,
}

impl Reader {
    pub(crate) fn new(mode: Mode, limits: ReadLimits) -> Self {
        let (pending, step) = (BytesMut::new(), Step::Start { need: 1 });
        Self { mode, limits, pending, unread: false, to_the_end: false, bulk: false, step }
    }

    /// Gives it bytes that were read from the stream before (negotiation read past its last message). Only before the
    /// first [`Reader::read`], which must then be called without waiting for an edge.
    pub(crate) fn prepend(&mut self, bytes: &[u8]) {
        debug_assert!(self.unread || self.pending.is_empty(), "bytes are put before a frame that has begun");
        self.pending.extend_from_slice(bytes);
        self.unread = !self.pending.is_empty();
    }

    /// The event said that the peer has closed or that there is an error (`is_read_closed() || is_error()`): from now
    /// on a short read does not mean that nothing is left. The module's documentation says why.
    pub(crate) fn expect_end(&mut self) {
        self.to_the_end = true;
    }

    /// After [`Decision::Pause`]: where the waiting body goes. Then call [`Reader::read`]. It does nothing when
    /// no body waits.
    pub(crate) fn resume(&mut self, target: Target) {
        self.step = match mem::replace(&mut self.step, Step::Start { need: 1 }) {
            Step::Paused(held) => {
                let len = held.body_len as usize;
                Step::Body(Box::new(Direct { held: *held, target, len, filled: 0 }))
            }
            other => other,
        };
    }

    /// After [`Decision::Pause`]: the waiting body is thrown away. Then call [`Reader::read`].
    pub(crate) fn refuse(&mut self) {
        self.step = match mem::replace(&mut self.step, Step::Start { need: 1 }) {
            Step::Paused(held) => Step::Discard(held),
            other => other,
        };
    }

    /// Whether a body waits for [`Reader::resume`] or [`Reader::refuse`].
    pub(crate) fn is_paused(&self) -> bool {
        matches!(self.step, Step::Paused(_))
    }

    /// Reads until nothing is left, the stream ends, the sink pauses or `budget` bytes have been read from the stream.
    /// `scratch` is the dispatcher's shared buffer, 64 KiB or more; nothing stays in it.
    ///
    /// # Errors
    /// The stream's, the sink's, [`ErrorKind::Protocol`] and [`ErrorKind::Limit`] for what the peer sent, and
    /// [`ErrorKind::Invalid`] for a target that is too short. The connection is of no more use.
    pub(crate) fn read(
        &mut self,
        stream: &Stream,
        scratch: &mut [u8],
        budget: &mut usize,
        sink: &mut dyn Sink,
    ) -> Result<ReadEnd, Error> {
        debug_assert!(!scratch.is_empty());
        if let Step::Body(body) = &self.step {
            body.target.check(body.held.body_len)?;
        }
        if self.unread && !self.is_paused() {
            self.parse_unread(sink)?;
        }
        loop {
            if self.is_paused() {
                return Ok(ReadEnd::Paused);
            }
            if *budget == 0 {
                return Ok(ReadEnd::Budget);
            }
            let (asked, result) = match &mut self.step {
                Step::Body(body) => {
                    let ahead = if body.len < LARGE_BODY { scratch.len() } else { LOOKAHEAD.min(scratch.len()) };
                    body.read(stream, &mut scratch[..ahead], *budget)
                }
                step => {
                    let cautious = self.bulk && matches!(step, Step::Start { .. });
                    let ahead = if cautious { LOOKAHEAD } else { usize::MAX };
                    let asked = scratch.len().min(*budget).min(ahead);
                    (asked, stream.read(&mut scratch[..asked]))
                }
            };
            let got = match result {
                Ok(0) => return Ok(ReadEnd::Eof { mid_frame: self.is_mid_frame() }),
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(ReadEnd::Drained),
                Err(e) => return Err(Error::from_io("reading from the connection", &e)),
            };
            *budget -= got;
            let in_scratch = self.advance_body(got, sink)?;
            self.parse_scratch(&scratch[..in_scratch], sink)?;
            if got < asked && !self.to_the_end && !self.is_paused() {
                return Ok(ReadEnd::Drained);
            }
        }
    }

    /// Bytes of memory held for what is incomplete.
    #[cfg(test)]
    pub(super) fn pending_capacity(&self) -> usize {
        self.pending.capacity()
    }

    fn is_mid_frame(&self) -> bool {
        !matches!(self.step, Step::Start { .. }) || !self.pending.is_empty()
    }

    /// `got` bytes were read, those of the body first: returns how many of them are in the scratch buffer.
    fn advance_body(&mut self, got: usize, sink: &mut dyn Sink) -> Result<usize, Error> {
        let Step::Body(body) = &mut self.step else { return Ok(got) };
        let taken = got.min(body.len - body.filled);
        body.filled += taken;
        self.finish_body(sink)?;
        Ok(got - taken)
    }

    fn parse_scratch(&mut self, bytes: &[u8], sink: &mut dyn Sink) -> Result<(), Error> {
        let used = self.parse(bytes, sink)?;
        if used < bytes.len() {
            self.pending = BytesMut::from(&bytes[used..]);
            self.unread = true;
        }
        Ok(())
    }

    /// Parses what was put back. A further pause keeps the rest where it is: copying it each time would make a row of
    /// paused frames quadratic.
    fn parse_unread(&mut self, sink: &mut dyn Sink) -> Result<(), Error> {
        self.unread = false;
        let mut bytes = mem::take(&mut self.pending);
        let used = self.parse(&bytes, sink)?;
        if used < bytes.len() {
            bytes.advance(used);
            self.pending = bytes;
            self.unread = true;
        }
        Ok(())
    }

    /// Returns how many bytes were taken: all, unless the sink paused.
    fn parse(&mut self, bytes: &[u8], sink: &mut dyn Sink) -> Result<usize, Error> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            at += match &mut self.step {
                Step::Start { .. } if self.pending.is_empty() => self.start(rest, sink)?,
                Step::Start { need } => {
                    let need = *need;
                    self.top_up(need, rest, sink)?
                }
                Step::Gather(lengths) => {
                    let lengths = *lengths;
                    self.gather(lengths, rest, sink)?
                }
                Step::Body(body) => {
                    let taken = body.copy(rest);
                    self.finish_body(sink)?;
                    taken
                }
                Step::Discard(held) => {
                    let taken = held.body_len.min(rest.len() as u64);
                    held.body_len -= taken;
                    self.finish_discard(sink)?;
                    taken as usize
                }
                Step::Paused(_) => break,
            };
        }
        Ok(at)
    }

    /// At a frame's first byte, with nothing pending: the common case.
    fn start(&mut self, bytes: &[u8], sink: &mut dyn Sink) -> Result<usize, Error> {
        let lengths = match find_lengths(&self.mode, &self.limits, bytes, sink)? {
            Found::Frame(lengths) => lengths,
            Found::Need(need) => {
                self.pending.extend_from_slice(bytes);
                self.step = Step::Start { need };
                return Ok(bytes.len());
            }
        };
        let together = lengths.together();
        if bytes.len() < together {
            self.pending = BytesMut::with_capacity(together);
            self.pending.extend_from_slice(bytes);
            self.step = Step::Gather(lengths);
            return Ok(bytes.len());
        }
        let header = &bytes[PREFIX.min(lengths.skip)..lengths.skip];
        let payload = crate::small::copy(&bytes[lengths.skip..together]);
        let beyond = self.take(header, payload, lengths, &bytes[together..], sink)?;
        Ok(together + beyond)
    }

    /// Adds to a frame of which not even the lengths are known.
    fn top_up(&mut self, need: usize, bytes: &[u8], sink: &mut dyn Sink) -> Result<usize, Error> {
        let missing = need.saturating_sub(self.pending.len());
        let wanted = match &self.mode {
            // Exactly the prefix, then exactly the header: never a byte beyond the frame.
            Mode::Native => missing,
            // A framer that looks for an end mark asks for one byte more each time: double what it has, so that it
            // does not look over its bytes once for each of them.
            Mode::Foreign(_) => missing.max(self.pending.len()),
        };
        let added = wanted.min(bytes.len());
        self.pending.extend_from_slice(&bytes[..added]);
        if self.pending.len() < need {
            return Ok(added);
        }
        let lengths = match find_lengths(&self.mode, &self.limits, &self.pending, sink)? {
            Found::Frame(lengths) => lengths,
            Found::Need(need) => {
                self.step = Step::Start { need };
                return Ok(added);
            }
        };
        let together = lengths.together();
        if self.pending.len() < together {
            self.pending.reserve(together - self.pending.len());
            self.step = Step::Gather(lengths);
            return Ok(added);
        }
        if self.pending.len() == together {
            return Ok(added + self.take_pending(lengths, &bytes[added..], sink)?);
        }
        // A foreign frame that ends before the bytes that told so: join it all and start over.
        self.pending.extend_from_slice(&bytes[added..]);
        self.step = Step::Start { need: 1 };
        self.parse_unread(sink)?;
        Ok(bytes.len())
    }

    /// Adds to a frame whose lengths are known.
    fn gather(&mut self, lengths: Lengths, bytes: &[u8], sink: &mut dyn Sink) -> Result<usize, Error> {
        let added = (lengths.together() - self.pending.len()).min(bytes.len());
        self.pending.extend_from_slice(&bytes[..added]);
        if self.pending.len() < lengths.together() {
            return Ok(added);
        }
        Ok(added + self.take_pending(lengths, &bytes[added..], sink)?)
    }

    fn take_pending(&mut self, lengths: Lengths, rest: &[u8], sink: &mut dyn Sink) -> Result<usize, Error> {
        let mut payload = mem::take(&mut self.pending).freeze();
        let header = Header::new(&payload[PREFIX.min(lengths.skip)..lengths.skip]);
        payload.advance(lengths.skip);
        self.take(header.as_slice(), payload, lengths, rest, sink)
    }

    /// Hands out a frame, or begins with its body; returns how many bytes of `rest` (what follows `payload`) it took.
    fn take(
        &mut self,
        header: &[u8],
        mut payload: Bytes,
        lengths: Lengths,
        rest: &[u8],
        sink: &mut dyn Sink,
    ) -> Result<usize, Error> {
        self.step = Step::Start { need: 1 };
        self.bulk = lengths.body >= LARGE_BODY as u64;
        if !lengths.direct {
            let head = payload.split_to(lengths.head);
            sink.on_frame(header, head, payload.into())?;
            return Ok(0);
        }
        let decision = sink.place(header, &payload, lengths.body)?;
        let held = Held { header: Header::new(header), head: payload, body_len: lengths.body };
        match decision {
            Decision::Pause => self.step = Step::Paused(Box::new(held)),
            Decision::Discard => self.step = Step::Discard(Box::new(held)),
            Decision::Into(target) => {
                target.check(lengths.body)?;
                let mut body = Direct { held, target, len: lengths.body as usize, filled: 0 };
                let taken = body.copy(rest);
                if body.filled == body.len {
                    body.deliver(sink)?;
                } else {
                    self.step = Step::Body(Box::new(body));
                }
                return Ok(taken);
            }
        }
        Ok(0)
    }

    fn finish_body(&mut self, sink: &mut dyn Sink) -> Result<(), Error> {
        if matches!(&self.step, Step::Body(body) if body.filled == body.len)
            && let Step::Body(body) = mem::replace(&mut self.step, Step::Start { need: 1 })
        {
            body.deliver(sink)?;
        }
        Ok(())
    }

    fn finish_discard(&mut self, sink: &mut dyn Sink) -> Result<(), Error> {
        if matches!(&self.step, Step::Discard(held) if held.body_len == 0)
            && let Step::Discard(held) = mem::replace(&mut self.step, Step::Start { need: 1 })
        {
            sink.on_discarded(held.header.as_slice(), held.head)?;
        }
        Ok(())
    }
}

impl Header {
    fn new(header: &[u8]) -> Self {
        let mut bytes = [0; MAX_HEADER];
        bytes[..header.len()].copy_from_slice(header);
        Self { bytes, len: header.len() }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Target {
    fn check(&self, body_len: u64) -> Result<(), Error> {
        let len = self.buf.len() as u64;
        if len < body_len {
            let text = format!("a body of {body_len} bytes was planned into a buffer of {len}");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        Ok(())
    }
}

impl Direct {
    fn copy(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.len - self.filled);
        let missing = &mut self.target.buf.as_mut_slice()[self.filled..];
        missing[..taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        taken
    }

    /// Reads the body where it belongs, and with the same call what follows it into the scratch buffer.
    fn read(&mut self, stream: &Stream, scratch: &mut [u8], budget: usize) -> (usize, io::Result<usize>) {
        let missing = &mut self.target.buf.as_mut_slice()[self.filled..self.len];
        let direct = missing.len().min(budget);
        let spare = scratch.len().min(budget - direct);
        let mut slices = [IoSliceMut::new(&mut missing[..direct]), IoSliceMut::new(&mut scratch[..spare])];
        (direct + spare, stream.read_vectored(&mut slices))
    }

    fn deliver(mut self, sink: &mut dyn Sink) -> Result<(), Error> {
        self.target.buf.truncate(self.len);
        let body = match self.target.returned_as {
            BufKind::Bytes => Body::Bytes(self.target.buf.freeze()),
            BufKind::Own => Body::Buf(self.target.buf),
        };
        sink.on_frame(self.held.header.as_slice(), self.held.head, body)
    }
}
