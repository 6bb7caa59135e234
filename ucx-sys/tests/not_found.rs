//! A path without a library.
#![cfg(not(feature = "link"))]
mod util;

use std::path::Path;
use ucx_sys::LoadError;

#[test]
fn a_wrong_path_is_named() {
    let path = "/nonexistent/folder/libucp.so.0";
    util::set("UCRPC_UCX_LIBRARY", path);
    util::set("UCX_LOG_FILE", "stderr");
    let error = ucx_sys::load().expect_err("there is no such file");
    let LoadError::NotFound { tried } = error else { panic!("{error:?}") };
    assert_eq!(tried.len(), 1);
    assert_eq!(tried[0].library, Path::new(path));
    assert!(tried[0].reason.contains("No such file"), "{}", tried[0].reason);
    assert!(error.to_string().starts_with("ucx was not found (/nonexistent/"), "{error}");
    // Our settings were taken back, the user's were not.
    assert!(std::env::var_os("UCX_HANDLE_ERRORS").is_none());
    assert_eq!(std::env::var("UCX_LOG_FILE").as_deref(), Ok("stderr"));
}
