//! How the program ends: exit codes, and what is said on the way out.

use std::{fmt, io, process::ExitCode};

use ucrpc::{
    Code, Status,
    transport::{Error, ErrorKind},
};

/// The exit codes, as `ucrpc --help` explains them in [`HELP`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Something else went wrong; the message says what.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The other side can't be reached, or an address can't be listened on.
    Unreachable = 3,
    /// The other side was there and went away.
    Lost = 4,
    /// UCX, or a transport of it, was demanded and can't be had.
    NoUcx = 5,
    /// A measurement, call or finding was made and its result is bad.
    Bad = 6,
}

/// The text about exit codes under `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done, and all is well
  1  failed: the message says why
  2  the command line makes no sense
  3  the other side can't be reached, or an address can't be listened on
  4  the other side was there and went away
  5  UCX, or a transport of it, was demanded and can't be had
  6  it ran, and the result is bad: calls failed, or findings need mending";

/// Why the program ends without success.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    text: String,
    /// What to do about it.
    hint: Option<String>,
}

impl Failure {
    /// An end with this code and text.
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), hint: None }
    }

    /// The command line is wrong in a way that only its values show.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts in front what was being done.
    pub(crate) fn while_doing(mut self, doing: impl fmt::Display) -> Self {
        self.text = format!("{doing}: {}", self.text);
        self
    }

    /// Says it on stderr and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if self.text.is_empty() {
            return ExitCode::SUCCESS;
        }
        eprintln!("ucrpc: {}", self.text);
        if let Some(hint) = &self.hint {
            eprintln!("  hint: {hint}");
        }
        ExitCode::from(self.exit as u8)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (exit, hint) = match error.kind() {
            ErrorKind::Refused => {
                (Exit::Unreachable, Some("is the server running there, and on that port? start one: ucrpc perf server"))
            }
            ErrorKind::Unreachable => (Exit::Unreachable, Some("check the host's name and the route to it")),
            ErrorKind::TimedOut => (Exit::Unreachable, Some("a firewall that drops packets looks like this")),
            ErrorKind::Reset | ErrorKind::PeerClosed => (Exit::Lost, None),
            ErrorKind::NoUcx => {
                (Exit::NoUcx, Some("ucrpc doctor says what is missing; auto:// in place of ucx:// goes on over TCP"))
            }
            ErrorKind::Invalid => (Exit::Usage, None),
            _ => (Exit::Failed, None),
        };
        Self { hint: hint.map(str::to_owned), ..Self::new(exit, error.to_string()) }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let exit = match status.code() {
            Code::EHOSTDOWN
            | Code::EHOSTUNREACH
            | Code::ENETUNREACH
            | Code::ECONNREFUSED
            | Code::ETIMEDOUT
            | Code::ENOENT => Exit::Unreachable,
            Code::EFAILEDSOCKET | Code::ECLOSE | Code::EEOF | Code::ECONNRESET | Code::ECONNABORTED => Exit::Lost,
            Code::ERDMA => Exit::NoUcx,
            _ => Exit::Failed,
        };
        Self::new(exit, status.to_string())
    }
}

/// Who reads our output may go away, as `head` does: that is no failure.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Failed, ""),
            _ => Self::new(Exit::Failed, error.to_string()),
        }
    }
}
