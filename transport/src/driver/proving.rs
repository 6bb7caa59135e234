//! Opening over UCX, once both sides have agreed on it: the endpoints, the proof that a message gets through each way, and the way back
//! to TCP.

use super::{
    ConnCore, Io,
    conn::Link,
    engine::Broken,
    opening::{NO_TOKEN, Opened, Opening, Role, Stage, Step},
    pairing::NoEndpoint,
    send::Numbering,
    terms::Terms,
    ucx_link::{self, UcxLink},
};
use crate::{
    Error, ErrorKind, FallbackReason, Result,
    connection::{ConnectionInfo, Transport},
    proto::{
        header::{FrameHeader, Kind, MAX_HEADER},
        hello::{Fallback, Message, Ready, UcxInfo},
        negotiate::{self, Policy},
    },
    ucx::{EndpointId, WorkerId},
};

impl Opening {
    pub(super) fn prove(&mut self, core: &ConnCore, io: &mut Io, ep: EndpointId, terms: Terms) -> Result<Step> {
        let deadline = io.after(core.config.prove_timeout);
        self.stage = Stage::Proving { ep, terms, deadline, started: io.now, proved: false };
        match send_proof(io, ep, terms, Kind::Prove) {
            Ok(()) => Ok(Step::Wait),
            Err(error) => self.on_ucx_failed(io, &error),
        }
    }

    /// The worker that the peer knows of us is for new connections no longer: over shared memory nothing may arrive there.
    pub(super) fn on_retired(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Step> {
        match (self.role, &self.stage) {
            (Role::Dial, Stage::Connecting | Stage::Greeting | Stage::Proving { .. }) => {
                // Endpoints of the next one have numbers of their own.
                (self.engine, self.least_endpoint) = (None, None);
                if matches!(self.stage, Stage::Connecting) { Ok(Step::Wait) } else { self.dial_again(core, io) }
            }
            (Role::Accept, Stage::Proving { terms, ep, .. }) if io.may_be_over_memory(*ep) => {
                let terms = *terms;
                self.give_up_ucx(
                    io,
                    terms,
                    FallbackReason::Failed("the ucx worker was replaced meanwhile: connect again".into()),
                )
            }
            _ => Ok(Step::Wait),
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

    /// Lets UCX go, tells the peer, and waits for it to do the same; or ends, if UCX was demanded.
    pub(super) fn give_up_ucx(&mut self, io: &mut Io, terms: Terms, reason: FallbackReason) -> Result<Step> {
        self.close_endpoint(io);
        self.engine = None;
        if self.policy == Policy::UcxRequired {
            return Err(negotiate::no_ucx(&reason));
        }
        let (code, text) = negotiate::to_wire(&reason);
        self.say(&Message::Fallback(Fallback { code, text }))?;
        self.stage = Stage::FallingBack { terms, reason };
        Ok(Step::Wait)
    }

    pub(super) fn on_fallback(&mut self, core: &mut ConnCore, io: &mut Io, fallback: &Fallback) -> Result<Step> {
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
        // It may have been closed already.
        if let Some(ep) = self.endpoint().filter(|ep| io.owner_of(*ep).is_some()) {
            let broken = if io.may_be_over_memory(ep) { Broken::Perhaps } else { Broken::No };
            io.close_endpoint(ep, broken);
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

    pub(super) fn open_ucx(&mut self, core: &ConnCore, io: &mut Io, ready_due: bool) -> Step {
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
}

/// The endpoint to the worker that the accepting side described, of the worker that it knows of us.
pub(super) fn connect(
    core: &ConnCore,
    io: &mut Io,
    engine: Option<WorkerId>,
    info: &UcxInfo,
    number: Option<u16>,
) -> Result<EndpointId, NoEndpoint> {
    let failed = |reason: FallbackReason| Error::new(ErrorKind::NoUcx, reason.to_string());
    let gone = || failed(FallbackReason::Failed("the ucx worker has ended meanwhile: connect again".into()));
    let engine = engine.and_then(|id| io.engine(id)).ok_or_else(gone)?;
    let ep = engine.pairing.dial(&mut engine.worker, &info.worker_address, number)?;
    io.own_endpoint(ep, core.key);
    Ok(ep)
}

/// An endpoint to the worker of a client, and its number.
pub(super) fn connect_back(
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

pub(super) fn unusable(error: &Error) -> FallbackReason {
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
