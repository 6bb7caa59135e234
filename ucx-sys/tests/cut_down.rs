//! A UCX that lacks functions; named by its folder.
#![cfg(not(feature = "link"))]
mod util;

use ucx_sys::LoadError;

#[test]
fn the_missing_functions_are_named() {
    let library = util::library(
        "cut_down",
        "#[unsafe(no_mangle)]
         unsafe extern \"C\" fn ucp_get_version(major: *mut u32, minor: *mut u32, release: *mut u32) {
             // SAFETY: the loader passes three integers of its own.
             unsafe { (*major, *minor, *release) = (1, 13, 0) }
         }",
    );
    let folder = library.parent().expect("it is in a folder");
    util::set("UCRPC_UCX_LIBRARY", folder.to_str().expect("the path is text"));
    let error = ucx_sys::load().expect_err("nearly all is missing");
    let LoadError::MissingSymbol { library: found, names } = error else { panic!("{error:?}") };
    assert_eq!(*found, library);
    assert!(names.contains(&"ucp_am_send_nbx") && names.len() > 50, "{names:?}");
    assert!(!names.contains(&"ucp_get_version"));
}
