//! One progress engine, owned by one thread.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    mem,
    os::fd::{BorrowedFd, RawFd},
    ptr::{self, NonNull},
    slice,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use ucx_sys::{self as sys, Ucx, ucp_worker_h, ucs_status_t};

use super::{
    address::Checker,
    callback,
    cm::Listeners,
    context::Context,
    endpoint::Table,
    event::{Event, SmallHeader},
    ids::{EndpointId, WorkerId},
    op::{Op, Ops},
    returns::{Rendezvous, Return, Returns},
    status,
};
use crate::error::{Error, ErrorKind};

/// The one AM id. Unknown ids crash UCX (1.12 to 1.16), so everything goes by id 0 and our own header.
pub(super) const AM_ID: u32 = 0;

/// How long a worker that ends waits for endpoints over tcp whose peers do not read, before it resets their sockets. With 50 ms on a
/// busy machine it did that to peers that read, and UCX 1.13.1 with assertions aborted some of them (`docs/decisions.md`).
const PATIENCE: Duration = Duration::from_millis(250);

/// What may be outstanding when sockets are reset ends within microseconds; the end of a worker waits at least this long for it.
const RESET_GRACE: Duration = Duration::from_millis(100);

/// How long dropping a worker waits for what is outstanding.
const DROP_GRACE: Duration = Duration::from_millis(100);

/// Workers that could not be destroyed, because the application or UCX still held something of theirs.
static PARKED: AtomicU64 = AtomicU64::new(0);

/// Number of workers of this process that were abandoned with their memory, see [`Worker::shutdown`].
pub(crate) fn parked_workers() -> u64 {
    PARKED.load(Ordering::Relaxed)
}

/// Whether the worker may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Armed {
    /// The next thing to do makes the event fd readable. Any other call on the worker voids that.
    Ok,
    /// Something is there already: progress again.
    Busy,
}

/// Some endpoints wait to be closed; says whether all do.
pub(crate) struct OnlyClosing(pub(crate) bool);

/// What is outstanding on a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counters {
    /// Sends whose event has not been taken.
    pub(crate) sends: usize,
    /// Fetches whose event has not been taken.
    pub(crate) fetches: usize,
    /// Eager messages in UCX's memory.
    pub(crate) held_descriptors: usize,
    /// Announced payloads, neither fetched nor refused.
    pub(crate) announced: usize,
    /// Endpoints not closed, or closed while they were being connected and still waiting for that.
    pub(crate) endpoints: usize,
    /// Events not taken.
    pub(crate) events: usize,
    /// Messages thrown away since the start, because their header was too long.
    pub(crate) dropped: u64,
}

/// An entry of the event queue: smaller than an event, since every message is moved through it. Operations become events when they are taken, so that no user value is dropped in a callback.
pub(super) enum Item {
    Message { header: SmallHeader, data: Bytes, from: Option<EndpointId> },
    Announced { header: SmallHeader, rndv: Rendezvous, from: Option<EndpointId> },
    Ended { op: NonNull<Op>, status: ucs_status_t },
    Failed { ep: EndpointId, status: ucs_status_t },
    Request(u64),
}

/// What callbacks reach: at a stable address, only through shared references.
pub(super) struct Core {
    pub(super) ucx: &'static Ucx,
    pub(super) handle: ucp_worker_h,
    pub(super) id: WorkerId,
    queue: RefCell<VecDeque<Item>>,
    pub(super) ops: RefCell<Ops>,
    pub(super) endpoints: RefCell<Table>,
    pub(super) listeners: RefCell<Listeners>,
    pub(super) returns: Arc<Returns>,
    pub(super) sends: Cell<usize>,
    pub(super) fetches: Cell<usize>,
    pub(super) lent: Cell<usize>,
    pub(super) announced: Cell<usize>,
    pub(super) dropped: Cell<u64>,
    /// Endpoints that wait to be closed.
    pub(super) closing: Cell<usize>,
}

impl Core {
    #[inline]
    pub(super) fn push(&self, item: Item) {
        self.queue.borrow_mut().push_back(item);
    }
}

/// A UCX worker: sends, receives and connects, on the one thread that owns it.
///
/// All methods return at once. Work happens in [`progress`](Self::progress), results come from
/// [`poll_event`](Self::poll_event).
pub(crate) struct Worker {
    core: NonNull<Core>,
    address: Box<[u8]>,
    checker: Checker,
    event_fd: RawFd,
    ended: bool,
    /// Endpoints that wait to be closed are not waited for.
    deaf: bool,
}

