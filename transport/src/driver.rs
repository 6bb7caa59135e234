//! The driver: the one place that joins sockets, UCX, protocol and queues. It moves things between rooms.
//!
//! Everything here belongs to one thread. Handles reach it through lock-free queues and the waker, or, on its own
//! thread, through [`send_at_once`].

mod accept;
mod cm_frames;
mod cm_link;
mod cm_open;
mod conn;
mod crowd;
mod dial;
mod end;
mod engine;
mod events;
mod inbox;
mod io;
mod mem_link;
mod opening;
mod pace;
mod pairing;
mod proving;
mod receive;
mod run;
mod send;
mod sleep;
mod stall;
pub(crate) mod table;
mod tasks;
mod tcp_link;
mod terms;
#[cfg(feature = "tokio")]
mod tokio;
mod ucx_link;
mod ucx_recv;

use std::{
    cell::{Cell, RefCell},
    future::Future,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::{Arc, mpsc::SyncSender},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

pub use self::run::LocalDispatcher;
pub(crate) use self::{
    accept::{ListenSocket, ListenerShared, register_mem},
    cm_open::{CmListen, listen as listen_cm},
    conn::ConnCore,
    inbox::{Here, poll_here, take_here},
    io::Io,
    mem_link::MemParty,
    send::{Pumped, SendHalf},
    tasks::{LocalFuture, Woken},
};
use self::{
    io::Core,
    tasks::{ReadyTasks, Tasks},
};
use crate::{
    Address, Error, ErrorKind, Result,
    connection::{self, DriverHalf, Outgoing},
    dispatcher::{self, SleepState},
    event::poller::Key,
    plan::{FetchReply, PendingId},
    tcp,
};

/// What handles ask of a dispatcher.
pub(crate) enum Command {
    /// Open a connection; the addresses are tried in order.
    Connect { half: DriverHalf, address: Address, resolved: Vec<SocketAddr> },
    /// Serve a listener that is bound already.
    Listen { listener: Arc<ListenerShared>, socket: ListenSocket },
    /// Listen with UCX's connection manager, and say what came of it.
    ListenCm { ask: Box<CmListen>, reply: SyncSender<Result<Arc<ListenerShared>>> },
    /// Stop listening.
    Unlisten { listener: Arc<ListenerShared> },
    /// The listener has room again.
    ResumeAccept { listener: Arc<ListenerShared> },
    /// The listener is full of handshakes: some of this dispatcher's are to give way.
    MakeWay { listener: Arc<ListenerShared> },
    /// A socket that another dispatcher accepted for this one.
    Adopt { listener: Arc<ListenerShared>, stream: tcp::Stream },
    /// A connection from another party of this process.
    AdoptMem { listener: Arc<ListenerShared>, peer: MemParty },
    /// The answer to it.
    MemAnswer { to: Key, peer: Result<MemParty> },
    /// A connection has new readiness pipes.
    Pipe { shared: Arc<connection::Shared> },
    /// Fetch or refuse an announced body.
    Fetch { connection: Key, id: PendingId, reply: FetchReply },
    /// A local task.
    Spawn(Box<dyn FnOnce() -> LocalFuture + Send>),
    /// A timer.
    Sleep(Arc<SleepState>),
    /// Nobody waits for it any more.
    CancelSleep(Arc<SleepState>),
}

impl Command {
    /// Ends what it stands for, when the dispatcher has stopped.
    pub(crate) fn reject(self) {
        let stopped = || Error::new(ErrorKind::Stopped, "the dispatcher has stopped");
        match self {
            Self::Connect { half, .. } => half.shared.finish(stopped()),
            Self::Fetch { mut reply, .. } => reply.fail(stopped()),
            Self::AdoptMem { peer, .. } => peer.answer(Err(stopped())),
            Self::Listen { listener, .. } => listener.close(stopped()),
            Self::Adopt { listener, .. } => listener.handshake_over(),
            Self::MemAnswer { peer, .. } => peer.into_iter().for_each(|peer| peer.shared.announce()),
            Self::Sleep(state) => state.fire(),
            // Dropping the reply says it.
            Self::ListenCm { .. }
            | Self::Unlisten { .. }
            | Self::ResumeAccept { .. }
            | Self::MakeWay { .. }
            | Self::Pipe { .. }
            | Self::CancelSleep(_)
            | Self::Spawn(_) => {}
        }
    }
}

/// The dispatcher that runs on this thread.
#[derive(Clone)]
struct Current {
    shared: Arc<dispatcher::Shared>,
    core: Rc<RefCell<Core>>,
    tasks: Rc<RefCell<Tasks>>,
    ready: Rc<RefCell<ReadyTasks>>,
}

thread_local! {
    /// The running dispatcher's id, 0 for none: the quick look.
    static CURRENT_ID: Cell<u64> = const { Cell::new(0) };
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
    /// Those that belong to this thread, running or not.
    static OWN: RefCell<Vec<Current>> = const { RefCell::new(Vec::new()) };
}

/// Does something with dispatcher `id` if it belongs to this thread, running or not. Else what it was given comes back.
fn on_own_thread<A, R>(id: u64, given: A, act: impl FnOnce(&mut Core, A) -> R) -> Result<R, A> {
    let own = OWN.with_borrow(|own| own.iter().find(|c| c.shared.id == id).map(|c| c.core.clone()));
    match own.as_ref().map(|core| core.try_borrow_mut()) {
        Some(Ok(mut core)) => Ok(act(&mut core, given)),
        _ => Err(given),
    }
}

/// Whether dispatcher `id` runs on this thread.
#[inline]
pub(crate) fn is_current(id: u64) -> bool {
    CURRENT_ID.get() == id
}

/// The running dispatcher's shared half.
pub(crate) fn current_shared() -> Option<Arc<dispatcher::Shared>> {
    CURRENT.with_borrow(|current| current.as_ref().map(|c| c.shared.clone()))
}

/// The ready list of dispatcher `id`, if it runs on this thread.
fn current_tasks(id: u64) -> Option<Rc<RefCell<ReadyTasks>>> {
    if !is_current(id) {
        return None;
    }
    CURRENT.with_borrow(|current| current.as_ref().map(|c| c.ready.clone()))
}

/// Adds a local task to the dispatcher that runs on this thread.
///
/// # Errors
/// Gives the future back as an error text if none runs here.
pub fn spawn_local(future: impl Future<Output = ()> + 'static) -> Result<()> {
    let tasks = CURRENT.with_borrow(|current| current.as_ref().map(|c| c.tasks.clone()));
    match tasks {
        Some(tasks) => {
            tasks.borrow_mut().spawn(Box::pin(future));
            Ok(())
        }
        None => Err(Error::new(ErrorKind::Invalid, "spawn_local: no dispatcher runs on this thread")),
    }
}

/// Sends without a queue where that keeps the order: on the dispatcher's own thread, or on an idle TCP connection. What was not sent is left where it is: frames are large to be handed to and fro.
pub(crate) fn send_at_once(shared: &connection::Shared, outgoing: &mut Option<Outgoing>, len: u64) {
    if is_current(shared.dispatcher.id) {
        CURRENT.with_borrow(|current| {
            if let Some(Ok(mut core)) = current.as_ref().map(|c| c.core.try_borrow_mut()) {
                core.send_now(shared, outgoing, len);
            }
        });
    } else {
        send::by_caller(shared, outgoing, len);
    }
}

/// Arms or cancels a [`crate::Sleep`]: at once on the dispatcher's own thread, else by command.
pub(crate) fn sleep(dispatcher: &dispatcher::Shared, state: &Arc<SleepState>, armed: bool) {
    let done = is_current(dispatcher.id)
        && CURRENT.with_borrow(|current| match current.as_ref().map(|c| c.core.try_borrow_mut()) {
            Some(Ok(mut core)) => {
                if armed {
                    core.arm_sleep(state.clone());
                } else {
                    core.cancel_sleep(state);
                }
                true
            }
            _ => false,
        });
    match (done, armed) {
        (true, _) => {}
        (false, true) => dispatcher.command(Command::Sleep(state.clone())),
        (false, false) => dispatcher.command(Command::CancelSleep(state.clone())),
    }
}

struct Parker(std::thread::Thread);

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Blocks this thread on a future that the dispatcher, on another thread, makes ready.
pub(crate) fn block_elsewhere<F: Future>(dispatcher: &Arc<dispatcher::Shared>, future: F) -> Result<F::Output> {
    if is_current(dispatcher.id) {
        return Err(Error::new(
            ErrorKind::Invalid,
            "a blocking call on the dispatcher's own thread would wait for itself: use .await or block_on",
        ));
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Parker(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Ok(output);
        }
        std::thread::park();
    }
}

/// How long a stopping dispatcher waits for UCX to give back what it still holds.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
