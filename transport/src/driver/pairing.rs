//! Which endpoint of ours UCX pairs with which of the peer's.
//!
//! Two workers count the endpoints that they make to each other, and UCX pairs those of equal number: the third here with
//! the third there, whatever they were made for. If one side makes an endpoint and the other gives its connection up, or if
//! two connections are made in another order there than here, then from that moment on the pairs belong to different
//! connections. Messages pass all the same, but whoever closes one connection breaks another. So both sides agree on the
//! number: the accepting side takes its next one and says it, and the dialling side uses the endpoint of that number.
//! What it must make to get there is spare: another handshake may ask for it, and when none is left it goes.

use std::collections::{HashMap, VecDeque};

use crate::{Error, ErrorKind, Result, ucx};

/// The number of endpoints that UCX does not pair: its counter has 16 bits and stops at the end.
pub(crate) const UNPAIRED: u16 = u16::MAX;
/// How many endpoints a peer may make us make beyond those that we have.
const MAX_AHEAD: u16 = 4096;

/// Both workers' endpoints to one another, by number.
#[derive(Default)]
struct Peer {
    next: u16,
    spare: VecDeque<(u16, ucx::EndpointId)>,
}

/// All peers that a worker has ever met. UCX keeps its own such list for as long as the worker lives.
#[derive(Default)]
pub(crate) struct Pairing {
    peers: HashMap<Box<[u8]>, Peer>,
    spares: usize,
}

/// Why there is no endpoint.
pub(crate) enum NoEndpoint {
    /// The number is in use here: the other side must choose this one or a higher one.
    Taken(u16),
    Failed(Error),
}

impl From<Error> for NoEndpoint {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Pairing {
    /// Makes an endpoint for a connection that is accepted, and chooses its number: the next one, or one from `least`
    /// on, that the peer asks for because lower ones are in use there. Both sides may ask at once: they then take even
    /// and odd numbers by their addresses' order.
    pub(crate) fn accept(
        &mut self,
        worker: &mut ucx::Worker,
        address: &[u8],
        least: Option<u16>,
    ) -> Result<(ucx::EndpointId, u16)> {
        let Some(next) = self.next(worker, address) else { return Ok((worker.connect(address)?, UNPAIRED)) };
        let mut number = next;
        if let Some(least) = least {
            number = number.max(least);
            let odd = u16::from(worker.address() > address);
            number += (number & 1) ^ odd;
        }
        match self.reach(worker, address, number) {
            Ok(ep) => Ok((ep, number)),
            Err(NoEndpoint::Failed(error)) => Err(error),
            Err(NoEndpoint::Taken(_)) => Err(Error::new(ErrorKind::Protocol, "an endpoint's number was given twice")),
        }
    }

    /// The endpoint of the number that the accepting side chose.
    pub(crate) fn dial(
        &mut self,
        worker: &mut ucx::Worker,
        address: &[u8],
        number: Option<u16>,
    ) -> Result<ucx::EndpointId, NoEndpoint> {
        match (self.next(worker, address), number) {
            (Some(_), Some(number)) if number != UNPAIRED => self.reach(worker, address, number),
            _ => Ok(worker.connect(address)?),
        }
    }

    /// Whether there are endpoints that no connection uses.
    pub(crate) fn has_spares(&self) -> bool {
        self.spares > 0
    }

    /// Closes them: no handshake is left that could ask for one.
    pub(crate) fn close_spares(&mut self, worker: &mut ucx::Worker) {
        for peer in self.peers.values_mut() {
            peer.spare.drain(..).for_each(|(_, ep)| worker.close(ep));
        }
        self.spares = 0;
    }

    /// The next number; `None` if endpoints to this worker are not paired by number.
    fn next(&mut self, worker: &ucx::Worker, address: &[u8]) -> Option<u16> {
        // An endpoint to its own worker is its own pair.
        if worker.address() == address {
            return None;
        }
        if !self.peers.contains_key(address) {
            self.peers.insert(address.into(), Peer::default());
        }
        self.peers.get(address).map(|peer| peer.next).filter(|next| *next != UNPAIRED)
    }

    fn reach(&mut self, worker: &mut ucx::Worker, address: &[u8], number: u16) -> Result<ucx::EndpointId, NoEndpoint> {
        let Some(peer) = self.peers.get_mut(address) else { return Ok(worker.connect(address)?) };
        if number < peer.next {
            let Some(index) = peer.spare.iter().position(|(spare, _)| *spare == number) else {
                return Err(NoEndpoint::Taken(peer.next));
            };
            self.spares -= 1;
            return peer.spare.remove(index).map(|(_, ep)| ep).ok_or(NoEndpoint::Taken(peer.next));
        }
        if number - peer.next > MAX_AHEAD {
            let text = format!("the peer counts {number} ucx endpoints between us, this side {}", peer.next);
            return Err(NoEndpoint::Failed(Error::new(ErrorKind::Protocol, text)));
        }
        while peer.next < number {
            // UCX counts endpoints that it fails to make, too.
            let spare = peer.next;
            peer.next += 1;
            peer.spare.push_back((spare, worker.connect(address)?));
            self.spares += 1;
        }
        peer.next = number.saturating_add(1);
        Ok(worker.connect(address)?)
    }
}
