//! UCX's function-like macros and static inline functions, which are in no library.

use crate::Ucx;
use crate::bindings::{
    UCP_API_MAJOR, UCP_API_MINOR, UCP_DATATYPE_CONTIG, UCP_DATATYPE_IOV, UCP_DATATYPE_SHIFT, ucp_config_t,
    ucp_context_h, ucp_datatype_t, ucp_params_t, ucs_status_ptr_t, ucs_status_t,
};

/// The smallest address that is an error: `UCS_ERR_LAST` as the C cast to `uintptr_t` makes it.
const FIRST_ERROR: usize = ucs_status_t::UCS_ERR_LAST.0 as isize as usize;

/// Whether what a `_nbx` call returned is an error; the operation was then not started.
#[inline]
#[allow(non_snake_case)]
pub fn UCS_PTR_IS_ERR(pointer: ucs_status_ptr_t) -> bool {
    pointer as usize >= FIRST_ERROR
}

/// Whether what a `_nbx` call returned is a request, neither null (completed at once) nor an error.
#[inline]
#[allow(non_snake_case)]
pub fn UCS_PTR_IS_PTR(pointer: ucs_status_ptr_t) -> bool {
    (pointer as usize).wrapping_sub(1) < FIRST_ERROR - 1
}

/// The status behind an error pointer or null; what it means for a request is [`UCS_PTR_STATUS`]'s matter.
#[inline]
#[allow(non_snake_case)]
pub fn UCS_PTR_RAW_STATUS(pointer: ucs_status_ptr_t) -> ucs_status_t {
    // The C cast to the 8-bit enum truncates in the same way.
    ucs_status_t(pointer as usize as core::ffi::c_schar)
}

/// The status of what a `_nbx` call returned: `UCS_INPROGRESS` for a request, else `UCS_OK` or the error.
#[inline]
#[allow(non_snake_case)]
pub fn UCS_PTR_STATUS(pointer: ucs_status_ptr_t) -> ucs_status_t {
    if UCS_PTR_IS_PTR(pointer) { ucs_status_t::UCS_INPROGRESS } else { UCS_PTR_RAW_STATUS(pointer) }
}

/// The pointer that a `_nbx` call would return for this status.
#[inline]
#[allow(non_snake_case)]
pub fn UCS_STATUS_PTR(status: ucs_status_t) -> ucs_status_ptr_t {
    status.0 as isize as ucs_status_ptr_t
}

/// Whether the status says that a link failed.
#[inline]
#[allow(non_snake_case)]
pub fn UCS_IS_LINK_ERROR(status: ucs_status_t) -> bool {
    (ucs_status_t::UCS_ERR_LAST_LINK_FAILURE.0..=ucs_status_t::UCS_ERR_FIRST_LINK_FAILURE.0).contains(&status.0)
}

/// Whether the status says that an endpoint failed.
#[inline]
#[allow(non_snake_case)]
pub fn UCS_IS_ENDPOINT_ERROR(status: ucs_status_t) -> bool {
    (ucs_status_t::UCS_ERR_LAST_ENDPOINT_FAILURE.0..=ucs_status_t::UCS_ERR_FIRST_ENDPOINT_FAILURE.0).contains(&status.0)
}

/// Bit `index` of a mask; `index` is below 64.
///
/// # Panics
///
/// In debug builds and in constants, if `index` is 64 or more.
#[inline]
#[allow(non_snake_case)]
pub const fn UCS_BIT(index: u32) -> u64 {
    1 << index
}

/// The datatype of `count` contiguous elements of `element_size` bytes each.
///
/// The upper three bits of the size are lost, as in C.
#[inline]
pub const fn ucp_dt_make_contig(element_size: usize) -> ucp_datatype_t {
    ((element_size as ucp_datatype_t) << UCP_DATATYPE_SHIFT) | UCP_DATATYPE_CONTIG as ucp_datatype_t
}

