//! UCX's own connection manager: listeners and connection requests, for peers that do not speak our negotiation.

use std::{
    cell::Cell,
    ffi::c_void,
    mem,
    net::SocketAddr,
    ptr::{self, NonNull},
};

use socket2::SockAddr;
use ucx_sys::{self as sys, ucp_conn_request_h, ucp_listener_h};

use super::{
    event::Event,
    ids::{EndpointId, WorkerId},
    returns::Ticket,
    status,
    worker::{Core, Item, Worker},
};
use crate::error::{Error, ErrorKind};

/// Connection requests that may wait for a decision. Further ones are rejected.
const MAX_WAITING: usize = 1024;

/// A listener of one worker. It listens until it is closed or the worker ends.
#[derive(Debug)]
pub(crate) struct CmListener {
    worker: WorkerId,
    index: usize,
    addr: SocketAddr,
}

impl CmListener {
    /// The worker that it is of.
    pub(crate) fn worker(&self) -> WorkerId {
        self.worker
    }

    /// What its connection requests are marked with.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// What it listens at, with the port that it has got.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// A client that waits to be accepted. Dropping it rejects, from any thread.
#[derive(Debug)]
pub(crate) struct ConnRequest(Option<Ticket>);

impl ConnRequest {
    fn into_ticket(mut self) -> Ticket {
        self.0.take().expect("taken only here and in drop, each once")
    }
}

impl Drop for ConnRequest {
    fn drop(&mut self) {
        if let Some(ticket) = self.0.take() {
            ticket.reject();
        }
    }
}

struct Listener {
    core: NonNull<Core>,
    index: usize,
    handle: Cell<ucp_listener_h>,
}

struct Waiting {
    number: u64,
    request: ucp_conn_request_h,
    listener: usize,
}

/// The listeners of a worker and the requests that wait.
#[derive(Default)]
pub(super) struct Listeners {
    list: Vec<Option<NonNull<Listener>>>,
    waiting: Vec<Waiting>,
    next_number: u64,
}

impl Listeners {
    pub(super) fn is_empty(&self) -> bool {
        self.list.iter().all(Option::is_none) && self.waiting.is_empty()
    }

    fn take(&mut self, number: u64) -> Option<Waiting> {
        let at = self.waiting.iter().position(|waiting| waiting.number == number)?;
        Some(self.waiting.swap_remove(at))
    }

