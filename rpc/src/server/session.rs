//! One connection of a server: a local task that reads requests and starts handlers.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use ucrpc_transport::{Connection, Dispatcher, Frame};

use super::admission::MethodLimit;
use super::core::{Core, Phase, Ticket, count};
use super::handler;
use super::replies::{Replies, ReplyTo};
use crate::alarm::{GRAIN, OneTimer};
use crate::call::{CallContext, MethodName, Reply, StreamHost};
use crate::codec::{decode_request, encode_signal};
use crate::frames::{Incoming, status_of, take_apart};
use crate::service::{MethodId, Service};
use crate::wire::{RequestMeta, RpcMeta, Signal};
use crate::{Code, Status};

/// Frames taken in one turn before other tasks of the dispatcher get theirs, and what was written meanwhile goes out: the peer
/// works on the first frames while this side is at the next.
const FRAMES_PER_TURN: usize = 32;

type Closing = Pin<Box<dyn Future<Output = ()>>>;

pub(super) struct Session {
    core: Arc<Core>,
    connection: Connection,
    replies: Rc<Replies>,
    ticket: Ticket,
    dispatcher: Dispatcher,
    timer: OneTimer,
    armed: Option<Instant>,
    /// The client understands signals.
    is_ucrpc: bool,
    authenticated: bool,
    told: bool,
    closing: Option<Closing>,
    room: Option<Closing>,
}

/// Serves a connection to its end. On the connection's dispatcher.
pub(super) async fn run(core: Arc<Core>, ticket: Ticket, connection: Connection) {
    count(&core.counters.connections);
    let is_native = connection.info().is_some_and(|info| info.framing.is_none());
    let mut session = Session {
        replies: Replies::new(core.clone(), connection.sender()),
        ticket,
        dispatcher: connection.dispatcher(),
        timer: OneTimer::default(),
        armed: None,
        is_ucrpc: is_native,
        authenticated: core.authenticator.is_none(),
        told: false,
        closing: None,
        room: None,
        core,
        connection,
    };
    std::future::poll_fn(|cx| session.poll(cx)).await;
}

impl Drop for Session {
    fn drop(&mut self) {
        self.replies.drop_all(None);
        let status = self.connection.error().map_or(Code::ECLOSE.into(), status_of);
        self.replies.streams.end(&status);
    }
}

