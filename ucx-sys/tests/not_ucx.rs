//! A library that is no UCX.
#![cfg(not(feature = "link"))]
mod util;

use ucx_sys::LoadError;

#[test]
fn another_library_is_refused() {
    // libc is there under this name on every glibc system.
    util::set("UCRPC_UCX_LIBRARY", "libc.so.6");
    let error = ucx_sys::load().expect_err("libc is no UCX");
    let LoadError::MissingSymbol { names, .. } = error else { panic!("{error:?}") };
    assert_eq!(names, &["ucp_get_version"]);
    assert_eq!(error.to_string(), "libc.so.6 lacks ucp_get_version");
}
