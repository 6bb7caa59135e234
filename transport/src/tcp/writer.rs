//! From frames to a byte stream.
//!
//! Small frames are copied one behind the other into a staging buffer, so that a burst of them is one contiguous write;
//! large ones are kept as they are and go out by `sendmsg` without a copy. A writer that has nothing to send owns no
//! buffer: its queue goes back to a few spares of the thread, where the next burst finds it warm.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice},
};

use bytes::{Buf, Bytes};

use super::{MAX_HEADER, Mode, PREFIX, Stream, encode_prefix};
use crate::{error::Error, frame::Body};

/// Frames whose head and body have at most this many bytes together are copied into the staging buffer: a copy of
/// that size costs less than two more slices and the reference counts of their owners.
pub(super) const SMALL_FRAME: u64 = 4 << 10;
/// Parts of a larger frame that are copied, for the same reason, bytes.
const SMALL_PART: usize = 512;
/// Slices of one `sendmsg`: enough for a batch, and an array of 1 KiB on the stack.
pub(super) const MAX_SLICES: usize = 64;
/// Bytes offered to one `sendmsg`. Socket buffers take less; it bounds the walk over many small frames.
const MAX_OFFER: usize = 1 << 20;
/// Frames up to the first of these sizes, or else the second, are put together on the stack when they can be written at
/// once, bytes with their header: up to there, clearing and filling that memory costs less than three slices.
const ON_STACK: [usize; 2] = [512, 2048];
/// Bytes sent that may lie in front of the unsent ones in a staging buffer before these are moved down.
const COMPACT_FROM: usize = 64 << 10;
/// Idle queues that a thread keeps, and how large their parts may be: less than 2 MiB for each thread.
const SPARES: usize = 8;
const SPARE_BYTES: usize = 64 << 10;
const SPARE_PIECES: usize = 1024;

thread_local! {
    #[expect(clippy::vec_box, reason = "a writer holds one pointer, and takes the very box from here")]
    static SPARE_QUEUES: RefCell<Vec<Box<Queue>>> = const { RefCell::new(Vec::new()) };
}

/// Why [`Writer::flush`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlushEnd {
    /// The kernel has it all.
    Done,
    /// The socket is full: the next writable edge will tell.
    WouldBlock,
    /// The budget is spent: flush again, no edge will come.
    Budget,
}

/// Writes frames to one stream, in order.
pub(crate) struct Writer {
    native: bool,
    queue: Option<Box<Queue>>,
    pending: u64,
    done: u64,
}

#[derive(Default)]
struct Queue {
    control: Lane,
    data: Lane,
    /// The lane whose first frame has been sent in part: it goes on before anything else.
    begun: Option<LaneName>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LaneName {
    Control,
    Data,
}

/// Frames of one kind, first in, first out.
#[derive(Default)]
struct Lane {
    /// Copied bytes; the first `sent` of them are gone.
    staging: Vec<u8>,
    sent: usize,
    pieces: VecDeque<Piece>,
}

struct Piece {
    data: PieceData,
    /// The frame ends here.
    last: bool,
}

enum PieceData {
    /// The next bytes of the staging buffer; never none.
    Staged(usize),
    /// Never empty.
    Shared(Bytes),
}

/// Prefix and header of a native frame; nothing in foreign mode.
struct Lead {
    bytes: [u8; PREFIX + MAX_HEADER],
    len: usize,
}

impl Writer {
    pub(crate) fn new(mode: &Mode) -> Self {
        Self { native: matches!(mode, Mode::Native), queue: None, pending: 0, done: 0 }
    }

    /// Queues a frame behind those queued before. `header` is the encoded frame header (16 to 32 bytes), and is
    /// ignored in foreign mode. A [`Body::Pending`] has no bytes to send: callers have refused it before.
    pub(crate) fn push(&mut self, header: &[u8], head: Bytes, body: Body) {
        let body = sendable(body);
        let lead = self.lead(header, head.len() as u64 + body.len());
        self.push_led(&lead, head, body);
    }

    /// Queues a control frame ahead of all data, behind other control frames and behind a frame that has been sent in
    /// part. The payload is copied.
    pub(crate) fn push_front_control(&mut self, header: &[u8], payload: &[u8]) {
        let lead = self.lead(header, payload.len() as u64);
        let len = lead.len + payload.len();
        if len == 0 {
            return;
        }
        self.pending += len as u64;
        self.queue().control.push_copied(&[&lead.bytes[..lead.len], payload]);
    }

