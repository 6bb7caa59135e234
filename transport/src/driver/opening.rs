//! From a socket to an open connection: the hello, the proof of UCX's path, and the fallback.
//!
//! The dialling side decides. Once both sides have agreed on UCX it sends PROVE and waits for PROVED, says READY over the
//! socket and is open; the accepting side is open when READY (or the first data) has come. Before that either side may
//! give UCX up with a Fallback message; each answers the other's Fallback with its own, and a side that has both sent and
//! received one is open over TCP, on the same socket.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};

use super::{
    ConnCore, Io,
    conn::Link,
    dial,
    mem_link::MemInbox,
    pairing::NoEndpoint,
    proving::{connect, connect_back, unusable},
    send::Numbering,
    tcp_link::TcpLink,
    terms::{Terms, local},
};
use crate::{
    Address, Error, ErrorKind, FallbackReason, Result,
    connection::{ConnectionInfo, Transport},
    event::poller::Key,
    framing::{Detect, Framer},
    proto::{
        hello::{self, Accept, ClientHello, Decoded, MAGIC, Message, Ready, Reject, Want},
        negotiate::{self, Answer, Local, Policy, RejectCode, Verdict},
    },
    tcp::{Mode, ReadLimits, Stream},
    ucx::{EndpointId, WorkerId},
};

/// Bytes read at once while shaking hands. A hello has at most 8 KiB; what a fast peer sends behind it waits.
const READ: usize = 16 << 10;
/// First bytes that a foreign protocol may ask for to be recognised.
const MAX_DETECT: usize = 64;

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Dial,
    Accept,
}

pub(super) enum Stage {
    /// The socket is connecting.
    Connecting,
    /// The first message of the peer is awaited: Accept here, a hello (or a foreign protocol) there.
    Greeting,
    /// Both have agreed on UCX; the proof is under way.
    Proving { ep: EndpointId, terms: Terms, deadline: Instant, started: Instant, proved: bool },
    /// Our Fallback has gone; the peer's is awaited.
    FallingBack { terms: Terms, reason: FallbackReason },
    /// An endpoint of UCX's connection manager; the peer's hello is awaited.
    Cm { ep: EndpointId, peer: Option<SocketAddr> },
    /// Waiting for the other party of this process.
    Mem(Option<MemInbox>),
    /// Open: the link is being exchanged.
    Done,
}

/// A connection that is not open yet.
pub(crate) struct Opening {
    pub(super) role: Role,
    pub(super) address: Address,
    pub(super) policy: Policy,
    pub(super) stream: Option<Arc<Stream>>,
    pub(super) source: Option<Key>,
    pub(super) inbox: BytesMut,
    outbox: Vec<u8>,
    pub(super) stage: Stage,
    pub(super) deadline: Instant,
    /// The address that is connected.
    pub(super) current: Option<SocketAddr>,
    /// The worker that the peer knows of us.
    pub(super) engine: Option<WorkerId>,
    /// The last try found its endpoint's number in use: what the accepting side is asked for.
    pub(super) least_endpoint: Option<u16>,
    /// Addresses to try after this one, and when.
    pub(super) more: VecDeque<SocketAddr>,
    pub(super) next_try: Instant,
    /// Sockets that are connecting.
    pub(super) attempts: Vec<dial::Attempt>,
    /// The end of the stream was read.
    eof: bool,
    /// An edge said that the peer has closed. No other edge will say so, and bytes may be left in front of the end.
    pub(super) peer_closed: bool,
}

/// What came of a step.
pub(super) enum Step {
    Wait,
    Open(Box<Opened>),
}

/// A connection that has just opened.
pub(super) struct Opened {
    pub(super) link: Link,
    pub(super) info: ConnectionInfo,
    pub(super) native: bool,
    pub(super) peer: Key,
    /// How often the peer wants to hear from us.
    pub(super) peer_interval: Option<Duration>,
}

impl Opening {
    pub(super) fn new(role: Role, address: Address, policy: Policy, deadline: Instant) -> Self {
        Self {
            role,
            address,
            policy,
            stream: None,
            source: None,
            inbox: BytesMut::new(),
            outbox: Vec::new(),
            stage: Stage::Greeting,
            deadline,
            current: None,
            engine: None,
            least_endpoint: None,
            more: VecDeque::new(),
            next_try: deadline,
            attempts: Vec::new(),
            eof: false,
            peer_closed: false,
        }
    }