    fn handle(&self, index: usize) -> Option<ucp_listener_h> {
        // SAFETY: listed until it is freed.
        (*self.list.get(index)?).map(|listener| unsafe { listener.as_ref() }.handle.get())
    }
}

/// A client knocks.
///
/// # Safety
/// Called by UCX with the `Listener` that the listener was created with.
unsafe extern "C" fn on_request(request: ucp_conn_request_h, arg: *mut c_void) {
    // SAFETY: freed only after the UCX listener was destroyed.
    let listener = unsafe { &*arg.cast::<Listener>() };
    // SAFETY: the core outlives its listeners.
    let core = unsafe { listener.core.as_ref() };
    let (number, full) = {
        let mut listeners = core.listeners.borrow_mut();
        let number = listeners.next_number;
        listeners.next_number += 1;
        let full = listeners.waiting.len() >= MAX_WAITING;
        listeners.waiting.push(Waiting { number, request, listener: listener.index });
        (number, full)
    };
    if full {
        core.returns.post_rejection(number);
    } else {
        core.push(Item::Request(number));
    }
}

impl Worker {
    /// Listens on `addr`; port 0 takes a free one.
    ///
    /// # Errors
    /// What UCX says: the address is taken or not local, or `tcp` is not among the transports.
    pub(crate) fn listen_cm(&mut self, addr: SocketAddr) -> Result<CmListener, Error> {
        let core = self.core();
        let index = core.listeners.borrow().list.len();
        let listener = Listener { core: self.core_ptr(), index, handle: Cell::new(ptr::null_mut()) };
        let listener = NonNull::from(Box::leak(Box::new(listener)));
        let sock_address = SockAddr::from(addr);
        // SAFETY: integers, pointers and optional functions: zero is valid.
        let mut params: sys::ucp_listener_params_t = unsafe { mem::zeroed() };
        params.field_mask =
            u64::from(sys::UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | sys::UCP_LISTENER_PARAM_FIELD_CONN_HANDLER);
        params.sockaddr = sock_addr(&sock_address);
        params.conn_handler =
            sys::ucp_listener_conn_handler_t { cb: Some(on_request), arg: listener.as_ptr().cast::<c_void>() };
        let mut handle = ptr::null_mut();
        // SAFETY: a live worker, valid parameters, an argument that outlives the listener.
        let status = unsafe { core.ucx.ucp_listener_create(core.handle, &params, &mut handle) };
        if let Err(error) = status::check(core.ucx, "listening with ucx", status) {
            // SAFETY: UCX did not take it.
            drop(unsafe { Box::from_raw(listener.as_ptr()) });
            return Err(error);
        }
        // SAFETY: listed below, freed when it is closed.
        unsafe { listener.as_ref() }.handle.set(handle);
        core.listeners.borrow_mut().list.push(Some(listener));
        // SAFETY: integers and an address: zero is valid.
        let mut attr: sys::ucp_listener_attr_t = unsafe { mem::zeroed() };
        attr.field_mask = u64::from(sys::UCP_LISTENER_ATTR_FIELD_SOCKADDR);
        // SAFETY: a live listener and a place to write to.
        let status = unsafe { core.ucx.ucp_listener_query(handle, &mut attr) };
        let port = socket_addr(&attr.sockaddr).map(|addr| addr.port());
        match (status::check(core.ucx, "asking a ucx listener for its port", status), port) {
            (Ok(()), Some(port)) => Ok(CmListener { worker: self.id(), index, addr: SocketAddr::new(addr.ip(), port) }),
            (result, _) => {
                self.close_listener_at(index);
                Err(result.err().unwrap_or_else(|| Error::new(ErrorKind::System, "a ucx listener without a port")))
            }
        }
    }

    /// Stops listening. Requests that wait are rejected.
    pub(crate) fn close_listener(&mut self, listener: CmListener) {
        self.close_listener_at(listener.index);
    }

    fn close_listener_at(&mut self, index: usize) {
        let core = self.core();
        let listener = core.listeners.borrow_mut().list.get_mut(index).and_then(Option::take);
        let Some(listener) = listener else { return };
        // SAFETY: taken off the list, so this is its end.
        let handle = unsafe { listener.as_ref() }.handle.get();
        let waiting: Vec<Waiting> =
            core.listeners.borrow_mut().waiting.extract_if(.., |waiting| waiting.listener == index).collect();
        for one in waiting {
            self.reject_raw(handle, one.request);
        }
        // SAFETY: live until here; its requests are decided. UCX drops requests that it has not called back for.
        unsafe { core.ucx.ucp_listener_destroy(handle) };
        // SAFETY: leaked from a box in `listen_cm`; UCX is done with it.
        drop(unsafe { Box::from_raw(listener.as_ptr()) });
    }

    pub(super) fn close_listeners(&mut self) {
        let count = self.core().listeners.borrow().list.len();
        (0..count).for_each(|index| self.close_listener_at(index));
    }

    /// Makes the server's endpoint of a connection. Its messages say who sent them.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] if the listener was closed since, else what UCX says.
    pub(crate) fn accept_cm(&mut self, request: ConnRequest) -> Result<EndpointId, Error> {
        let waiting = self.core().listeners.borrow_mut().take(self.own_number(request)?);
        let Some(waiting) = waiting else {
            return Err(Error::new(ErrorKind::Closed, "the connection request is gone with its listener"));
        };
        self.create("accepting a ucx connection", true, |params| {
            params.field_mask |= u64::from(sys::UCP_EP_PARAM_FIELD_CONN_REQUEST);
            params.conn_request = waiting.request;
        })
    }