    /// Sends a frame at once if nothing is queued, without an allocation if it is small; queues what the socket does
    /// not take.
    ///
    /// # Errors
    /// As [`Writer::flush`].
    pub(crate) fn send_now(
        &mut self,
        stream: &Stream,
        header: &[u8],
        head: Bytes,
        body: Body,
    ) -> Result<FlushEnd, Error> {
        let body = sendable(body);
        let size = head.len() as u64 + body.len();
        let lead = self.lead(header, size);
        let whole = if size <= SMALL_FRAME && self.pending == 0 { contiguous(&body) } else { None };
        let Some(flat_body) = whole else {
            self.push_led(&lead, head, body);
            let mut all = usize::MAX;
            return self.flush(stream, &mut all);
        };
        let sent = match write_parts(stream, [&lead.bytes[..lead.len], &head, flat_body]) {
            Ok(sent) => sent,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => return Err(broken(&e)),
        };
        if sent == lead.len + size as usize {
            self.done += 1;
            return Ok(FlushEnd::Done);
        }
        self.push_led(&lead, head, body);
        self.consume(sent);
        Ok(FlushEnd::WouldBlock)
    }

    /// Writes what is queued until the socket is full or `budget` bytes are written.
    ///
    /// # Errors
    /// The stream's. The connection is of no more use.
    pub(crate) fn flush(&mut self, stream: &Stream, budget: &mut usize) -> Result<FlushEnd, Error> {
        loop {
            let Some(queue) = self.queue.as_ref().filter(|_| self.pending > 0) else { return Ok(FlushEnd::Done) };
            if *budget == 0 {
                return Ok(FlushEnd::Budget);
            }
            let (asked, result) = queue.write(stream, MAX_OFFER.min(*budget));
            let sent = match result {
                Ok(sent) => sent,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(FlushEnd::WouldBlock),
                Err(e) => return Err(broken(&e)),
            };
            *budget -= sent;
            self.consume(sent);
            // The module's documentation says why this is enough.
            if sent < asked {
                return Ok(FlushEnd::WouldBlock);
            }
        }
    }

    /// Bytes queued, with prefixes and headers.
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.pending
    }

    /// Bytes of control frames among them.
    pub(crate) fn pending_control(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.control.staging.len() - queue.control.sent)
    }

    /// Data frames that the kernel took completely since the last call. Their buffers are dropped. Control frames don't
    /// count: they overtake data, so a count of both would not say which data frames are gone.
    pub(crate) fn frames_done(&mut self) -> u64 {
        std::mem::take(&mut self.done)
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_none()
    }

    #[cfg(test)]
    pub(super) fn staging_capacity(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.data.staging.capacity())
    }

    fn lead(&self, header: &[u8], payload_len: u64) -> Lead {
        let mut lead = Lead { bytes: [0; PREFIX + MAX_HEADER], len: 0 };
        if self.native {
            lead.len = PREFIX + header.len();
            lead.bytes[..PREFIX].copy_from_slice(&encode_prefix(header.len(), payload_len));
            lead.bytes[PREFIX..lead.len].copy_from_slice(header);
        }
        lead
    }

    fn push_led(&mut self, lead: &Lead, head: Bytes, body: Body) {
        let size = head.len() as u64 + body.len();
        if lead.len as u64 + size == 0 {
            self.done += 1;
            return;
        }
        self.pending += lead.len as u64 + size;
        let lead = &lead.bytes[..lead.len];
        let lane = &mut self.queue().data;
        match contiguous(&body) {
            Some(flat_body) if size <= SMALL_FRAME => lane.push_copied(&[lead, &head, flat_body]),
            _ => lane.push_shared(lead, head, body),
        }
    }

    fn queue(&mut self) -> &mut Queue {
        let warm = || SPARE_QUEUES.try_with(|spares| spares.borrow_mut().pop()).ok().flatten();
        self.queue.get_or_insert_with(|| warm().unwrap_or_default())
    }

    /// `sent` bytes of the queue are gone.
    fn consume(&mut self, sent: usize) {
        if let Some(queue) = &mut self.queue {
            self.pending -= sent as u64;
            self.done += queue.consume(sent);
        }
        if self.pending == 0
            && let Some(queue) = self.queue.take()
        {
            queue.give_back();
        }
    }
}

