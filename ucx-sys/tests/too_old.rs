//! A UCX older than the bindings.
#![cfg(not(feature = "link"))]
mod util;

use ucx_sys::LoadError;

#[test]
fn an_old_ucx_is_refused() {
    let library = util::library(
        "too_old",
        "#[unsafe(no_mangle)]
         unsafe extern \"C\" fn ucp_get_version(major: *mut u32, minor: *mut u32, release: *mut u32) {
             // SAFETY: the loader passes three integers of its own.
             unsafe { (*major, *minor, *release) = (1, 12, 7) }
         }",
    );
    util::set("UCRPC_UCX_LIBRARY", library.to_str().expect("the path is text"));
    let error = ucx_sys::load().expect_err("1.12 is too old");
    assert_eq!(*error, LoadError::TooOld { found: (1, 12, 7) });
    assert_eq!(error.to_string(), "ucx 1.12.7 is too old, 1.13 is needed");
    assert!(std::env::var_os("UCX_HANDLE_ERRORS").is_none());
}