impl Worker {
    /// Makes a worker of the process's context.
    ///
    /// # Errors
    /// [`ErrorKind::NoUcx`] without UCX, else what UCX says (file descriptors, shared memory).
    pub(crate) fn new() -> Result<Self, Error> {
        let context = Context::get().map_err(|reason| Error::new(ErrorKind::NoUcx, reason.to_string()))?;
        let ucx = context.ucx;
        // SAFETY: integers and pointers: zero is valid.
        let mut params: sys::ucp_worker_params_t = unsafe { mem::zeroed() };
        params.field_mask = u64::from(sys::UCP_WORKER_PARAM_FIELD_THREAD_MODE);
        params.thread_mode = sys::UCS_THREAD_MODE_SINGLE;
        let mut handle = ptr::null_mut();
        // SAFETY: a live context, valid parameters, a place to write to.
        let status = unsafe { ucx.ucp_worker_create(context.handle, &params, &mut handle) };
        status::check(ucx, "creating a ucx worker", status)?;
        let core = Box::new(Core {
            ucx,
            handle,
            id: WorkerId::next(),
            queue: RefCell::default(),
            ops: RefCell::default(),
            endpoints: RefCell::default(),
            listeners: RefCell::default(),
            returns: Returns::new(ucx, handle),
            sends: Cell::new(0),
            fetches: Cell::new(0),
            lent: Cell::new(0),
            announced: Cell::new(0),
            dropped: Cell::new(0),
            closing: Cell::new(0),
        });
        let core = NonNull::from(Box::leak(core));
        // From here on dropping it cleans up.
        let mut worker = Self {
            core,
            address: Box::default(),
            checker: Checker::default(),
            event_fd: -1,
            ended: false,
            deaf: false,
        };
        // The handler comes first: a message that finds none crashes UCX, and the address is what brings messages.
        worker.set_handler()?;
        worker.event_fd = worker.query_event_fd()?;
        worker.address = worker.query_address()?;
        worker.checker = Checker::new(&worker.address);
        Ok(worker)
    }

    fn set_handler(&self) -> Result<(), Error> {
        let core = self.core();
        let param = sys::ucp_am_handler_param_t {
            field_mask: u64::from(
                sys::UCP_AM_HANDLER_PARAM_FIELD_ID
                    | sys::UCP_AM_HANDLER_PARAM_FIELD_FLAGS
                    | sys::UCP_AM_HANDLER_PARAM_FIELD_CB
                    | sys::UCP_AM_HANDLER_PARAM_FIELD_ARG,
            ),
            id: AM_ID,
            flags: sys::UCP_AM_FLAG_WHOLE_MSG,
            cb: Some(callback::on_message),
            arg: self.core.as_ptr().cast(),
        };
        // SAFETY: the handler's argument outlives the worker.
        let status = unsafe { core.ucx.ucp_worker_set_am_recv_handler(core.handle, &param) };
        status::check(core.ucx, "setting the message handler of ucx", status)
    }

    fn query_event_fd(&self) -> Result<RawFd, Error> {
        let (core, mut fd) = (self.core(), -1);
        // SAFETY: a live worker and a place to write to.
        let status = unsafe { core.ucx.ucp_worker_get_efd(core.handle, &mut fd) };
        status::check(core.ucx, "getting the event fd of a ucx worker", status)?;
        Ok(fd)
    }

    fn query_address(&self) -> Result<Box<[u8]>, Error> {
        let core = self.core();
        let (mut address, mut len) = (ptr::null_mut(), 0);
        // SAFETY: a live worker and places to write to.
        let status = unsafe { core.ucx.ucp_worker_get_address(core.handle, &mut address, &mut len) };
        status::check(core.ucx, "getting the address of a ucx worker", status)?;
        // SAFETY: UCX gave `len` bytes; they are released once, after the copy.
        unsafe {
            let copy = slice::from_raw_parts(address.cast::<u8>(), len).into();
            core.ucx.ucp_worker_release_address(core.handle, address);
            Ok(copy)
        }
    }

    #[inline]
    pub(super) fn core(&self) -> &Core {
        // SAFETY: freed only when the worker ends; only shared references are ever made.
        unsafe { self.core.as_ref() }
    }

    pub(super) fn core_ptr(&self) -> NonNull<Core> {
        self.core
    }

    /// Which of the process's workers it is.
    #[inline]
    pub(crate) fn id(&self) -> WorkerId {
        self.core().id
    }

    pub(super) fn checker(&self) -> Checker {
        self.checker
    }

    /// What a peer needs to connect: opaque bytes, at most some hundred.
    pub(crate) fn address(&self) -> &[u8] {
        &self.address
    }

