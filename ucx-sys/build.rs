//! Does nothing by default. Feature `bindgen` regenerates the bindings from installed headers into `OUT_DIR`; feature `link` emits the
//! link flags of libucp. Both find UCX through `UCX_DIR` (an installation prefix) or through pkg-config.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(any(feature = "bindgen", feature = "link"))]
    {
        let ucx = locate::find();
        #[cfg(feature = "bindgen")]
        generate::bindings(&ucx);
        #[cfg(feature = "link")]
        locate::emit_link_flags(&ucx);
    }
}

#[cfg(any(feature = "bindgen", feature = "link"))]
mod locate {
    use std::path::PathBuf;

    /// The oldest UCX that these bindings describe.
    const MINIMUM_VERSION: &str = "1.13";

    pub(crate) struct Installation {
        #[cfg(feature = "bindgen")]
        pub(crate) include: Vec<PathBuf>,
        #[cfg(feature = "link")]
        pub(crate) lib: Vec<PathBuf>,
    }

    pub(crate) fn find() -> Installation {
        println!("cargo::rerun-if-env-changed=UCX_DIR");
        if let Some(prefix) = std::env::var_os("UCX_DIR") {
            let prefix = PathBuf::from(prefix);
            let header = prefix.join("include/ucp/api/ucp.h");
            assert!(
                header.is_file(),
                "UCX_DIR={} is no UCX installation: {} does not exist",
                prefix.display(),
                header.display()
            );
            println!("cargo::rerun-if-changed={}", header.display());
            return Installation {
                #[cfg(feature = "bindgen")]
                include: vec![prefix.join("include")],
                #[cfg(feature = "link")]
                lib: vec![prefix.join("lib")],
            };
        }
        // pkg-config prints rerun-if-env-changed for the variables it reads itself.
        let library = pkg_config::Config::new()
            .atleast_version(MINIMUM_VERSION)
            .cargo_metadata(false)
            .env_metadata(true)
            .probe("ucx")
            .unwrap_or_else(|error| {
                panic!(
                    "UCX {MINIMUM_VERSION} or newer is needed for the features `bindgen` and `link`, \
                     through pkg-config (package `ucx`) or UCX_DIR=PREFIX: {error}"
                )
            });
        Installation {
            #[cfg(feature = "bindgen")]
            include: library.include_paths,
            #[cfg(feature = "link")]
            lib: library.link_paths,
        }
    }

    #[cfg(feature = "link")]
    pub(crate) fn emit_link_flags(ucx: &Installation) {
        for path in &ucx.lib {
            println!("cargo::rustc-link-search=native={}", path.display());
        }
        for library in ["ucp", "ucs"] {
            println!("cargo::rustc-link-lib=dylib={library}");
        }
    }
}

#[cfg(feature = "bindgen")]
mod generate {
    use super::locate::Installation;
    use bindgen::callbacks::{DeriveTrait, ImplementsTrait, ParseCallbacks};
    use std::path::PathBuf;

    /// bindgen cannot see that libc's types can be copied.
    #[derive(Debug)]
    struct LibcTypes;

    impl ParseCallbacks for LibcTypes {
        fn blocklisted_type_implements_trait(&self, name: &str, derive: DeriveTrait) -> Option<ImplementsTrait> {
            let copy = matches!(derive, DeriveTrait::Copy) && name.contains("sockaddr");
            copy.then_some(ImplementsTrait::Yes)
        }
    }

    /// The C functions to bind.
    const FUNCTIONS: &str = concat!(
        "ucs_status_string|ucp_(",
        "get_version|get_version_string|lib_query|config_read|config_modify|config_print|config_release|",
        "init_version|cleanup|context_query|context_print_info|worker_create|worker_destroy|worker_query|",
        "worker_print_info|worker_get_address|worker_release_address|worker_address_query|worker_get_efd|",
        "worker_arm|worker_signal|worker_progress|worker_fence|worker_flush_nbx|",
        "worker_set_am_recv_handler|ep_create|ep_close_nbx|ep_query|ep_print_info|ep_flush_nbx|",
        "am_send_nbx|am_recv_data_nbx|am_data_release|request_check_status|request_free|request_cancel|",
        "request_query|listener_create|listener_query|listener_reject|listener_destroy|",
        "conn_request_query|mem_map|mem_unmap|mem_query|mem_print_info|rkey_pack|rkey_buffer_release|",
        "ep_rkey_unpack|rkey_ptr|rkey_destroy|put_nbx|get_nbx",
        ")",
    );

    pub(crate) fn bindings(ucx: &Installation) {
        println!("cargo::rerun-if-changed=wrapper.h");
        for variable in ["LIBCLANG_PATH", "LLVM_CONFIG_PATH", "CLANG_PATH", "BINDGEN_EXTRA_CLANG_ARGS"] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        bindgen::Builder::default()
            .header("wrapper.h")
            .clang_args(ucx.include.iter().map(|path| format!("-I{}", path.display())))
            // Exactly the functions of src/functions.rs (a test compares the two lists).
            .allowlist_function(FUNCTIONS)
            .allowlist_type("ucp_.*|ucs_status.*|ucs_thread_mode.*|ucs_memory_type.*|ucs_sock_addr.*")
            .allowlist_var("UCP_.*|UCS_.*")
            // libc has these, and two types of one name would not be the same type.
            .blocklist_type(
                "sockaddr|sockaddr_storage|sa_family_t|__socklen_t|socklen_t|FILE|_IO_.*|iovec|__off_t|__off64_t",
            )
            .raw_line("use libc::{FILE, sockaddr, sockaddr_storage, socklen_t};")
            // A newer library returns values that these headers do not name, so no Rust enums.
            .parse_callbacks(Box::new(LibcTypes))
            .newtype_enum("ucs_status_t")
            .no_debug("ucs_status_t")
            .default_enum_style(bindgen::EnumVariation::Consts)
            .prepend_enum_name(false)
            .generate_comments(false)
            .derive_default(false)
            .derive_debug(true)
            .layout_tests(true)
            .rust_target(bindgen::RustTarget::stable(82, 0).unwrap_or_default())
            .rust_edition(bindgen::RustEdition::Edition2021)
            .use_core()
            .formatter(bindgen::Formatter::Prettyplease)
            .generate()
            .expect("bindgen could not read UCX's headers")
            .write_to_file(out.join("bindings.rs"))
            .expect("OUT_DIR is writable");
    }
}
