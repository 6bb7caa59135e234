//! Looking at the process from outside UCX.
#![allow(dead_code, unreachable_pub)]

use std::ffi::{CStr, c_int, c_void};
use std::io::Read;
use std::os::fd::FromRawFd;

/// The signals that UCX takes unless told not to.
pub const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGHUP];

/// The handler of each of [`SIGNALS`].
pub fn handlers() -> [usize; 5] {
    SIGNALS.map(|signal| {
        // SAFETY: all zero is a valid sigaction; a null new action only reads.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            assert_eq!(libc::sigaction(signal, std::ptr::null(), &mut action), 0);
            action.sa_sigaction
        }
    })
}

/// The file whose code is at `address`, or an empty string.
pub fn file_of(address: usize) -> String {
    // SAFETY: dladdr takes any address; the name it gives lives as long as the library, which is not unloaded here.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(address as *const c_void, &mut info) == 0 || info.dli_fname.is_null() {
            return String::new();
        }
        CStr::from_ptr(info.dli_fname).to_string_lossy().into_owned()
    }
}

/// The first bytes of the code of libc's memory calls.
pub fn memory_calls() -> Vec<(&'static CStr, [u8; 32])> {
    [c"mmap", c"munmap", c"mremap", c"madvise", c"brk", c"sbrk", c"shmat", c"shmdt"]
        .into_iter()
        .map(|name| {
            // SAFETY: dlsym with a constant name; the code of these functions is longer than the 32 bytes that are read, or is
            // followed by other code of libc.
            unsafe {
                let address = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
                assert!(!address.is_null(), "{name:?}");
                (name, address.cast::<[u8; 32]>().read())
            }
        })
        .collect()
}

/// Sets a variable before UCX is loaded.
pub fn set(name: &str, value: &str) {
    // SAFETY: called first in the only test of its process; the test harness's other thread does not read the environment.
    unsafe { std::env::set_var(name, value) }
}

/// Makes a context, a worker and its address, and destroys them: the first use of UCX, where it reads the rest of its settings.
pub fn use_ucx(ucx: &ucx_sys::Ucx) {
    use ucx_sys::*;
    // SAFETY: all zero is valid for these structures, the masks name what is set, and everything is destroyed in order, once.
    unsafe {
        let mut params: ucp_params_t = std::mem::zeroed();
        params.field_mask = u64::from(UCP_PARAM_FIELD_FEATURES);
        params.features = u64::from(UCP_FEATURE_AM | UCP_FEATURE_WAKEUP | UCP_FEATURE_RMA);
        let mut config = std::ptr::null_mut();
        assert_eq!(ucx.ucp_config_read(std::ptr::null(), std::ptr::null(), &mut config), ucs_status_t::UCS_OK);
        let mut context = std::ptr::null_mut();
        assert_eq!(ucx.ucp_init(&params, config, &mut context), ucs_status_t::UCS_OK);
        ucx.ucp_config_release(config);
        let mut worker_params: ucp_worker_params_t = std::mem::zeroed();
        worker_params.field_mask = u64::from(UCP_WORKER_PARAM_FIELD_THREAD_MODE);
        worker_params.thread_mode = UCS_THREAD_MODE_SINGLE;
        let mut worker = std::ptr::null_mut();
        assert_eq!(ucx.ucp_worker_create(context, &worker_params, &mut worker), ucs_status_t::UCS_OK);
        let (mut address, mut length) = (std::ptr::null_mut(), 0);
        assert_eq!(ucx.ucp_worker_get_address(worker, &mut address, &mut length), ucs_status_t::UCS_OK);
        assert!(length > 0);
        ucx.ucp_worker_release_address(worker, address);
        ucx.ucp_worker_progress(worker);
        ucx.ucp_worker_destroy(worker);
        ucx.ucp_cleanup(context);
    }
}

/// What `run` writes on file descriptor 1, below Rust's own buffering and capturing.
pub fn stdout_of(run: impl FnOnce()) -> String {
    let mut fds = [0; 2];
    // SAFETY: plain descriptor calls on descriptors of ours; 1 is restored before this returns.
    let mut reader = unsafe {
        assert_eq!(libc::pipe(fds.as_mut_ptr()), 0);
        let saved = libc::dup(1);
        assert!(saved >= 0 && libc::dup2(fds[1], 1) == 1);
        libc::close(fds[1]);
        run();
        // C's stdio holds output back when it goes into a pipe.
        libc::fflush(std::ptr::null_mut());
        assert_eq!(libc::dup2(saved, 1), 1);
        libc::close(saved);
        std::fs::File::from_raw_fd(fds[0])
    };
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("the pipe has no writer left");
    text
}

/// Whether this machine has an RDMA device or a GPU.
pub fn has_rdma_or_gpu() -> bool {
    let rdma = std::fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some());
    rdma || ["/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd"].iter().any(|path| std::path::Path::new(path).exists())
}

/// Compiles `source` into a shared library of this name, which stands in for a UCX that this machine does not have; returns its path.
pub fn library(name: &str, source: &str) -> std::path::PathBuf {
    let folder = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).expect("the target folder can be written to");
    let (file, library) = (folder.join("lib.rs"), folder.join("libucp.so.0"));
    std::fs::write(&file, source).expect("the target folder can be written to");
    let output = std::process::Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
        .arg(&library)
        .arg(&file)
        .output()
        .expect("rustc runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}
