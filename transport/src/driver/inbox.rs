//! Frames for a reader that is polled on the dispatcher's own thread: a plain list and a waker, where any other reader has
//! the lock-free queue and an atomic waker. It spares ten atomic read-modify-writes a frame.
//!
//! Where frames go changes with the thread that polls the reader, and the order stays: the reader empties the queue before
//! it looks here, and what is here moves to the queue, all of it, before anything else goes there.

use std::{collections::VecDeque, task::Waker};

use super::{CURRENT, Core, conn::ConnCore, is_current, on_own_thread};
use crate::{
    Error, Frame,
    connection::{NO_RECEIVER, Shared},
    queue::Sender,
};

/// What waits on the dispatcher's side for its own thread's reader.
#[derive(Default)]
pub(crate) struct Inbox {
    frames: VecDeque<Frame>,
    bytes: u64,
    /// The reader that was polled on this thread last; with one, frames stay here.
    reader: Option<Waker>,
    /// It found nothing and waits to be woken.
    waits: bool,
    /// The connection has ended: the reader finds what is left, and the end, in the queue.
    ended: bool,
}

/// What a reader finds on the dispatcher's own thread.
pub(crate) enum Here {
    Frame(Frame),
    /// Nothing; the reader will be woken.
    Nothing,
    /// This is not the place to look.
    Elsewhere,
}

impl Inbox {
    /// Keeps a frame for the reader of this thread, or gives it back for the queue.
    #[inline]
    pub(super) fn keep(&mut self, frame: Frame, bytes: u64) -> Result<(), Frame> {
        if self.reader.is_none() {
            return Err(frame);
        }
        self.bytes += bytes;
        self.frames.push_back(frame);
        Ok(())
    }

    #[inline]
    fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    /// The next frame, or the waker is kept. A waker that was replaced is for the caller to drop: it is foreign code.
    #[inline]
    fn poll(&mut self, waker: &Waker) -> (Here, Option<Waker>) {
        if self.ended {
            return (Here::Elsewhere, None);
        }
        if let Some(frame) = self.pop() {
            return (Here::Frame(frame), None);
        }
        self.waits = true;
        match &self.reader {
            Some(known) if known.will_wake(waker) => (Here::Nothing, None),
            _ => (Here::Nothing, self.reader.replace(waker.clone())),
        }
    }

    /// Moves everything to the queue; from now on frames go there. The reader that waited here comes back.
    fn leave(&mut self, deliver: &Sender<Frame>) -> Option<Waker> {
        self.bytes = 0;
        for frame in self.frames.drain(..) {
            let len = frame.len();
            // It fails when the receiver is gone: then nobody wants the frame.
            let _ = deliver.push(frame, len);
        }
        self.waits = false;
        self.reader.take()
    }
}

impl ConnCore {
    /// Frames and bytes that the application has not taken.
    pub(super) fn untaken(&self) -> (usize, u64) {
        (self.deliver.len() + self.inbox.frames.len(), self.deliver.bytes() + self.inbox.bytes)
    }

    /// Wakes the reader, wherever it waits.
    #[inline]
    pub(super) fn wake_reader(&mut self) {
        match &self.inbox.reader {
            Some(reader) if self.inbox.waits => {
                self.inbox.waits = false;
                reader.wake_by_ref();
            }
            Some(_) => {}
            None => self.shared.reader.wake(),
        }
    }

    /// If the reader has moved to another thread, what waits here follows it.
    #[inline]
    pub(super) fn follow_reader(&mut self) {
        use std::sync::atomic::Ordering::{Acquire, Relaxed};
        if self.inbox.reader.is_none() {
            return;
        }
        let gone = self.shared.consumed_frames.load(Acquire) == NO_RECEIVER;
        // The reader clears the flag and then announces the connection, which is what brings us here.
        if gone || !self.shared.reads_here.load(Relaxed) {
            self.inbox.leave(&self.deliver);
            self.shared.reader.wake();
        }
    }