impl Queue {
    fn lane(&mut self, name: LaneName) -> &mut Lane {
        match name {
            LaneName::Control => &mut self.control,
            LaneName::Data => &mut self.data,
        }
    }

    /// One write of at most `limit` bytes: how many were offered, and what came of it.
    fn write(&self, stream: &Stream, limit: usize) -> (usize, io::Result<usize>) {
        let mut offer = Offer { slices: [IoSlice::new(&[]); MAX_SLICES], count: 0, run: &[], room: limit };
        let (control, data) = (&self.control, &self.data);
        let begun = if self.begun == Some(LaneName::Data) { data.first_frame() } else { 0 };
        let after = offer.add(data, 0..begun, data.sent);
        offer.add(control, 0..control.pieces.len(), control.sent);
        offer.add(data, begun..data.pieces.len(), after);
        offer.close_run();
        let asked = limit - offer.room;
        match &offer.slices[..offer.count] {
            [one] => (asked, stream.write(one)),
            slices => (asked, stream.write_vectored(slices)),
        }
    }

    /// Drops the first `sent` bytes, in the order in which [`Queue::write`] offers them; returns how many data frames ended.
    fn consume(&mut self, mut sent: usize) -> u64 {
        let mut ended = 0;
        while sent > 0 {
            let first = if self.control.pieces.is_empty() { LaneName::Data } else { LaneName::Control };
            let name = self.begun.unwrap_or(first);
            let (taken, end) = self.lane(name).consume(sent);
            sent -= taken;
            self.begun = if end { None } else { Some(name) };
            ended += u64::from(end && name == LaneName::Data);
        }
        self.control.compact();
        self.data.compact();
        ended
    }

    fn give_back(mut self: Box<Self>) {
        debug_assert!(self.begun.is_none() && self.control.pieces.is_empty() && self.data.pieces.is_empty());
        for lane in [&mut self.control, &mut self.data] {
            lane.staging.clear();
            lane.staging.shrink_to(SPARE_BYTES);
            lane.sent = 0;
            if lane.pieces.capacity() > SPARE_PIECES {
                lane.pieces = VecDeque::new();
            }
        }
        // A thread that is ending keeps nothing.
        let _ = SPARE_QUEUES.try_with(|spares| {
            let mut spares = spares.borrow_mut();
            if spares.len() < SPARES {
                spares.push(self);
            }
        });
    }
}

impl Lane {
    fn push_copied(&mut self, parts: &[&[u8]]) {
        parts.iter().for_each(|part| self.staging.extend_from_slice(part));
        let len = parts.iter().map(|part| part.len()).sum();
        self.pieces.push_back(Piece { data: PieceData::Staged(len), last: true });
    }

    fn push_shared(&mut self, lead: &[u8], head: Bytes, body: Body) {
        let mut staged = lead.len();
        self.staging.extend_from_slice(lead);
        self.push_part(head, &mut staged);
        match body {
            Body::Segments(segments) => segments.into_iter().for_each(|part| self.push_part(part, &mut staged)),
            body => self.push_part(body.into_bytes().unwrap_or_default(), &mut staged),
        }
        self.push_staged(&mut staged);
        if let Some(piece) = self.pieces.back_mut() {
            piece.last = true;
        }
    }

    fn push_part(&mut self, part: Bytes, staged: &mut usize) {
        if part.len() <= SMALL_PART {
            self.staging.extend_from_slice(&part);
            *staged += part.len();
        } else {
            self.push_staged(staged);
            self.pieces.push_back(Piece { data: PieceData::Shared(part), last: false });
        }
    }

    fn push_staged(&mut self, staged: &mut usize) {
        if *staged > 0 {
            self.pieces.push_back(Piece { data: PieceData::Staged(*staged), last: false });
            *staged = 0;
        }
    }

    /// Pieces of the first frame.
    fn first_frame(&self) -> usize {
        self.pieces.iter().position(|piece| piece.last).map_or(0, |last| last + 1)
    }

