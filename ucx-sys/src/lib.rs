//! FFI bindings to UCX (UCP), loaded at run time by default.
