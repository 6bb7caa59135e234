//! Operations in flight: what UCX may touch, at an address that does not move.

use std::ptr::{self, NonNull};

use bytes::Bytes;
use ucx_sys as sys;

use super::{callback, worker::Core};
use crate::{frame::RecvBuf, memory::PoolBuf};

/// Free operations kept for reuse.
const KEPT_OPS: usize = 256;
/// Largest buffer that a free operation keeps, bytes: with [`KEPT_OPS`] at most 4 MiB per worker.
const KEPT_BUFFER: usize = 16 << 10;

/// Whether an operation is over already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Sent {
    /// It is done: no event will come.
    Done,
    /// [`super::Event::SendDone`] will come, exactly once.
    Pending,
}

/// How a payload travels. UCX's own choice is never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// With the header. Above UCX's fragment size the receiving UCX allocates the whole length on the peer's word.
    Eager,
    /// Fetched by the receiver after an announcement.
    Rendezvous,
}

/// A contiguous payload that the operation owns.
#[derive(Debug)]
pub(crate) enum Payload {
    /// Shared memory of the application.
    Bytes(Bytes),
    /// A pool buffer, registered where a device needs that.
    Pool(PoolBuf),
}

impl Payload {
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Pool(buf) => buf,
        }
    }
}

/// What an operation keeps alive besides its header.
pub(super) enum Hold {
    Nothing,
    Payload(#[expect(dead_code, reason = "it is there to live as long as the operation")] Payload),
    Target(RecvBuf),
}

/// One operation.
pub(super) struct Op {
    pub(super) core: NonNull<Core>,
    pub(super) token: u64,
    pub(super) hold: Hold,
    /// The header, and behind it a copied payload.
    pub(super) buffer: Vec<u8>,
    pub(super) param: sys::ucp_request_param_t,
    /// Its place in [`Ops::all`].
    place: usize,
    in_use: bool,
}

/// All operations, and those that are free.
#[derive(Default)]
pub(super) struct Ops {
    free: Vec<NonNull<Op>>,
    all: Vec<NonNull<Op>>,
}

impl Ops {
    /// A free operation; only its `core` and the constant part of `param` are set.
    #[inline]
    pub(super) fn take(&mut self, core: NonNull<Core>) -> NonNull<Op> {
        let op = self.free.pop().unwrap_or_else(|| self.make(core));
        // SAFETY: a free operation is known to nobody else.
        unsafe { (*op.as_ptr()).in_use = true };
        op
    }

    #[cold]
    fn make(&mut self, core: NonNull<Core>) -> NonNull<Op> {
        // SAFETY: all fields are integers, pointers and unions of pointers to functions in an `Option`: zero is valid.
        let param: sys::ucp_request_param_t = unsafe { std::mem::zeroed() };
        let (hold, place) = (Hold::Nothing, self.all.len());
        let op = Box::new(Op { core, token: 0, hold, buffer: Vec::new(), param, place, in_use: false });
        let op = NonNull::from(Box::leak(op));
        self.all.push(op);
        let param = sys::ucp_request_param_t {
            op_attr_mask: sys::UCP_OP_ATTR_FIELD_CALLBACK
                | sys::UCP_OP_ATTR_FIELD_USER_DATA
                | sys::UCP_OP_ATTR_FIELD_FLAGS
                // All our memory is host memory: spares UCX the look-up.
                | sys::UCP_OP_ATTR_FIELD_MEMORY_TYPE,
            cb: sys::ucp_request_param_t__bindgen_ty_1 { send: Some(callback::sent) },
            user_data: op.as_ptr().cast(),
            memory_type: sys::UCS_MEMORY_TYPE_HOST,
            memh: ptr::null_mut(),
            ..param
        };
        // SAFETY: just made, and nobody else knows it.
        unsafe { (*op.as_ptr()).param = param };
        op
    }

    /// Takes an operation back that UCX does not know any more.
    ///
    /// # Safety
    /// `op` comes from `take`, was not put back since, and UCX holds no pointer to it or its memory.
    #[inline]
    pub(super) unsafe fn put(&mut self, op: NonNull<Op>) {
        // SAFETY: by the contract, this is the only access.
        let free = unsafe { &mut *op.as_ptr() };
        debug_assert!(matches!(free.hold, Hold::Nothing), "user values must not be dropped under a borrow");
        if free.buffer.capacity() > KEPT_BUFFER {
            free.buffer = Vec::new();
        }
        free.in_use = false;
        if self.free.len() < KEPT_OPS {
            self.free.push(op);
        } else {
            let place = free.place;
            self.all.swap_remove(place);
            if let Some(moved) = self.all.get(place) {
                // SAFETY: operations in the list live, and this one is another than `op`, which left it.
                unsafe { (*moved.as_ptr()).place = place };
            }
            // SAFETY: it was leaked from a box in `make`, and nobody knows it any more.
            drop(unsafe { Box::from_raw(op.as_ptr()) });
        }
    }
}

impl Ops {
    /// The operations that were taken and not put back.
    pub(super) fn in_use(&self) -> Vec<NonNull<Op>> {
        // SAFETY: operations in the list live, and nobody changes them meanwhile.
        self.all.iter().copied().filter(|op| unsafe { (*op.as_ptr()).in_use }).collect()
    }
}

impl Drop for Ops {
    fn drop(&mut self) {
        for op in self.free.drain(..) {
            // SAFETY: as in `put`.
            drop(unsafe { Box::from_raw(op.as_ptr()) });
        }
    }
}
