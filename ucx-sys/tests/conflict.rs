//! Another UCX than the one asked for is in the process.
#![cfg(not(feature = "link"))]
mod util;

use ucx_sys::LoadError;

#[test]
fn two_versions_in_one_process_are_refused() {
    // SAFETY: UCX's constructors may run at any time.
    let other = unsafe { libc::dlopen(c"libucs.so.0".as_ptr(), libc::RTLD_NOW) };
    assert!(!other.is_null(), "UCX is installed");
    util::set("UCRPC_UCX_LIBRARY", "/nonexistent/folder/libucp.so.0");
    let error = ucx_sys::load().expect_err("another one is there");
    let LoadError::Conflict { present, .. } = error else { panic!("{error:?}") };
    assert!(present.to_string_lossy().contains("libucs.so"), "{}", present.display());
    assert!(std::env::var_os("UCX_HANDLE_ERRORS").is_none());
}
