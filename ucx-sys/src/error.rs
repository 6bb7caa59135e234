//! Why UCX could not be loaded.

use std::fmt;
use std::path::PathBuf;

/// One library that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The name or path given to the dynamic linker.
    pub library: PathBuf,
    /// The dynamic linker's words.
    pub reason: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.library.display(), self.reason)
    }
}

/// Why UCX could not be loaded. The outcome of the first [`load`](crate::load) is kept for the life of the process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// `UCRPC_UCX_LIBRARY=none` is in the environment.
    #[error("ucx is switched off by UCRPC_UCX_LIBRARY=none")]
    Disabled,
    /// No library could be opened.
    #[error("ucx was not found ({})", join(tried))]
    NotFound {
        /// What was tried, in order. Never empty.
        tried: Vec<Attempt>,
    },
    /// The library is older than 1.13.
    #[error("ucx {}.{}.{} is too old, 1.13 is needed", found.0, found.1, found.2)]
    TooOld {
        /// Major, minor and release number.
        found: (u32, u32, u32),
    },
    /// The library lacks functions that every UCX since 1.13 has: it is no UCX, or a cut-down one.
    #[error("{} lacks {}", library.display(), names.join(", "))]
    MissingSymbol {
        /// The library that was opened.
        library: PathBuf,
        /// The missing functions. Never empty.
        names: Vec<&'static str>,
    },
    /// `UCRPC_UCX_LIBRARY` names a library, but another UCX is in the process already, for instance through an MPI library.
    #[error("{} was asked for, but the process has {} already", wanted.display(), present.display())]
    Conflict {
        /// The libucs in the process.
        present: PathBuf,
        /// The libucp that was asked for.
        wanted: PathBuf,
    },
}

fn join(tried: &[Attempt]) -> String {
    tried.iter().map(Attempt::to_string).collect::<Vec<_>>().join("; ")
}
