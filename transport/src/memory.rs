//! The buffer pool: a few size classes, quotas per purpose, optional registration with a device.
//!
//! Every buffer is one allocation of its own with a stable address, so nothing here is `unsafe`. Freed buffers are kept
//! for reuse (a fresh large buffer costs a page fault per 4 KiB, more than receiving into it), up to a limit per class.

use std::{
    any::Any,
    fmt,
    ops::{Deref, DerefMut},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;

/// Alignment of pool buffers of at least this size, bytes: what `O_DIRECT` and DMA engines ask for.
const PAGE: usize = 4096;

/// Owned memory at an aligned address that does not change while the value is moved about.
pub struct AlignedBuf {
    memory: Box<[u8]>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// Zeroed memory of `len` bytes whose address is a multiple of `align`.
    ///
    /// # Panics
    /// If `align` is not a power of two, or the sum of both overflows.
    pub fn new(len: usize, align: usize) -> Self {
        assert!(align.is_power_of_two(), "alignment {align} is not a power of two");
        let spare = if align > 16 { align } else { 16 };
        let memory = vec![0_u8; len.checked_add(spare).expect("length overflows")].into_boxed_slice();
        let start = memory.as_ptr().align_offset(align).min(spare);
        Self { memory, start, len }
    }

    /// Shortens it to `len` bytes; longer lengths change nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Everything allocated behind `start`, for reuse at full length.
    fn set_len(&mut self, len: usize) {
        debug_assert!(self.start + len <= self.memory.len());
        self.len = len;
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

/// Registers memory with a device. Implemented by the UCX room.
pub(crate) trait Registrar: Send + Sync {
    /// Registers `memory`, which stays where it is until the returned value is dropped; `None` if no device needs it.
    fn register(&self, memory: &[u8]) -> Option<Box<dyn Any + Send + Sync>>;
}

/// One size class of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeClass {
    /// Bytes of each buffer.
    pub size: usize,
    /// Free buffers kept for reuse.
    pub keep: usize,
}

/// What a pool buffer is for: each purpose has its own quota, so that neither side can starve the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// Bodies on their way in.
    Receive,
    /// Bodies on their way out, and copies made to send them in one piece.
    Send,
}

/// Configuration of a [`Pool`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// The size classes, any order. Default: 4 KiB x 256, 64 KiB x 64, 1 MiB x 16, 8 MiB x 4 (62 MiB kept at most).
    pub classes: Vec<SizeClass>,
    /// Bytes that may be in use for receiving. Default: 1 GiB.
    pub receive_quota: u64,
    /// Bytes that may be in use for sending. Default: 1 GiB.
    pub send_quota: u64,
}

impl Default for PoolConfig {
    fn default() -> Self {
        let class = |size, keep| SizeClass { size, keep };
        Self {
            classes: vec![class(4 << 10, 256), class(64 << 10, 64), class(1 << 20, 16), class(8 << 20, 4)],
            receive_quota: 1 << 30,
            send_quota: 1 << 30,
        }
    }
}

/// The pool has no quota left for this purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{purpose:?} quota exceeded: {wanted} bytes wanted, {in_use} of {quota} in use")]
pub struct QuotaExceeded {
    /// Which quota.
    pub purpose: Purpose,
    /// Bytes asked for.
    pub wanted: u64,
    /// Bytes in use.
    pub in_use: u64,
    /// The quota.
    pub quota: u64,
}

struct ClassList {
    class: SizeClass,
    free: ArrayQueue<Slab>,
}

/// A buffer's memory with its registration. The registration is declared first: it must go before the memory.
struct Slab {
    registration: OnceLock<Option<Box<dyn Any + Send + Sync>>>,
    memory: AlignedBuf,
}

struct PoolInner {
    classes: Vec<ClassList>,
    quota: [u64; 2],
    in_use: [AtomicU64; 2],
    refused: AtomicU64,
    registrar: OnceLock<Arc<dyn Registrar>>,
}

/// A pool of reusable buffers. Clones share it; any thread may use it.
#[derive(Clone)]
pub struct Pool(Arc<PoolInner>);

/// Counters of a [`Pool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolStats {
    /// Bytes handed out for receiving and not given back.
    pub receive_in_use: u64,
    /// Bytes handed out for sending and not given back.
    pub send_in_use: u64,
    /// Requests refused because a quota was used up.
    pub refused: u64,
}

impl Pool {
    /// A pool with this configuration. Nothing is allocated yet.
    pub fn new(config: &PoolConfig) -> Self {
        let mut classes: Vec<_> = config.classes.iter().filter(|c| c.size > 0).copied().collect();
        classes.sort_by_key(|c| c.size);
        let list = |class: SizeClass| ClassList { class, free: ArrayQueue::new(class.keep.max(1)) };
        Self(Arc::new(PoolInner {
            classes: classes.into_iter().map(list).collect(),
            quota: [config.receive_quota, config.send_quota],
            in_use: [AtomicU64::new(0), AtomicU64::new(0)],
            refused: AtomicU64::new(0),
            registrar: OnceLock::new(),
        }))
    }

