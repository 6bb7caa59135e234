//! Opening is over and ending begins: what a connection does when it opens, lives, closes, fails.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Buf;

use super::{
    ConnCore,
    conn::{Conn, Link},
    io::{Core, Io, Source, Timer},
    opening::Opened,
    send::Pumped,
    terms::granted,
    ucx_link::UcxLink,
};
use crate::{
    Error, ErrorKind, Result,
    connection::{CloseWish, Phase, Shared},
    event::{
        pipe::{PipeState, ReadyPipe},
        poller::{Edge, Key},
    },
    proto::{
        control,
        credit::RecvCredit,
        header::Kind,
        hello::{self, Decoded, Message},
        lifecycle::Action,
        liveness::LivenessAction,
    },
};

/// After both goodbyes the side that answered keeps the path up this long for its answer to arrive, unless the other
/// side closes the socket first.
const LAST_WORD: Duration = Duration::from_secs(1);

impl Conn {
    /// Exchanges the link and lets the application in.
    pub(super) fn open(&mut self, io: &mut Io, opened: Opened) {
        let Opened { link, info, native, peer, peer_interval } = opened;
        let core = &mut self.core;
        core.session.peer = peer;
        core.session.peer_interval = peer_interval;
        core.session.said = io.now;
        core.session.recv = native.then(|| RecvCredit::new(granted(&core.config)));
        // Curve's wire has pings, whatever its frames are.
        if (!native && !matches!(link, Link::Cm(_))) || matches!(link, Link::Mem(_)) {
            // Nobody there answers our pings, or nobody there can be gone without its end being seen.
            core.session.liveness = None;
        }
        core.heard(io.now);
        if let Link::Tcp(link) = &link {
            let _ = core.shared.direct.set(link.half.clone());
        }
        self.link = link;
        let _ = core.shared.info.set(info);
        core.shared.advance(Phase::Open);
        for (pipe, _) in &mut core.pipes {
            if let Err(error) = pipe.open() {
                tracing::warn!(%error, "readiness pipe");
            }
        }
        core.shared.wake_waiters();
        core.make_ready(io);
    }

    /// Acts on wishes, deadlines and the close machine, until nothing is due. `Some` is the end.
    fn settle(&mut self, io: &mut Io) -> Result<Option<Result<()>>> {
        match self.core.shared.wish() {
            CloseWish::Abort => return Err(Error::new(ErrorKind::Closed, "the connection was aborted")),
            CloseWish::Graceful if !self.link.is_open() && self.core.queue.is_empty() => {
                return Err(Error::new(ErrorKind::Closed, "closed before it was open"));
            }
            CloseWish::Graceful if self.link.is_open() && self.core.session.life.is_open() => {
                // Before anything is counted for the goodbye; the wish is seen before the phase that comes with it.
                self.core.shared.advance(Phase::Closing);
                self.core.queue.close();
                self.core.session.life.close(Instant::now(), self.core.config.linger); // The turn's begin may be long ago.
            }
            _ => {}
        }
        self.close_when_sent()?;
        while let Some(action) = self.core.session.life.poll() {
            match action {
                Action::SendGoodbye(count) => {
                    let header = self.core.control_header(Kind::Goodbye, count);
                    self.control(io, header, &[])?;
                }
                Action::SendGoodbyeAck => {
                    let header = self.core.control_header(Kind::GoodbyeAck, 0);
                    self.control(io, header, &[])?;
                }
                Action::Finished(result) => return Ok(Some(result)),
            }
        }
        Ok(None)
    }

    /// Says goodbye when everything that was queued is gone.
    fn close_when_sent(&mut self) -> Result<()> {
        use crate::proto::lifecycle::State;
        let Some(backend) = self.link.backend() else { return Ok(()) };
        if self.core.session.life.is_completing() {
            let received = self.core.session.received();
            self.core.session.life.on_received(received);
        }
        if !matches!(self.core.session.life.state(), State::Draining { .. }) || !backend.is_idle(&self.core) {
            return Ok(());
        }
        let sent = backend.sent();
        match &self.link {
            // A foreign protocol has no goodbye: the end of the stream is one.
            Link::Tcp(_) if self.core.session.recv.is_none() => {
                self.core.session.life.on_error(Error::new(ErrorKind::Closed, "the connection was closed"));
            }
            _ => self.core.session.life.on_all_sent(sent),
        }
        Ok(())
    }

