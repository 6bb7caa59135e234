//! The process's one UCX context.

use std::{any::Any, ffi::c_void, mem, path::Path, ptr, sync::OnceLock, time::Instant};

use ucx_sys::{self as sys, LoadError, Ucx, ucp_context_h};

use super::{inspect, memlock, ports::Ports, status};
use crate::{
    error::{Error, FallbackReason},
    memory::Registrar,
};

/// Settings whose values must be the same at both ends (different shared-memory segments hang or abort UCX). All of them
/// are environment variables for UCX 1.13. `UCX_TLS`, devices and tcp segment sizes may differ.
const MUST_AGREE: [&str; 9] = [
    "UCX_MM_",
    "UCX_POSIX_",
    "UCX_SYSV_",
    "UCX_XPMEM_",
    "UCX_PROTO_ENABLE",
    "UCX_UNIFIED_MODE",
    "UCX_ADDRESS_VERSION",
    "UCX_MAX_EAGER_LANES",
    "UCX_MAX_RNDV_LANES",
];

/// UCX's process-wide state. It lives as long as the process.
pub(crate) struct Context {
    pub(super) ucx: &'static Ucx,
    pub(super) handle: ucp_context_h,
    settings: String,
    has_device: bool,
    over_memory: bool,
    ports: Ports,
}

// SAFETY: made with `mt_workers_shared`, so UCX locks what workers of several threads share; the rest never changes.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The context, made on first use.
    ///
    /// # Errors
    /// Why UCX can't be had, the same for the life of the process.
    pub(crate) fn get() -> Result<&'static Self, &'static FallbackReason> {
        static CONTEXT: OnceLock<Result<Context, FallbackReason>> = OnceLock::new();
        CONTEXT.get_or_init(Self::make).as_ref()
    }

    fn make() -> Result<Self, FallbackReason> {
        let ucx = sys::load().map_err(|error| match error {
            LoadError::Disabled => FallbackReason::Disabled("UCRPC_UCX_LIBRARY=none".into()),
            other => FallbackReason::NoLibrary(other.to_string().into()),
        })?;
        let mem_events = std::env::var("UCX_MEM_EVENTS").unwrap_or_default();
        if crashes(ucx.version(), &mem_events) {
            let (major, minor, _) = ucx.version();
            let text = format!("ucx {major}.{minor} crashes with UCX_MEM_EVENTS={mem_events}: set it to y");
            return Err(FallbackReason::NoLibrary(text.into()));
        }
        if let Some(text) = memlock::refusal() {
            return Err(FallbackReason::NoLibrary(text.into()));
        }
        let handle = init(ucx).map_err(|error| FallbackReason::NoLibrary(error.to_string().into()))?;
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
        let settings = settings(ucx.version(), environment);
        let root = Path::new("/");
        let resources = inspect::resources_of(ucx, handle);
        let over_memory = resources.iter().any(|resource| super::over_memory(&resource.transport));
        let devices = resources.into_iter().map(|resource| resource.device);
        Ok(Self { ucx, handle, settings, has_device: has_device(root), over_memory, ports: Ports::new(root, devices) })
    }

    /// Whether new connections may be made over UCX now.
    ///
    /// # Errors
    /// [`FallbackReason::Unreachable`] while a port of an RDMA device that UCX uses is down or gone.
    pub(crate) fn check_ports(&self, now: Instant) -> Result<(), FallbackReason> {
        self.ports.trouble(now).map_or(Ok(()), |text| Err(FallbackReason::Unreachable(text.into())))
    }

    /// Whether there is shared memory among the transports.
    pub(crate) fn has_memory(&self) -> bool {
        self.over_memory
    }

    /// Major, minor and release number of the running library.
    pub(crate) fn version(&self) -> (u32, u32, u32) {
        self.ucx.version()
    }

    /// A number that is equal for equal [`settings`](Self::settings), on any machine and in any build.
    pub(crate) fn fingerprint(&self) -> u64 {
        fnv1a(self.settings.as_bytes())
    }

    /// The settings that must agree with a peer's, printed.
    pub(crate) fn settings(&self) -> &str {
        &self.settings
    }
}

/// UCX 1.16 and 1.19 dereference a null registration cache (`ucp_request_memh_invalidate`) when an endpoint ends with a
/// rendezvous send pending, and without memory events there is no such cache. 1.13 and 1.22 do not; what lies between was not tried.
fn crashes(version: (u32, u32, u32), mem_events: &str) -> bool {
    let off = ["n", "no", "off", "0"].contains(&mem_events.to_ascii_lowercase().as_str());
    off && (16..22).contains(&version.1) && version.0 == 1
}

