//! How many calls run at once, and what a server counts.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::service::MethodId;
use crate::{Code, Status};

/// Calls of one method.
#[derive(Debug)]
pub(super) struct MethodLimit {
    max: usize,
    running: AtomicUsize,
}

/// Lets calls in, up to a number of all and of each method.
#[derive(Debug, Default)]
pub(super) struct Admission {
    pub(super) max: Option<usize>,
    running: AtomicUsize,
    methods: HashMap<(&'static str, MethodId), Arc<MethodLimit>>,
}

impl Admission {
    pub(super) fn limit_method(&mut self, service: &'static str, method: MethodId, max: usize) {
        self.methods.insert((service, method), Arc::new(MethodLimit { max, running: AtomicUsize::new(0) }));
    }

    /// Lets a call in, or says at once that there are too many. Each success needs a [`Self::leave`].
    #[inline]
    pub(super) fn enter(&self, service: &'static str, method: MethodId) -> Result<Option<&Arc<MethodLimit>>, Status> {
        let running = self.running.fetch_add(1, Ordering::Relaxed);
        if self.max.is_some_and(|max| running >= max) {
            self.running.fetch_sub(1, Ordering::Relaxed);
            return Err(Status::new(Code::ELIMIT, "the server is at its limit of calls"));
        }
        if self.methods.is_empty() {
            return Ok(None);
        }
        let Some(limit) = self.methods.get(&(service, method)) else { return Ok(None) };
        if limit.running.fetch_add(1, Ordering::Relaxed) >= limit.max {
            self.leave(Some(limit));
            return Err(Status::new(Code::ELIMIT, "the method is at its limit of calls"));
        }
        Ok(Some(limit))
    }

    #[inline]
    pub(super) fn leave(&self, method: Option<&Arc<MethodLimit>>) {
        self.running.fetch_sub(1, Ordering::Relaxed);
        if let Some(method) = method {
            method.running.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }
}