    /// Looks at the clock.
    fn on_time(&mut self, io: &mut Io) -> Result<()> {
        self.core.watch(&mut self.link);
        self.core.session.life.on_timeout(io.now);
        if let Link::Cm(link) = &mut self.link
            && link.excuses_silence(io.now)
        {
            self.core.heard(io.now);
        }
        if self.is_paused() {
            // Its answers wait behind the body that waits here: that it is silent says nothing.
            self.core.heard(io.now);
            self.core.reassure(io);
        }
        let action = self.core.session.liveness.as_mut().and_then(|l| l.poll(io.now));
        match action {
            Some(LivenessAction::Ping(id)) => {
                if let Link::Ucx(link) = &mut self.link
                    && link.is_busy()
                {
                    // Behind large transfers a ping over UCX would be late; the socket tells as well that the process
                    // lives, and UCX itself watches the path of what it is transferring.
                    return link.say(&Message::Ping(id));
                }
                let header = self.core.control_header(Kind::Ping, 0);
                self.control(io, header, &control::encode_ping(id))
            }
            Some(LivenessAction::Dead(silence)) => Err(Error::new(
                ErrorKind::TimedOut,
                format!("no sign of life from the peer for {} ms", silence.as_millis()),
            )),
            None => Ok(()),
        }
    }

    /// The socket of an open connection has an edge.
    fn on_socket(&mut self, io: &mut Io, edge: &Edge) -> Result<()> {
        match &mut self.link {
            Link::Tcp(link) => {
                if edge.closed {
                    // The end makes no further edge: the reader must run into it.
                    link.reader.expect_end();
                }
                if edge.readable || edge.closed {
                    link.read(&mut self.core, io)?;
                }
                if edge.writable {
                    use crate::backend::Backend;
                    if link.flush(&mut self.core, io)? == Pumped::More {
                        self.core.make_ready(io);
                    }
                    self.core.shared.wake_waiters();
                }
                Ok(())
            }
            Link::Ucx(link) => read_control(link, &mut self.core, io.now),
            Link::Opening(_) | Link::Cm(_) | Link::Mem(_) => Ok(()),
        }
    }

    /// Whether reading waits for somebody on this side.
    fn is_paused(&self) -> bool {
        matches!(&self.link, Link::Tcp(link) if link.is_paused())
    }

    /// When something is due.
    fn next_deadline(&self) -> Option<Instant> {
        let session = &self.core.session;
        let reassure = session.peer_interval.filter(|_| self.is_paused()).map(|interval| session.said + interval);
        match &self.link {
            Link::Opening(opening) => Some(opening.next_deadline()),
            _ => [self.core.next_deadline(), reassure].into_iter().flatten().min(),
        }
    }

    /// The peer's socket has ended. In the middle of things that is a crash; after a goodbye it is the last word.
    fn on_eof(&self) -> Error {
        if self.core.session.life.is_mutual() {
            return Error::new(ErrorKind::Closed, "both sides closed the connection");
        }
        if self.core.session.recv.is_none() {
            return Error::new(ErrorKind::PeerClosed, "the peer closed the connection");
        }
        Error::new(ErrorKind::Reset, "the peer's socket ended without a goodbye: its process has ended or given up")
    }

    /// Reads the socket beside a UCX connection.
    pub(super) fn read_control(&mut self, io: &mut Io) -> Result<()> {
        match &mut self.link {
            Link::Ucx(link) => read_control(link, &mut self.core, io.now),
            _ => Ok(()),
        }
    }

    fn eof(&self) -> bool {
        match &self.link {
            Link::Tcp(link) => link.eof,
            Link::Ucx(link) => link.eof,
            Link::Opening(_) | Link::Cm(_) | Link::Mem(_) => false,
        }
    }
}

