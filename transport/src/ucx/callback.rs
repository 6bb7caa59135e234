//! The functions that UCX calls. They only push to the worker's event queue.
//!
//! None of them can unwind: a panic in an `extern "C"` function aborts with its message. None calls UCX but for
//! `ucp_request_free`, which is made for it.

use std::{ffi::c_void, ptr::NonNull, slice};

use bytes::Bytes;
use ucx_sys::{self as sys, ucp_ep_h, ucs_status_t};

use super::{
    MAX_AM_HEADER,
    endpoint::Slot,
    event::SmallHeader,
    op::Op,
    returns::{Lent, Rendezvous},
    worker::{Core, Item},
};

/// Eager payloads up to this length are copied out, bytes. UCX lends whole 8 KiB descriptors and lending costs two
/// allocations and a return; the copy of 2 KiB costs about 30 ns.
const COPY_MAX: usize = 2048;

/// With this many descriptors lent out, further payloads are copied whatever their length: an application that keeps
/// messages for long must not pin UCX's receive memory (2 MiB at 8 KiB each).
const LENT_MAX: usize = 256;

/// A message or an announcement arrived.
///
/// # Safety
/// Called by UCX as the handler registered in `Worker::new`: `arg` is the worker's `Core`.
pub(super) unsafe extern "C" fn on_message(
    arg: *mut c_void,
    header: *const c_void,
    header_length: usize,
    data: *mut c_void,
    length: usize,
    param: *const sys::ucp_am_recv_param_t,
) -> ucs_status_t {
    // SAFETY: the core outlives its UCX worker; UCX passes valid parameters.
    let (core, param) = unsafe { (&*arg.cast::<Core>(), &*param) };
    let announced = param.recv_attr & u64::from(sys::UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
    if header_length > MAX_AM_HEADER {
        core.dropped.set(core.dropped.get() + 1);
        // An error is allowed for announcements only; the sender gets it.
        return if announced { ucs_status_t::UCS_ERR_EXCEEDS_LIMIT } else { ucs_status_t::UCS_OK };
    }
    // SAFETY: valid inside this call, by UCX's contract.
    let header = SmallHeader::copy_of(unsafe { bytes(header, header_length) });
    let from = (param.recv_attr & u64::from(sys::UCP_AM_RECV_ATTR_FIELD_REPLY_EP) != 0)
        .then(|| core.endpoints.borrow().find(param.reply_ep))
        .flatten();
    if announced && let Some(desc) = NonNull::new(data.cast::<u8>()) {
        core.announced.set(core.announced.get() + 1);
        // SAFETY: an announcement's descriptor, and we answer INPROGRESS.
        let rndv = unsafe { Rendezvous::new(desc, length, core.returns.clone()) };
        core.push(Item::Announced { header, rndv, from });
        return ucs_status_t::UCS_INPROGRESS;
    }
    let lendable = param.recv_attr & u64::from(sys::UCP_AM_RECV_ATTR_FLAG_DATA) != 0;
    if lendable
        && length > COPY_MAX
        && core.lent.get() < LENT_MAX
        && let Some(data) = NonNull::new(data.cast::<u8>())
    {
        core.lent.set(core.lent.get() + 1);
        // SAFETY: FLAG_DATA is set and we answer INPROGRESS.
        let lent = unsafe { Lent::new(data, length, core.returns.clone()) };
        core.push(Item::Message { header, data: Bytes::from_owner(lent), from });
        return ucs_status_t::UCS_INPROGRESS;
    }
    // The pointer has no alignment: it is only copied from.
    // SAFETY: valid inside this call, by UCX's contract.
    let data = crate::small::copy(unsafe { bytes(data, length) });
    core.push(Item::Message { header, data, from });
    ucs_status_t::UCS_OK
}

/// # Safety
/// `length` bytes at `data` are readable, or `length` is zero, for as long as the caller uses the slice.
unsafe fn bytes<'a>(data: *const c_void, length: usize) -> &'a [u8] {
    if length == 0 || data.is_null() {
        return &[];
    }
    // SAFETY: by the contract.
    unsafe { slice::from_raw_parts(data.cast(), length) }
}

/// A pending send ended.
///
/// # Safety
/// Called by UCX for a request whose `user_data` is the `Op` it belongs to.
pub(super) unsafe extern "C" fn sent(request: *mut c_void, status: ucs_status_t, user_data: *mut c_void) {
    // SAFETY: as above.
    unsafe { ended(request, status, user_data) }
}

/// A pending fetch ended.
///
/// # Safety
/// As [`sent`].
pub(super) unsafe extern "C" fn fetched(
    request: *mut c_void,
    status: ucs_status_t,
    _length: usize,
    user_data: *mut c_void,
) {
    // SAFETY: as above.
    unsafe { ended(request, status, user_data) }
}

/// # Safety
/// As [`sent`].
unsafe fn ended(request: *mut c_void, status: ucs_status_t, op: *mut c_void) {
    let Some(op) = NonNull::new(op.cast::<Op>()) else { return };
    // SAFETY: the operation stays ours and in place until its end was taken from the queue, and the core outlives it.
    let core = unsafe { (*op.as_ptr()).core.as_ref() };
    core.push(Item::Ended { op, status });
    // SAFETY: a request of ours, freed exactly here; UCX puts it back after this callback.
    unsafe { core.ucx.ucp_request_free(request) };
}

/// An endpoint broke.
///
/// # Safety
/// Called by UCX with the `Slot` that the endpoint was created with.
pub(super) unsafe extern "C" fn on_failure(arg: *mut c_void, ep: ucp_ep_h, status: ucs_status_t) {
    // SAFETY: slots are freed with the core, after the worker.
    let slot = unsafe { &*arg.cast::<Slot>() };
    // UCX does not call for closed endpoints. If it did, the slot might have a new one by now.
    if !slot.is_of(ep) {
        return;
    }
    slot.failed.set(true);
    if slot.is_closing() {
        return;
    }
    // SAFETY: the core outlives its slots.
    let core = unsafe { slot.core.as_ref() };
    core.push(Item::Failed { ep: slot.id(), status });
}

/// A flush of an endpoint has ended, or the message that introduces it: connecting is over when all have.
///
/// # Safety
/// Called by UCX for a request whose `user_data` is a `Slot`.
pub(super) unsafe extern "C" fn settled(request: *mut c_void, _status: ucs_status_t, user_data: *mut c_void) {
    // SAFETY: slots are freed with the core, after the worker.
    let slot = unsafe { &*user_data.cast::<Slot>() };
    slot.settling.set(slot.settling.get() - 1);
    // SAFETY: the core outlives its slots; a request of ours, freed exactly here.
    unsafe { slot.core.as_ref().ucx.ucp_request_free(request) };
}
