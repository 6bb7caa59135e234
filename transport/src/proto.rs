//! The protocol as pure functions of events and time: what goes over the wire and what follows from what came.
//!
//! Nothing here owns a descriptor, reads a clock, starts a thread or calls UCX: `now` is an argument, input comes in
//! through `on_*` methods and output is returned. So every rule can be tested without a socket, and every decoder can
//! be fuzzed. The module is public for tests and fuzz targets only and is no part of the crate's stable interface.
//!
//! | module | job |
//! |---|---|
//! | [`header`] | the header of every native frame, and the prefix that delimits frames on a byte stream |
//! | [`control`] | the payloads of control frames |
//! | [`curve`] | the header of Curve's UCX messages (`ucx+cm://`) |
//! | [`hello`] | the negotiation messages |
//! | [`negotiate`] | which transport two sides take, and why not the other |
//! | [`credit`] | how much may be in flight |
//! | [`order`] | delivery in send order when frames complete out of order |
//! | [`liveness`] | whether the peer still answers |
//! | [`lifecycle`] | closing without losing what was sent |

pub mod control;
pub mod credit;
pub mod curve;
pub mod header;
pub mod hello;
pub mod lifecycle;
pub mod liveness;
pub mod negotiate;
pub mod order;

use crate::{Error, ErrorKind};

/// A peer's mistake ends its connection, whichever room noticed it.
macro_rules! protocol_errors {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Error {
            #[cold]
            fn from(error: $error) -> Self {
                Self::new(ErrorKind::Protocol, error.to_string())
            }
        }
    )*};
}

protocol_errors!(
    header::HeaderError,
    control::ControlError,
    curve::CurveError,
    credit::ProtocolViolation,
    order::OrderError
);

impl From<hello::HelloError> for Error {
    #[cold]
    fn from(error: hello::HelloError) -> Self {
        let kind = match error {
            hello::HelloError::Major(_) | hello::HelloError::RequiredField(_) => ErrorKind::Version,
            _ => ErrorKind::Protocol,
        };
        Self::new(kind, error.to_string())
    }
}

/// Cuts `text` to at most `max` bytes, at a character boundary.
fn clip(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}