    /// Rejects a connection request.
    pub(crate) fn reject_cm(&mut self, request: ConnRequest) {
        if let Ok(number) = self.own_number(request) {
            self.reject_number(number);
        }
    }

    /// Dials a listener. Its messages say who sent them. What fails later is an event.
    ///
    /// # Errors
    /// What UCX says at once, such as [`ErrorKind::Unreachable`].
    pub(crate) fn connect_cm(&mut self, addr: SocketAddr) -> Result<EndpointId, Error> {
        let addr = SockAddr::from(addr);
        self.create("dialling with ucx", true, |params| {
            params.field_mask |= u64::from(sys::UCP_EP_PARAM_FIELD_SOCK_ADDR | sys::UCP_EP_PARAM_FIELD_FLAGS);
            params.flags = sys::UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
            params.sockaddr = sock_addr(&addr);
        })
    }

    fn own_number(&self, request: ConnRequest) -> Result<u64, Error> {
        if !request.0.as_ref().is_some_and(|ticket| ticket.is_of(&self.core().returns)) {
            return Err(Error::new(ErrorKind::Invalid, "the connection request is another ucx worker's"));
        }
        Ok(request.into_ticket().number)
    }

    pub(super) fn reject_number(&self, number: u64) {
        let core = self.core();
        let found = {
            let mut listeners = core.listeners.borrow_mut();
            listeners.take(number).and_then(|one| Some((listeners.handle(one.listener)?, one.request)))
        };
        if let Some((handle, request)) = found {
            self.reject_raw(handle, request);
        }
    }

    fn reject_raw(&self, listener: ucp_listener_h, request: ucp_conn_request_h) {
        let core = self.core();
        // SAFETY: a live listener and one of its requests, decided here for the only time.
        let status = unsafe { core.ucx.ucp_listener_reject(listener, request) };
        if let Err(error) = status::check(core.ucx, "rejecting a ucx connection", status) {
            tracing::debug!(%error, "a connection request could not be rejected");
        }
    }

    /// The event of a request, unless it is gone.
    pub(super) fn announce_request(&self, number: u64) -> Option<Event> {
        let core = self.core();
        let (listener, request) = {
            let listeners = core.listeners.borrow();
            let one = listeners.waiting.iter().find(|one| one.number == number)?;
            (one.listener, one.request)
        };
        // SAFETY: integers and an address: zero is valid.
        let mut attr: sys::ucp_conn_request_attr_t = unsafe { mem::zeroed() };
        attr.field_mask = u64::from(sys::UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ADDR);
        // SAFETY: a request that waits, and a place to write to.
        let status = unsafe { core.ucx.ucp_conn_request_query(request, &mut attr) };
        let known = status == sys::ucs_status_t::UCS_OK;
        let client_addr = known.then(|| socket_addr(&attr.client_address)).flatten();
        let ticket = Ticket { number, returns: core.returns.clone() };
        Some(Event::ConnRequest { listener, request: ConnRequest(Some(ticket)), client_addr })
    }
}

fn sock_addr(addr: &SockAddr) -> sys::ucs_sock_addr_t {
    sys::ucs_sock_addr_t { addr: addr.as_ptr().cast(), addrlen: addr.len() }
}

fn socket_addr(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    // SAFETY: UCX wrote an address of the family that it names into zeroed storage; the length is an upper bound.
    let ((), addr) = unsafe {
        SockAddr::try_init(|place, len| {
            ptr::copy_nonoverlapping(ptr::from_ref(storage).cast::<u8>(), place.cast::<u8>(), size_of_val(storage));
            *len = size_of_val(storage) as _;
            Ok(())
        })
    }
    .ok()?;
    addr.as_socket()
}
