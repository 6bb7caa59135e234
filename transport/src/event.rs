//! Readiness: the poller, timers, and the pipe that makes a connection an fd.

pub(crate) mod pipe;
pub(crate) mod poller;
pub(crate) mod timer;
