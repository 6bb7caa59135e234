//! `ucs_status_t` in words.
use crate::bindings::ucs_status_t;
use core::fmt;
impl fmt::Debug for ucs_status_t {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ucs_status_t({})", self.0)
    }
}