    /// A buffer of exactly `len` bytes; its content is arbitrary (zero, or what it last held).
    ///
    /// Lengths above the largest class are allocated and freed each time.
    ///
    /// # Errors
    /// [`QuotaExceeded`]; nothing was allocated.
    pub fn get(&self, len: usize, purpose: Purpose) -> Result<PoolBuf, QuotaExceeded> {
        // A class that is larger than the whole quota would refuse what fits into it.
        let quota = self.0.quota[purpose as usize];
        let class = self.0.classes.iter().position(|c| c.class.size >= len).filter(|i| {
            let size = self.0.classes[*i].class.size as u64;
            size <= quota
        });
        let size = class.map_or(len, |i| self.0.classes[i].class.size);
        self.charge(size as u64, purpose)?;
        let reused = class.and_then(|i| self.0.classes[i].free.pop());
        let mut slab = reused.unwrap_or_else(|| Slab {
            registration: OnceLock::new(),
            memory: AlignedBuf::new(size, if size >= PAGE { PAGE } else { 64 }),
        });
        slab.memory.set_len(len);
        Ok(PoolBuf(Box::new(Loan { slab: Some(slab), class, charged: size as u64, purpose, pool: self.clone() })))
    }

    /// The quota of a purpose, bytes.
    pub(crate) fn quota(&self, purpose: Purpose) -> u64 {
        self.0.quota[purpose as usize]
    }

    /// Counters.
    pub fn stats(&self) -> PoolStats {
        PoolStats {
            receive_in_use: self.0.in_use[0].load(Ordering::Relaxed),
            send_in_use: self.0.in_use[1].load(Ordering::Relaxed),
            refused: self.0.refused.load(Ordering::Relaxed),
        }
    }

    /// Sets who registers this pool's memory; only the first call counts.
    pub(crate) fn set_registrar(&self, registrar: Arc<dyn Registrar>) {
        let _ = self.0.registrar.set(registrar);
    }

    fn charge(&self, bytes: u64, purpose: Purpose) -> Result<(), QuotaExceeded> {
        let (in_use, quota) = (&self.0.in_use[purpose as usize], self.0.quota[purpose as usize]);
        // Relaxed: the counter bounds memory, it orders nothing.
        let before = in_use.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > quota {
            in_use.fetch_sub(bytes, Ordering::Relaxed);
            self.0.refused.fetch_add(1, Ordering::Relaxed);
            return Err(QuotaExceeded { purpose, wanted: bytes, in_use: before, quota });
        }
        Ok(())
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.stats()).finish()
    }
}

/// A buffer of a [`Pool`]; it goes back when it, or the last `Bytes` made of it, is dropped.
pub struct PoolBuf(
    // Boxed, so that frames, which are moved a lot and seldom have one, stay small.
    Box<Loan>,
);

struct Loan {
    slab: Option<Slab>,
    class: Option<usize>,
    charged: u64,
    purpose: Purpose,
    pool: Pool,
}

impl PoolBuf {
    /// Shortens it to `len` bytes; longer lengths change nothing.
    pub fn truncate(&mut self, len: usize) {
        self.slab_mut().memory.truncate(len);
    }

    /// Makes it an immutable, shared `Bytes` without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// The device registration of this memory, made on first use; `None` where no device needs one.
    pub(crate) fn registration(&self) -> Option<&(dyn Any + Send + Sync)> {
        let slab = self.slab();
        let make = || self.0.pool.0.registrar.get().and_then(|r| r.register(&slab.memory.memory));
        slab.registration.get_or_init(make).as_deref()
    }

    fn slab(&self) -> &Slab {
        self.0.slab.as_ref().expect("slab is taken only in drop")
    }

    fn slab_mut(&mut self) -> &mut Slab {
        self.0.slab.as_mut().expect("slab is taken only in drop")
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let slab = self.slab.take();
        if let (Some(class), Some(slab)) = (self.class, slab) {
            // A full list means enough are kept: this one is freed.
            let _ = self.pool.0.classes[class].free.push(slab);
        }
        self.pool.0.in_use[self.purpose as usize].fetch_sub(self.charged, Ordering::Relaxed);
    }
}

impl Deref for PoolBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.slab().memory
    }
}

impl DerefMut for PoolBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.slab_mut().memory
    }
}

impl AsRef<[u8]> for PoolBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for PoolBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolBuf({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Pool {
        let classes = vec![SizeClass { size: 4096, keep: 2 }, SizeClass { size: 65536, keep: 1 }];
        Pool::new(&PoolConfig { classes, receive_quota: 128 << 10, send_quota: 4096 })
    }

    #[test]
    fn buffers_are_reused_and_aligned() {
        let pool = small();
        let first = pool.get(100, Purpose::Receive).unwrap();
        let address = first.as_ptr();
        assert_eq!((address as usize % PAGE, first.len()), (0, 100));
        drop(first);
        let second = pool.get(4096, Purpose::Receive).unwrap();
        assert_eq!((second.as_ptr(), second.len()), (address, 4096));
    }

    #[test]
    fn quotas_are_separate_and_return_to_zero() {
        let pool = small();
        let send = pool.get(1, Purpose::Send).unwrap();
        assert_eq!(pool.get(1, Purpose::Send).unwrap_err().in_use, 4096);
        let receive = pool.get(65_537, Purpose::Receive).unwrap();
        assert!(pool.get(65_536, Purpose::Receive).is_err());
        let shared = receive.freeze();
        let again = shared.slice(5..9);
        drop((send, shared));
        assert_eq!(pool.stats().receive_in_use, 65_537);
        drop(again);
        assert_eq!(pool.stats(), PoolStats { receive_in_use: 0, send_in_use: 0, refused: 2 });
    }

    #[test]
    fn aligned_buffers_keep_their_address_when_moved() {
        for align in [1, 8, 64, 512, 4096, 1 << 16] {
            let buf = AlignedBuf::new(33, align);
            let address = buf.as_ptr() as usize;
            let moved = Box::new(buf);
            assert_eq!((moved.as_ptr() as usize, address % align), (address, 0));
        }
    }
}
