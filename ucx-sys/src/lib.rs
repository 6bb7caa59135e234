//! FFI bindings to UCX (UCP), loaded at run time by default.
//!
//! A build needs no UCX, no headers and no libclang, and the program runs where no UCX is installed: [`load`] then says why.
//!
//! ```
//! match ucx_sys::load() {
//!     Ok(ucx) => {
//!         println!("UCX {} from {}", ucx.version_string(), ucx.path().display());
//!         for setting in ucx.effective_defaults() {
//!             println!("{setting}");
//!         }
//!         // Every C function is an unsafe method of the same name.
//!         let mut config = std::ptr::null_mut();
//!         // SAFETY: null stands for UCX's own prefix and files, and the config is released once.
//!         unsafe {
//!             let status = ucx.ucp_config_read(std::ptr::null(), std::ptr::null(), &mut config);
//!             assert_eq!(status, ucx_sys::ucs_status_t::UCS_OK, "{status}");
//!             ucx.ucp_config_release(config);
//!         }
//!     }
//!     Err(error) => println!("going on without UCX: {error}"),
//! }
//! ```
//!
//! `cargo run -p ucx-sys --example settings` prints the version, the build, what is missing and the settings of this machine.
//!
//! # Versions
//!
//! The bindings are bindgen's output for the headers of UCX 1.13, committed; later 1.x versions only append to structures, so a program
//! runs on them unchanged. Always zero a structure before filling it. What is newer stands in [`newer`]: ask [`Ucx::at_least`] first.
//! Statuses and enums are integers with constants, never Rust enums, since a newer library returns values that 1.13 does not name.
//!
//! # Settings
//!
//! UCX reads its settings from the environment, some of them while it is being loaded: it takes signal handlers, patches libc's memory
//! calls and logs to stdout, unless told not to. [`load`] therefore puts defaults of ours into the environment first, each **only if the
//! user has not set** that variable or an alias of it; [`Ucx::effective_defaults`] lists the outcome. What this means:
//!
//! - The first call of [`load`] changes the environment: see its thread rules. Child processes inherit the settings, and in
//!   them, they look like the user's.
//! - If no UCX can be loaded, the environment is put back as it was.
//! - Variables stand above `ucx.conf` in UCX, and we do not read that file (UCX looks in its own `etc/ucx`, `$HOME`, `$UCX_CONFIG_DIR` and the current
//!   folder). A line in it does **not** win over a default of ours; a variable does.
//! - If UCX was in the process before (feature `link`, `LD_PRELOAD`, an MPI library), the settings come too late for some things. Signals are given
//!   back by calls; the stream of the log and the memory hooks cannot be changed any more: [`Effect`].
//!
//! # Environment
//!
//! | variable | meaning |
//! |---|---|
//! | `UCRPC_UCX_LIBRARY` | the path of a libucp, the folder that holds it and its siblings, or `none` to switch UCX off; ignored with feature `link`, except for `none` |
//! | `UCX_DIR` | at build time, with feature `bindgen` or `link`: the prefix of the UCX to use, instead of pkg-config's `ucx` |
//!
//! # Features
//!
//! | feature | meaning |
//! |---|---|
//! | (none) | load UCX at run time |
//! | `link` | link libucp and libucs at build time; the same methods, without the indirect call |
//! | `bindgen` | regenerate the bindings from the installed headers; needs libclang |
//!
//! Who owns which buffer, and which thread may call what: `bindings.md` beside the sources.

mod build_info;
mod error;
mod functions;
mod inline;
mod loader;
pub mod newer;
mod settings;
mod status;

/// bindgen's output.
mod bindings {
    #![allow(missing_docs, unreachable_pub, non_camel_case_types, non_upper_case_globals, non_snake_case, dead_code)]
    #![allow(clippy::all, clippy::use_self)]

    #[cfg(not(feature = "bindgen"))]
    include!("bindings.rs");
    #[cfg(feature = "bindgen")]
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::*;
pub use build_info::BuildInfo;
pub use error::{Attempt, LoadError};
pub use inline::*;
pub use loader::{Ucx, load};
pub use settings::{Effect, Setting, Source, our_default};
