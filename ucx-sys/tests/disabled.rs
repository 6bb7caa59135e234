//! UCX switched off.
#![cfg(not(feature = "link"))]
mod util;

use ucx_sys::LoadError;

#[test]
fn none_switches_ucx_off() {
    util::set("UCRPC_UCX_LIBRARY", "none");
    let error = ucx_sys::load().expect_err("switched off");
    assert_eq!(*error, LoadError::Disabled);
    assert_eq!(error.to_string(), "ucx is switched off by UCRPC_UCX_LIBRARY=none");
    // The first outcome is kept, and nothing was touched.
    util::set("UCRPC_UCX_LIBRARY", "");
    assert!(std::ptr::eq(ucx_sys::load().expect_err("kept"), error));
    assert!(std::env::var_os("UCX_HANDLE_ERRORS").is_none());
}
