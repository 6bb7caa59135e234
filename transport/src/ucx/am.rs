//! Active messages: sending, and fetching what was announced.

use std::{
    mem,
    ptr::{self, NonNull},
};

use ucx_sys::{self as sys, ucs_status_t};

use super::{
    MAX_AM_HEADER, callback,
    context::Registration,
    endpoint::Target,
    event::Event,
    ids::EndpointId,
    op::{Hold, Mode, Op, Payload, Sent},
    returns::Rendezvous,
    status,
    worker::{AM_ID, Item, Worker},
};
use crate::{
    error::{Error, ErrorKind},
    frame::RecvBuf,
};

impl Worker {
    /// Sends a small message: header and parts are copied, and the payload is `parts` joined.
    ///
    /// No allocation when operations can be reused. Meant for payloads of a few KiB.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] for a stale id, [`ErrorKind::Reset`] for a failed endpoint, [`ErrorKind::Limit`] for a header
    /// above [`MAX_AM_HEADER`]; then nothing was sent.
    #[inline]
    pub(crate) fn send_copy(
        &mut self,
        ep: EndpointId,
        header: &[u8],
        parts: [&[u8]; 2],
        token: u64,
    ) -> Result<Sent, Error> {
        let (target, op) = self.begin(ep, header, token)?;
        // SAFETY: free until UCX gets it.
        let buffer = unsafe { &mut (*op.as_ptr()).buffer };
        let len = parts[0].len() + parts[1].len();
        buffer.reserve(len);
        buffer.extend_from_slice(parts[0]);
        buffer.extend_from_slice(parts[1]);
        let payload = buffer[header.len()..].as_ptr();
        // SAFETY: the payload is part of the operation.
        unsafe { self.submit(&target, op, header.len(), payload, len, Mode::Eager, ptr::null_mut()) }
    }

    /// Sends a header with a payload that stays where it is until the operation is over.
    ///
    /// # Errors
    /// As [`send_copy`](Self::send_copy); the payload is dropped.
    pub(crate) fn send_owned(
        &mut self,
        ep: EndpointId,
        header: &[u8],
        payload: Payload,
        mode: Mode,
        token: u64,
    ) -> Result<Sent, Error> {
        let (target, op) = self.begin(ep, header, token)?;
        let (data, len) = (payload.as_slice().as_ptr(), payload.as_slice().len());
        let memh = match &payload {
            Payload::Pool(buf) => memory_handle(buf.registration()),
            Payload::Bytes(_) => ptr::null_mut(),
        };
        // SAFETY: free until UCX gets it.
        unsafe { (*op.as_ptr()).hold = Hold::Payload(payload) };
        // SAFETY: the payload is held by the operation, and moving it there did not move its bytes.
        unsafe { self.submit(&target, op, header.len(), data, len, mode, memh) }
    }

    #[inline]
    fn begin(&mut self, ep: EndpointId, header: &[u8], token: u64) -> Result<(Target, NonNull<Op>), Error> {
        let core = self.core();
        let target = core.endpoints.borrow().target(ep)?;
        if header.len() > MAX_AM_HEADER {
            return Err(header_too_long());
        }
        let op = core.ops.borrow_mut().take(self.core_ptr());
        // SAFETY: a free operation is known to nobody else.
        let free = unsafe { &mut *op.as_ptr() };
        free.token = token;
        free.buffer.clear();
        free.buffer.extend_from_slice(header);
        Ok((target, op))
    }

