//! From a socket to an open connection: the hello, the proof of UCX's path, and the fallback.
//!
//! The dialling side decides. Once both sides have agreed on UCX it sends PROVE and waits for PROVED, says READY over the
//! socket and is open; the accepting side is open when READY (or the first data) has come. Before that either side may
//! give UCX up with a Fallback message; each answers the other's Fallback with its own, and a side that has both sent and
//! received one is open over TCP, on the same socket.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};

use super::{
    ConnCore, Io,
    conn::Link,
    dial,
    engine::Broken,
    mem_link::MemInbox,
    pairing::NoEndpoint,
    send::Numbering,
    tcp_link::TcpLink,
    ucx_link::{self, UcxLink},
};
use crate::{
    Address, Error, ErrorKind, FallbackReason, Result,
    config::ConnectionConfig,
    connection::{ConnectionInfo, MAX_DELIVERED, Transport},
    event::poller::Key,
    framing::{Detect, Framer},
    proto::{
        header::{Credit, FrameHeader, Kind, MAX_HEADER},
        hello::{self, Accept, ClientHello, Decoded, Fallback, MAGIC, Message, Ready, Reject, UcxInfo, Want},
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

/// What the peer said of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    key: Key,
    credit: Credit,
    max_message: u64,
    max_head: u32,
    keepalive_ms: u32,
}

impl Terms {
    fn interval(self) -> Option<Duration> {
        (self.keepalive_ms > 0).then(|| Duration::from_millis(u64::from(self.keepalive_ms)))
    }
}

impl From<&ClientHello> for Terms {
    fn from(hello: &ClientHello) -> Self {
        let key = Key { index: hello.conn, generation: hello.generation };
        let ClientHello { credit, max_message, max_head, keepalive_ms, .. } = *hello;
        Self { key, credit, max_message, max_head, keepalive_ms }
    }
}

impl From<&Accept> for Terms {
    fn from(accept: &Accept) -> Self {
        let key = Key { index: accept.conn, generation: accept.generation };
        let Accept { credit, max_message, max_head, keepalive_ms, .. } = *accept;
        Self { key, credit, max_message, max_head, keepalive_ms }
    }
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

/// What this configuration lets a peer send.
pub(super) fn granted(config: &ConnectionConfig) -> Credit {
    Credit { messages: config.recv_window_frames.clamp(1, MAX_DELIVERED), bytes: config.recv_window_bytes.max(1) }
}

/// A number for this process that no other has, nor an earlier one under the same address.
fn process_id() -> [u8; 16] {
    static ID: OnceLock<[u8; 16]> = OnceLock::new();
    *ID.get_or_init(|| {
        let random = || RandomState::new().build_hasher().finish().to_le_bytes();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&random());
        id[8..].copy_from_slice(&random());
        id
    })
}

/// What this side brings into the negotiation.
fn local(core: &ConnCore, io: &mut Io, policy: Policy) -> Local {
    let ucx = match policy {
        Policy::TcpOnly => Err(FallbackReason::Disabled("this address is tcp only".into())),
        Policy::Auto | Policy::UcxRequired => ucx_info(io),
    };
    let keepalive = core.config.keepalive.map_or(0, |k| k.interval.as_millis());
    Local {
        policy,
        required_features: 0,
        supported_features: 0,
        process_id: process_id(),
        ucx,
        max_message: core.config.max_message,
        max_head: core.config.max_head,
        credit: granted(&core.config),
        keepalive_ms: u32::try_from(keepalive).unwrap_or(u32::MAX),
    }
}

fn ucx_info(io: &mut Io) -> Result<UcxInfo, FallbackReason> {
    let worker_address = io.worker_for_new()?.address().to_vec();
    let context = crate::ucx::Context::get().map_err(Clone::clone)?;
    let (major, minor, patch) = context.version();
    let part = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    Ok(UcxInfo {
        version: (part(major), part(minor), part(patch)),
        fingerprint: context.fingerprint(),
        settings: context.settings().to_owned(),
        worker_address,
    })
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
        self.engine = io.current_worker_id();
        hello.least_endpoint = self.least_endpoint;
        self.say(&Message::ClientHello(hello))?;
        self.on_edge(core, io)
    }

    fn say(&mut self, message: &Message) -> Result<()> {
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
            if self.role == Role::Accept && io.in_doubt && matches!(self.stage, Stage::Greeting) && io.is_unclear() {
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
    fn dial_again(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Step> {
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

    /// The worker that the peer knows of us is for new connections no longer: over shared memory nothing may arrive there.
    pub(super) fn on_retired(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Step> {
        match (self.role, &self.stage) {
            (Role::Dial, Stage::Greeting | Stage::Proving { .. }) => {
                self.engine = None;
                self.least_endpoint = None;
                self.dial_again(core, io)
            }
            (Role::Accept, Stage::Proving { terms, .. }) => {
                let terms = *terms;
                self.give_up_ucx(io, terms, FallbackReason::Failed("the ucx worker has been replaced".into()))
            }
            _ => Ok(Step::Wait),
        }
    }

    fn prove(&mut self, core: &ConnCore, io: &mut Io, ep: EndpointId, terms: Terms) -> Result<Step> {
        let deadline = io.after(core.config.prove_timeout);
        self.stage = Stage::Proving { ep, terms, deadline, started: io.now, proved: false };
        match send_proof(io, ep, terms, Kind::Prove) {
            Ok(()) => Ok(Step::Wait),
            Err(error) => self.on_ucx_failed(io, &error),
        }
    }

    /// UCX said that the endpoint is broken, or that a proof can't be sent.
    pub(super) fn on_ucx_failed(&mut self, io: &mut Io, error: &Error) -> Result<Step> {
        if let Stage::Cm { .. } = self.stage {
            return Err(self.on_cm_failed(error));
        }
        let Stage::Proving { terms, .. } = self.stage else { return Ok(Step::Wait) };
        self.give_up_ucx(io, terms, unusable(error))
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

    /// Lets UCX go, tells the peer, and waits for it to do the same; or ends, if UCX was demanded.
    fn give_up_ucx(&mut self, io: &mut Io, terms: Terms, reason: FallbackReason) -> Result<Step> {
        self.close_endpoint(io);
        if self.policy == Policy::UcxRequired {
            return Err(negotiate::no_ucx(&reason));
        }
        let (code, text) = negotiate::to_wire(&reason);
        self.say(&Message::Fallback(Fallback { code, text }))?;
        self.stage = Stage::FallingBack { terms, reason };
        Ok(Step::Wait)
    }

    fn on_fallback(&mut self, core: &mut ConnCore, io: &mut Io, fallback: &Fallback) -> Result<Step> {
        let theirs = negotiate::from_wire(fallback.code, &fallback.text);
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::FallingBack { terms, reason } => Ok(self.open_stream(core, None, Some(terms), Some(reason))),
            stage @ Stage::Proving { terms, .. } => {
                self.stage = stage;
                self.give_up_ucx(io, terms, theirs.clone())?;
                Ok(self.open_stream(core, None, Some(terms), Some(theirs)))
            }
            stage => {
                self.stage = stage;
                Err(Error::new(ErrorKind::Protocol, "a fallback without an agreement on ucx"))
            }
        }
    }

    /// The endpoint that is being made.
    pub(super) fn endpoint(&self) -> Option<EndpointId> {
        match self.stage {
            Stage::Proving { ep, .. } | Stage::Cm { ep, .. } => Some(ep),
            _ => None,
        }
    }

    pub(super) fn close_endpoint(&mut self, io: &mut Io) {
        if let Some(ep) = self.endpoint() {
            io.close_endpoint(ep, Broken::Perhaps);
        }
    }

    /// A message came over UCX.
    pub(super) fn on_proof(&mut self, core: &mut ConnCore, io: &mut Io, kind: Kind) -> Result<Step> {
        let Stage::Proving { ep, terms, ref mut proved, .. } = self.stage else {
            // UCX was given up here meanwhile; its last messages mean nothing any more.
            return Ok(Step::Wait);
        };
        *proved |= kind == Kind::Prove;
        match (self.role, kind) {
            (Role::Accept, Kind::Prove) => match send_proof(io, ep, terms, Kind::Proved) {
                Ok(()) => Ok(Step::Wait),
                Err(error) => self.on_ucx_failed(io, &error),
            },
            (Role::Dial, Kind::Proved) => {
                self.say(&Message::Ready(Ready))?;
                Ok(self.open_ucx(core, io, false))
            }
            (Role::Accept, kind) if kind != Kind::Proved => Ok(self.open_ucx(core, io, true)),
            (_, kind) => Err(Error::new(ErrorKind::Protocol, format!("unexpected {kind:?} message in the handshake"))),
        }
    }

    fn open_ucx(&mut self, core: &ConnCore, io: &mut Io, ready_due: bool) -> Step {
        let Stage::Proving { ep, terms, .. } = std::mem::replace(&mut self.stage, Stage::Done) else {
            return Step::Wait;
        };
        let (Some(stream), Some(source)) = (self.stream.take(), self.source.take()) else { return Step::Wait };
        let lanes = io.worker_of(ep).map_or_else(String::new, |worker| worker.endpoint_info(ep));
        let numbering = Numbering::new(terms.key, Some(terms.credit));
        let from = core.config.rendezvous_from.unwrap_or_else(|| ucx_link::rendezvous_from(&lanes));
        let (peer, here) = stream.addresses();
        let inbox = std::mem::take(&mut self.inbox);
        let mut link = UcxLink::new(ep, stream, source, inbox, numbering, ucx_link::Path::new(&lanes, from));
        link.ready_due = ready_due;
        let info = ConnectionInfo {
            transport: Transport::Ucx(lanes),
            fallback_reason: None,
            peer,
            local: here,
            max_message: terms.max_message,
            max_head: terms.max_head,
            framing: None,
        };
        let peer_interval = terms.interval();
        let link = Link::Ucx(Box::new(link));
        Step::Open(Box::new(Opened { link, info, native: true, peer: terms.key, peer_interval }))
    }

    fn open_stream(
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

/// The endpoint to the worker that the accepting side described, of the worker that it knows of us.
fn connect(
    core: &ConnCore,
    io: &mut Io,
    engine: Option<WorkerId>,
    info: &UcxInfo,
    number: Option<u16>,
) -> Result<EndpointId, NoEndpoint> {
    let failed = |reason: FallbackReason| Error::new(ErrorKind::NoUcx, reason.to_string());
    let gone = || failed(FallbackReason::Failed("the ucx worker has ended".into()));
    let engine = engine.and_then(|id| io.engine(id)).ok_or_else(gone)?;
    let ep = engine.pairing.dial(&mut engine.worker, &info.worker_address, number)?;
    io.own_endpoint(ep, core.key);
    Ok(ep)
}

/// An endpoint to the worker of a client, and its number.
fn connect_back(
    core: &ConnCore,
    io: &mut Io,
    info: &UcxInfo,
    least: Option<u16>,
) -> Result<(EndpointId, u16), FallbackReason> {
    let engine = io.current_engine()?;
    let made = engine.pairing.accept(&mut engine.worker, &info.worker_address, least);
    let (ep, number) = made.map_err(|error| unusable(&error))?;
    io.own_endpoint(ep, core.key);
    Ok((ep, number))
}

fn unusable(error: &Error) -> FallbackReason {
    match error.kind() {
        ErrorKind::Unreachable => FallbackReason::Unreachable(error.text().to_owned().into()),
        _ => FallbackReason::Failed(error.to_string().into()),
    }
}

fn send_proof(io: &mut Io, ep: EndpointId, terms: Terms, kind: Kind) -> Result<()> {
    let header = FrameHeader::new(kind, terms.key.index, terms.key.generation, 0);
    let mut bytes = [0; MAX_HEADER];
    let len = header.encode(&mut bytes);
    let Some(worker) = io.worker_of(ep) else { return Err(ucx_link::gone()) };
    // A proof has no completion to wait for: its answer is the completion.
    worker.prove(ep, &bytes[..len], NO_TOKEN)
}

/// The token of operations whose completion nobody waits for.
pub(super) const NO_TOKEN: u64 = u64::MAX;