    /// Readable when an armed worker has something to do. It belongs to the worker: watch it, never read or close it.
    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the worker's own descriptor, open until the worker is destroyed.
        unsafe { BorrowedFd::borrow_raw(self.event_fd) }
    }

    /// Does a bounded piece of work: sends, receives, connects, calls back. Zero means that nothing was left to do.
    #[inline]
    pub(crate) fn progress(&mut self) -> u32 {
        let returned = if self.core().returns.is_empty() { 0 } else { self.take_back() };
        let core = self.core();
        // SAFETY: the owning thread, not inside a callback (those have no `Worker`).
        let worked = unsafe { core.ucx.ucp_worker_progress(core.handle) };
        let closed = if core.closing.get() > 0 { self.close_settled() } else { 0 };
        returned + worked + closed
    }

    /// Asks for the event fd to become readable with the next event.
    ///
    /// # Errors
    /// What UCX says; the worker can't sleep then.
    pub(crate) fn arm(&mut self) -> Result<Armed, Error> {
        let core = self.core();
        if !core.returns.is_empty() || !core.queue.borrow().is_empty() {
            return Ok(Armed::Busy);
        }
        // SAFETY: a live worker of this thread.
        match unsafe { core.ucx.ucp_worker_arm(core.handle) } {
            ucs_status_t::UCS_OK => Ok(Armed::Ok),
            ucs_status_t::UCS_ERR_BUSY => Ok(Armed::Busy),
            other => Err(status::error(core.ucx, "arming a ucx worker", other)),
        }
    }

    /// Whether UCX says busy although progress finds nothing. Something may just have come; over shared memory somebody may be writing it,
    /// or have died while doing so; or sends wait for room in a peer's queue.
    #[cold]
    pub(crate) fn has_unread(&mut self) -> bool {
        // The first may find what was announced before, and the second what came meanwhile.
        const LOOKS: usize = 3;
        // As often as a turn of the dispatcher lets UCX work, before it looks at other things.
        const MOST: usize = 64;
        for _ in 0..LOOKS {
            let _ = (0..MOST).find(|_| self.progress() == 0 || self.has_events());
            let core = self.core();
            // SAFETY: a live worker of this thread. That it is armed changes nothing for whoever arms it again before sleeping.
            if unsafe { core.ucx.ucp_worker_arm(core.handle) } != ucs_status_t::UCS_ERR_BUSY {
                return false;
            }
        }
        true
    }

    /// Whether [`poll_event`](Self::poll_event) has something.
    #[inline]
    pub(crate) fn has_events(&self) -> bool {
        !self.core().queue.borrow().is_empty()
    }

    /// The next event, in the order in which UCX called back.
    #[inline]
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        loop {
            let core = self.core();
            let item = core.queue.borrow_mut().pop_front()?;
            return Some(match item {
                Item::Message { header, data, from } => Event::Message { header, data, from },
                Item::Announced { header, rndv, from } => Event::Announced { header, rndv, from },
                Item::Ended { op, status } => self.finish(op, status),
                Item::Failed { ep, status } => {
                    Event::EndpointFailed { ep, error: status::error(core.ucx, "the connection broke", status) }
                }
                Item::Request(number) => match self.announce_request(number) {
                    Some(event) => event,
                    None => continue,
                },
            });
        }
    }

    /// Gives UCX back what was dropped since the last time; says how much of it somebody waits for.
    #[cold]
    pub(super) fn take_back(&mut self) -> u32 {
        let mut count = 0;
        let core = self.core();
        while let Some(item) = core.returns.pop() {
            // Memory that comes back is no work: nobody waits for it, and nobody was woken for it.
            count += u32::from(!matches!(item, Return::Eager(_)));
            let (desc, counter) = match item {
                Return::Eager(desc) => (desc, &core.lent),
                Return::Announced(desc) => (desc, &core.announced),
                Return::Request(number) => {
                    self.reject_number(number);
                    continue;
                }
            };
            counter.set(counter.get() - 1);
            // SAFETY: lent by this worker, not fetched, and its one owner is gone; nothing is borrowed.
            unsafe { core.ucx.ucp_am_data_release(core.handle, desc.0.as_ptr().cast()) };
        }
        count
    }

    /// Whether nothing but operations of closed endpoints is left. They end with the next progress, or never: over shared memory
    /// UCX up to 1.22 waits for room in the peer's queue before it ends them, and a dead peer makes none.
    pub(crate) fn is_stuck(&self) -> bool {
        let left = Counters { dropped: 0, ..self.inflight() };
        let operations = left.sends + left.fetches;
        operations > 0
            && left == (Counters { sends: left.sends, fetches: left.fetches, ..Counters::default() })
            && !self.listens()
    }

    /// Whether nothing is left but endpoints that wait to be closed, and operations of closed ones.
    pub(crate) fn only_closes(&self) -> bool {
        let left = Counters { dropped: 0, sends: 0, fetches: 0, ..self.inflight() };
        left == (Counters { endpoints: self.core().closing.get(), ..Counters::default() }) && !self.listens()
    }

    /// Whether nothing is outstanding, no endpoint open and nobody listens.
    pub(crate) fn is_unused(&self) -> bool {
        Counters { dropped: 0, ..self.inflight() } == Counters::default() && !self.listens()
    }

    /// Whether it has listeners, or connection requests that wait.
    pub(crate) fn listens(&self) -> bool {
        !self.core().listeners.borrow().is_empty()
    }

    /// Whether some endpoints wait to be closed, and whether there is nothing else that uses the worker.
    #[inline]
    pub(crate) fn closing(&self) -> Option<OnlyClosing> {
        let core = self.core();
        if core.closing.get() == 0 {
            return None;
        }
        let endpoints = core.endpoints.borrow();
        Some(OnlyClosing(endpoints.open() == endpoints.waiting() && !self.listens()))
    }

    /// What is outstanding.
    pub(crate) fn inflight(&self) -> Counters {
        let core = self.core();
        Counters {
            sends: core.sends.get(),
            fetches: core.fetches.get(),
            held_descriptors: core.lent.get(),
            announced: core.announced.get(),
            endpoints: core.endpoints.borrow().open(),
            events: core.queue.borrow().len(),
            dropped: core.dropped.get(),
        }
    }

    /// Ends the worker: closes listeners and endpoints, waits until `deadline` for what is in flight and for messages that
    /// the application still holds, and destroys it. Untaken events are dropped. True if all went well.
    ///
    /// What the application holds is UCX's memory, which must not go away under it. So if something is still held at the
    /// deadline the worker is **parked**: it is abandoned with its memory and descriptors for the life of the process,
    /// logged, and counted by [`parked_workers`]. Its endpoints are closed all the same.
    pub(crate) fn shutdown(mut self, deadline: Instant) -> bool {
        self.end(deadline)
    }

    /// As [`Self::shutdown`], for a worker that receives nothing over shared memory any more: endpoints that still wait there to be
    /// connected when all sockets were reset never will be, and go with the worker.
    pub(crate) fn shutdown_deaf(mut self, deadline: Instant) -> bool {
        self.deaf = true;
        self.end(deadline)
    }

    fn end(&mut self, mut deadline: Instant) -> bool {
        self.ended = true;
        let mut patience = Some(Instant::now() + PATIENCE);
        self.close_listeners();
        // Announcements that nobody took are refused while there still is an endpoint to tell the sender by.
        while let Some(event) = self.poll_event() {
            drop(event);
        }
        self.progress();
        let open = self.core().endpoints.borrow().ids();
        open.into_iter().for_each(|ep| self.close(ep));
        loop {
            let worked = self.progress() > 0;
            let mut drained = false;
            while let Some(event) = self.poll_event() {
                drained = true;
                drop(event);
            }
            let left = Counters { dropped: 0, ..self.inflight() };
            if left == Counters::default() {
                break;
            }
            if !worked && !drained {
                let now = Instant::now();
                let waiting = self.core().closing.get();
                if waiting > 0 && patience.take_if(|until| now >= *until || now >= deadline).is_some() {
                    let grace = if self.reset_sockets() > 0 || !self.deaf { RESET_GRACE } else { Duration::ZERO };
                    deadline = deadline.max(now + grace);
                    continue;
                }
                if now >= deadline {
                    // These may never end, and need nothing but the worker's own end.
                    let endpoints = if self.deaf { waiting } else { 0 };
                    if (Counters { sends: 0, fetches: 0, ..left }) == (Counters { endpoints, ..Counters::default() }) {
                        tracing::warn!(?left, "ucx has not ended operations of endpoints that are closed");
                        break;
                    }
                    return self.park(left);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let core = self.core();
        core.returns.close();
        // SAFETY: no lent memory is left, nor endpoints but those that were never connected, whose slots outlive this call; nobody signals
        // any more. Destroyed once: `ended`.
        unsafe { core.ucx.ucp_worker_destroy(core.handle) };
        while let Some(event) = self.poll_event() {
            drop(event);
        }
        let abandoned = self.core().ops.borrow().in_use();
        for op in abandoned {
            // SAFETY: the worker that knew it is no more, and its event, if there was one, was taken above.
            drop(unsafe { self.recycle(op) });
        }
        // SAFETY: leaked from a box in `new`; UCX, which had pointers to it, is done with it.
        drop(unsafe { Box::from_raw(self.core.as_ptr()) });
        true
    }

    #[cold]
    fn park(&mut self, left: Counters) -> bool {
        self.core().returns.close();
        PARKED.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(?left, "a ucx worker is abandoned with its memory: something of it is still in use");
        false
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Instant::now() + DROP_GRACE);
        }
    }
}
