//! The sending side that all backends share: order, credit, budgets, and the short ways around the queue.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, TryLockError},
};

use super::{ConnCore, io::Core};
use crate::{
    Frame, Result,
    connection::{self, Completion, Outgoing, Phase, Shared},
    event::poller::Key,
    proto::{
        credit::SendCredit,
        header::{Credit, FrameHeader, HeadPlace, Kind, MAX_HEADER},
    },
    queue::Receiver,
    tcp::{FlushEnd, Stream, Writer},
};

/// What a turn of sending did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// All that could be sent was; a new frame, credit, a completion or a writable edge leads here again.
    Rest,
    /// The turn's budget ran out with more to do.
    More,
}

/// What one connection may send in one turn.
pub(crate) struct Budget {
    pub(crate) bytes: usize,
    pub(crate) frames: usize,
}

impl Budget {
    pub(crate) fn of(shared: &Shared) -> Self {
        let config = &shared.dispatcher.config;
        Self { bytes: config.turn_bytes.max(1), frames: config.turn_frames.max(1) }
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.bytes == 0 || self.frames == 0
    }

    pub(crate) fn spend(&mut self, bytes: u64) {
        self.frames -= 1;
        self.bytes = self.bytes.saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
}

/// Gives data frames their numbers and takes their credit. One per connection, where the backend's sender is.
pub(crate) struct Numbering {
    peer: Key,
    next: u32,
    /// `None` without ucrpc's framing.
    credit: Option<SendCredit>,
    /// Taken from the queue when there was no credit for it. It goes first.
    stalled: Option<Outgoing>,
}

impl Numbering {
    pub(crate) fn new(peer: Key, credit: Option<Credit>) -> Self {
        Self { peer, next: 0, credit: credit.map(SendCredit::new), stalled: None }
    }

    /// The next frame for which there is credit.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Limit`] for a frame that was taken before the peer's limits were known, and is above them.
    #[inline]
    pub(crate) fn next(&mut self, queue: &mut Receiver<Outgoing>, shared: &Shared) -> Result<Option<Outgoing>> {
        let stalled = self.stalled.take();
        let was_stalled = stalled.is_some();
        let Some(out) = stalled.or_else(|| queue.pop()) else { return Ok(None) };
        let len = out.frame.len();
        if let Some(error) = connection::too_large(shared, &out.frame, len) {
            return Err(error);
        }
        if self.take_credit(len) {
            return Ok(Some(out));
        }
        if !was_stalled {
            shared.counters.credit_stalls.add_shared(1);
        }
        self.stalled = Some(out);
        Ok(None)
    }

    #[inline]
    pub(crate) fn take_credit(&mut self, bytes: u64) -> bool {
        self.credit.as_mut().is_none_or(|credit| credit.try_take(bytes))
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// The header of the next data frame.
    #[inline]
    pub(crate) fn header(&mut self, frame: &Frame, body: u64, credit: Option<Credit>) -> FrameHeader {
        let mut header = FrameHeader::new(Kind::Data, self.peer.index, self.peer.generation, self.next);
        self.next = self.next.wrapping_add(1);
        if body > 0 {
            header.head_len = Some(frame.head.len() as u32);
            header.place = HeadPlace::InPayload;
        }
        header.credit = credit;
        header
    }

    pub(crate) fn give(&mut self, credit: Credit) -> Result<()> {
        match &mut self.credit {
            Some(mine) => mine.give(credit).map_err(Into::into),
            None => Ok(()),
        }
    }

    /// Bytes that the peer has not given credit for.
    pub(crate) fn in_flight_bytes(&self) -> u64 {
        self.credit.as_ref().map_or(0, |credit| credit.in_flight().bytes)
    }

    /// Data frames numbered so far.
    pub(crate) fn count(&self) -> u32 {
        self.next
    }

    /// Drops what is stalled, at the connection's end.
    pub(crate) fn drop_stalled(&mut self) {
        self.stalled = None;
    }
}

/// The sending half of a stream connection. It has a lock because callers' threads may use it directly.
pub(crate) struct SendHalf {
    pub(crate) numbering: Numbering,
    pub(crate) writer: Writer,
    pub(crate) stream: Arc<Stream>,
    native: bool,
    /// Completions of frames not yet in the kernel, with the number of the frame.
    waiting: VecDeque<(u64, Completion)>,
    put: u64,
    done: u64,
    /// The connection has ended: nothing that is put here would go anywhere, nor complete.
    closed: bool,
}

impl SendHalf {
    pub(crate) fn new(numbering: Numbering, writer: Writer, stream: Arc<Stream>, native: bool) -> Self {
        Self { numbering, writer, stream, native, waiting: VecDeque::new(), put: 0, done: 0, closed: false }
    }

