//! What is newer than UCX 1.13, declared by hand. Give none of these to a library that is older than the version stated: it ignores
//! flags and mask bits that it does not know without a word. [`Ucx::at_least`](crate::Ucx::at_least) tells.

use core::ffi::{c_char, c_uint};

/// UCX 1.14: `ucp_am_send_nbx` copies the header, so that it need not outlive the call.
///
/// UCX 1.13 ignores the flag silently and then reads a header that may be gone.
pub const UCP_AM_SEND_FLAG_COPY_HEADER: c_uint = 1 << 3;

/// UCX 1.14: `ucp_mem_map` imports a memory handle that another process exported.
pub const UCP_MEM_MAP_PARAM_FIELD_EXPORTED_MEMH_BUFFER: u64 = 1 << 5;

/// UCX 1.14: `ucp_memh_pack` packs for a peer to import, not for remote access.
pub const UCP_MEMH_PACK_FLAG_EXPORT: u64 = 1;

/// UCX 1.14: `ucp_memh_pack_params_t::flags` is valid.
pub const UCP_MEMH_PACK_PARAM_FIELD_FLAGS: u64 = 1;

/// The parameters of `ucp_memh_pack`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(non_camel_case_types)]
pub struct ucp_memh_pack_params_t {
    /// Which of the other fields are valid.
    pub field_mask: u64,
    /// `UCP_MEMH_PACK_FLAG_*`.
    pub flags: u64,
}

/// The parameters of `ucp_memh_buffer_release`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(non_camel_case_types)]
pub struct ucp_memh_buffer_release_params_t {
    /// No bit is defined yet: zero.
    pub field_mask: u64,
}

/// The parameters of `ucp_rkey_compare`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(non_camel_case_types)]
pub struct ucp_rkey_compare_params_t {
    /// No bit is defined yet: zero.
    pub field_mask: u64,
}

/// UCX 1.14: `ucp_ep_query` fills [`ucp_ep_attr_1_14_t::transports`].
pub const UCP_EP_ATTR_FIELD_TRANSPORTS: u64 = 1 << 3;

/// One lane of an endpoint; both strings live as long as the endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(non_camel_case_types)]
pub struct ucp_transport_entry_t {
    /// The transport, for instance `tcp`.
    pub transport_name: *const c_char,
    /// The device, for instance `eth0`.
    pub device_name: *const c_char,
}

/// The array that `ucp_ep_query` fills with the lanes of an endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(non_camel_case_types)]
pub struct ucp_transports_t {
    /// The caller's array.
    pub entries: *mut ucp_transport_entry_t,
    /// In: entries in the array. Out: entries filled.
    pub num_entries: c_uint,
    /// Bytes per entry: `size_of::<ucp_transport_entry_t>()`.
    pub entry_size: usize,
}

/// `ucp_ep_attr_t` as of UCX 1.14. Its head is the structure of 1.13, so a cast of the pointer passes it to `ucp_ep_query`.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, missing_debug_implementations)]
pub struct ucp_ep_attr_1_14_t {
    /// The structure of UCX 1.13.
    pub base: crate::ucp_ep_attr_t,
    /// The lanes, with [`UCP_EP_ATTR_FIELD_TRANSPORTS`].
    pub transports: ucp_transports_t,
}