    /// Drops at most `sent` bytes of the first piece: how many, and whether a frame ended with it.
    fn consume(&mut self, sent: usize) -> (usize, bool) {
        let Some(piece) = self.pieces.front_mut() else { unreachable!("more bytes were sent than queued") };
        let taken = match &mut piece.data {
            PieceData::Staged(len) => {
                let taken = sent.min(*len);
                self.sent += taken;
                *len -= taken;
                if *len > 0 {
                    return (taken, false);
                }
                taken
            }
            PieceData::Shared(bytes) if sent < bytes.len() => {
                bytes.advance(sent);
                return (sent, false);
            }
            PieceData::Shared(bytes) => bytes.len(),
        };
        let last = piece.last;
        self.pieces.pop_front();
        (taken, last)
    }

    /// Makes room in the staging buffer. Moving only when at least half is gone keeps the cost per byte constant.
    fn compact(&mut self) {
        if self.sent == self.staging.len() {
            self.staging.clear();
            self.sent = 0;
        } else if self.sent >= COMPACT_FROM && self.sent >= self.staging.len() / 2 {
            self.staging.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// The slices of one write, while they are put together.
struct Offer<'a> {
    slices: [IoSlice<'a>; MAX_SLICES],
    count: usize,
    /// Neighbours in a staging buffer, to become one slice.
    run: &'a [u8],
    /// Bytes that may still be added.
    room: usize,
}

impl<'a> Offer<'a> {
    /// Adds pieces whose staged bytes begin at `staged` of the lane's buffer; returns where they end.
    fn add(&mut self, lane: &'a Lane, pieces: std::ops::Range<usize>, mut staged: usize) -> usize {
        self.close_run();
        let mut run = staged..staged;
        for piece in lane.pieces.range(pieces) {
            // One slice is kept for the open run. Whoever stops here stops the lanes behind it, too: the order holds.
            if self.room == 0 || self.count + 1 >= MAX_SLICES {
                break;
            }
            match &piece.data {
                PieceData::Staged(len) => {
                    staged += len;
                    let taken = self.room.min(*len);
                    run.end += taken;
                    self.room -= taken;
                    self.run = &lane.staging[run.clone()];
                }
                PieceData::Shared(bytes) => {
                    self.close_run();
                    run = staged..staged;
                    let taken = self.room.min(bytes.len());
                    self.slices[self.count] = IoSlice::new(&bytes[..taken]);
                    self.count += 1;
                    self.room -= taken;
                }
            }
        }
        staged
    }

    fn close_run(&mut self) {
        let run = std::mem::take(&mut self.run);
        if !run.is_empty() && self.count < MAX_SLICES {
            self.slices[self.count] = IoSlice::new(run);
            self.count += 1;
        }
    }
}

fn broken(error: &io::Error) -> Error {
    Error::from_io("writing to the connection", error)
}

/// A pending body states a length and has no bytes: the counts of bytes here must not believe it.
fn sendable(body: Body) -> Body {
    debug_assert!(!matches!(body, Body::Pending(_)), "a pending body was sent");
    if matches!(body, Body::Pending(_)) { Body::Empty } else { body }
}

/// A body that lies in one piece.
fn contiguous(body: &Body) -> Option<&[u8]> {
    match body {
        Body::Empty => Some(&[]),
        Body::Bytes(bytes) => Some(bytes),
        Body::Buf(buf) => Some(buf.as_slice()),
        Body::Segments(segments) => match segments.as_slice() {
            [] => Some(&[]),
            [one] => Some(one),
            _ => None,
        },
        Body::Pending(_) => None,
    }
}

/// Writes a small frame with one call.
fn write_parts(stream: &Stream, parts: [&[u8]; 3]) -> io::Result<usize> {
    match parts.iter().map(|part| part.len()).sum::<usize>() {
        len if len <= ON_STACK[0] => write_joined::<{ ON_STACK[0] }>(stream, parts),
        len if len <= ON_STACK[1] => write_joined::<{ ON_STACK[1] }>(stream, parts),
        _ => stream.write_vectored(&parts.map(IoSlice::new)),
    }
}

fn write_joined<const SIZE: usize>(stream: &Stream, parts: [&[u8]; 3]) -> io::Result<usize> {
    let mut bytes = [0; SIZE];
    let mut len = 0;
    for part in parts {
        bytes[len..len + part.len()].copy_from_slice(part);
        len += part.len();
    }
    stream.write(&bytes[..len])
}
