//! The linked list under both queues: many producers, one consumer, one small node a value.
//!
//! The list always holds one node more than it has values. `tail`, owned by the consumer, is that
//! empty node; the values sit in the nodes after it, oldest first; `head` is the newest node.
//!
//! ```text
//!   tail            (oldest)                    (newest)
//!  [ empty ] -next-> [ value ] -next-> ... ---> [ value ] -next-> null
//!                                                  head
//! ```
//!
//! A producer moves `head` from the newest node to its own node (this orders the values) and then
//! writes the link from the former newest node. Between the two steps the list is cut in two: the
//! consumer sees its end at the missing link. The consumer moves the value out of the node after
//! `tail` and makes that node the new `tail`; the former one is free.
//!
//! **Sealing.** When the consumer goes away, it swaps null into `head`. No node can be added after
//! that, and the swap tells the consumer which node is the last, so it can take out every value
//! that was ever accepted. A null `head` stays null.
//!
//! **No spare nodes.** Handing free nodes back to the producers costs an atomic exchange a push,
//! which measured slower than the allocator (`examples/queue_cost.rs`), and keeps memory at idle.
//!
//! All `unsafe` of this room is in this file. Its invariants, named in the `SAFETY` comments:
//!
//! - **own node**: a node that is not in the list belongs to the thread that holds it.
//! - **one consumer**: `tail` and everything behind it is touched by the only [`Consumer`], which
//!   takes `&mut self` wherever it moves.
//! - **link last**: a producer's last access to the former newest node is the `Release` store of
//!   its `next`. So whoever read that `next` with `Acquire` sees the new node's value, and is
//!   the former node's only user from then on.

use super::primitive::{Arc, AtomicPtr, Ordering, UnsafeCell, relax};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;

struct Node<T> {
    /// Null until the next producer links its node. Written once by that producer (`Release`), read
    /// by the consumer (`Acquire`).
    next: AtomicPtr<Self>,
    /// Initialised in every node after `tail`; free to overwrite in `tail`.
    slot: UnsafeCell<MaybeUninit<T>>,
}

impl<T> Node<T> {
    fn alloc() -> *mut Self {
        Box::into_raw(Box::new(Self {
            next: AtomicPtr::new(ptr::null_mut()),
            slot: UnsafeCell::new(MaybeUninit::uninit()),
        }))
    }

    /// Frees the node, not a value that may be in it.
    ///
    /// # Safety
    ///
    /// **own node**: `node` came from [`Node::alloc`] and nobody else can reach it.
    unsafe fn free(node: *mut Self) {
        // SAFETY: the caller owns the node, and `alloc` made it from a box.
        drop(unsafe { Box::from_raw(node) });
    }
}

/// What producers and consumer share. `extra` is state of the queue built on top.
struct List<T, X> {
    /// The newest node, or null once sealed.
    head: AtomicPtr<Node<T>>,
    extra: X,
}

// SAFETY: the list moves values of `T` from thread to thread and never lends one out, so `T: Send`
// is enough; the accesses to the nodes are ordered by the invariants at the top of this file.
unsafe impl<T: Send, X: Send> Send for List<T, X> {}
// SAFETY: as above; `extra` is lent out through `&`, hence `X: Sync`.
unsafe impl<T: Send, X: Sync> Sync for List<T, X> {}

/// One of the ends that add values.
pub(super) struct Producer<T, X> {
    list: Arc<List<T, X>>,
}

/// The end that takes values out.
pub(super) struct Consumer<T, X> {
    list: Arc<List<T, X>>,
    tail: *mut Node<T>,
    /// The last node the list will ever have, or null while it is not sealed.
    last: *mut Node<T>,
}

// SAFETY: the consumer is the only user of the nodes behind `tail` whichever thread it is on (one
// consumer), and it takes out values of `T: Send`.
unsafe impl<T: Send, X: Send + Sync> Send for Consumer<T, X> {}

pub(super) fn list<T, X>(extra: X) -> (Producer<T, X>, Consumer<T, X>) {
    let tail = Node::alloc();
    let list = Arc::new(List { head: AtomicPtr::new(tail), extra });
    let producer = Producer { list: Arc::clone(&list) };
    (producer, Consumer { list, tail, last: ptr::null_mut() })
}

impl<T, X> Clone for Producer<T, X> {
    fn clone(&self) -> Self {
        Self { list: Arc::clone(&self.list) }
    }
}

impl<T, X> Producer<T, X> {
    #[inline]
    pub(super) fn extra(&self) -> &X {
        &self.list.extra
    }

