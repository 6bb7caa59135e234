//! Error codes of the wire, and the status of a call.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::Arc;

/// An error code of the wire: brpc's numbers, or an errno value of Linux. Unknown numbers are kept as they are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(i32);

macro_rules! codes {
    ($($name:ident = $number:literal, $retry:literal, $text:literal;)*) => {
        impl Code {
            $(
                #[doc = concat!($text, ".")]
                pub const $name: Self = Self($number);
            )*

            /// Every code with a name.
            pub const ALL: &'static [Self] = &[$(Self($number)),*];

            /// The code's name, as brpc and errno call it.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// The code in words.
            pub fn description(self) -> &'static str {
                match self.0 {
                    $($number => $text,)*
                    _ => "unknown error",
                }
            }

            /// Whether a call that ended with this code may be tried again by default: the server did not start it or
            /// the connection broke, and another attempt can well end otherwise.
            ///
            /// A broken connection says nothing about whether a handler ran: retry only calls that may run twice.
            pub fn is_retryable(self) -> bool {
                match self.0 {
                    $($number => $retry,)*
                    _ => false,
                }
            }
        }
    };
}

// One table for constants, names, texts and the default retry policy (brpc's, and codes of a failed connect).
codes! {
    OK = 0, false, "success";
    EPERM = 1, false, "operation not permitted";
    ENOENT = 2, true, "not found";
    EINTR = 4, false, "interrupted";
    EIO = 5, false, "input/output error";
    EAGAIN = 11, false, "temporarily unavailable";
    ENOMEM = 12, false, "out of memory";
    EACCES = 13, false, "permission denied";
    EINVAL = 22, false, "invalid argument";
    EPIPE = 32, true, "broken pipe";
    ENODATA = 61, true, "no data available";
    EPROTO = 71, false, "protocol error";
    EMSGSIZE = 90, false, "message too long";
    EADDRINUSE = 98, false, "address in use";
    EADDRNOTAVAIL = 99, false, "address not available";
    ENETUNREACH = 101, true, "network is unreachable";
    ECONNABORTED = 103, true, "connection aborted";
    ECONNRESET = 104, true, "connection reset by peer";
    ENOTCONN = 107, true, "not connected";
    ETIMEDOUT = 110, true, "connection timed out";
    ECONNREFUSED = 111, true, "connection refused";
    EHOSTDOWN = 112, true, "host is down";
    EHOSTUNREACH = 113, true, "host is unreachable";
    ECANCELED = 125, false, "call was cancelled";
    ENOSERVICE = 1001, false, "service not found";
    ENOMETHOD = 1002, false, "method not found";
    EREQUEST = 1003, false, "bad request";
    ERPCAUTH = 1004, false, "not authorized";
    ETOOMANYFAILS = 1005, false, "too many sub-calls failed";
    EBACKUPREQUEST = 1007, false, "a backup request was sent";
    ERPCTIMEDOUT = 1008, false, "call timed out";
    EFAILEDSOCKET = 1009, true, "connection is broken";
    EHTTP = 1010, false, "bad http call";
    EOVERCROWDED = 1011, true, "too much is waiting to be sent";
    EEOF = 1014, true, "connection closed by peer";
    EUNUSED = 1015, false, "connection was not needed";
    ESSL = 1016, false, "tls error";
    EH2RUNOUTSTREAMS = 1017, true, "http/2 connection has no stream ids left";
    EREJECT = 1018, false, "request was rejected";
    EINTERNAL = 2001, false, "internal server error";
    ERESPONSE = 2002, false, "bad response";
    ELOGOFF = 2003, true, "server is stopping";
    ELIMIT = 2004, true, "server is at its limit";
    ECLOSE = 2005, false, "connection closed on purpose";
    ERDMA = 3001, false, "rdma error";
    ERDMAMEM = 3002, false, "memory is not registered for rdma";
}

impl Code {
    /// The code with this number on the wire.
    pub const fn from_wire(number: i32) -> Self {
        Self(number)
    }

    /// The number on the wire.
    pub const fn to_wire(self) -> i32 {
        self.0
    }

    /// Whether this is [`Code::OK`].
    pub const fn is_ok(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name().unwrap_or("Code"), self.0)
    }
}