/// Reads the socket beside a UCX connection: a late READY, or its end.
fn read_control(link: &mut UcxLink, core: &mut ConnCore, now: Instant) -> Result<()> {
    let mut bytes = [0; 512];
    while !link.eof {
        match link.stream.read(&mut bytes) {
            Ok(0) => link.eof = true,
            Ok(n) => link.inbox.extend_from_slice(&bytes[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::from_io("the control socket", &e)),
        }
        while !link.inbox.is_empty() {
            match hello::decode(&link.inbox)? {
                Decoded::NeedMore(_) => break,
                Decoded::Message(Message::Ready(_), used) if link.ready_due => {
                    link.ready_due = false;
                    link.inbox.advance(used);
                }
                Decoded::Message(Message::Ping(id), used) => {
                    link.inbox.advance(used);
                    link.say(&Message::Pong(id))?;
                }
                Decoded::Message(Message::Pong(id), used) => {
                    link.inbox.advance(used);
                    core.on_pong(id, now);
                }
                Decoded::Message(Message::Fallback(fallback), _) => {
                    return Err(Error::new(ErrorKind::Reset, format!("the peer lost ucx: {}", fallback.text)));
                }
                Decoded::Message(..) => {
                    return Err(Error::new(ErrorKind::Protocol, "a handshake message on an open connection"));
                }
            }
        }
    }
    Ok(())
}

impl Core {
    /// After anything happened to a connection: what follows, and when to look again.
    pub(super) fn settle(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match conn.settle(&mut self.io) {
            Err(error) => return self.end(key, error),
            Ok(Some(Ok(()))) => return self.end(key, Error::new(ErrorKind::Closed, "the connection was closed")),
            Ok(Some(Err(error))) => return self.say_last_word(key, error),
            Ok(None) => {}
        }
        if conn.eof() {
            // What UCX has brought already is taken before the end is.
            let error = conn.on_eof();
            return self.end_after_drain(key, error);
        }
        conn.core.plan_look(self.io.now);
        if let Some(at) = conn.next_deadline() {
            self.io.sooner(&mut conn.core.timer, at, Timer::Connection(key));
        }
    }

    /// Ends a connection whose peer said goodbye, but keeps the path up until our answer has arrived.
    fn say_last_word(&mut self, key: Key, error: Error) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        // Closing a socket with unread bytes resets it, and what it has sent may be lost: a foreign protocol's peer has
        // no goodbye to wait for either, only its own end.
        let foreign = matches!(conn.link, Link::Tcp(_)) && conn.core.session.recv.is_none();
        let waits = error.kind() == ErrorKind::PeerClosed || foreign;
        if !waits || conn.eof() {
            return self.end(key, error);
        }
        conn.core.finish(error);
        // What comes from now on is read, so that the peer can go on to its end, but nobody receives it.
        conn.core.deliver.close();
        // What we have sent may be deep in the system's buffers: the peer ends the wait when it has read it.
        let patience = LAST_WORD.max(conn.core.config.linger);
        match &mut conn.link {
            Link::Tcp(link) => {
                // The frame that has begun must be finished before our answer can follow it.
                link.last_word(&mut conn.core);
            }
            Link::Ucx(_) | Link::Cm(_) => {}
            Link::Opening(_) | Link::Mem(_) => return self.close_link(key),
        }
        conn.core.session.liveness = None;
        if let Some(timer) = conn.core.timer.take() {
            self.io.timers.cancel(timer);
        }
        let at = self.io.after(patience);
        self.io.sooner(&mut conn.core.timer, at, Timer::Connection(key));
    }

    /// Ends a connection after its worker's last messages were taken.
    fn end_after_drain(&mut self, key: Key, error: Error) {
        if let Some(conn) = self.conns.get_mut(key)
            && matches!(conn.link, Link::Ucx(_))
            && conn.core.shared.end().is_none()
        {
            // More than this is not its last messages but a peer that goes on.
            const LAST_LOOKS: usize = 1024;
            for _ in 0..LAST_LOOKS {
                let progressed = self.progress();
                if !self.take_events() && !progressed {
                    break;
                }
            }
            let Some(conn) = self.conns.get_mut(key) else { return };
            match conn.settle(&mut self.io) {
                Ok(Some(Ok(()))) => return self.end(key, Error::new(ErrorKind::Closed, "the connection was closed")),
                Ok(Some(Err(last))) => return self.end(key, last),
                Ok(None) | Err(_) => {}
            }
        }
        self.end(key, error);
    }

    /// Ends a connection for good: one reason for everybody, and everything is let go.
    pub(super) fn end(&mut self, key: Key, error: Error) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let counters = &self.io.shared.counters;
        let opening = !conn.link.is_open();
        if opening {
            counters.handshakes_failed.add(1);
        }
        if !error.kind().is_orderly() && conn.core.shared.end().is_none() {
            counters.failed.add(1);
            tracing::info!(connection = ?key, %error, opening, "connection ended");
        }
        conn.core.finish(error);
        self.close_link(key);
    }

    /// Lets go of everything that a connection has.
    fn close_link(&mut self, key: Key) {
        let Some(mut conn) = self.conns.remove(key) else { return };
        match &mut conn.link {
            Link::Opening(opening) => {
                self.io.handshakes -= 1;
                opening.close(&mut self.io);
            }
            link => {
                if let Some(backend) = link.backend() {
                    backend.close(&mut conn.core, &mut self.io);
                }
            }
        }
        if let Some(timer) = conn.core.timer.take() {
            self.io.timers.cancel(timer);
        }
        for (pipe, source) in conn.core.pipes.drain(..) {
            self.io.poller.remove(&pipe);
            self.io.sources.remove(source);
        }
        if let Some((handle, listener)) = conn.core.accepted.take() {
            listener.handshake_over();
            drop(handle);
        }
        conn.core.queue.close();
        // Frames that nobody will send: their completions say so as they are dropped.
        while conn.core.queue.pop().is_some() {}
    }

    /// A timer of a connection is due.
    pub(super) fn on_connection_timer(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.core.timer = None;
        if conn.core.shared.end().is_some() {
            // The last word had its time.
            return self.close_link(key);
        }
        if !conn.link.is_open() {
            return self.opening_step(key, |opening, core, io| opening.on_timeout(core, io));
        }
        match conn.on_time(&mut self.io) {
            Ok(()) => {
                conn.core.make_ready(&mut self.io);
                self.settle(key);
            }
            Err(error) => self.end(key, error),
        }
    }

    /// A connection's socket has an edge.
    pub(super) fn on_socket(&mut self, key: Key, edge: &Edge) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !conn.link.is_open() {
            return self.on_opening_edge(key, edge.closed.then_some(edge.key));
        }
        let result = conn.on_socket(&mut self.io, edge);
        self.after_socket(key, result);
    }

    /// A connection's socket was read, or tried.
    pub(super) fn after_socket(&mut self, key: Key, result: Result<()>) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.core.shared.end().is_some() {
            // Only the last word was waited for.
            if result.is_err() || conn.eof() {
                self.close_link(key);
            } else if let Link::Tcp(link) = &mut conn.link {
                link.last_word(&mut conn.core);
            }
            return;
        }
        match result {
            Ok(()) => self.settle(key),
            Err(error) if error.kind() == ErrorKind::Reset => self.end_after_drain(key, error),
            Err(error) => self.end(key, error),
        }
    }

    /// A readiness pipe has an edge.
    pub(super) fn on_pipe(&mut self, key: Key, source: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Some((pipe, _)) = conn.core.pipes.iter_mut().find(|(_, s)| *s == source) else { return };
        match pipe.check() {
            Ok(PipeState::Held) => {}
            Ok(PipeState::Closed) => {
                if let Some(index) = conn.core.pipes.iter().position(|(_, s)| *s == source) {
                    let (pipe, _) = conn.core.pipes.swap_remove(index);
                    self.io.poller.remove(&pipe);
                    self.io.sources.remove(source);
                }
                conn.core.shared.close_by_pipe();
                conn.core.make_ready(&mut self.io);
            }
            Ok(PipeState::Misused) => {
                let text = "a program wrote into the readiness pipe, which carries no data: use send()";
                self.end(key, Error::new(ErrorKind::Invalid, text));
            }
            Err(error) => self.end(key, Error::from_io("readiness pipe", &error)),
        }
    }

    /// A handle asked for readiness pipes. Before the connection is in the table they stay with it.
    pub(super) fn add_pipes(&mut self, shared: &Arc<Shared>) {
        let Some(key) = shared.key() else { return };
        for pipe in shared.take_pipes() {
            self.add_pipe(key, pipe);
        }
    }

    fn add_pipe(&mut self, key: Key, mut pipe: ReadyPipe) {
        // Gone already: dropping the inner end is the error signal.
        let Some(conn) = self.conns.get_mut(key).filter(|c| c.core.shared.end().is_none()) else { return };
        let source = self.io.sources.insert(Source::Pipe(key));
        if let Err(error) = self.io.poller.add_readable(&pipe, source) {
            tracing::warn!(%error, "watching a readiness pipe");
            self.io.sources.remove(source);
            return;
        }
        if conn.link.is_open()
            && let Err(error) = pipe.open()
        {
            tracing::warn!(%error, "readiness pipe");
        }
        conn.core.pipes.push((pipe, source));
        // The outer end may have been closed before the inner one was watched.
        self.on_pipe(key, source);
    }

    /// Ends every connection and listener.
    pub(super) fn end_all(&mut self, error: &Error) {
        for key in self.listeners.keys() {
            self.end_listener(key, error.clone());
        }
        for key in self.conns.keys() {
            self.end(key, error.clone());
        }
    }

    /// Whether the time is later than this turn's.
    pub(super) fn update_clock(&mut self) {
        self.io.now = Instant::now();
    }
}
