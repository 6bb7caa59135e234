//! Endpoints by id: a stale id is answered with an error and never reaches UCX.
//!
//! Closing is forced, which UCX 1.13 survives only once the endpoint is connected: with a connection message still in a
//! queue, its tcp lane asserts. So every endpoint is flushed when it is made; the end of that flush, good or bad, says that
//! connecting is over, and a close that comes earlier waits for it. Such an endpoint is stale for its user at once.
//!
//! A tcp lane must also have nothing left to send when it is closed. UCX (1.13 to 1.22) keeps the socket of a closed endpoint
//! until the peer's goodbye comes, and frees the lane when it does; if the same look at the socket also finds room for
//! what was left to send, UCX then uses the freed lane. Two sides that give a connection up under load, because its link
//! was cut, say, meet exactly so when the link is back. So the close of an endpoint over tcp waits until a flush of it
//! has nothing to do, or it has failed. Towards a peer that does not read that may take long: see [`Worker::reset_sockets`].
//!
//! Over UD UCX takes an endpoint for connected as soon as the transport is, and it only gets to know the peer's with the first message that
//! asks for an answer. The peer's request may come at any time, and UCX's own thread may find it. The answer then waits for the next
//! progress in the queue of the lane; a forced close finds it there and ends the process ("got REP message"; a UCX without
//! assertions drops it). So an endpoint that has sent no such message sends an empty one when it is closed, and is closed when that has
//! arrived: nobody asks any more then, and the answers are sent. While it waits, wire-up messages are in another queue, which UCX can empty.

use std::{
    cell::Cell,
    collections::HashMap,
    ffi::c_void,
    mem,
    ptr::{self, NonNull},
};

use ucx_sys::{self as sys, ucp_ep_h};

use super::{
    callback,
    ids::EndpointId,
    inspect::printed,
    status,
    worker::{AM_ID, Core, Worker},
};
use crate::error::{Error, ErrorKind};

/// A close waits for this many flushes that had something to do. Each ends with what was sent before it, and only what UCX
/// sends by itself can come after it.
const MAX_WAITS: u8 = 16;

/// With this many endpoints waiting to be closed a worker is not used for new connections. What an endpoint waits for is the peer's. Four
/// times as many as a listener's handshakes may be under way at once, by default.
const MAX_CLOSING: usize = if cfg!(test) { 32 } else { 4096 };

/// A place for an endpoint. It has a stable address for UCX's error callback and is reused, never freed before the worker.
pub(super) struct Slot {
    pub(super) core: NonNull<Core>,
    index: u32,
    generation: Cell<u32>,
    /// Null: free, or being created.
    ep: Cell<ucp_ep_h>,
    creating: Cell<bool>,
    /// Flushes that have not ended, and the close's message: connecting is over when there is none.
    pub(super) settling: Cell<u32>,
    /// Closed by its user: its id is stale.
    closing: Cell<bool>,
    /// Flushes that a close has waited for.
    waits: Cell<u8>,
    pub(super) failed: Cell<bool>,
    /// Messages carry our reply endpoint.
    reply: Cell<bool>,
    /// A message has asked UCX to get to know the peer's endpoint.
    introduced: Cell<bool>,
    /// That was the close's own message.
    introduced_late: Cell<bool>,
}

impl Slot {
    pub(super) fn id(&self) -> EndpointId {
        // SAFETY: the core outlives its slots.
        let worker = unsafe { self.core.as_ref() }.id;
        EndpointId { worker, index: self.index, generation: self.generation.get() }
    }

    /// Whether a callback about `ep` is about this slot's present endpoint.
    pub(super) fn is_of(&self, ep: ucp_ep_h) -> bool {
        self.creating.get() || (!ep.is_null() && self.ep.get() == ep)
    }

    /// Whether its user has closed it.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.get()
    }
}

/// All endpoints of a worker.
#[derive(Default)]
pub(super) struct Table {
    slots: Vec<NonNull<Slot>>,
    free: Vec<NonNull<Slot>>,
    /// Closed by their user, and not settled yet.
    closing: Vec<NonNull<Slot>>,
    /// Endpoints that messages can be attributed to.
    by_handle: HashMap<usize, EndpointId>,
}

/// What sending needs of an endpoint.
pub(super) struct Target {
    pub(super) ep: ucp_ep_h,
    pub(super) reply: bool,
}