impl From<&io::Error> for Code {
    fn from(error: &io::Error) -> Self {
        if let Some(errno) = error.raw_os_error() {
            return Self(errno);
        }
        match error.kind() {
            io::ErrorKind::NotFound => Self::ENOENT,
            io::ErrorKind::PermissionDenied => Self::EACCES,
            io::ErrorKind::ConnectionRefused => Self::ECONNREFUSED,
            io::ErrorKind::ConnectionReset => Self::ECONNRESET,
            io::ErrorKind::ConnectionAborted => Self::ECONNABORTED,
            io::ErrorKind::HostUnreachable => Self::EHOSTUNREACH,
            io::ErrorKind::NetworkUnreachable => Self::ENETUNREACH,
            io::ErrorKind::NotConnected => Self::ENOTCONN,
            io::ErrorKind::AddrInUse => Self::EADDRINUSE,
            io::ErrorKind::AddrNotAvailable => Self::EADDRNOTAVAIL,
            io::ErrorKind::BrokenPipe => Self::EPIPE,
            io::ErrorKind::WouldBlock => Self::EAGAIN,
            io::ErrorKind::InvalidInput => Self::EINVAL,
            io::ErrorKind::InvalidData => Self::EPROTO,
            io::ErrorKind::TimedOut => Self::ETIMEDOUT,
            io::ErrorKind::Interrupted => Self::EINTR,
            io::ErrorKind::OutOfMemory => Self::ENOMEM,
            io::ErrorKind::UnexpectedEof => Self::EEOF,
            _ => Self::EIO,
        }
    }
}

/// Why a call failed: a code and a text for humans. Cheap to clone.
#[derive(Clone)]
pub struct Status {
    code: Code,
    message: Message,
    stats: Option<Arc<crate::call::CallStats>>,
}

/// Equal if code and text are; what the call took makes no difference.
impl PartialEq for Status {
    fn eq(&self, other: &Self) -> bool {
        self.code == other.code && self.message == other.message
    }
}

impl Eq for Status {}

#[derive(Clone)]
enum Message {
    Static(&'static str),
    Shared(Arc<str>),
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Message {}

impl Message {
    fn as_str(&self) -> &str {
        match self {
            Self::Static(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl Status {
    /// A status of `code` with a text; an empty one is allowed. [`Code::OK`] makes no sense as an error: it becomes
    /// [`Code::EINTERNAL`].
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        let message = match message.into() {
            Cow::Borrowed(text) => Message::Static(text),
            Cow::Owned(text) => Message::Shared(text.into()),
        };
        Self { code: if code.is_ok() { Code::EINTERNAL } else { code }, message, stats: None }
    }

    /// The status of a response with this code and text, or `None` if the code says success. A text that is not UTF-8
    /// is made so, with replacement characters.
    pub fn from_wire(code: i32, text: &[u8]) -> Option<Self> {
        (code != 0).then(|| Self::new(Code(code), String::from_utf8_lossy(text).into_owned()))
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The text; may be empty.
    pub fn message(&self) -> &str {
        self.message.as_str()
    }

    /// What the call took that ended with this, if a channel carried it.
    pub fn stats(&self) -> Option<&crate::call::CallStats> {
        self.stats.as_deref()
    }

    pub(crate) fn with_stats(mut self, stats: crate::call::CallStats) -> Self {
        self.stats = Some(Arc::new(stats));
        self
    }

    /// [`Code::is_retryable`] of the code.
    pub fn is_retryable(&self) -> bool {
        self.code.is_retryable()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.name(), self.message()) {
            (Some(_), "") => write!(f, "{}", self.code),
            (Some(_), message) => write!(f, "{}: {message}", self.code),
            (None, "") => write!(f, "error {}", self.code.0),
            (None, message) => write!(f, "error {}: {message}", self.code.0),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status").field("code", &self.code).field("message", &self.message()).finish()
    }
}

impl std::error::Error for Status {}

impl From<Code> for Status {
    fn from(code: Code) -> Self {
        Self::new(code, "")
    }
}

impl From<io::Error> for Status {
    fn from(error: io::Error) -> Self {
        Self::new(Code::from(&error), error.to_string())
    }
}