    /// Ends the connection for its handles, after every frame that has arrived.
    pub(super) fn finish(&mut self, error: Error) {
        let reader = self.inbox.leave(&self.deliver);
        self.inbox.ended = true;
        self.shared.finish(error);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// Takes the next frame on the thread that runs the connection's dispatcher, or leaves the waker there.
#[inline]
pub(crate) fn poll_here(shared: &Shared, waker: &Waker) -> Here {
    if !is_current(shared.dispatcher.id) {
        return Here::Elsewhere;
    }
    let (found, replaced) = CURRENT.with_borrow(|current| match current.as_ref().map(|c| c.core.try_borrow_mut()) {
        Some(Ok(mut core)) => core.inbox_of(shared).map_or((Here::Elsewhere, None), |inbox| inbox.poll(waker)),
        _ => (Here::Elsewhere, None),
    });
    drop(replaced);
    if matches!(found, Here::Nothing) {
        shared.reads_here.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    found
}

/// Takes the next frame that waits for a reader of the dispatcher's thread, if this is that thread, running or not.
pub(crate) fn take_here(shared: &Shared) -> Here {
    let taken = on_own_thread(shared.dispatcher.id, (), |core, ()| core.inbox_of(shared).map(Inbox::pop));
    match taken {
        Ok(Some(Some(frame))) => Here::Frame(frame),
        Ok(Some(None)) => Here::Nothing,
        Ok(None) | Err(()) => Here::Elsewhere,
    }
}

impl Core {
    #[inline]
    fn inbox_of(&mut self, shared: &Shared) -> Option<&mut Inbox> {
        Some(&mut self.conns.get_mut(shared.key()?)?.core.inbox)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crate::{
        Address, Connection, ConnectionConfig, Dispatcher, DispatcherConfig, ErrorKind, ListenConfig, LocalDispatcher,
        driver::block_elsewhere,
    };

    const FRAMES: u32 = 3000;

    /// A connection of `local` whose peer, on a thread of its own, sends numbered frames and closes.
    fn numbered(local: &LocalDispatcher, name: &str) -> (Connection, Dispatcher) {
        let elsewhere = Dispatcher::spawn(DispatcherConfig::default()).expect("dispatcher");
        let address: Address = format!("mem://inbox-{name}").parse().expect("address");
        let mut listener = elsewhere.listen(&address, ListenConfig::default()).expect("listen");
        let connection = local.handle().connect(&address, ConnectionConfig::default()).into_connection();
        std::thread::spawn(move || {
            let peer = listener.accept_blocking().expect("accept");
            for number in 0..FRAMES {
                let sent = block_elsewhere(&peer.shared().dispatcher, peer.send_wait(number.to_le_bytes().to_vec()));
                sent.expect("not its own thread").expect("send");
            }
            block_elsewhere(&peer.shared().dispatcher, peer.close()).expect("not its own thread").expect("close");
        });
        (connection, elsewhere)
    }

    fn number(frame: &crate::Frame) -> u32 {
        u32::from_le_bytes(frame.head[..].try_into().expect("four bytes"))
    }

    #[test]
    fn order_survives_a_reader_that_moves_between_threads() {
        let local = LocalDispatcher::new(DispatcherConfig::default()).expect("dispatcher");
        let (mut connection, elsewhere) = numbered(&local, "moves");
        let mut next = 0;
        while next < FRAMES {
            // Some on the dispatcher's own thread, which leaves the waker of this future behind, ..
            connection = local
                .block_on(async move {
                    for _ in 0..7.min(FRAMES - next) {
                        assert_eq!(number(&connection.recv().await?), next);
                        next += 1;
                    }
                    Ok::<_, crate::Error>((connection, next))
                })
                .map(|(connection, after)| {
                    next = after;
                    connection
                })
                .expect("frames");
            // .. some on it while it does not run, ..
            while let Some(frame) = connection.try_recv().expect("open") {
                assert_eq!(number(&frame), next);
                next += 1;
                if next % 5 == 0 {
                    break;
                }
            }
            // .. and some on another, while it runs.
            let (done, finished) = std::sync::mpsc::channel();
            let mut moved = connection;
            let thread = std::thread::spawn(move || {
                for _ in 0..11.min(FRAMES - next) {
                    assert_eq!(number(&moved.recv_blocking().expect("a frame")), next);
                    next += 1;
                }
                done.send(()).expect("the test waits");
                (moved, next)
            });
            local.block_on(async {
                while finished.try_recv().is_err() && !thread.is_finished() {
                    local.handle().sleep_until(Instant::now() + Duration::from_micros(50)).await;
                }
            });
            (connection, next) = thread.join().expect("the reader's checks");
        }
        let end = local.block_on(connection.recv()).expect_err("nothing more comes");
        assert_eq!(end.kind(), ErrorKind::PeerClosed);
        elsewhere.shutdown();
    }

    #[test]
    fn what_has_arrived_outlives_the_connection_and_the_dispatcher() {
        let local = LocalDispatcher::new(DispatcherConfig::default()).expect("dispatcher");
        let (mut connection, elsewhere) = numbered(&local, "outlives");
        // Reads on this thread, then leaves the rest in the inbox until the peer has gone.
        local.block_on(async {
            assert_eq!(number(&connection.recv().await.expect("a frame")), 0);
            connection.abort();
            connection.closed().await;
        });
        drop(local);
        let mut next = 1;
        let end = loop {
            match connection.try_recv() {
                Ok(Some(frame)) => {
                    assert_eq!(number(&frame), next);
                    next += 1;
                }
                Ok(None) => panic!("neither a frame nor the end"),
                Err(error) => break error,
            }
        };
        assert_eq!(end.kind(), ErrorKind::Closed);
        elsewhere.shutdown();
    }
}