    /// The next time at which it wants to be looked at.
    pub(super) fn next_deadline(&self) -> Instant {
        match &self.stage {
            Stage::Proving { deadline, .. } => self.deadline.min(*deadline),
            Stage::Connecting if !self.more.is_empty() => self.deadline.min(self.next_try),
            _ => self.deadline,
        }
    }

    /// The socket has an edge.
    pub(super) fn on_edge(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Step> {
        if matches!(self.stage, Stage::Connecting) {
            return self.on_connecting(core, io);
        }
        self.write()?;
        self.read()?;
        self.on_bytes(core, io)
    }

    /// The socket is connected: say hello, or nothing in a foreign protocol.
    pub(super) fn on_connected(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Step> {
        self.stage = Stage::Greeting;
        let foreign = core.config.framer.clone().filter(|_| self.policy == Policy::TcpOnly);
        if let Some(framer) = foreign {
            return Ok(self.open_stream(core, Some(framer), None, None));
        }
        let mut hello = local(core, io, self.policy).client_hello(core.key.index, core.key.generation)?;
        self.engine = hello.ucx.as_ref().and_then(|_| io.current_worker_id());
        hello.least_endpoint = self.least_endpoint;
        self.say(&Message::ClientHello(hello))?;
        self.on_edge(core, io)
    }

    pub(super) fn say(&mut self, message: &Message) -> Result<()> {
        self.outbox.extend_from_slice(&hello::encode(message));
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let Some(stream) = &self.stream else { return Ok(()) };
        while !self.outbox.is_empty() {
            match stream.write(&self.outbox) {
                Ok(n) => drop(self.outbox.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::from_io("handshake", &e)),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let Some(stream) = &self.stream else { return Ok(()) };
        let mut bytes = [0; READ];
        // At most one hello and what fits behind it; the reader of the open connection takes the rest.
        while self.inbox.len() < READ && !self.eof {
            match stream.read(&mut bytes) {
                Ok(0) => self.eof = true,
                Ok(n) => self.inbox.extend_from_slice(&bytes[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::from_io("handshake", &e)),
            }
        }
        Ok(())
    }

    /// Takes one message after the other out of what was read.
    fn on_bytes(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Step> {
        loop {
            if self.role == Role::Accept && matches!(self.stage, Stage::Greeting) {
                match self.detect(core)? {
                    Some(Detected::Native) => {}
                    Some(Detected::Foreign(framer)) => return Ok(self.open_stream(core, Some(framer), None, None)),
                    None => return self.wait(),
                }
            }
            let greeted = self.role == Role::Accept && matches!(self.stage, Stage::Greeting);
            if greeted && io.in_doubt && self.policy != Policy::TcpOnly && io.is_unclear() {
                return self.wait();
            }
            let message = match hello::decode(&self.inbox)? {
                Decoded::NeedMore(_) => return self.wait(),
                Decoded::Message(message, used) => {
                    self.inbox.advance(used);
                    message
                }
            };
            if let Step::Open(opened) = self.on_message(core, io, message)? {
                return Ok(Step::Open(opened));
            }
        }
    }

    /// Nothing more to take: fine, unless nothing more will come.
    fn wait(&self) -> Result<Step> {
        if self.eof {
            let text = match self.role {
                Role::Dial => "the peer closed the socket during the handshake: it may not speak ucrpc",
                Role::Accept => "the client closed the socket during the handshake",
            };
            return Err(Error::new(ErrorKind::Reset, text));
        }
        Ok(Step::Wait)
    }

    fn detect(&self, core: &ConnCore) -> Result<Option<Detected>> {
        let first = &self.inbox[..self.inbox.len().min(MAX_DETECT)];
        let shared = first.len().min(MAGIC.len());
        if first[..shared] == MAGIC[..shared] {
            return Ok((shared == MAGIC.len()).then_some(Detected::Native));
        }
        let unknown = || {
            let shown = first.escape_ascii().to_string();
            Error::new(ErrorKind::Protocol, format!("the first bytes belong to no known protocol: \"{shown}\""))
        };
        let framer = core.config.framer.as_ref().ok_or_else(unknown)?;
        match framer.detect(first) {
            Detect::Yes => Ok(Some(Detected::Foreign(framer.clone()))),
            Detect::NeedMore if first.len() < MAX_DETECT => Ok(None),
            Detect::No | Detect::NeedMore => Err(unknown()),
        }
    }

    fn on_message(&mut self, core: &mut ConnCore, io: &mut Io, message: Message) -> Result<Step> {
        match (self.role, message) {
            (Role::Accept, Message::ClientHello(hello)) if matches!(self.stage, Stage::Greeting) => {
                self.on_hello(core, io, &hello)
            }
            (Role::Dial, Message::Accept(accept)) if matches!(self.stage, Stage::Greeting) => {
                self.on_accept(core, io, &accept)
            }
            (Role::Dial, Message::Reject(reject)) => Err(negotiate::reject_error(reject.code, &reject.text)),
            // The client says it when our PROVED has arrived, so its PROVE came before.
            (Role::Accept, Message::Ready(Ready)) if matches!(self.stage, Stage::Proving { proved: true, .. }) => {
                Ok(self.open_ucx(core, io, false))
            }
            (_, Message::Fallback(fallback)) => self.on_fallback(core, io, &fallback),
            (_, Message::Nak(nak)) => {
                Err(Error::new(ErrorKind::Refused, format!("the peer gave the negotiation up: {}", nak.text)))
            }
            (_, other) => {
                Err(Error::new(ErrorKind::Protocol, format!("unexpected {} in the handshake", name_of(&other))))
            }
        }
    }

    fn on_hello(&mut self, core: &mut ConnCore, io: &mut Io, hello: &ClientHello) -> Result<Step> {
        // A client that wants TCP is no reason to start UCX, unless it is to be turned away.
        let tcp = hello.want == Want::Tcp && self.policy != Policy::UcxRequired;
        let policy = if tcp { Policy::TcpOnly } else { self.policy };
        let local = local(core, io, policy);
        let terms = Terms::from(hello);
        match negotiate::answer(&local, hello) {
            Answer::Reject { code, text } => self.reject(code, text),
            Answer::AcceptTcp(reason) => self.accept_tcp(core, &local, terms, reason),
            Answer::TryUcx(info) => match connect_back(core, io, &info, hello.least_endpoint) {
                Ok((ep, number)) => {
                    self.engine = Some(ep.worker());
                    let key = core.key;
                    let mut accept = local.accept(hello::Transport::Ucx, None, key.index, key.generation);
                    accept.endpoint = Some(number);
                    self.say(&Message::Accept(accept))?;
                    self.stage = Stage::Proving { ep, terms, deadline: self.deadline, started: io.now, proved: false };
                    Ok(Step::Wait)
                }
                Err(reason) if hello.want == Want::Ucx => {
                    self.reject(RejectCode::NoUcx, negotiate::mirror(&reason).to_string())
                }
                Err(reason) => self.accept_tcp(core, &local, terms, Some(reason)),
            },
        }
    }

    fn reject(&mut self, code: RejectCode, text: String) -> Result<Step> {
        let error = Error::new(code.kind(), format!("rejected the client: {text}"));
        // The socket is closed right after: what fits into its buffer arrives all the same.
        let _ = self.say(&Message::Reject(Reject { code: code.to_wire(), text }));
        if let Some(stream) = &self.stream {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
        Err(error)
    }

    fn accept_tcp(
        &mut self,
        core: &mut ConnCore,
        local: &Local,
        terms: Terms,
        reason: Option<FallbackReason>,
    ) -> Result<Step> {
        let key = core.key;
        let accept = local.accept(hello::Transport::Tcp, reason.as_ref(), key.index, key.generation);
        self.say(&Message::Accept(accept))?;
        Ok(self.open_stream(core, None, Some(terms), reason))
    }

    fn on_accept(&mut self, core: &mut ConnCore, io: &mut Io, accept: &Accept) -> Result<Step> {
        let local = local(core, io, self.policy);
        let terms = Terms::from(accept);
        match negotiate::judge(&local, accept)? {
            Verdict::Tcp(reason) => Ok(self.open_stream(core, None, Some(terms), reason)),
            Verdict::Decline(reason) => self.give_up_ucx(io, terms, reason),
            Verdict::TryUcx(info) => match connect(core, io, self.engine, &info, accept.endpoint) {
                Ok(ep) => self.prove(core, io, ep, terms),
                Err(NoEndpoint::Taken(next)) if self.least_endpoint.is_none_or(|least| least < next) => {
                    self.dial_above(core, io, next)
                }
                Err(NoEndpoint::Taken(_)) => {
                    let text = "the other side insists on an endpoint that is in use here";
                    self.give_up_ucx(io, terms, FallbackReason::Failed(text.into()))
                }
                Err(NoEndpoint::Failed(error)) => self.give_up_ucx(io, terms, unusable(&error)),
            },
        }
    }

    /// Asks the same listener again, for an endpoint of a number that is free here: both sides dialled each other at once,
    /// or one of them gave a connection up.
    fn dial_above(&mut self, core: &mut ConnCore, io: &mut Io, least: u16) -> Result<Step> {
        self.least_endpoint = Some(least);
        self.dial_again(core, io)
    }

    /// Asks the same listener again.
    pub(super) fn dial_again(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Step> {
        self.close(io);
        self.inbox.clear();
        self.outbox.clear();
        self.eof = false;
        self.peer_closed = false;
        self.more.extend(self.current.take());
        self.more.rotate_right(usize::from(!self.more.is_empty()));
        self.dial(core, io)
    }

    /// What it waited for is clear: an accepting side answers the hello that has come.
    pub(super) fn go_on(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Step> {
        match (self.role, &self.stage) {
            (Role::Accept, Stage::Greeting) => self.on_bytes(core, io),
            _ => Ok(Step::Wait),
        }
    }

    /// A deadline passed.
    pub(super) fn on_timeout(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Step> {
        if io.now >= self.deadline {
            return Err(Error::timed_out("opening the connection", core.config.connect_timeout));
        }
        if matches!(self.stage, Stage::Connecting) && !self.more.is_empty() && io.now >= self.next_try {
            return self.try_next(core, io);
        }
        if let Stage::Proving { terms, deadline, started, .. } = self.stage
            && io.now >= deadline
            && self.role == Role::Dial
        {
            let waited = io.now.saturating_duration_since(started).as_millis() as u64;
            return self.give_up_ucx(io, terms, FallbackReason::ProofTimedOut(waited));
        }
        Ok(Step::Wait)
    }

    pub(super) fn open_stream(
        &mut self,
        core: &ConnCore,
        framer: Option<Arc<dyn Framer>>,
        terms: Option<Terms>,
        reason: Option<FallbackReason>,
    ) -> Step {
        self.stage = Stage::Done;
        let (Some(stream), Some(source)) = (self.stream.take(), self.source.take()) else { return Step::Wait };
        let native = framer.is_none();
        if let (false, Some(keepalive)) = (native, dial::kernel_keepalive(core))
            && let Err(error) = stream.set_keepalive(&keepalive)
        {
            tracing::warn!(%error, "the kernel's keepalive cannot be set");
        }
        let framing = framer.as_ref().map(|f| f.name());
        let peer = terms.map_or(Key { index: 0, generation: 0 }, |t| t.key);
        let numbering = Numbering::new(peer, terms.map(|t| t.credit));
        let limits = ReadLimits { max_head: core.config.max_head, max_message: core.config.max_message };
        let (remote, here) = stream.addresses();
        let info = ConnectionInfo {
            transport: if matches!(*stream, Stream::Tcp(_)) { Transport::Tcp } else { Transport::Unix },
            fallback_reason: reason,
            peer: remote,
            local: here,
            max_message: terms.map_or(core.config.max_message, |t| t.max_message),
            max_head: terms.map_or(core.config.max_head, |t| t.max_head),
            framing,
        };
        let mode = framer.map_or(Mode::Native, Mode::Foreign);
        let mut link = TcpLink::new(stream, source, mode, numbering, limits);
        if !self.inbox.is_empty() {
            link.reader.prepend(&self.inbox);
        }
        if self.eof || self.peer_closed {
            link.reader.expect_end();
        }
        let peer_interval = terms.and_then(Terms::interval);
        let link = Link::Tcp(Box::new(link));
        Step::Open(Box::new(Opened { link, info, native, peer, peer_interval }))
    }

    /// Lets go of everything.
    pub(super) fn close(&mut self, io: &mut Io) {
        match (self.engine, self.endpoint()) {
            (Some(id), None) => io.suspect(id),
            _ => self.close_endpoint(io),
        }
        self.drop_attempts(io);
        if let Stage::Mem(Some(inbox)) = &self.stage {
            inbox.gone.store(true, Ordering::Release);
        }
        if let Some(source) = self.source.take() {
            io.sources.remove(source);
        }
        if let Some(stream) = self.stream.take() {
            io.poller.remove(&*stream);
        }
    }
}

enum Detected {
    Native,
    Foreign(Arc<dyn Framer>),
}

fn name_of(message: &Message) -> &'static str {
    match message {
        Message::ClientHello(_) => "hello",
        Message::Accept(_) => "accept",
        Message::Reject(_) => "reject",
        Message::Ready(_) => "ready",
        Message::Fallback(_) => "fallback",
        Message::Nak(_) => "nak",
        Message::Ping(_) => "ping",
        Message::Pong(_) => "pong",
    }
}

/// The token of operations whose completion nobody waits for.
pub(super) const NO_TOKEN: u64 = u64::MAX;