    /// Puts a data frame into the writer.
    pub(crate) fn put(&mut self, out: Outgoing, credit: Option<Credit>) {
        let (mut bytes, mut len) = ([0; MAX_HEADER], 0);
        if self.native {
            let body = out.frame.body.len();
            len = self.numbering.header(&out.frame, body, credit).encode(&mut bytes);
        } else {
            self.numbering.next = self.numbering.next.wrapping_add(1);
        }
        self.put += 1;
        self.writer.push(&bytes[..len], out.frame.head, out.frame.body);
        if let Some(done) = out.done {
            self.waiting.push_back((self.put, done));
        }
    }

    /// Writes a data frame at once; nothing may be queued. What the kernel does not take is queued.
    pub(crate) fn send_now(&mut self, out: Outgoing, credit: Option<Credit>) -> Result<FlushEnd> {
        let (mut bytes, mut len) = ([0; MAX_HEADER], 0);
        if self.native {
            let body = out.frame.body.len();
            len = self.numbering.header(&out.frame, body, credit).encode(&mut bytes);
        } else {
            self.numbering.next = self.numbering.next.wrapping_add(1);
        }
        self.put += 1;
        if let Some(done) = out.done {
            self.waiting.push_back((self.put, done));
        }
        let end = self.writer.send_now(&self.stream, &bytes[..len], out.frame.head, out.frame.body)?;
        self.tell_done();
        Ok(end)
    }

    /// Puts a control frame into the writer, ahead of data.
    pub(crate) fn put_control(&mut self, header: FrameHeader, payload: &[u8]) {
        let mut bytes = [0; MAX_HEADER];
        let len = header.encode(&mut bytes);
        self.writer.push_front_control(&bytes[..len], payload);
    }

    /// Writes what the kernel takes, and tells the completions of what it took.
    pub(crate) fn flush(&mut self, budget: &mut usize) -> Result<FlushEnd> {
        let end = self.writer.flush(&self.stream, budget)?;
        self.tell_done();
        Ok(end)
    }

    fn tell_done(&mut self) {
        self.done += self.writer.frames_done();
        while self.waiting.front().is_some_and(|(number, _)| *number <= self.done) {
            if let Some((_, done)) = self.waiting.pop_front() {
                done.complete(Ok(()));
            }
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.writer.pending_bytes() == 0 && !self.numbering.is_stalled()
    }

    /// Lets go of everything unsent, and takes nothing more.
    pub(crate) fn clear(&mut self) {
        self.closed = true;
        self.numbering.drop_stalled();
        self.waiting.clear();
        self.writer = Writer::new(&crate::tcp::Mode::Native);
    }
}

/// Sends from a caller's thread, if the connection is an idle stream. The order is kept because the dispatcher takes
/// frames from the queue only under the same lock.
pub(super) fn by_caller(shared: &connection::Shared, outgoing: &mut Option<Outgoing>, len: u64) {
    let Some(direct) = shared.direct.get() else { return };
    if shared.phase() != Phase::Open {
        return;
    }
    let mut half = match direct.try_lock() {
        Ok(half) => half,
        Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => return,
    };
    // The phase again, under the lock: whoever says goodbye or ends the connection counts under it what was sent.
    let open = shared.phase() == Phase::Open && !half.closed;
    if !open || !shared.queue.is_empty() || !half.is_idle() || !half.numbering.take_credit(len) {
        return;
    }
    let Some(outgoing) = outgoing.take() else { return };
    count_sent(shared, len);
    shared.counters.written_by_caller.add(1);
    match half.send_now(outgoing, None) {
        // What is left goes on at the writable edge that a full socket makes.
        Ok(FlushEnd::Done | FlushEnd::WouldBlock) => {}
        // The dispatcher goes on, or finds the error for itself.
        Ok(FlushEnd::Budget) | Err(_) => {
            drop(half);
            shared.announce();
        }
    }
}

/// Counts a data frame. On a stream connection several threads send, each under the send half's lock: one at a time.
pub(crate) fn count_sent(shared: &Shared, len: u64) {
    shared.counters.frames_sent.add(1);
    shared.counters.bytes_sent.add(len);
}

impl Core {
    /// Sends at once on the dispatcher's own thread, if nothing is in front.
    #[inline]
    pub(super) fn send_now(&mut self, shared: &Shared, outgoing: &mut Option<Outgoing>, len: u64) {
        if shared.phase() != Phase::Open || !shared.queue.is_empty() {
            return;
        }
        let Some(key) = shared.key() else { return };
        let Some(conn) = self.conns.get_mut(key) else { return };
        let result = match &mut conn.link {
            super::conn::Link::Opening(_) => None,
            super::conn::Link::Tcp(link) => link.send_now(&mut conn.core, outgoing, len),
            super::conn::Link::Ucx(link) => link.send_now(&mut conn.core, &mut self.io, outgoing, len),
            super::conn::Link::Cm(link) => link.send_now(&mut conn.core, &mut self.io, outgoing, len),
            super::conn::Link::Mem(link) => link.send_now(&mut conn.core, outgoing, len),
        };
        if let Some(Err(error)) = result {
            self.io.doomed.push((key, error));
        }
    }