impl Table {
    /// The endpoint behind `id`.
    #[inline]
    pub(super) fn target(&self, id: EndpointId) -> Result<Target, Error> {
        match self.slot(id) {
            Some(slot) if !slot.failed.get() => Ok(Target { ep: slot.ep.get(), reply: slot.reply.get() }),
            Some(_) => Err(failed()),
            None => Err(stale()),
        }
    }

    #[inline]
    fn slot(&self, id: EndpointId) -> Option<&Slot> {
        // SAFETY: slots live as long as the table.
        let slot = unsafe { self.slots.get(id.index as usize)?.as_ref() };
        (slot.generation.get() == id.generation && !slot.ep.get().is_null() && !slot.closing.get()).then_some(slot)
    }

    /// The endpoint of ours that `ep` is, if it is one. UCX also hands out internal endpoints, which die without notice.
    pub(super) fn find(&self, ep: ucp_ep_h) -> Option<EndpointId> {
        self.by_handle.get(&(ep as usize)).copied()
    }

    pub(super) fn open(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn ids(&self) -> Vec<EndpointId> {
        // SAFETY: as in `slot`.
        let slots = self.slots.iter().map(|slot| unsafe { slot.as_ref() });
        slots.filter(|slot| !slot.ep.get().is_null() && !slot.closing.get()).map(Slot::id).collect()
    }

    fn reserve(&mut self, core: NonNull<Core>) -> NonNull<Slot> {
        self.free.pop().unwrap_or_else(|| {
            let slot = Slot {
                core,
                index: u32::try_from(self.slots.len()).expect("fewer endpoints than that fit into memory"),
                generation: Cell::new(1),
                ep: Cell::new(ptr::null_mut()),
                creating: Cell::new(false),
                settling: Cell::new(0),
                closing: Cell::new(false),
                waits: Cell::new(0),
                failed: Cell::new(false),
                reply: Cell::new(false),
                introduced: Cell::new(false),
                introduced_late: Cell::new(false),
            };
            let slot = NonNull::from(Box::leak(Box::new(slot)));
            self.slots.push(slot);
            slot
        })
    }

    /// Makes the ids of a slot stale.
    fn retire(&mut self, slot: &Slot) {
        slot.generation.set(slot.generation.get().wrapping_add(1));
        slot.closing.set(true);
        self.by_handle.remove(&(slot.ep.get() as usize));
    }

    /// Endpoints whose close waits.
    pub(super) fn waiting(&self) -> usize {
        self.closing.len()
    }

    /// The next endpoint from `from` on whose close waits, and whose flush has ended.
    fn settled(&self, from: usize) -> Option<(usize, NonNull<Slot>)> {
        // SAFETY: as in `slot`.
        let at = self.closing[from..].iter().position(|slot| unsafe { slot.as_ref() }.settling.get() == 0)? + from;
        Some((at, self.closing[at]))
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for slot in self.slots.drain(..) {
            // SAFETY: leaked from a box in `reserve`; the table ends after the UCX worker, so nobody calls back any more.
            drop(unsafe { Box::from_raw(slot.as_ptr()) });
        }
    }
}

#[cold]
fn stale() -> Error {
    Error::new(ErrorKind::Closed, "the ucx endpoint is closed")
}

#[cold]
fn failed() -> Error {
    Error::new(ErrorKind::Reset, "the ucx endpoint has failed")
}

impl Worker {
    /// Makes an endpoint to the worker at `address`, with peer failure handling. The connection is made by progress; what
    /// fails then is an event.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] if the bytes are no worker address, [`ErrorKind::Unreachable`] if no lane leads there.
    pub(crate) fn connect(&mut self, address: &[u8]) -> Result<EndpointId, Error> {
        let address = self.checker().check(address)?;
        self.create("connecting to a ucx worker", false, |params| {
            params.field_mask |= u64::from(sys::UCP_EP_PARAM_FIELD_REMOTE_ADDRESS);
            params.address = address.as_ptr().cast();
        })
    }

