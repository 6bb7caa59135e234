//! The atomics, cells and threads this room is built from: the only file that knows that loom exists.
//!
//! Under `cfg(loom)` they are loom's, so that a model explores every interleaving and every
//! outcome the memory model allows. Otherwise they are the standard library's, and [`model`] runs
//! its scenario many times over, so that every loom scenario is a stress test as well.

#[cfg(loom)]
mod imp {
    #[cfg(test)]
    pub(crate) use loom::sync::{Condvar, Mutex};
    #[cfg(test)]
    pub(crate) use loom::thread;

    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::sync::Arc;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering, fence};

    pub(crate) fn relax(_attempt: &mut u32) {
        loom::thread::yield_now();
    }

    /// Explores the scenario with at most `preemptions` forced switches per execution, or as many
    /// as `LOOM_MAX_PREEMPTIONS` says.
    #[cfg(test)]
    pub(crate) fn model(preemptions: usize, scenario: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound.get_or_insert(preemptions);
        builder.check(scenario);
    }
}

#[cfg(not(loom))]
mod imp {
    #[cfg(test)]
    pub(crate) use std::sync::{Condvar, Mutex};
    #[cfg(test)]
    pub(crate) use std::thread;

    pub(crate) use std::sync::Arc;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering, fence};

    /// The standard cell behind loom's closure interface, which lets loom see each access begin
    /// and end.
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        #[inline(always)]
        pub(crate) const fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        #[inline(always)]
        pub(crate) fn with<R>(&self, access: impl FnOnce(*const T) -> R) -> R {
            access(self.0.get())
        }

        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
            access(self.0.get())
        }
    }

    /// Waits a moment for another thread's next instruction: spins first, then gives the core away,
    /// because that thread may be preempted.
    pub(crate) fn relax(attempt: &mut u32) {
        if *attempt < 64 {
            *attempt += 1;
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }

    /// Runs the scenario over and over with real threads.
    #[cfg(test)]
    pub(crate) fn model(_preemptions: usize, scenario: impl Fn() + Sync + Send + 'static) {
        for _ in 0..if cfg!(miri) { 8 } else { 500 } {
            scenario();
        }
    }
}

pub(crate) use imp::*;