    /// Serves a connection that is ready: its queue, its credit, its wishes.
    pub(super) fn serve(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.core.is_ready = false;
        conn.core.shared.announce.begin_drain();
        conn.core.follow_reader();
        if conn.core.shared.end().is_some() {
            // It lingers for its last word: there is nothing more to send, and what failed now would cut it short. A wish
            // to abort is still one.
            return self.settle(key);
        }
        if let Err(error) = conn.serve(&mut self.io) {
            self.end(key, error);
        } else {
            self.settle(key);
        }
    }
}

impl super::conn::Conn {
    fn serve(&mut self, io: &mut super::Io) -> Result<()> {
        use crate::proto::credit::Urgency;
        let Some(backend) = self.link.backend() else { return Ok(()) };
        // The receiver tells of what it consumed only when an eighth of the window has gathered. Another eighth may stay
        // back here: together that is the quarter which the sender counts on being kept at most.
        if let Some(credit) = self.core.credit_due(Urgency::Piggyback) {
            let mut header = self.core.control_header(Kind::Credit, 0);
            header.credit = Some(credit);
            backend.control(&mut self.core, io, header, &[])?;
        }
        for (header, payload) in std::mem::take(&mut self.core.controls) {
            backend.control(&mut self.core, io, header, &payload)?;
        }
        let pumped = backend.pump(&mut self.core, io)?;
        self.core.shared.wake_waiters();
        if pumped == Pumped::More {
            self.core.make_ready(io);
        }
        if let super::conn::Link::Tcp(link) = &mut self.link {
            link.read_again(&mut self.core, io)?;
        }
        Ok(())
    }
}

impl ConnCore {
    /// Puts it at the end of the dispatcher's own list.
    pub(crate) fn make_ready(&mut self, io: &mut super::Io) {
        if !self.is_ready {
            self.is_ready = true;
            io.ready.push_back(self.key);
        }
    }
}

/// Locks a send half; a caller that panicked inside left nothing half-done that matters more than going on.
pub(crate) fn lock(half: &Mutex<SendHalf>) -> std::sync::MutexGuard<'_, SendHalf> {
    half.lock().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ConnectionConfig, DispatcherConfig, LocalDispatcher,
        connection::DriverHalf,
        tcp::{FlushEnd, Mode},
    };

    /// An open connection over a socket pair, without a driver.
    fn open(local: &LocalDispatcher) -> (crate::Connection, DriverHalf, Arc<Mutex<SendHalf>>, mio::net::UnixStream) {
        let (connection, half) = connection::new(local.handle().shared, ConnectionConfig::default());
        let (ours, theirs) = mio::net::UnixStream::pair().expect("pair");
        let numbering = Numbering::new(Key { index: 1, generation: 1 }, None);
        let send = SendHalf::new(numbering, Writer::new(&Mode::Native), Arc::new(Stream::Unix(ours)), true);
        let send = Arc::new(Mutex::new(send));
        assert!(half.shared.direct.set(send.clone()).is_ok());
        half.shared.advance(Phase::Open);
        (connection, half, send, theirs)
    }

    fn outgoing() -> Outgoing {
        Outgoing { frame: Frame::from(&b"frame"[..]), done: None }
    }

    #[test]
    fn a_caller_that_comes_too_late_gets_its_frame_back() {
        let local = LocalDispatcher::new(DispatcherConfig::default()).expect("dispatcher");
        let (_connection, half, send, _theirs) = open(&local);
        let mut first = Some(outgoing());
        by_caller(&half.shared, &mut first, 5);
        assert!(first.is_none());
        // The connection ends between the caller's look at its phase and its lock: what it put into the writer then
        // would stay there, and its completion would never come.
        lock(&send).clear();
        let mut late = Some(outgoing());
        by_caller(&half.shared, &mut late, 5);
        assert!(late.is_some());
        let mut all = usize::MAX;
        assert_eq!(lock(&send).flush(&mut all).expect("nothing to write"), FlushEnd::Done);
    }
}
