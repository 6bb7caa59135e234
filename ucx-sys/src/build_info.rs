//! What can be known about how the running library was built.

use crate::Ucx;
use std::fmt;

/// Text of a debug assertion on the path of every request. The compiler puts it into libucp only where assertions are on; seen in a
/// build of 1.13.1 with assertions, and not in builds of 1.16, 1.19 and 1.22 without.
const ASSERTION: &[u8] = b"!(req->flags & UCP_REQUEST_FLAG_COMPLETED)";

/// What can be known about how the running library was built.
///
/// UCX has no function that tells: the configure line is compiled into the tool `ucx_info`, not into the libraries.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildInfo {
    /// Whether UCX's assertions are on, so that misuse aborts the process: `Some(true)`, proven, if the text of one is in the file of
    /// the library; `Some(false)`, very likely, if it is not; `None` if the file could not be read.
    pub assertions: Option<bool>,
    /// Whether the library can be used by several threads (`UCS_THREAD_MODE_MULTI`), `None` if it would not say.
    pub multi_threaded: Option<bool>,
    /// Transport plug-ins beside the library (`libuct_*.so.0` in its folder `ucx`), without prefix and suffix, sorted. Transports that
    /// are built into libuct itself (self, tcp, posix, sysv) are not listed.
    pub plugins: Vec<String>,
}

impl fmt::Display for BuildInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |known: Option<bool>| match known {
            Some(true) => "on",
            Some(false) => "off",
            None => "unknown",
        };
        write!(f, "assertions {}, multi-threading {}, plug-ins: ", word(self.assertions), word(self.multi_threaded))?;
        f.write_str(if self.plugins.is_empty() { "none" } else { "" })?;
        f.write_str(&self.plugins.join(" "))
    }
}

impl Ucx {
    /// Finds out how the library was built. Reads the library's file (1 to 3 MB): not for the hot path.
    pub fn build_info(&self) -> BuildInfo {
        let assertions = std::fs::read(self.path()).ok().map(|bytes| memchr::memmem::find(&bytes, ASSERTION).is_some());
        let multi_threaded = self.max_thread_level().ok().map(|level| level >= crate::UCS_THREAD_MODE_MULTI);
        let mut plugins: Vec<String> = self
            .path()
            .canonicalize()
            .ok()
            .and_then(|path| std::fs::read_dir(path.parent()?.join("ucx")).ok())
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some(name.strip_prefix("libuct_")?.strip_suffix(".so.0")?.to_owned())
            })
            .collect();
        plugins.sort();
        BuildInfo { assertions, multi_threaded, plugins }
    }
}