    /// Creates an endpoint; `set` adds where to. What its pointers point to outlives this call.
    pub(super) fn create(
        &mut self,
        doing: &str,
        reply: bool,
        set: impl FnOnce(&mut sys::ucp_ep_params_t),
    ) -> Result<EndpointId, Error> {
        let core = self.core();
        let place = core.endpoints.borrow_mut().reserve(self.core_ptr());
        // SAFETY: slots live as long as the core.
        let slot = unsafe { place.as_ref() };
        // SAFETY: integers, pointers and optional functions: zero is valid.
        let mut params: sys::ucp_ep_params_t = unsafe { mem::zeroed() };
        params.field_mask = u64::from(sys::UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | sys::UCP_EP_PARAM_FIELD_ERR_HANDLER);
        params.err_mode = sys::UCP_ERR_HANDLING_MODE_PEER;
        params.err_handler =
            sys::ucp_err_handler_t { cb: Some(callback::on_failure), arg: place.as_ptr().cast::<c_void>() };
        set(&mut params);
        slot.failed.set(false);
        slot.closing.set(false);
        slot.waits.set(0);
        slot.settling.set(0);
        slot.reply.set(reply);
        slot.introduced.set(false);
        slot.introduced_late.set(false);
        slot.creating.set(true);
        let mut ep = ptr::null_mut();
        // SAFETY: valid parameters; the address was checked and is padded, the error handler's argument outlives the worker.
        let status = unsafe { core.ucx.ucp_ep_create(core.handle, &params, &mut ep) };
        slot.creating.set(false);
        if let Err(error) = status::check(core.ucx, doing, status) {
            // A failure that was called back meanwhile is an event of a stale id.
            core.endpoints.borrow_mut().retire(slot);
            core.endpoints.borrow_mut().free.push(place);
            return Err(error);
        }
        slot.ep.set(ep);
        if reply {
            core.endpoints.borrow_mut().by_handle.insert(ep as usize, slot.id());
        }
        self.settle(place);
        Ok(slot.id())
    }

    /// Sends a first message, header only, with which each side gets to know the other's endpoint.
    ///
    /// Over shared memory messages pass without that, and UCX would catch up on it at the first rendezvous or keepalive.
    /// UCX 1.13 does not survive a close in the middle of it ("remote_id == ep->remote_ep_id"): so it is done here, and a
    /// close waits for its end.
    ///
    /// # Errors
    /// As [`Worker::send_copy`].
    pub(crate) fn prove(&mut self, id: EndpointId, header: &[u8], token: u64) -> Result<(), Error> {
        let place = {
            let table = self.core().endpoints.borrow();
            table.slot(id).map(NonNull::from).ok_or_else(stale)?
        };
        // SAFETY: slots live as long as the core.
        let slot = unsafe { place.as_ref() };
        let before = slot.reply.replace(true);
        let sent = self.send_copy(id, header, [&[], &[]], token);
        slot.reply.set(before);
        let _ = sent?;
        slot.introduced.set(true);
        self.settle(place);
        Ok(())
    }

    /// Sends an empty message in the place of a proof, if an endpoint that is closed needs one.
    fn introduce(&self, place: NonNull<Slot>) {
        // SAFETY: slots live as long as the core.
        let (core, slot) = (self.core(), unsafe { place.as_ref() });
        let needless = slot.introduced.get() || slot.failed.get() || slot.reply.get();
        if needless || !meets_late(&self.lanes(slot.ep.get())) {
            return;
        }
        slot.introduced_late.set(true);
        let mut param = settling(place);
        param.op_attr_mask |= sys::UCP_OP_ATTR_FIELD_FLAGS;
        param.flags = sys::UCP_AM_SEND_FLAG_EAGER | sys::UCP_AM_SEND_FLAG_REPLY;
        let nothing = NonNull::<u8>::dangling().as_ptr();
        // SAFETY: a live endpoint; there are no bytes to keep, and the slot outlives the request, because it is not reused before its end.
        let request =
            unsafe { core.ucx.ucp_am_send_nbx(slot.ep.get(), AM_ID, nothing.cast(), 0, nothing.cast(), 0, &param) };
        slot.settling.set(slot.settling.get() + u32::from(sys::UCS_PTR_IS_PTR(request)));
        // What is refused has failed, or will.
        self.settle(place);
    }

    /// Has UCX say when connecting is over.
    fn settle(&self, place: NonNull<Slot>) {
        let core = self.core();
        // SAFETY: slots live as long as the core.
        let slot = unsafe { place.as_ref() };
        let param = settling(place);
        // SAFETY: a live endpoint; the slot outlives the request, because it is not reused before its end.
        let request = unsafe { core.ucx.ucp_ep_flush_nbx(slot.ep.get(), &param) };
        slot.settling.set(slot.settling.get() + u32::from(sys::UCS_PTR_IS_PTR(request)));
    }

