//! Dying at the worst moment: while UCX copies a frame into a peer's memory.

use std::ptr::NonNull;

use bytes::Bytes;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use ucrpc::transport::{Frame, Sender};

/// Large enough to be no small frame, which is copied before UCX is called, and small enough not to be fetched.
const LEN: usize = 16 << 10;

/// Memory that nobody can read: the process dies of it, wherever it is.
struct Forbidden(NonNull<u8>);

// SAFETY: nothing but an address.
unsafe impl Send for Forbidden {}

impl AsRef<[u8]> for Forbidden {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: mapped for the life of the process. Reading it ends the process, which is what it is for.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), LEN) }
    }
}

/// Sends a frame that nobody can read.
pub(super) fn perish(sender: &Sender) {
    // SAFETY: a new mapping, wherever there is room.
    let memory = unsafe { mmap_anonymous(std::ptr::null_mut(), LEN, ProtFlags::empty(), MapFlags::PRIVATE) };
    let memory = Forbidden(NonNull::new(memory.expect("memory").cast()).expect("not null"));
    drop(sender.send(Frame::new(Bytes::new(), Bytes::from_owner(memory))));
}
