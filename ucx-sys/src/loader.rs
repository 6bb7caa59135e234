//! Finds UCX, prepares its environment, loads it once for the life of the process.

use crate::bindings::{UCP_LIB_ATTR_FIELD_MAX_THREAD_LEVEL, ucp_lib_attr_t, ucs_status_t, ucs_thread_mode_t};
#[cfg(not(feature = "link"))]
use crate::error::Attempt;
use crate::error::LoadError;
use crate::functions::Functions;
use crate::settings::{self, Devices, Effect, Setting, Source};
use core::ffi::{CStr, c_int, c_uint, c_void};
use core::mem::ManuallyDrop;
use libloading::os::unix::Library;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The variable that picks the library.
const LIBRARY_VARIABLE: &str = "UCRPC_UCX_LIBRARY";
const SONAME: &str = "libucp.so.0";
/// What libucp needs, in the order in which they need each other.
#[cfg(not(feature = "link"))]
const SIBLINGS: [&str; 3] = ["libucm.so.0", "libucs.so.0", "libuct.so.0"];
/// The oldest version whose functions and structures the bindings describe.
const MINIMUM: (u32, u32) = (1, 13);
/// The signals that UCX takes at load time unless told not to.
const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGHUP];

/// UCX, loaded. All C functions are its methods, under their C names.
///
/// There is at most one in a process, and it is never unloaded: UCX's constructors cannot be undone.
pub struct Ucx {
    pub(crate) functions: Functions,
    version: (u32, u32, u32),
    path: PathBuf,
    was_in_process: bool,
    settings: Vec<Setting>,
    missing_optional: Vec<&'static str>,
}

impl std::fmt::Debug for Ucx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ucx").field("version", &self.version).field("path", &self.path).finish_non_exhaustive()
    }
}

/// Loads UCX, or returns what the first call returned.
///
/// The library is `libucp.so.0` where the dynamic linker finds it, or what `UCRPC_UCX_LIBRARY` names: the path of a libucp
/// (with its siblings libuct, libucs and libucm in the same folder), that folder, or `none`.
///
/// # Errors
///
/// [`LoadError`]: switched off, not found, too old, not a UCX, or in conflict with one that is in the process.
///
/// # Thread rules
///
/// Safe to call from any thread, any number of times; the first call does the work while the others wait. That first call changes
/// the environment (`setenv`), and UCX's constructors run in it. Rust's own `std::env` is synchronised with that, but C code that calls
/// `getenv` on another thread at the same time is not, and no lock could make it so. Call this **early, before threads are started
/// that run C code**. What we set is inherited by child processes.
pub fn load() -> Result<&'static Ucx, &'static LoadError> {
    static UCX: OnceLock<Result<Ucx, LoadError>> = OnceLock::new();
    UCX.get_or_init(load_once).as_ref()
}

fn load_once() -> Result<Ucx, LoadError> {
    let choice = std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty());
    if choice.as_deref() == Some(OsStr::new("none")) {
        return Err(LoadError::Disabled);
    }
    let present = libucs_in_process();
    let was_in_process = cfg!(feature = "link") || present.is_some();
    let mut defaults = settings::defaults(Devices::here());
    if needs_memory_events(&library_file(choice.as_deref())) {
        defaults.retain(|default| default.name != "UCX_MEM_EVENTS");
    }
    let settings = settings::apply(
        &defaults,
        &|name| std::env::var_os(name),
        &mut |name, value| {
            // SAFETY: Rust code reads the environment through std, which holds its lock here. For C code on other threads the
            // rule stands in the documentation of `load`.
            unsafe { std::env::set_var(name, value) }
        },
        was_in_process,
    );
    let Opened { functions, version, path } =
        open_and_resolve(choice.as_deref(), present.as_deref()).inspect_err(|_| take_back(&settings))?;
    let missing_optional = functions.missing_optional();
    let ucx = Ucx { functions, version, path, was_in_process, settings, missing_optional };
    if was_in_process {
        ucx.catch_up();
    }
    Ok(ucx)
}