impl Session {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.ticket.note(cx);
        if self.replies.session.borrow().is_none() {
            *self.replies.session.borrow_mut() = Some(cx.waker().clone());
            self.replies.streams.when_empty(cx.waker());
        }
        if self.poll_backlog(cx) {
            self.replies.collect();
            let end = self.read(cx);
            self.replies.flush();
            if end.is_ready() {
                return Poll::Ready(());
            }
        } else if self.connection.error().is_some() {
            // Nobody reads, so nobody would see the end.
            return Poll::Ready(());
        }
        self.poll_deadlines(cx);
        self.poll_end(cx)
    }

    /// Whether nothing waits for room in the transport. As long as something does, no requests are read.
    fn poll_backlog(&mut self, cx: &mut Context<'_>) -> bool {
        while self.replies.has_backlog() {
            let sender = self.connection.sender();
            let room = self.room.get_or_insert_with(|| Box::pin(async move { drop(sender.ready().await) }));
            if room.as_mut().poll(cx).is_pending() {
                return false;
            }
            self.room = None;
            if self.connection.error().is_some() {
                return false;
            }
            self.replies.drain_backlog();
        }
        true
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut received = None;
        for _ in 0..FRAMES_PER_TURN {
            match self.connection.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(frame)) => {
                    let received = *received.get_or_insert_with(Instant::now);
                    if let Err(status) = self.on_frame(frame, received, cx) {
                        tracing::debug!(%status, "a connection sent what is no frame");
                        count(&self.core.counters.bad_frames);
                        self.connection.abort();
                        return Poll::Ready(());
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes a frame. An error closes the connection.
    fn on_frame(&mut self, frame: Frame, received: Instant, cx: &mut Context<'_>) -> Result<(), Status> {
        let no_body = || Status::new(Code::EREQUEST, "a body that was not fetched");
        let body = frame.body.into_bytes().ok_or_else(no_body)?;
        let limits = self.core.limits;
        let mut meta = RpcMeta::default();
        let incoming = take_apart(&frame.head, body, &limits, &mut meta);
        match incoming.map_err(|error| Status::new(Code::EREQUEST, error.to_string()))? {
            Incoming::Strm { meta, data } => {
                // A server opens no streams by calls, so no response can come in one.
                drop(self.replies.streams.on_frame(&self.connection, &meta, data));
            }
            Incoming::Reject(error) => {
                count(&self.core.counters.bad_frames);
                if meta.request.is_some() {
                    self.replies.refuse(reply_to(&meta), &Status::new(Code::EREQUEST, error.to_string()));
                }
            }
            Incoming::Prpc { message, attachment } => match meta.request {
                Some(request) => return self.on_request(&meta, &request, message, attachment, received, cx),
                None if meta.signal == Signal::Cancel => self.replies.cancel(meta.correlation_id),
                None if meta.response.is_none() && meta.signal == Signal::None => {
                    count(&self.core.counters.bad_frames);
                    self.replies.refuse(reply_to(&meta), &Status::new(Code::EREQUEST, "a frame without a request"));
                }
                None => count(&self.core.counters.bad_frames),
            },
        }
        Ok(())
    }

    /// Starts a call, or refuses it. An error closes the connection.
    fn on_request(
        &mut self,
        meta: &RpcMeta<'_>,
        request: &RequestMeta<'_>,
        message: Bytes,
        attachment: Bytes,
        received: Instant,
        cx: &mut Context<'_>,
    ) -> Result<(), Status> {
        let to = reply_to(meta);
        if meta.signal == Signal::Hello && !self.is_ucrpc {
            self.is_ucrpc = true;
            self.replies.hello_due.set(true);
        }
        if !self.authenticated {
            let verify = self.core.authenticator.clone();
            if let Err(status) = verify.map_or(Ok(()), |verify| verify(meta.authentication_data.unwrap_or_default())) {
                self.replies.refuse(to, &Status::new(Code::ERPCAUTH, status.message().to_owned()));
                self.replies.flush();
                self.close();
                return Ok(());
            }
            self.authenticated = true;
        }
        let core = self.core.clone();
        if core.phase() != Phase::Running {
            count(&core.counters.too_late);
            self.replies.refuse(to, &Status::new(Code::ELOGOFF, "the server is stopping"));
            return Ok(());
        }
        let (service, id) = match core.registry.resolve(request.service_name, request.method_name) {
            Ok(found) => found,
            Err(status) => {
                self.replies.refuse(to, &status);
                return Ok(());
            }
        };
        let method = match core.admission.enter(service.descriptor().name, id) {
            Ok(method) => method,
            Err(status) => {
                count(&core.counters.limited);
                self.replies.refuse(to, &status);
                return Ok(());
            }
        };
        match decode_request(meta, message, &attachment, core.max_message) {
            Ok(message) => {
                let name = method_name(&**service, id, request);
                let mut context = CallContext::from_request(name, meta, request, attachment, received);
                if to.stream.is_some() {
                    let (streams, sender) = (self.replies.streams.clone(), self.connection.sender());
                    context.set_stream_host(StreamHost::new(streams, sender));
                }
                self.start(&**service, id, context, message, to, method, cx);
            }
            Err(status) => {
                core.admission.leave(method);
                self.replies.refuse(to, &status);
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "one call, once")]
    fn start(
        &mut self,
        service: &dyn Service,
        id: MethodId,
        mut context: CallContext,
        message: Bytes,
        to: ReplyTo,
        method: Option<&Arc<MethodLimit>>,
        cx: &mut Context<'_>,
    ) {
        let core = &self.core;
        for interceptor in &core.interceptors {
            if let Err(status) = handler::guard(|| interceptor.request(&mut context)).flatten() {
                core.admission.leave(method);
                return self.replies.reply(to, Reply { result: Err(status), context });
            }
        }
        count(&core.counters.started);
        let inherited = context.inherited();
        let made = handler::guard(|| inherited.enter(|| service.call(id, context, message)));
        let polled = made.map(|future| {
            let mut future = core.handlers.place(future, inherited);
            let polled = handler::poll(&mut future, inherited, cx);
            (future, polled)
        });
        match polled {
            Ok((future, Poll::Pending)) => {
                if let Some(at) = inherited.deadline.instant() {
                    self.armed = Some(self.armed.map_or(at, |armed| armed.min(at)));
                }
                self.replies.keep(future, to, inherited, method.cloned());
            }
            Ok((future, Poll::Ready(Ok(reply)))) => {
                drop(future);
                core.admission.leave(method);
                self.replies.reply(to, reply);
            }
            Ok((_, Poll::Ready(Err(status)))) | Err(status) => {
                count(&core.counters.panicked);
                core.admission.leave(method);
                self.replies.refuse(to, &status);
            }
        }
    }

    fn poll_deadlines(&mut self, cx: &mut Context<'_>) {
        while self.timer.poll(&self.dispatcher, self.armed, cx) {
            let now = Instant::now();
            self.armed = self.replies.expire(now).map(|at| at.max(now + GRAIN));
        }
    }

    /// What the server's end means for this connection.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let phase = self.core.phase();
        if phase >= Phase::Draining && !std::mem::replace(&mut self.told, true) && self.is_ucrpc {
            self.replies.push(Frame::from(encode_signal(Signal::GoAway, 0)));
        }
        if phase == Phase::Stopped {
            self.replies.drop_all(Some(&Status::new(Code::ELOGOFF, "the server stopped before the call ended")));
        }
        // A client that understands closes the connection itself once it has its responses: so none of its calls is lost.
        let done = phase == Phase::Stopped || (phase == Phase::Draining && !self.is_ucrpc && self.replies.is_idle());
        if done && !self.replies.has_backlog() {
            self.close();
        }
        match &mut self.closing {
            Some(closing) => closing.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    fn close(&mut self) {
        let sender = self.connection.sender();
        self.closing.get_or_insert_with(|| Box::pin(async move { drop(sender.close().await) }));
    }
}

fn reply_to(meta: &RpcMeta<'_>) -> ReplyTo {
    let stream = meta.stream_settings.as_ref().map(|settings| settings.stream_id);
    ReplyTo { correlation_id: meta.correlation_id, stream }
}

/// The method's name, without an allocation if the service declares it.
fn method_name(service: &dyn Service, id: MethodId, request: &RequestMeta<'_>) -> MethodName {
    let descriptor = service.descriptor();
    match descriptor.methods.get(id.0 as usize) {
        Some(method) => MethodName::from_static(descriptor.name, method.name),
        None => MethodName::new(request.service_name.to_owned(), request.method_name.to_owned()),
    }
}

/// Accepts connections until the server stops or the listener ends. On the listener's dispatcher.
pub(super) async fn accept(core: Arc<Core>, mut ticket: Ticket, mut listener: ucrpc_transport::Listener) {
    std::future::poll_fn(|cx| {
        ticket.note(cx);
        loop {
            if core.phase() != Phase::Running {
                return Poll::Ready(());
            }
            match listener.poll_accept(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => {
                    tracing::error!(%error, address = %listener.local_address(), "the listener ended");
                    return Poll::Ready(());
                }
                Poll::Ready(Ok(connection)) => {
                    let (ticket, core) = (core.enroll(), core.clone());
                    connection.dispatcher().spawn_task(move || run(core, ticket, connection));
                }
            }
        }
    })
    .await;
}
