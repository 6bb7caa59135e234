//! `ucs_status_t` in words.

use crate::Ucx;
use crate::bindings::ucs_status_t;
use core::ffi::CStr;
use core::fmt;

/// Every status of UCX 1.13: the code, its C name, our words. Markers of ranges come last and have no words.
const TABLE: &[(ucs_status_t, &str, &str)] = &[
    (ucs_status_t::UCS_OK, "UCS_OK", "success"),
    (ucs_status_t::UCS_INPROGRESS, "UCS_INPROGRESS", "in progress"),
    (ucs_status_t::UCS_ERR_NO_MESSAGE, "UCS_ERR_NO_MESSAGE", "no message"),
    (ucs_status_t::UCS_ERR_NO_RESOURCE, "UCS_ERR_NO_RESOURCE", "no resource for the operation now"),
    (ucs_status_t::UCS_ERR_IO_ERROR, "UCS_ERR_IO_ERROR", "i/o error"),
    (ucs_status_t::UCS_ERR_NO_MEMORY, "UCS_ERR_NO_MEMORY", "out of memory"),
    (ucs_status_t::UCS_ERR_INVALID_PARAM, "UCS_ERR_INVALID_PARAM", "invalid parameter"),
    (ucs_status_t::UCS_ERR_UNREACHABLE, "UCS_ERR_UNREACHABLE", "no transport reaches the peer"),
    (ucs_status_t::UCS_ERR_INVALID_ADDR, "UCS_ERR_INVALID_ADDR", "invalid address"),
    (ucs_status_t::UCS_ERR_NOT_IMPLEMENTED, "UCS_ERR_NOT_IMPLEMENTED", "not implemented"),
    (ucs_status_t::UCS_ERR_MESSAGE_TRUNCATED, "UCS_ERR_MESSAGE_TRUNCATED", "message longer than the buffer"),
    (ucs_status_t::UCS_ERR_NO_PROGRESS, "UCS_ERR_NO_PROGRESS", "no progress"),
    (ucs_status_t::UCS_ERR_BUFFER_TOO_SMALL, "UCS_ERR_BUFFER_TOO_SMALL", "buffer too small"),
    (ucs_status_t::UCS_ERR_NO_ELEM, "UCS_ERR_NO_ELEM", "no such element"),
    (ucs_status_t::UCS_ERR_SOME_CONNECTS_FAILED, "UCS_ERR_SOME_CONNECTS_FAILED", "some connections failed"),
    (ucs_status_t::UCS_ERR_NO_DEVICE, "UCS_ERR_NO_DEVICE", "no such device"),
    (ucs_status_t::UCS_ERR_BUSY, "UCS_ERR_BUSY", "busy"),
    (ucs_status_t::UCS_ERR_CANCELED, "UCS_ERR_CANCELED", "canceled"),
    (ucs_status_t::UCS_ERR_SHMEM_SEGMENT, "UCS_ERR_SHMEM_SEGMENT", "shared memory segment failed"),
    (ucs_status_t::UCS_ERR_ALREADY_EXISTS, "UCS_ERR_ALREADY_EXISTS", "already exists"),
    (ucs_status_t::UCS_ERR_OUT_OF_RANGE, "UCS_ERR_OUT_OF_RANGE", "out of range"),
    (ucs_status_t::UCS_ERR_TIMED_OUT, "UCS_ERR_TIMED_OUT", "timed out"),
    (ucs_status_t::UCS_ERR_EXCEEDS_LIMIT, "UCS_ERR_EXCEEDS_LIMIT", "a limit was exceeded"),
    (ucs_status_t::UCS_ERR_UNSUPPORTED, "UCS_ERR_UNSUPPORTED", "not supported"),
    (ucs_status_t::UCS_ERR_REJECTED, "UCS_ERR_REJECTED", "rejected by the peer"),
    (ucs_status_t::UCS_ERR_NOT_CONNECTED, "UCS_ERR_NOT_CONNECTED", "not connected"),
    (ucs_status_t::UCS_ERR_CONNECTION_RESET, "UCS_ERR_CONNECTION_RESET", "connection reset by the peer"),
    (ucs_status_t::UCS_ERR_ENDPOINT_TIMEOUT, "UCS_ERR_ENDPOINT_TIMEOUT", "the peer did not answer in time"),
    (ucs_status_t::UCS_ERR_FIRST_LINK_FAILURE, "UCS_ERR_FIRST_LINK_FAILURE", ""),
    (ucs_status_t::UCS_ERR_LAST_LINK_FAILURE, "UCS_ERR_LAST_LINK_FAILURE", ""),
    (ucs_status_t::UCS_ERR_FIRST_ENDPOINT_FAILURE, "UCS_ERR_FIRST_ENDPOINT_FAILURE", ""),
    (ucs_status_t::UCS_ERR_LAST_ENDPOINT_FAILURE, "UCS_ERR_LAST_ENDPOINT_FAILURE", ""),
    (ucs_status_t::UCS_ERR_LAST, "UCS_ERR_LAST", ""),
];