/// The datatype of an array of `ucp_dt_iov_t`.
#[inline]
pub const fn ucp_dt_make_iov() -> ucp_datatype_t {
    UCP_DATATYPE_IOV as ucp_datatype_t
}

impl Ucx {
    /// `ucp_init`, which the C header defines in terms of `ucp_init_version`: makes a context.
    ///
    /// # Safety
    ///
    /// `params` points to valid parameters, `config` is null or comes from `ucp_config_read`, `context` can be written.
    #[inline]
    pub unsafe fn ucp_init(
        &self,
        params: *const ucp_params_t,
        config: *const ucp_config_t,
        context: *mut ucp_context_h,
    ) -> ucs_status_t {
        // SAFETY: the caller's promise is the contract of `ucp_init_version`; the version is that of the headers behind our types.
        unsafe { self.ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, params, config, context) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::ptr;

    fn pointer(address: usize) -> ucs_status_ptr_t {
        ptr::without_provenance_mut(address)
    }

    #[test]
    fn pointers_are_told_apart_at_the_edges() {
        // (address, is an error, is a request, status)
        let last = 0usize.wrapping_sub(100);
        for (address, error, request, status) in [
            (0, false, false, ucs_status_t::UCS_OK),
            (1, false, true, ucs_status_t::UCS_INPROGRESS),
            (last - 1, false, true, ucs_status_t::UCS_INPROGRESS),
            (last, true, false, ucs_status_t::UCS_ERR_LAST),
            (last + 1, true, false, ucs_status_t(-99)),
            (usize::MAX, true, false, ucs_status_t::UCS_ERR_NO_MESSAGE),
        ] {
            assert_eq!(UCS_PTR_IS_ERR(pointer(address)), error, "{address:#x}");
            assert_eq!(UCS_PTR_IS_PTR(pointer(address)), request, "{address:#x}");
            assert_eq!(UCS_PTR_STATUS(pointer(address)), status, "{address:#x}");
        }
    }

    #[test]
    fn a_status_survives_the_way_through_a_pointer() {
        for code in -100..=0 {
            let status = ucs_status_t(code);
            assert_eq!(UCS_PTR_STATUS(UCS_STATUS_PTR(status)), status);
            assert_eq!(UCS_PTR_RAW_STATUS(UCS_STATUS_PTR(status)), status);
            assert_eq!(UCS_PTR_IS_ERR(UCS_STATUS_PTR(status)), status.is_err());
        }
        assert!(UCS_STATUS_PTR(ucs_status_t::UCS_OK).is_null());
        assert_eq!(UCS_STATUS_PTR(ucs_status_t::UCS_INPROGRESS), pointer(1));
    }

    #[test]
    fn failures_are_ranges() {
        for (code, link, endpoint) in [
            (-39, false, false),
            (-40, true, false),
            (-59, true, false),
            (-60, false, true),
            (-89, false, true),
            (-90, false, false),
        ] {
            assert_eq!(UCS_IS_LINK_ERROR(ucs_status_t(code)), link, "{code}");
            assert_eq!(UCS_IS_ENDPOINT_ERROR(ucs_status_t(code)), endpoint, "{code}");
        }
    }

    #[test]
    fn datatypes_and_bits() {
        assert_eq!(ucp_dt_make_contig(0), 0);
        assert_eq!(ucp_dt_make_contig(1), 8);
        assert_eq!(ucp_dt_make_contig(usize::MAX >> 3), !7);
        assert_eq!(ucp_dt_make_contig(usize::MAX), !7);
        assert_eq!(ucp_dt_make_iov(), 2);
        assert_eq!((UCS_BIT(0), UCS_BIT(31), UCS_BIT(63)), (1, 1 << 31, 1 << 63));
    }

    #[test]
    #[should_panic = "overflow"]
    fn a_bit_outside_is_refused() {
        UCS_BIT(core::hint::black_box(64));
    }
}