fn init(ucx: &'static Ucx) -> Result<ucp_context_h, Error> {
    let mut config = ptr::null_mut();
    // SAFETY: no prefix, no file, a place to write to.
    let status = unsafe { ucx.ucp_config_read(ptr::null(), ptr::null(), &mut config) };
    status::check(ucx, "reading the configuration of ucx", status)?;
    // SAFETY: integers, pointers and optional functions: zero is valid.
    let mut params: sys::ucp_params_t = unsafe { mem::zeroed() };
    params.field_mask =
        u64::from(sys::UCP_PARAM_FIELD_FEATURES | sys::UCP_PARAM_FIELD_MT_WORKERS_SHARED | sys::UCP_PARAM_FIELD_NAME);
    params.features = u64::from(sys::UCP_FEATURE_AM | sys::UCP_FEATURE_WAKEUP);
    params.mt_workers_shared = 1;
    params.name = c"ucrpc".as_ptr();
    let mut handle = ptr::null_mut();
    // SAFETY: valid parameters and configuration, a place to write to; the configuration is released once.
    let status = unsafe {
        let status = ucx.ucp_init(&params, config, &mut handle);
        ucx.ucp_config_release(config);
        status
    };
    status::check(ucx, "starting ucx", status)?;
    Ok(handle)
}

fn settings(version: (u32, u32, u32), environment: impl Iterator<Item = (String, String)>) -> String {
    let mut agree: Vec<_> =
        environment.filter(|(name, _)| MUST_AGREE.iter().any(|prefix| name.starts_with(prefix))).collect();
    agree.sort();
    let mut printed = format!("ucx={}.{} error_handling=peer", version.0, version.1);
    for (name, value) in agree {
        printed.extend([" ", name.strip_prefix("UCX_").unwrap_or(&name), "=", &value]);
    }
    printed
}

/// FNV-1a: the two ends may be different builds, so no hash of the standard library will do.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Whether some device wants memory registered.
fn has_device(root: &Path) -> bool {
    let rdma = std::fs::read_dir(root.join("sys/class/infiniband")).is_ok_and(|mut list| list.next().is_some());
    rdma || root.join("dev/nvidiactl").exists() || root.join("dev/kfd").exists()
}

/// Memory that UCX has registered.
pub(super) struct Registration {
    context: &'static Context,
    pub(super) memh: sys::ucp_mem_h,
}

// SAFETY: the context's locks cover registration (`mt_workers_shared`); the handle itself is only passed along.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: mapped in `register`, unmapped once; operations that used it are over, because they own the buffer.
        let status = unsafe { self.context.ucx.ucp_mem_unmap(self.context.handle, self.memh) };
        if status != sys::ucs_status_t::UCS_OK {
            tracing::warn!(status = status.0, "ucx did not unmap memory");
        }
    }
}

impl Registrar for &'static Context {
    fn register(&self, memory: &[u8]) -> Option<Box<dyn Any + Send + Sync>> {
        if !self.has_device {
            return None;
        }
        // SAFETY: integers and pointers: zero is valid.
        let mut params: sys::ucp_mem_map_params_t = unsafe { mem::zeroed() };
        params.field_mask = u64::from(sys::UCP_MEM_MAP_PARAM_FIELD_ADDRESS | sys::UCP_MEM_MAP_PARAM_FIELD_LENGTH);
        params.address = memory.as_ptr().cast::<c_void>().cast_mut();
        params.length = memory.len();
        let mut memh = ptr::null_mut();
        // SAFETY: the memory exists and stays in place until the registration is dropped (contract of `Registrar`).
        let status = unsafe { self.ucx.ucp_mem_map(self.handle, &params, &mut memh) };
        if let Err(error) = status::check(self.ucx, "registering a pool buffer", status) {
            // Not fatal: UCX then registers on each use, or copies.
            tracing::warn!(%error, bytes = memory.len(), "pool memory is not registered");
            return None;
        }
        Some(Box::new(Registration { context: self, memh }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_hold_what_must_agree_in_a_fixed_order() {
        let env = [("UCX_TLS", "tcp"), ("UCX_SYSV_X", "2"), ("HOME", "/"), ("UCX_MM_ERROR_HANDLING", "y")];
        let pairs = |env: &[(&str, &str)]| {
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
        };
        let printed = settings((1, 13, 1), pairs(&env).into_iter());
        assert_eq!(printed, "ucx=1.13 error_handling=peer MM_ERROR_HANDLING=y SYSV_X=2");
        let mut other = env;
        other.reverse();
        assert_eq!(settings((1, 13, 9), pairs(&other).into_iter()), printed);
        // The published check value of 64-bit FNV-1a for "a".
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn versions_that_crash_are_known() {
        assert!(crashes((1, 16, 0), "n") && crashes((1, 19, 0), "No"));
        assert!(!crashes((1, 19, 0), "y") && !crashes((1, 19, 0), ""));
        assert!(!crashes((1, 13, 1), "n") && !crashes((1, 22, 0), "n"));
    }

    #[test]
    fn registrations_come_and_go() {
        let context = Context::get().expect("this test needs UCX");
        // Registers although there may be no device here: mapping works without one.
        let with_device = Box::leak(Box::new(Context {
            ucx: context.ucx,
            handle: context.handle,
            settings: String::new(),
            has_device: true,
            over_memory: false,
            ports: Ports::new(Path::new("/nowhere"), std::iter::empty()),
        }));
        let memory = vec![7_u8; 1 << 16];
        for _ in 0..100 {
            let registration = (&*with_device).register(&memory).expect("mapping host memory works everywhere");
            assert!(!registration.downcast_ref::<Registration>().expect("our type").memh.is_null());
        }
    }
}
