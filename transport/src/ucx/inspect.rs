//! What can be known of UCX in this process: the library, how it was built, its settings, transports and devices.

use std::{
    ffi::CStr,
    fmt,
    path::{Path, PathBuf},
    ptr,
};

use ucx_sys as sys;

use super::Context;
use crate::error::FallbackReason;

/// A setting of UCX that this crate has an opinion on, as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UcxSetting {
    /// The environment variable.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Whether nobody had set it, so that the value is our default.
    pub is_default: bool,
    /// Whether the value could act: not if UCX had read its environment before.
    pub acts: bool,
    /// Why there is a default for it.
    pub why: &'static str,
}

/// The library of UCX that this process has loaded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UcxLibrary {
    /// Major, minor and release number.
    pub version: (u32, u32, u32),
    /// The file; empty if the dynamic linker cannot say.
    pub path: PathBuf,
    /// Whether UCX's assertions are on: misuse aborts, and small messages cost more. `None` if that cannot be told.
    pub assertions: Option<bool>,
    /// Whether it was built for several threads. `None` if it would not say.
    pub multi_threaded: Option<bool>,
    /// Transport plug-ins beside the library, without prefix and suffix: `ib`, `rdmacm`, `cma`.
    pub plugins: Vec<String>,
    /// Functions newer than 1.13 that it lacks.
    pub missing_symbols: Vec<&'static str>,
    /// Whether it was in the process before we loaded it: preloaded, linked, or brought by another library.
    pub was_in_process: bool,
    /// The settings that have a default of ours.
    pub settings: Vec<UcxSetting>,
}

/// A transport on a device, which UCX may use.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UcxResource {
    /// The transport: `tcp`, `posix`, `rc_verbs`.
    pub transport: String,
    /// Its device: `eth0`, `memory`, `mlx5_0:1`.
    pub device: String,
}

impl fmt::Display for UcxResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.transport, self.device)
    }
}

/// What UCX can do in this process.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UcxReport {
    /// The library, or why there is none.
    pub library: Result<UcxLibrary, FallbackReason>,
    /// What UCX found to use, or why it does not start.
    pub resources: Result<Vec<UcxResource>, FallbackReason>,
    /// The settings that a peer must have too, printed. Empty if UCX does not start.
    pub must_agree: String,
}

/// Loads and starts UCX, unless that has happened, and says what is there.
///
/// For diagnosis: it reads the library's file and takes milliseconds. Loading changes the environment of the process, as
/// the first connection over UCX does: call it early, before there are threads that run C code.
pub fn ucx_report() -> UcxReport {
    let library = sys::load().map(library).map_err(|_| reason());
    let (resources, must_agree) = match Context::get() {
        Ok(context) => (Ok(resources_of(context.ucx, context.handle)), context.settings().to_owned()),
        Err(reason) => (Err(reason.clone()), String::new()),
    };
    UcxReport { library, resources, must_agree }
}

/// Why the library cannot be had: the context has the same reason, in the words of a fallback.
fn reason() -> FallbackReason {
    match Context::get() {
        Err(reason) => reason.clone(),
        Ok(_) => FallbackReason::NoLibrary("it was not loaded".into()),
    }
}

fn library(ucx: &'static sys::Ucx) -> UcxLibrary {
    let build = ucx.build_info();
    let setting = |setting: &sys::Setting| UcxSetting {
        name: setting.name.clone(),
        value: setting.value.to_string_lossy().into_owned(),
        is_default: setting.source == sys::Source::OurDefault,
        acts: setting.effect != sys::Effect::TooLate,
        why: setting.why,
    };
    UcxLibrary {
        version: ucx.version(),
        path: Path::new(ucx.path()).to_owned(),
        assertions: build.assertions,
        multi_threaded: build.multi_threaded,
        plugins: build.plugins,
        missing_symbols: ucx.missing_optional_symbols().to_vec(),
        was_in_process: ucx.was_in_process(),
        settings: ucx.effective_defaults().iter().map(setting).collect(),
    }
}

/// The resources of a context.
pub(super) fn resources_of(ucx: &'static sys::Ucx, context: sys::ucp_context_h) -> Vec<UcxResource> {
    // SAFETY: callers have a live context; an open stream.
    resources(&printed(|stream| unsafe { ucx.ucp_context_print_info(context, stream) }))
}

/// What a function of UCX's prints to a stream; empty if there is no memory for it.
pub(super) fn printed(print: impl FnOnce(*mut libc::FILE)) -> String {
    let mut text: *mut libc::c_char = ptr::null_mut();
    let mut len = 0;
    // SAFETY: two places to write to, valid until the stream is closed.
    let stream = unsafe { libc::open_memstream(&mut text, &mut len) };
    if stream.is_null() {
        return String::new();
    }
    print(stream);
    // SAFETY: an open stream, closed once; then `text` is a C string of ours, or null.
    unsafe {
        libc::fclose(stream);
        if text.is_null() {
            return String::new();
        }
        let printed = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        printed
    }
}

/// The resources in what `ucp_context_print_info` prints: lines such as `# resource 3 : md 1 dev 2 flags -- tcp/eth0`.
fn resources(printed: &str) -> Vec<UcxResource> {
    let resource = |line: &str| {
        let mut words = line.trim_start_matches('#').split_whitespace();
        if words.next() != Some("resource") {
            return None;
        }
        let (transport, device) = words.last()?.split_once('/')?;
        Some(UcxResource { transport: transport.to_owned(), device: device.to_owned() })
    };
    let mut found: Vec<UcxResource> = printed.lines().filter_map(resource).collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_read_from_the_printed_form() {
        let printed = "#\n# UCP context\n#\n#     component 0  :  self\n#            md 1  :  component 1  tcp \n#\n\
            #      resource 2  :  md 1  dev 1  flags -- tcp/eth0\n\
            #      resource 0  :  md 0  dev 0  flags -- self/memory0\n\
            #      resource 11 :  md 5  dev 3  flags -s rc_verbs/rxe0:1\n#\n";
        let found: Vec<String> = resources(printed).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["rc_verbs/rxe0:1", "self/memory0", "tcp/eth0"]);
        assert!(resources("").is_empty());
    }

    #[test]
    fn this_machine_has_a_library_and_tcp() {
        let report = ucx_report();
        let library = report.library.expect("this test needs UCX");
        assert!(library.version >= (1, 13, 0) && library.path.exists(), "{library:?}");
        let resources = report.resources.expect("this test needs UCX");
        assert!(resources.iter().any(|r| r.transport == "tcp" && r.device == "lo"), "{resources:?}");
        assert!(report.must_agree.starts_with("ucx=1."), "{}", report.must_agree);
    }
}
