//! What the user has set stands, and acts. This also shows that the checks of `load.rs` would see UCX's hand.
mod util;

use ucx_sys::Source;

#[test]
fn the_user_wins() {
    let user = [
        ("UCX_HANDLE_ERRORS", "bt"),
        ("UCX_DEBUG_SIGNO", "SIGHUP"),
        ("UCX_MEM_EVENTS", "y"),
        ("UCX_MEM_MMAP_HOOK_MODE", "bistro"),
        ("UCX_SYSV_ERROR_HANDLING", "n"),
    ];
    for (name, value) in user {
        util::set(name, value);
    }
    let memory = util::memory_calls();
    let ucx = ucx_sys::load().expect("UCX is installed");
    util::use_ucx(ucx);

    for (name, value) in user {
        assert_eq!(std::env::var(name).as_deref(), Ok(value));
    }
    assert!(std::env::var_os("UCX_MM_ERROR_HANDLING").is_none());
    assert_eq!(std::env::var("UCX_KEEPALIVE_INTERVAL").as_deref(), Ok("1s"));
    let alias = ucx.effective_defaults().iter().find(|setting| setting.name == "UCX_SYSV_ERROR_HANDLING");
    assert_eq!(alias.map(|setting| setting.source), Some(Source::User));
    if cfg!(not(feature = "link")) {
        for (signal, handler) in util::SIGNALS.iter().zip(util::handlers()) {
            assert!(util::file_of(handler).contains("libucs"), "signal {signal}: {}", util::file_of(handler));
        }
        assert_ne!(util::memory_calls(), memory, "nothing was patched, so load.rs proves nothing");
    }
}
