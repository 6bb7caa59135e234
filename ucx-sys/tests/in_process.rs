//! UCX was loaded by somebody else before us, without our settings.
#![cfg(not(feature = "link"))]
mod util;

use ucx_sys::{Effect, Source};

#[test]
fn what_can_be_made_good_is() {
    let library = std::env::var_os("UCRPC_UCX_LIBRARY")
        .map_or_else(|| "libucs.so.0".into(), |path| std::path::PathBuf::from(path).with_file_name("libucs.so.0"));
    let library = std::ffi::CString::new(library.into_os_string().into_encoded_bytes()).expect("no zero in a path");
    // SAFETY: UCX's constructors may run at any time.
    let other = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW) };
    assert!(!other.is_null(), "UCX is installed");
    assert!(util::file_of(util::handlers()[4]).contains("libucs"), "UCX takes SIGHUP by default");

    let ucx = ucx_sys::load().expect("UCX is installed");
    util::set("UCX_NO_SUCH_VARIABLE", "1");
    let output = util::stdout_of(|| util::use_ucx(ucx));
    assert!(!output.contains("UCX_NO_SUCH_VARIABLE"), "UCX complains about unused variables: {output}");
    assert!(ucx.was_in_process());
    for (signal, handler) in util::SIGNALS.iter().zip(util::handlers()) {
        assert!(!util::file_of(handler).contains("libucs"), "signal {signal} belongs to UCX");
    }
    let effect = |name: &str| {
        let setting = ucx.effective_defaults().iter().find(|setting| setting.name == name).expect("a default of ours");
        assert_eq!(setting.source, Source::OurDefault);
        setting.effect
    };
    assert_eq!(effect("UCX_DEBUG_SIGNO"), Effect::AtRunTime);
    assert_eq!(effect("UCX_WARN_UNUSED_ENV_VARS"), Effect::AtRunTime);
    assert_eq!(effect("UCX_LOG_FILE"), Effect::TooLate);
    assert_eq!(effect("UCX_TCP_TX_SEG_SIZE"), Effect::InTime);
}
