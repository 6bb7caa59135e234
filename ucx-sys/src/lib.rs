//! FFI bindings to UCX (UCP), loaded at run time by default.

mod error;
mod functions;
mod inline;
mod loader;
pub mod newer;
mod settings;
mod status;

/// bindgen's output.
mod bindings {
    #![allow(
        missing_docs,
        unreachable_pub,
        non_camel_case_types,
        non_upper_case_globals,
        non_snake_case,
        dead_code
    )]
    #![allow(clippy::all, clippy::use_self)]

    #[cfg(not(feature = "bindgen"))]
    include!("bindings.rs");
    #[cfg(feature = "bindgen")]
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::*;
pub use error::{Attempt, LoadError};
pub use inline::*;
pub use loader::{Ucx, load};
pub use settings::{Effect, Setting, Source};