    /// Adds a value at the newest end, or gives it back if the consumer is gone.
    #[inline]
    pub(super) fn push(&self, value: T) -> Result<(), T> {
        let node = Node::alloc();
        // SAFETY: own node: it is new.
        unsafe { (*node).slot.with_mut(|slot| (*slot).write(value)) };
        let mut head = self.list.head.load(Ordering::Relaxed);
        let newest = loop {
            if head.is_null() {
                // SAFETY: own node: it was never added; its slot was initialised above.
                return Err(unsafe { take_back(node) });
            }
            // `AcqRel`: the next producer must see our `next` as null before it links to us, and we
            // must see the same of the node we link from. That may be another node than the one
            // loaded, freed and allocated again at the same address: so nothing is dereferenced
            // before the exchange, and only what the exchange returned after it.
            match self.list.head.compare_exchange_weak(head, node, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(newest) => break newest,
                Err(now) => head = now,
            }
        };
        // SAFETY: the consumer frees a node only after it has read a link out of it, and the link
        // out of `newest` is ours alone to write (link last). Synchronizes with `Consumer::next`.
        unsafe { (*newest).next.store(node, Ordering::Release) };
        Ok(())
    }
}

/// Moves the value out of a node that was never added, and frees the node.
///
/// # Safety
///
/// **own node**, with an initialised slot.
#[cold]
#[inline(never)]
unsafe fn take_back<T>(node: *mut Node<T>) -> T {
    // SAFETY: by contract.
    unsafe {
        let value = (*node).slot.with(|slot| (*slot).assume_init_read());
        Node::free(node);
        value
    }
}

impl<T, X> Consumer<T, X> {
    #[inline]
    pub(super) fn extra(&self) -> &X {
        &self.list.extra
    }

    /// Takes the oldest value whose link is there.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<T> {
        let next = self.next();
        if next.is_null() {
            return None;
        }
        let free = std::mem::replace(&mut self.tail, next);
        // SAFETY: link last: we read the link to `next` with `Acquire`, so its slot is initialised
        // and visible; it is read once, because `next` is the empty node from now on. The former
        // `tail` has no other user left (its link was written), and its slot is free.
        unsafe {
            let value = (*next).slot.with(|slot| (*slot).assume_init_read());
            Node::free(free);
            Some(value)
        }
    }

    /// Whether [`pop`](Self::pop) would return `None`.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.next().is_null()
    }

    #[inline]
    fn next(&self) -> *mut Node<T> {
        // SAFETY: one consumer: `tail` is freed by nobody else. Synchronizes with `Producer::push`.
        unsafe { (*self.tail).next.load(Ordering::Acquire) }
    }

    /// Refuses every later push, and hands out all values that were accepted before. Waits for
    /// producers that are between their two steps: one instruction, unless they are preempted there.
    pub(super) fn seal(&mut self, mut each: impl FnMut(&X, T)) {
        if self.last.is_null() {
            // `Acquire` for what the last producer wrote; `Release` has no partner to name.
            self.last = self.list.head.swap(ptr::null_mut(), Ordering::Acquire);
        }
        let mut attempt = 0;
        while self.tail != self.last {
            match self.pop() {
                Some(value) => each(&self.list.extra, value),
                None => relax(&mut attempt),
            }
        }
    }

    /// Calls `each` with every value in the list, oldest first. For checks while nobody pushes.
    #[cfg(test)]
    pub(super) fn inspect(&self, mut each: impl FnMut(&T)) {
        let mut node = self.next();
        while !node.is_null() {
            // SAFETY: one consumer, link last: everything after `tail` stays until we take it.
            unsafe {
                (*node).slot.with(|slot| each((*slot).assume_init_ref()));
                node = (*node).next.load(Ordering::Acquire);
            }
        }
    }
}

impl<T, X> Drop for Consumer<T, X> {
    fn drop(&mut self) {
        self.seal(|_, value| drop(value));
        // SAFETY: own node: the list is sealed and `tail` is its last node, so no producer can add
        // to it, and none has a link to write.
        unsafe { Node::free(self.tail) };
    }
}

impl<T, X: fmt::Debug> fmt::Debug for Producer<T, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.extra().fmt(f)
    }
}

impl<T, X: fmt::Debug> fmt::Debug for Consumer<T, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.extra().fmt(f)
    }
}

/// The heap memory of an idle list in bytes, without the allocator's own overhead: the shared part
/// with its two reference counts, and the empty node.
#[cfg(all(test, not(loom)))]
pub(super) const fn idle_heap<T, X>() -> usize {
    2 * size_of::<usize>() + size_of::<List<T, X>>() + size_of::<Node<T>>()
}