/// The file that is going to be opened, as far as it can be told before the dynamic linker is asked.
fn library_file(choice: Option<&OsStr>) -> PathBuf {
    if let Some(choice) = choice {
        let path = PathBuf::from(choice);
        return if path.is_dir() { path.join(SONAME) } else { path };
    }
    let searched = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let usual = ["/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let folders = std::env::split_paths(&searched).chain(usual.map(PathBuf::from));
    folders.map(|folder| folder.join(SONAME)).find(|file| file.exists()).unwrap_or_default()
}

/// Whether this libucp is one that crashes when memory events are off: 1.16 and 1.19 were seen to, and 1.22 not to, when an
/// endpoint ends with a rendezvous pending (they invalidate regions of a registration cache that was never made).
///
/// The version can be asked for only after loading, when the environment has been read. But the names of functions that came with
/// 1.16 and with 1.22 are in the file.
fn needs_memory_events(file: &Path) -> bool {
    let Ok(bytes) = std::fs::read(file) else { return false };
    let has = |name: &[u8]| memchr::memmem::find(&bytes, name).is_some();
    has(b"ucp_rkey_compare") && !has(b"ucp_datatype_iter_sgl_init")
}

/// A library that is open and complete.
struct Opened {
    functions: Functions,
    version: (u32, u32, u32),
    path: PathBuf,
}

/// Opens the library and finds all its functions.
fn open_and_resolve(choice: Option<&OsStr>, present: Option<&Path>) -> Result<Opened, LoadError> {
    // UCX starts threads and leaves hooks behind: once opened it must never be unloaded, whatever happens next.
    let library = ManuallyDrop::new(open(choice, present)?);
    let lookup = |name: &'static str| {
        // SAFETY: only the address is taken; its type is the matter of whoever uses it.
        let symbol = unsafe { library.get::<*mut c_void>(name.as_bytes()) }.ok()?;
        Some(symbol.into_raw()).filter(|address| !address.is_null())
    };
    let Some(get_version) = lookup("ucp_get_version") else {
        let library = choice.map_or_else(|| SONAME.into(), PathBuf::from);
        return Err(LoadError::MissingSymbol { library, names: vec!["ucp_get_version"] });
    };
    let path = library_of(get_version).unwrap_or_default();
    // SAFETY: the function has had this type since UCX 1.0.
    let version = read_version(unsafe { core::mem::transmute::<*mut c_void, GetVersion>(get_version) });
    if (version.0, version.1) < MINIMUM {
        return Err(LoadError::TooOld { found: version });
    }
    match Functions::resolve(&lookup) {
        Ok(functions) => Ok(Opened { functions, version, path }),
        Err(names) => Err(LoadError::MissingSymbol { library: path, names }),
    }
}

/// Removes what [`settings::apply`] put into the environment.
fn take_back(settings: &[Setting]) {
    for setting in settings.iter().filter(|setting| setting.source == Source::OurDefault) {
        // SAFETY: as where it was set.
        unsafe { std::env::remove_var(&setting.name) }
    }
}