    /// # Safety
    /// `op` comes from `begin`; its buffer starts with the header, and `payload[..len]` is kept by it.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    unsafe fn submit(
        &mut self,
        target: &Target,
        op: NonNull<Op>,
        header_len: usize,
        payload: *const u8,
        len: usize,
        mode: Mode,
        memh: sys::ucp_mem_h,
    ) -> Result<Sent, Error> {
        let core = self.core();
        // SAFETY: by the contract the operation is still ours alone.
        let ours = unsafe { &mut *op.as_ptr() };
        let mut flags = match mode {
            Mode::Eager => sys::UCP_AM_SEND_FLAG_EAGER,
            Mode::Rendezvous => sys::UCP_AM_SEND_FLAG_RNDV,
        };
        if target.reply {
            flags |= sys::UCP_AM_SEND_FLAG_REPLY;
        }
        ours.param.flags = flags;
        ours.param.cb.send = Some(callback::sent);
        set_memory_handle(&mut ours.param, memh);
        let (header, param) = (ours.buffer.as_ptr().cast(), &raw const ours.param);
        // SAFETY: a live endpoint; header and payload are kept by the operation until its end was taken; nothing is borrowed.
        let request =
            unsafe { core.ucx.ucp_am_send_nbx(target.ep, AM_ID, header, header_len, payload.cast(), len, param) };
        if sys::UCS_PTR_IS_PTR(request) {
            core.sends.set(core.sends.get() + 1);
            return Ok(Sent::Pending);
        }
        // SAFETY: null and errors mean that UCX knows nothing of the operation any more.
        unsafe { self.recycle(op) };
        if request.is_null() { Ok(Sent::Done) } else { Err(self.refused("sending", request)) }
    }

    /// # Safety
    /// UCX does not know `op` any more, and it was not recycled before.
    #[inline]
    pub(super) unsafe fn recycle(&self, op: NonNull<Op>) -> Hold {
        // SAFETY: by the contract.
        let held = unsafe { &mut (*op.as_ptr()).hold };
        // Holds are large, and small messages have none: spare them the move.
        let hold = if matches!(held, Hold::Nothing) { Hold::Nothing } else { mem::replace(held, Hold::Nothing) };
        // SAFETY: by the contract.
        unsafe { self.core().ops.borrow_mut().put(op) };
        hold
    }

    #[cold]
    fn refused(&self, doing: &str, request: sys::ucs_status_ptr_t) -> Error {
        status::error(self.core().ucx, doing, sys::UCS_PTR_STATUS(request))
    }

    /// Fetches an announced payload to the front of `buf`. The end is always an event.
    ///
    /// # Errors
    /// With the target back: [`ErrorKind::Limit`] if it is shorter than the payload, [`ErrorKind::Invalid`] for another
    /// worker's announcement (both refuse the payload), else what UCX says.
    #[allow(clippy::result_large_err)]
    pub(crate) fn fetch(&mut self, rndv: Rendezvous, mut buf: RecvBuf, token: u64) -> Result<(), (Error, RecvBuf)> {
        let core = self.core();
        if !rndv.is_of(&core.returns) {
            return Err((Error::new(ErrorKind::Invalid, "the payload was announced to another ucx worker"), buf));
        }
        let len = rndv.len();
        if buf.len() < len {
            return Err((Error::new(ErrorKind::Limit, format!("{len} bytes do not fit into {}", buf.len())), buf));
        }
        let memh = match &buf {
            RecvBuf::Pool(pool) => memory_handle(pool.registration()),
            _ => ptr::null_mut(),
        };
        let data = buf.as_mut_slice().as_mut_ptr();
        let op = core.ops.borrow_mut().take(self.core_ptr());
        // SAFETY: a free operation is known to nobody else.
        let ours = unsafe { &mut *op.as_ptr() };
        ours.token = token;
        ours.hold = Hold::Target(buf);
        if len == 0 {
            // UCX 1.13 leaks the descriptor of an empty one that is fetched; releasing it completes the sender as well.
            drop(rndv);
            core.fetches.set(core.fetches.get() + 1);
            core.push(Item::Ended { op, status: ucs_status_t::UCS_OK });
            return Ok(());
        }
        ours.param.flags = 0;
        ours.param.cb.recv_am = Some(callback::fetched);
        set_memory_handle(&mut ours.param, memh);
        let (desc, param) = (rndv.into_desc(), &raw const ours.param);
        core.announced.set(core.announced.get() - 1);
        // SAFETY: an unused descriptor of this worker; exactly the announced length, which UCX asserts, of a buffer that the
        // operation keeps; moving it there did not move its bytes. Nothing is borrowed.
        let request =
            unsafe { core.ucx.ucp_am_recv_data_nbx(core.handle, desc.0.as_ptr().cast(), data.cast(), len, param) };
        if sys::UCS_PTR_IS_ERR(request) {
            // SAFETY: not started, so UCX does not know the operation. The descriptor is lost: UCX has marked it as used.
            let Hold::Target(buf) = (unsafe { self.recycle(op) }) else { unreachable!("it was just put there") };
            return Err((self.refused("fetching", request), buf));
        }
        core.fetches.set(core.fetches.get() + 1);
        if request.is_null() {
            core.push(Item::Ended { op, status: ucs_status_t::UCS_OK });
        }
        Ok(())
    }

    /// Does not fetch an announced payload. The sender's operation completes as if it had been.
    pub(crate) fn refuse(&mut self, rndv: Rendezvous) {
        drop(rndv);
        self.take_back();
    }

    /// The event of an operation that UCX has called back for.
    pub(super) fn finish(&mut self, op: NonNull<Op>, status: ucs_status_t) -> Event {
        let core = self.core();
        // SAFETY: UCX has called back for it, and each operation is in the queue at most once.
        let token = unsafe { (*op.as_ptr()).token };
        // SAFETY: as above.
        match unsafe { self.recycle(op) } {
            Hold::Target(buf) => {
                core.fetches.set(core.fetches.get() - 1);
                Event::FetchDone { token, buf, result: status::check(core.ucx, "fetching", status) }
            }
            Hold::Payload(_) | Hold::Nothing => {
                core.sends.set(core.sends.get() - 1);
                Event::SendDone { token, result: status::check(core.ucx, "sending", status) }
            }
        }
    }
}

#[inline]
fn set_memory_handle(param: &mut sys::ucp_request_param_t, memh: sys::ucp_mem_h) {
    param.memh = memh;
    if memh.is_null() {
        param.op_attr_mask &= !sys::UCP_OP_ATTR_FIELD_MEMH;
    } else {
        param.op_attr_mask |= sys::UCP_OP_ATTR_FIELD_MEMH;
    }
}

fn memory_handle(registration: Option<&(dyn std::any::Any + Send + Sync)>) -> sys::ucp_mem_h {
    registration.and_then(|any| any.downcast_ref::<Registration>()).map_or(ptr::null_mut(), |known| known.memh)
}

#[cold]
fn header_too_long() -> Error {
    Error::new(ErrorKind::Limit, format!("an am header has at most {MAX_AM_HEADER} bytes"))
}
