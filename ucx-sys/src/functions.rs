//! The table of C functions: one pointer each, found once, so that a call costs one indirect jump.

use crate::bindings::*;
use core::ffi::{c_char, c_int, c_uint, c_void};
use libc::FILE;

/// Where to look a symbol up: its address, or `None` if the library does not have it.
pub(crate) type Lookup<'a> = &'a dyn Fn(&'static str) -> Option<*mut c_void>;

macro_rules! function_table {
    (
        required { $(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)* }
        optional { $($(#[$doc:meta])* fn $opt:ident($($oarg:ident: $oty:ty),*) $(-> $oret:ty)?;)* }
    ) => {
        /// The functions of UCX, resolved.
        pub(crate) struct Functions {
            $(#[cfg_attr(feature = "link", allow(dead_code))] $name: unsafe extern "C" fn($($ty),*) $(-> $ret)?,)*
            $($opt: Option<unsafe extern "C" fn($($oty),*) $(-> $oret)?>,)*
        }

        // The table's types are written by hand; this compares each with what bindgen read in the header.
        $(const _: unsafe extern "C" fn($($ty),*) $(-> $ret)? = crate::bindings::$name;)*

        impl Functions {
            /// Names of all functions without which UCX cannot be used: those of UCX 1.13 that this crate offers.
            pub(crate) const REQUIRED: &'static [&'static str] = &[$(stringify!($name)),*];

            /// Looks all functions up. The error holds every required name that is missing.
            pub(crate) fn resolve(lookup: Lookup<'_>) -> Result<Self, Vec<&'static str>> {
                let missing: Vec<_> =
                    Self::REQUIRED.iter().copied().filter(|name| lookup(name).is_none()).collect();
                $(let $name = lookup(stringify!($name));)*
                let ($(Some($name),)*) = ($($name,)*) else {
                    return Err(missing);
                };
                Ok(Self {
                    // SAFETY: the address is that of the C function of this name in a libucp of the 1.x series, whose ABI only
                    // grows; its type was compared with the header above.
                    $($name: unsafe { core::mem::transmute::<*mut c_void, unsafe extern "C" fn($($ty),*) $(-> $ret)?>($name) },)*
                    $($opt: lookup(stringify!($opt)).map(|address| {
                        // SAFETY: as above; the type is that of the newer header, or of libucs.
                        unsafe { core::mem::transmute::<*mut c_void, unsafe extern "C" fn($($oty),*) $(-> $oret)?>(address) }
                    }),)*
                })
            }

            /// Names of the optional functions that were not found.
            pub(crate) fn missing_optional(&self) -> Vec<&'static str> {
                let mut missing = Vec::new();
                $(if self.$opt.is_none() {
                    missing.push(stringify!($opt));
                })*
                missing
            }
        }

        /// The C functions, under their C names. What each one's pointers must be, who owns its buffers and which thread may call it:
        /// UCX's API documentation and `bindings.md`.
        impl crate::Ucx {
            $(
                #[doc = concat!("Calls `", stringify!($name), "`.")]
                ///
                /// # Safety
                ///
                /// The contract of the C function of this name (`bindings.md`).
                #[inline(always)]
                #[allow(clippy::too_many_arguments)]
                pub unsafe fn $name(&self, $($arg: $ty),*) $(-> $ret)? {
                    #[cfg(not(feature = "link"))]
                    // SAFETY: the pointer was resolved by name from a library that is never unloaded; the caller keeps the C contract.
                    unsafe {
                        (self.functions.$name)($($arg),*)
                    }
                    #[cfg(feature = "link")]
                    // SAFETY: the caller keeps the C contract.
                    unsafe {
                        crate::bindings::$name($($arg),*)
                    }
                }
            )*
            $(
                $(#[$doc])*
                #[inline]
                pub fn $opt(&self) -> Option<unsafe extern "C" fn($($oarg: $oty),*) $(-> $oret)?> {
                    self.functions.$opt
                }
            )*
        }
    };
}

function_table! {
    required {
        fn ucs_status_string(status: ucs_status_t) -> *const c_char;
        fn ucp_lib_query(attr: *mut ucp_lib_attr_t) -> ucs_status_t;
        fn ucp_config_read(env_prefix: *const c_char, filename: *const c_char, config_p: *mut *mut ucp_config_t) -> ucs_status_t;
        fn ucp_config_release(config: *mut ucp_config_t);
        fn ucp_config_modify(config: *mut ucp_config_t, name: *const c_char, value: *const c_char) -> ucs_status_t;
        fn ucp_config_print(config: *const ucp_config_t, stream: *mut FILE, title: *const c_char, print_flags: ucs_config_print_flags_t);
        fn ucp_get_version(major_version: *mut c_uint, minor_version: *mut c_uint, release_number: *mut c_uint);
        fn ucp_get_version_string() -> *const c_char;
        fn ucp_init_version(api_major_version: c_uint, api_minor_version: c_uint, params: *const ucp_params_t, config: *const ucp_config_t, context_p: *mut ucp_context_h) -> ucs_status_t;
        fn ucp_cleanup(context_p: ucp_context_h);
        fn ucp_context_query(context_p: ucp_context_h, attr: *mut ucp_context_attr_t) -> ucs_status_t;
        fn ucp_context_print_info(context: ucp_context_h, stream: *mut FILE);
        fn ucp_worker_create(context: ucp_context_h, params: *const ucp_worker_params_t, worker_p: *mut ucp_worker_h) -> ucs_status_t;
        fn ucp_worker_destroy(worker: ucp_worker_h);
        fn ucp_worker_query(worker: ucp_worker_h, attr: *mut ucp_worker_attr_t) -> ucs_status_t;
        fn ucp_worker_print_info(worker: ucp_worker_h, stream: *mut FILE);
        fn ucp_worker_get_address(worker: ucp_worker_h, address_p: *mut *mut ucp_address_t, address_length_p: *mut usize) -> ucs_status_t;
        fn ucp_worker_release_address(worker: ucp_worker_h, address: *mut ucp_address_t);
        fn ucp_worker_address_query(address: *mut ucp_address_t, attr: *mut ucp_worker_address_attr_t) -> ucs_status_t;
        fn ucp_worker_progress(worker: ucp_worker_h) -> c_uint;
        fn ucp_worker_get_efd(worker: ucp_worker_h, fd: *mut c_int) -> ucs_status_t;
        fn ucp_worker_arm(worker: ucp_worker_h) -> ucs_status_t;
        fn ucp_worker_signal(worker: ucp_worker_h) -> ucs_status_t;
        fn ucp_listener_create(worker: ucp_worker_h, params: *const ucp_listener_params_t, listener_p: *mut ucp_listener_h) -> ucs_status_t;
        fn ucp_listener_destroy(listener: ucp_listener_h);
        fn ucp_listener_query(listener: ucp_listener_h, attr: *mut ucp_listener_attr_t) -> ucs_status_t;
        fn ucp_conn_request_query(conn_request: ucp_conn_request_h, attr: *mut ucp_conn_request_attr_t) -> ucs_status_t;
        fn ucp_request_query(request: *mut c_void, attr: *mut ucp_request_attr_t) -> ucs_status_t;
        fn ucp_ep_create(worker: ucp_worker_h, params: *const ucp_ep_params_t, ep_p: *mut ucp_ep_h) -> ucs_status_t;
        fn ucp_ep_close_nbx(ep: ucp_ep_h, param: *const ucp_request_param_t) -> ucs_status_ptr_t;
        fn ucp_listener_reject(listener: ucp_listener_h, conn_request: ucp_conn_request_h) -> ucs_status_t;
        fn ucp_ep_print_info(ep: ucp_ep_h, stream: *mut FILE);
        fn ucp_ep_flush_nbx(ep: ucp_ep_h, param: *const ucp_request_param_t) -> ucs_status_ptr_t;
        fn ucp_mem_map(context: ucp_context_h, params: *const ucp_mem_map_params_t, memh_p: *mut ucp_mem_h) -> ucs_status_t;
        fn ucp_mem_unmap(context: ucp_context_h, memh: ucp_mem_h) -> ucs_status_t;
        fn ucp_mem_query(memh: ucp_mem_h, attr: *mut ucp_mem_attr_t) -> ucs_status_t;
        fn ucp_mem_print_info(mem_size: *const c_char, context: ucp_context_h, stream: *mut FILE);
        fn ucp_rkey_pack(context: ucp_context_h, memh: ucp_mem_h, rkey_buffer_p: *mut *mut c_void, size_p: *mut usize) -> ucs_status_t;
        fn ucp_rkey_buffer_release(rkey_buffer: *mut c_void);
        fn ucp_ep_rkey_unpack(ep: ucp_ep_h, rkey_buffer: *const c_void, rkey_p: *mut ucp_rkey_h) -> ucs_status_t;
        fn ucp_rkey_ptr(rkey: ucp_rkey_h, raddr: u64, addr_p: *mut *mut c_void) -> ucs_status_t;
        fn ucp_rkey_destroy(rkey: ucp_rkey_h);
        fn ucp_worker_set_am_recv_handler(worker: ucp_worker_h, param: *const ucp_am_handler_param_t) -> ucs_status_t;
        fn ucp_am_send_nbx(ep: ucp_ep_h, id: c_uint, header: *const c_void, header_length: usize, buffer: *const c_void, count: usize, param: *const ucp_request_param_t) -> ucs_status_ptr_t;
        fn ucp_am_recv_data_nbx(worker: ucp_worker_h, data_desc: *mut c_void, buffer: *mut c_void, count: usize, param: *const ucp_request_param_t) -> ucs_status_ptr_t;
        fn ucp_am_data_release(worker: ucp_worker_h, data: *mut c_void);
        fn ucp_put_nbx(ep: ucp_ep_h, buffer: *const c_void, count: usize, remote_addr: u64, rkey: ucp_rkey_h, param: *const ucp_request_param_t) -> ucs_status_ptr_t;
        fn ucp_get_nbx(ep: ucp_ep_h, buffer: *mut c_void, count: usize, remote_addr: u64, rkey: ucp_rkey_h, param: *const ucp_request_param_t) -> ucs_status_ptr_t;
        fn ucp_request_check_status(request: *mut c_void) -> ucs_status_t;
        fn ucp_request_cancel(worker: ucp_worker_h, request: *mut c_void);
        fn ucp_request_free(request: *mut c_void);
        fn ucp_worker_fence(worker: ucp_worker_h) -> ucs_status_t;
        fn ucp_worker_flush_nbx(worker: ucp_worker_h, param: *const ucp_request_param_t) -> ucs_status_ptr_t;
        fn ucp_ep_query(ep: ucp_ep_h, attr: *mut ucp_ep_attr_t) -> ucs_status_t;
    }
    optional {
        /// `ucp_memh_pack`, newer than UCX 1.13.
        fn ucp_memh_pack(memh: ucp_mem_h, params: *const crate::newer::ucp_memh_pack_params_t, buffer: *mut *mut c_void, size: *mut usize) -> ucs_status_t;
        /// `ucp_memh_buffer_release`, newer than UCX 1.13.
        fn ucp_memh_buffer_release(buffer: *mut c_void, params: *const crate::newer::ucp_memh_buffer_release_params_t);
        /// `ucp_rkey_compare`, newer than UCX 1.13.
        fn ucp_rkey_compare(worker: ucp_worker_h, rkey1: ucp_rkey_h, rkey2: ucp_rkey_h, params: *const crate::newer::ucp_rkey_compare_params_t, result: *mut c_int) -> ucs_status_t;
        /// `ucs_debug_disable_signal` of libucs: gives one signal back that UCX took at load time.
        fn ucs_debug_disable_signal(signal: c_int);
        /// `ucs_global_opts_set_value` of libucs: changes a global setting (`LOG_FILE`, `LOG_LEVEL`) of the running library.
        fn ucs_global_opts_set_value(name: *const c_char, value: *const c_char) -> ucs_status_t;
    }
}

#[cfg(test)]
mod tests {
    use super::Functions;

    /// bindgen's list (build.rs) and the table are one list.
    #[test]
    fn the_table_holds_every_generated_function() {
        let generated: Vec<_> = include_str!("bindings.rs")
            .lines()
            .filter_map(|line| Some(line.strip_prefix("    pub fn ")?.split_once('(')?.0))
            .collect();
        assert_eq!(generated, Functions::REQUIRED);
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = Functions::resolve(&|_| None).err().expect("nothing can be found");
        assert_eq!(missing, Functions::REQUIRED);
        let address = core::ptr::dangling_mut();
        let missing = Functions::resolve(&|name| (name != "ucp_worker_arm").then_some(address)).err();
        assert_eq!(missing, Some(vec!["ucp_worker_arm"]));
        let found = Functions::resolve(&|name| (name != "ucp_memh_pack").then_some(address)).ok();
        assert_eq!(found.map(|functions| functions.missing_optional()), Some(vec!["ucp_memh_pack"]));
    }

    /// bindings.md has one row for every function.
    #[test]
    fn every_function_is_documented() {
        let rows: Vec<&str> = include_str!("../bindings.md")
            .lines()
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once(" | ")?.0))
            .flat_map(|names| names.split('`').filter(|name| name.starts_with("uc")))
            .filter(|name| *name != "ucp_init")
            .collect();
        let optional =
            Functions::resolve(&|name| Functions::REQUIRED.contains(&name).then_some(core::ptr::dangling_mut()));
        let mut functions = Functions::REQUIRED.to_vec();
        functions.extend(optional.map(|found| found.missing_optional()).expect("all required are there"));
        for name in &functions {
            assert_eq!(rows.iter().filter(|row| *row == name).count(), 1, "{name}");
        }
        assert_eq!(rows.len(), functions.len());
    }
}