/// The file of the libucs that has run its constructors already: linked in, preloaded, or loaded by another library.
fn libucs_in_process() -> Option<PathBuf> {
    // SAFETY: a constant C string; with RTLD_NOLOAD nothing is loaded and no code runs.
    let handle = unsafe { libc::dlopen(c"libucs.so.0".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if handle.is_null() {
        return None;
    }
    // SAFETY: the handle is from `dlopen`, the name is a constant C string; only the address is used.
    let symbol = unsafe { libc::dlsym(handle, c"ucs_status_string".as_ptr()) };
    let path = library_of(symbol).unwrap_or_default();
    // SAFETY: gives back the reference that `dlopen` took.
    unsafe { libc::dlclose(handle) };
    Some(path)
}

#[cfg(feature = "link")]
fn open(_choice: Option<&OsStr>, _present: Option<&Path>) -> Result<Library, LoadError> {
    Ok(Library::this())
}

#[cfg(not(feature = "link"))]
fn open(choice: Option<&OsStr>, present: Option<&Path>) -> Result<Library, LoadError> {
    let path = match choice {
        None => PathBuf::from(SONAME),
        Some(path) if Path::new(path).is_dir() => Path::new(path).join(SONAME),
        Some(path) => PathBuf::from(path),
    };
    let attempt = |library: &Path| {
        // SAFETY: UCX's constructors run here. They are written to run in a process at any time; what they would change of it (signal
        // handlers, libc's memory calls) the settings have switched off.
        unsafe { Library::open(Some(library), libc::RTLD_NOW | libc::RTLD_LOCAL) }
            .map_err(|error| Attempt { library: library.to_owned(), reason: reason(&error) })
    };
    // A libucp out of the linker's sight needs its own siblings, not those of an installed UCX of another version.
    let folder = path.parent().filter(|folder| choice.is_some() && !folder.as_os_str().is_empty());
    let siblings =
        folder.into_iter().flat_map(|folder| SIBLINGS.map(|name| folder.join(name))).filter(|path| path.exists());
    // Two versions in one process would take symbols from one another.
    if let (Some(folder), Some(present)) = (folder, present)
        && present.parent().map(Path::canonicalize).and_then(Result::ok) != folder.canonicalize().ok()
    {
        return Err(LoadError::Conflict { present: present.to_owned(), wanted: path });
    }
    let mut tried = Vec::new();
    for sibling in siblings {
        match attempt(&sibling) {
            Ok(library) => std::mem::forget(library),
            Err(failed) => tried.push(failed),
        }
    }
    attempt(&path).map_err(|failed| {
        tried.push(failed);
        LoadError::NotFound { tried }
    })
}

/// The dynamic linker's words, which libloading keeps as the source.
#[cfg(not(feature = "link"))]
fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

type GetVersion = unsafe extern "C" fn(*mut c_uint, *mut c_uint, *mut c_uint);

fn read_version(get_version: GetVersion) -> (u32, u32, u32) {
    let (mut major, mut minor, mut release) = (0, 0, 0);
    // SAFETY: three valid places to write to.
    unsafe { get_version(&mut major, &mut minor, &mut release) };
    (major, minor, release)
}

/// The file that holds the code at `address`.
fn library_of(address: *mut c_void) -> Option<PathBuf> {
    let mut info = core::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked about, and the place can be written to.
    let found = unsafe { libc::dladdr(address, info.as_mut_ptr()) };
    // SAFETY: all zero is a valid Dl_info, and dladdr wrote nothing else than valid ones.
    let info = unsafe { info.assume_init() };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr gives a C string that lives as long as the library is loaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

impl Ucx {
    /// Major, minor and release number of the library that is running, which may be newer than the headers behind our types.
    pub fn version(&self) -> (u32, u32, u32) {
        self.version
    }

    /// Whether the running library is `major.minor` or newer.
    ///
    /// Ask before you use anything of [`newer`](crate::newer).
    #[inline]
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.version.0, self.version.1) >= (major, minor)
    }

    /// The library's own version string.
    pub fn version_string(&self) -> &'static str {
        // SAFETY: the function takes nothing and returns a constant string of a library that is never unloaded.
        let version = unsafe { CStr::from_ptr(self.ucp_get_version_string()) };
        version.to_str().unwrap_or("(not UTF-8)")
    }

    /// The file that libucp was loaded from, as the dynamic linker names it. Empty if it cannot say.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether UCX was in the process before [`load`] was called: linked in, preloaded or loaded by another library. Then its
    /// constructors ran without our defaults; see [`Effect`] for what could be made good.
    pub fn was_in_process(&self) -> bool {
        self.was_in_process
    }

    /// Names of the functions newer than UCX 1.13, or outside libucp, that this library lacks. Their methods return `None`.
    pub fn missing_optional_symbols(&self) -> &[&'static str] {
        &self.missing_optional
    }

    /// The settings that we have an opinion on, as they stand: ours and, where the user has set them, the user's.
    pub fn effective_defaults(&self) -> &[Setting] {
        &self.settings
    }

    /// The highest thread mode that the library was built for (`UCS_THREAD_MODE_*`).
    ///
    /// # Errors
    ///
    /// The status of `ucp_lib_query`.
    pub fn max_thread_level(&self) -> Result<ucs_thread_mode_t, ucs_status_t> {
        let mut attr = ucp_lib_attr_t { field_mask: UCP_LIB_ATTR_FIELD_MAX_THREAD_LEVEL.into(), max_thread_level: 0 };
        // SAFETY: the structure is valid, and the mask names only the field that it has had since it exists.
        match unsafe { self.ucp_lib_query(&mut attr) } {
            ucs_status_t::UCS_OK => Ok(attr.max_thread_level),
            status => Err(status),
        }
    }

    /// Does by calls what the environment could not do any more.
    fn catch_up(&self) {
        let at_run_time = |name: &str| {
            self.settings.iter().any(|setting| setting.name == name && setting.effect == Effect::AtRunTime)
        };
        // The stream of the log cannot be changed any more: UCX accepts LOG_FILE now, but opened the stream in its constructor.
        if at_run_time("UCX_WARN_UNUSED_ENV_VARS")
            && let Some(set) = self.ucs_global_opts_set_value()
        {
            // SAFETY: constant C strings, which UCX copies.
            unsafe { set(c"WARN_UNUSED_ENV_VARS".as_ptr(), c"n".as_ptr()) };
        }
        let Some(give_back) = self.ucs_debug_disable_signal() else {
            return;
        };
        for signal in SIGNALS {
            let variable = if signal == libc::SIGHUP { "UCX_DEBUG_SIGNO" } else { "UCX_HANDLE_ERRORS" };
            // UCX complains about signals that it has not taken, or that somebody took after it: leave those alone.
            if at_run_time(variable) && handler_of(signal).and_then(library_of) == library_of(give_back as *mut c_void)
            {
                // SAFETY: takes a signal number; UCX holds this signal, so it restores the handler before its own.
                unsafe { give_back(signal) };
            }
        }
    }
}

/// The address of the handler of `signal`, or `None` for the default and for ignored ones.
fn handler_of(signal: c_int) -> Option<*mut c_void> {
    let mut action = core::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action this only reads, into a place that can be written to.
    if unsafe { libc::sigaction(signal, core::ptr::null(), action.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: all zero is a valid sigaction, and the call has filled it.
    let handler = unsafe { action.assume_init() }.sa_sigaction;
    (handler != libc::SIG_DFL && handler != libc::SIG_IGN).then_some(handler as *mut c_void)
}