    /// Closes an endpoint: its id is stale from here on, and what is in flight on it ends with an event, now or with
    /// later progress. A stale id changes nothing.
    ///
    /// While UCX is still connecting the endpoint, has something left to send over tcp, or does not know the peer's endpoint
    /// over UD, the close waits for that in the background. A peer that is stopped can delay it without limit; until then the endpoint counts among
    /// [`super::Counters::endpoints`], and [`Worker::reset_sockets`] puts an end to it.
    pub(crate) fn close(&mut self, id: EndpointId) {
        let core = self.core();
        let place = {
            let mut table = core.endpoints.borrow_mut();
            let Some(place) = table.slot(id).map(NonNull::from) else { return };
            // SAFETY: slots live as long as the core.
            table.retire(unsafe { place.as_ref() });
            place
        };
        self.introduce(place);
        if self.is_quiet(place) {
            return self.close_now(place);
        }
        let mut table = core.endpoints.borrow_mut();
        table.closing.push(place);
        core.closing.set(table.closing.len());
    }

    /// Whether an endpoint may be closed by force now. If not, a flush is under way, after which it is to be asked again.
    fn is_quiet(&self, place: NonNull<Slot>) -> bool {
        // SAFETY: slots live as long as the core.
        let slot = unsafe { place.as_ref() };
        if slot.settling.get() > 0 {
            return false;
        }
        // A failed endpoint has lost its lanes, and endpoints of the connection manager have another kind of tcp lane.
        if slot.failed.get() || slot.reply.get() || slot.waits.get() >= MAX_WAITS {
            return true;
        }
        if !slot.introduced_late.get() && !self.has_sockets(slot.ep.get()) {
            return true;
        }
        slot.waits.set(slot.waits.get() + 1);
        self.settle(place);
        slot.settling.get() == 0
    }

    /// Whether new connections may be made: not too many endpoints wait to be closed.
    pub(crate) fn has_room(&self) -> bool {
        self.core().closing.get() < MAX_CLOSING
    }

    /// Closes what waited for it and is settled; says how many, because a close is work that an armed worker must not sleep on.
    #[cold]
    pub(super) fn close_settled(&mut self) -> u32 {
        let (mut count, mut from) = (0, 0);
        loop {
            let core = self.core();
            let next = core.endpoints.borrow().settled(from);
            let Some((at, place)) = next else { break };
            if self.is_quiet(place) {
                core.endpoints.borrow_mut().closing.swap_remove(at);
                self.close_now(place);
                count += 1;
            } else {
                // The flush that this has started is work as well: the worker was armed before it, if at all.
                count += 1;
                from = at + 1;
            }
        }
        let left = self.core().endpoints.borrow().closing.len();
        self.core().closing.set(left);
        count
    }

    fn close_now(&mut self, place: NonNull<Slot>) {
        let core = self.core();
        // SAFETY: slots live as long as the core.
        let ep = unsafe { place.as_ref() }.ep.replace(ptr::null_mut());
        core.endpoints.borrow_mut().free.push(place);
        // SAFETY: as in `create`.
        let mut param: sys::ucp_request_param_t = unsafe { mem::zeroed() };
        param.op_attr_mask = sys::UCP_OP_ATTR_FIELD_FLAGS;
        param.flags = sys::UCP_EP_CLOSE_FLAG_FORCE;
        // SAFETY: the slot held a live endpoint and does not any more, so this is its one close; nothing is borrowed, since
        // completions are called in here.
        let request = unsafe { core.ucx.ucp_ep_close_nbx(ep, &param) };
        if sys::UCS_PTR_IS_PTR(request) {
            // SAFETY: a request without a callback of ours; UCX releases it when it is done.
            unsafe { core.ucx.ucp_request_free(request) };
        } else if sys::UCS_PTR_IS_ERR(request) {
            tracing::warn!(status = sys::UCS_PTR_STATUS(request).0, "ucx did not close an endpoint");
        }
    }

    /// Whether an endpoint has a tcp lane.
    fn has_sockets(&self, ep: ucp_ep_h) -> bool {
        self.lanes(ep).split('+').any(|lane| lane == "tcp" || lane.starts_with("tcp/"))
    }

