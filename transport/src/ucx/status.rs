//! `ucs_status_t` as our errors.

use ucx_sys::{Ucx, ucs_status_t as S};

use crate::error::{Error, ErrorKind};

/// What a program can do about `status`.
pub(super) fn kind(status: S) -> ErrorKind {
    match status {
        S::UCS_ERR_UNREACHABLE | S::UCS_ERR_NO_DEVICE | S::UCS_ERR_SOME_CONNECTS_FAILED => ErrorKind::Unreachable,
        S::UCS_ERR_INVALID_PARAM | S::UCS_ERR_INVALID_ADDR | S::UCS_ERR_UNSUPPORTED | S::UCS_ERR_NOT_IMPLEMENTED => {
            ErrorKind::Invalid
        }
        S::UCS_ERR_MESSAGE_TRUNCATED
        | S::UCS_ERR_BUFFER_TOO_SMALL
        | S::UCS_ERR_OUT_OF_RANGE
        | S::UCS_ERR_EXCEEDS_LIMIT => ErrorKind::Limit,
        // UCX 1.13 says "endpoint timeout" also where a tcp lane was reset; the control socket knows better.
        S::UCS_ERR_TIMED_OUT | S::UCS_ERR_ENDPOINT_TIMEOUT => ErrorKind::TimedOut,
        S::UCS_ERR_REJECTED => ErrorKind::Refused,
        S::UCS_ERR_CONNECTION_RESET | S::UCS_ERR_NOT_CONNECTED | S::UCS_ERR_IO_ERROR => ErrorKind::Reset,
        S(code) if (S::UCS_ERR_LAST_ENDPOINT_FAILURE.0..=S::UCS_ERR_FIRST_LINK_FAILURE.0).contains(&code) => {
            ErrorKind::Reset
        }
        S::UCS_ERR_CANCELED => ErrorKind::Closed,
        _ => ErrorKind::System,
    }
}

/// An error for `status`, in UCX's words.
#[cold]
pub(super) fn error(ucx: &Ucx, doing: &str, status: S) -> Error {
    let text = match ucx.status_string(status) {
        Some(words) => format!("{doing}: {words}"),
        None => format!("{doing}: ucx status {}", status.0),
    };
    Error::new(kind(status), text).with_ucx(status.0)
}

/// `Ok` for success, else [`error`].
pub(super) fn check(ucx: &Ucx, doing: &str, status: S) -> Result<(), Error> {
    if status == S::UCS_OK { Ok(()) } else { Err(error(ucx, doing, status)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_map_to_kinds() {
        assert_eq!(kind(S::UCS_ERR_CANCELED), ErrorKind::Closed);
        assert_eq!(kind(S::UCS_ERR_ENDPOINT_TIMEOUT), ErrorKind::TimedOut);
        assert_eq!(kind(S::UCS_ERR_FIRST_LINK_FAILURE), ErrorKind::Reset);
        assert_eq!(kind(S::UCS_ERR_FIRST_ENDPOINT_FAILURE), ErrorKind::Reset);
        assert_eq!(kind(S::UCS_ERR_LAST_ENDPOINT_FAILURE), ErrorKind::Reset);
        assert_eq!(kind(S(-100)), ErrorKind::System);
        assert_eq!(kind(S(-39)), ErrorKind::System);
        let error = error(ucx_sys::load().expect("this test needs UCX"), "sending", S::UCS_ERR_UNREACHABLE);
        assert_eq!((error.kind(), error.ucx_status()), (ErrorKind::Unreachable, Some(-6)));
        assert!(error.text().starts_with("sending: Destination is unreachable"), "{error}");
    }
}
