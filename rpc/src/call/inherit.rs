//! What a call made by a handler takes over from the call that the handler serves.

use std::cell::Cell;

use super::Deadline;
use crate::wire::RequestMeta;

/// A call's place in a trace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub trace_id: i64,
    /// The call's own span.
    pub span_id: i64,
    /// The span that made the call.
    pub parent_span_id: i64,
}

impl Trace {
    /// The trace in a request, if it names one.
    pub fn from_wire(request: &RequestMeta<'_>) -> Option<Self> {
        request.trace_id.map(|trace_id| Self {
            trace_id,
            span_id: request.span_id.unwrap_or(0),
            parent_span_id: request.parent_span_id.unwrap_or(0),
        })
    }
}

/// Deadline, log id and trace that nested calls take over: a nested call never lives longer than the call it serves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inherited {
    /// The latest deadline a nested call may have.
    pub deadline: Deadline,
    /// The log id, unless the nested call has its own.
    pub log_id: Option<i64>,
    /// The trace; the nested call's parent span is `trace.span_id`.
    pub trace: Option<Trace>,
}

thread_local! {
    static CURRENT: Cell<Inherited> = const { Cell::new(Inherited::NONE) };
}

impl Inherited {
    /// Nothing to take over.
    pub const NONE: Self = Self { deadline: Deadline::NEVER, log_id: None, trace: None };

    /// What the code running on this thread takes over: set while a server polls a handler.
    pub fn current() -> Self {
        CURRENT.get()
    }

    /// Runs `f` with `self` as [`Self::current`] on this thread, and restores what was there, even on a panic. Servers
    /// put each poll of a handler's future into it.
    pub fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        struct Restore(Inherited);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _restore = Restore(CURRENT.replace(self));
        f()
    }
}
