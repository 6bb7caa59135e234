//! Loading leaves the process as it was. One test: the state is the process's, so no other test may run beside it.
mod util;

use ucx_sys::{Effect, ucs_status_t};
use util::stdout_of;

#[test]
fn the_process_stays_as_it_was() {
    let control = stdout_of(|| {
        // SAFETY: a constant C string.
        unsafe { assert!(libc::puts(c"control".as_ptr()) >= 0) }
    });
    assert!(control.contains("control"));
    // A misspelt transport makes UCX warn, so that the check of stdout has something to catch.
    util::set("UCX_TLS", "self,tcp,sm,nonsense");
    let (handlers, memory) = (util::handlers(), util::memory_calls());

    let mut loaded = None;
    let output = stdout_of(|| {
        let ucx = ucx_sys::load().expect("UCX is installed");
        util::use_ucx(ucx);
        loaded = Some(ucx);
    });
    let ucx = loaded.expect("set above");
    let log_file =
        ucx.effective_defaults().iter().find(|setting| setting.name == "UCX_LOG_FILE").expect("a default of ours");
    if cfg!(not(feature = "link")) {
        assert_eq!(output, "", "UCX wrote on stdout");
    } else {
        // Linked, UCX opened its log before `main`. That must be said, and be true.
        assert_eq!(log_file.effect, Effect::TooLate);
        assert!(output.contains("nonsense"), "{output}");
    }

    for (signal, handler) in util::SIGNALS.iter().zip(util::handlers()) {
        assert!(!util::file_of(handler).contains("libucs"), "signal {signal} belongs to UCX");
    }
    if cfg!(not(feature = "link")) {
        assert_eq!(util::handlers(), handlers);
        assert!(!ucx.was_in_process());
        // Where there is a device whose driver needs them, the hooks are wanted.
        if !util::has_rdma_or_gpu() {
            assert_eq!(util::memory_calls(), memory, "libc's code was patched");
        }
    } else {
        assert!(ucx.was_in_process());
    }

    // Again, and from several threads: one and the same.
    let again = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| ucx_sys::load().expect("loaded before"))).collect();
        threads.into_iter().all(|thread| std::ptr::eq(thread.join().expect("no panic"), ucx))
    });
    assert!(again);

    assert!(ucx.at_least(1, 13) && !ucx.at_least(2, 0));
    let (major, minor, release) = ucx.version();
    assert!(ucx.version_string().starts_with(&format!("{major}.{minor}.{release}")), "{}", ucx.version_string());
    assert!(ucx.path().file_name().is_some_and(|name| name.to_string_lossy().starts_with("libucp.so")));
    assert_eq!(ucx.max_thread_level(), Ok(ucx_sys::UCS_THREAD_MODE_MULTI));
    let info = ucx.build_info();
    assert_eq!(info.multi_threaded, Some(true));
    assert!(info.assertions.is_some());
    assert_eq!(ucx.missing_optional_symbols().contains(&"ucp_memh_pack"), ucx.ucp_memh_pack().is_none());
    assert!(ucx.ucp_memh_pack().is_some() || !ucx.at_least(1, 16), "1.16 has ucp_memh_pack");
    assert_eq!(ucx.status_string(ucs_status_t::UCS_OK), Some("Success"));
    assert_eq!(ucx.status_string(ucs_status_t(-77)), None);
    for code in (-128..0).map(ucs_status_t) {
        let text = ucx.status_string(code);
        assert!(text.is_none_or(|text| !text.contains("Unknown")), "{code:?}: {text:?}");
    }
}