    /// The transports that the endpoint uses at the moment, in lane order, such as `sysv`, `tcp/lo` or `rc_verbs/rxe0:1`.
    /// Until the first messages went both ways UCX may still change them. Empty for a stale id.
    pub(crate) fn endpoint_info(&self, id: EndpointId) -> String {
        let ep = self.core().endpoints.borrow().slot(id).map(|slot| slot.ep.get());
        ep.map(|ep| self.lanes(ep)).unwrap_or_default()
    }

    fn lanes(&self, ep: ucp_ep_h) -> String {
        let core = self.core();
        // SAFETY: callers have a live endpoint of this thread's worker; an open stream.
        let printed = printed(|stream| unsafe { core.ucx.ucp_ep_print_info(ep, stream) });
        transports(&printed)
    }
}

/// Whether UCX connects these lanes before it knows the peer's endpoint, and answers the peer's request from a thread of its own. With a lane
/// of RC it knows it earlier: that is how such a lane is connected.
fn meets_late(lanes: &str) -> bool {
    let over = |name: &str| lanes.split('+').any(|lane| lane.starts_with(name));
    (over("ud_") || over("dc_")) && !over("rc_")
}

/// The parameters of a request that an endpoint settles with.
fn settling(place: NonNull<Slot>) -> sys::ucp_request_param_t {
    // SAFETY: integers, pointers and unions of optional functions: zero is valid.
    let mut param: sys::ucp_request_param_t = unsafe { mem::zeroed() };
    param.op_attr_mask = sys::UCP_OP_ATTR_FIELD_CALLBACK | sys::UCP_OP_ATTR_FIELD_USER_DATA;
    param.cb.send = Some(callback::settled);
    param.user_data = place.as_ptr().cast();
    param
}

/// The transports in what `ucp_ep_print_info` prints: lines such as `#  lane[0]:  3:tcp/lo.0 md[1]  -> ...`. There is no
/// other way before UCX 1.14, and this one works with all.
fn transports(printed: &str) -> String {
    let mut found: Vec<&str> = Vec::new();
    for line in printed.lines() {
        let Some((_, lane)) = line.split_once("lane[") else { continue };
        let Some((_, rest)) = lane.split_once("]:") else { continue };
        let first =
            rest.split_whitespace().find(|word| !word.trim_end_matches(':').bytes().all(|b| b.is_ascii_digit()));
        let Some(word) = first else { continue };
        let resource = match word.split_once(':') {
            Some((number, resource)) if number.bytes().all(|b| b.is_ascii_digit()) => resource,
            _ => word,
        };
        // The path index comes last; device names may have points of their own.
        let name = resource.rsplit_once('.').map_or(resource, |(name, _)| name);
        let name = name.strip_suffix("/memory").unwrap_or(name);
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found.join("+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_read_from_the_printed_form() {
        let printed = "#\n# UCP endpoint x\n#               peer: host:1\n\
            #                 lane[0]: cm tcp\n\
            #                 lane[1]:  2:sysv/memory.0 md[1]          -> md[1]/sysv/sysdev[255] am keepalive\n\
            #                 lane[2]: 11:tcp/eth0.100.0 md[1]         -> md[1]/tcp/sysdev[255] rma_bw#0\n\
            #                 lane[3]:  4:rc_verbs/rxe0:1.0 md[4]      -> md[4]/ib/sysdev[255] am_bw#1\n\
            #                 lane[4]:  4:rc_verbs/rxe0:1.1 md[4]      -> md[4]/ib/sysdev[255] am_bw#2\n";
        assert_eq!(transports(printed), "cm+sysv+tcp/eth0.100+rc_verbs/rxe0:1");
        assert_eq!(transports("no lanes"), "");
    }

    #[test]
    fn endpoints_over_datagrams_meet_late() {
        for lanes in ["ud_verbs/rxe0:1", "ud_mlx5/mlx5_0:1", "sysv+ud_verbs/rxe0:1", "dc_mlx5/mlx5_0:1"] {
            assert!(meets_late(lanes), "{lanes}");
        }
        // A device may be called anything.
        for lanes in ["", "sysv", "tcp/ud_0", "posix+tcp/lo", "rc_verbs/rxe0:1+ud_verbs/rxe0:1"] {
            assert!(!meets_late(lanes), "{lanes}");
        }
    }
}