impl ucs_status_t {
    fn entry(self) -> Option<&'static (Self, &'static str, &'static str)> {
        TABLE.iter().find(|(status, ..)| *status == self)
    }

    /// The C name, or `None` for a code that UCX 1.13 does not have.
    pub fn name(self) -> Option<&'static str> {
        self.entry().map(|(_, name, _)| *name)
    }

    /// Whether this is an error; `UCS_OK` and `UCS_INPROGRESS` are not.
    pub const fn is_err(self) -> bool {
        self.0 < 0
    }
}

/// Our words with the C name or the code: `connection reset by the peer (UCS_ERR_CONNECTION_RESET)`, `ucx status -77`.
impl fmt::Display for ucs_status_t {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry() {
            Some((_, name, words)) if !words.is_empty() => write!(f, "{words} ({name})"),
            _ => write!(f, "ucx status {}", self.0),
        }
    }
}

/// The C name with the code: `UCS_ERR_BUSY(-15)`, `ucs_status_t(-77)`.
impl fmt::Debug for ucs_status_t {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name().unwrap_or("ucs_status_t"), self.0)
    }
}

impl Ucx {
    /// UCX's own words for a status, or `None` for a code that UCX 1.13 does not have.
    ///
    /// For an unknown code the C function would format into a buffer that all threads share, so it is not called.
    pub fn status_string(&self, status: ucs_status_t) -> Option<&'static str> {
        status.entry().filter(|(_, _, words)| !words.is_empty())?;
        // SAFETY: takes any status; for those with words in our table it returns a constant of a library that is never unloaded.
        unsafe { CStr::from_ptr(self.ucs_status_string(status)) }.to_str().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::TABLE;
    use crate::bindings::ucs_status_t;

    /// The committed bindings name every status of the C header; each must be in the table, once, under its own name.
    #[test]
    fn the_table_is_complete() {
        let mut seen = 0;
        for line in include_str!("bindings.rs").lines() {
            let Some(rest) = line.strip_prefix("    pub const UCS_") else {
                continue;
            };
            let Some((name, value)) = rest.split_once(": ucs_status_t = ucs_status_t(") else {
                continue;
            };
            let code: i8 = value.trim_end_matches(");").parse().expect("bindgen writes a number");
            let matches: Vec<_> = TABLE.iter().filter(|(status, ..)| status.0 == code).collect();
            assert_eq!(matches.len(), 1, "{name}");
            assert_eq!(matches[0].1, format!("UCS_{name}"));
            seen += 1;
        }
        assert_eq!(seen, TABLE.len());
    }

    #[test]
    fn in_words() {
        assert_eq!(ucs_status_t::UCS_ERR_REJECTED.to_string(), "rejected by the peer (UCS_ERR_REJECTED)");
        assert_eq!(format!("{:?}", ucs_status_t::UCS_ERR_BUSY), "UCS_ERR_BUSY(-15)");
        assert_eq!(ucs_status_t(-77).to_string(), "ucx status -77");
        assert_eq!(format!("{:?}", ucs_status_t(-77)), "ucs_status_t(-77)");
        assert_eq!(ucs_status_t::UCS_ERR_LAST.to_string(), "ucx status -100");
        assert!(!ucs_status_t::UCS_INPROGRESS.is_err() && ucs_status_t::UCS_ERR_NO_MESSAGE.is_err());
    }
}
