//! What is committed against UCX's headers. Needs feature `bindgen`, libclang, a C compiler and the headers of UCX 1.13.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const COMMITTED: &str = include_str!("../src/bindings.rs");
const GENERATED: &str = include_str!(concat!(env!("OUT_DIR"), "/bindings.rs"));

#[test]
fn the_committed_bindings_are_what_bindgen_produces() {
    for (line, (committed, generated)) in COMMITTED.lines().zip(GENERATED.lines()).enumerate() {
        assert_eq!(committed, generated, "src/bindings.rs line {} (are these the headers of 1.13?)", line + 1);
    }
    assert_eq!(COMMITTED.len(), GENERATED.len(), "one of them is longer");
}

/// The flags with which the installed headers are found.
fn installed() -> Vec<String> {
    if let Some(prefix) = std::env::var_os("UCX_DIR") {
        return vec![format!("-I{}", Path::new(&prefix).join("include").display())];
    }
    let output = Command::new("pkg-config").args(["--cflags", "ucx"]).output().expect("pkg-config is installed");
    assert!(output.status.success(), "pkg-config does not know ucx");
    String::from_utf8(output.stdout).expect("flags are text").split_whitespace().map(String::from).collect()
}

/// Compiles a C program; returns its path.
fn compile(name: &str, source: &str, flags: &[String]) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (file, program) = (folder.join(format!("{name}.c")), folder.join(name));
    std::fs::write(&file, source).expect("the target folder can be written to");
    let output = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .arg(&file)
        .args(flags)
        .arg("-o")
        .arg(&program)
        .output()
        .expect("a C compiler is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

/// C assertions for every field offset and every constant of the committed bindings, and for sizes if `exact`.
fn assertions(exact: bool) -> (String, usize) {
    let mut source = String::from("#include <ucp/api/ucp.h>\n#include <stddef.h>\n");
    // bindgen breaks long lines: bring each assertion back to one.
    let text = COMMITTED.replace("\n    [\n        \"", "\n    [\"").replace("\",\n    ][", "\"][");
    let mut count = 0;
    for line in text.lines() {
        let quoted = |prefix: &str| Some(line.trim_start().strip_prefix(prefix)?.split_once('"')?.0);
        let number = || line.rsplit_once(" - ").and_then(|(_, rest)| rest.strip_suffix("usize];"));
        let assertion = if let Some((owner, field)) =
            quoted("[\"Offset of field: ").and_then(|path| path.split_once("::"))
        {
            let number = number().unwrap_or_else(|| panic!("no number in {line}"));
            // Anonymous unions of C got names of bindgen's: their members are at zero by definition of a union.
            if owner.contains("bindgen_ty") || field.contains("bindgen_") {
                continue;
            }
            format!("offsetof({}, {field}) == {number}", c_type(owner))
        } else if let Some(owner) = quoted("[\"Size of ").filter(|owner| exact && !owner.contains("bindgen_ty")) {
            format!("sizeof({}) == {}", c_type(owner), number().unwrap_or_else(|| panic!("no number in {line}")))
        } else if let Some((name, value)) = constant(line) {
            // These say how far a version goes: the API version, and the ends of lists.
            let grows = name.starts_with("UCP_API_") || name.ends_with("_LAST") || name == "UCS_MEMORY_TYPE_UNKNOWN";
            if grows && !exact {
                continue;
            }
            format!("{name} == {value}")
        } else {
            continue;
        };
        count += 1;
        writeln!(source, "_Static_assert({assertion}, \"{}\");", assertion.replace('"', ""))
            .expect("writes to a string");
    }
    (source, count)
}

/// `pub const NAME: type = value;` of the bindings, statuses included.
fn constant(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.trim_start().strip_prefix("pub const ")?.split_once(": ")?;
    let value = rest.split_once(" = ")?.1.strip_suffix(';')?;
    let value = value.strip_prefix("ucs_status_t(").and_then(|value| value.strip_suffix(')')).unwrap_or(value);
    (value.parse::<i64>().is_ok()).then_some((name, value))
}

/// The C name of a type of the bindings: all have a typedef that ends in `_t`.
fn c_type(name: &str) -> String {
    if name.ends_with("_t") { name.into() } else { format!("{name}_t") }
}

#[test]
fn layout_and_constants_are_those_of_the_c_compiler() {
    let (source, count) = assertions(true);
    assert!(count > 350, "only {count} assertions were made");
    compile("exact", &(source + "int main(void) { return 0; }\n"), &installed());
}

/// Fields are only appended in newer versions, and constants keep their values.
#[test]
#[ignore = "needs UCX_SYS_EXTRA_HEADERS=INCLUDE[:INCLUDE...], include folders of newer UCX versions"]
fn layout_and_constants_hold_in_newer_versions() {
    let folders = std::env::var_os("UCX_SYS_EXTRA_HEADERS").expect("UCX_SYS_EXTRA_HEADERS names include folders");
    let (mut source, count) = assertions(false);
    assert!(count > 300, "only {count} assertions were made");
    newer(&mut source);
    source.push_str("int main(void) { return 0; }\n");
    for (index, folder) in std::env::split_paths(&folders).enumerate() {
        assert!(folder.join("ucp/api/ucp.h").is_file(), "{} has no ucp/api/ucp.h", folder.display());
        compile(&format!("newer{index}"), &source, &[format!("-I{}", folder.display())]);
    }
}

/// Assertions for what `newer.rs` declares by hand.
fn newer(source: &mut String) {
    use std::mem::{offset_of, size_of};
    use ucx_sys::newer::*;
    let pairs = [
        ("UCP_AM_SEND_FLAG_COPY_HEADER", UCP_AM_SEND_FLAG_COPY_HEADER as usize),
        ("UCP_MEM_MAP_PARAM_FIELD_EXPORTED_MEMH_BUFFER", UCP_MEM_MAP_PARAM_FIELD_EXPORTED_MEMH_BUFFER as usize),
        ("UCP_MEMH_PACK_FLAG_EXPORT", UCP_MEMH_PACK_FLAG_EXPORT as usize),
        ("UCP_MEMH_PACK_PARAM_FIELD_FLAGS", UCP_MEMH_PACK_PARAM_FIELD_FLAGS as usize),
        ("UCP_EP_ATTR_FIELD_TRANSPORTS", UCP_EP_ATTR_FIELD_TRANSPORTS as usize),
        ("sizeof(ucp_memh_pack_params_t)", size_of::<ucp_memh_pack_params_t>()),
        ("offsetof(ucp_memh_pack_params_t, flags)", offset_of!(ucp_memh_pack_params_t, flags)),
        ("sizeof(ucp_memh_buffer_release_params_t)", size_of::<ucp_memh_buffer_release_params_t>()),
        ("sizeof(ucp_rkey_compare_params_t)", size_of::<ucp_rkey_compare_params_t>()),
        ("sizeof(ucp_transport_entry_t)", size_of::<ucp_transport_entry_t>()),
        ("offsetof(ucp_transport_entry_t, device_name)", offset_of!(ucp_transport_entry_t, device_name)),
        ("sizeof(ucp_transports_t)", size_of::<ucp_transports_t>()),
        ("offsetof(ucp_transports_t, num_entries)", offset_of!(ucp_transports_t, num_entries)),
        ("offsetof(ucp_transports_t, entry_size)", offset_of!(ucp_transports_t, entry_size)),
        ("offsetof(ucp_ep_attr_t, transports)", offset_of!(ucp_ep_attr_1_14_t, transports)),
    ];
    for (expression, value) in pairs {
        writeln!(source, "_Static_assert({expression} == {value}, \"{expression}\");").expect("writes to a string");
    }
    // Compiles only if the types are those of functions.rs.
    source.push_str(
        "ucs_status_t (*pack)(ucp_mem_h, const ucp_memh_pack_params_t *, void **, size_t *) = ucp_memh_pack;\n\
         void (*release)(void *, const ucp_memh_buffer_release_params_t *) = ucp_memh_buffer_release;\n\
         ucs_status_t (*compare)(ucp_worker_h, ucp_rkey_h, ucp_rkey_h, const ucp_rkey_compare_params_t *, int *) = ucp_rkey_compare;\n",
    );
    source.insert_str(
        0,
        "#pragma weak ucp_memh_pack\n#pragma weak ucp_memh_buffer_release\n#pragma weak ucp_rkey_compare\n",
    );
}

/// The macros by hand give what C's give, at the edges.
#[test]
fn macros_are_those_of_c() {
    use ucx_sys::*;
    let source = r#"
        #include <ucp/api/ucp.h>
        #include <inttypes.h>
        #include <stdio.h>
        int main(void)
        {
            const uintptr_t pointers[] = {0, 1, 2, -101, -100, -99, -60, -25, -2, -1, 4096};
            const uint64_t sizes[] = {0, 1, 8, UINT64_MAX >> 3, UINT64_MAX};
            for (unsigned i = 0; i < sizeof(pointers) / sizeof(*pointers); ++i) {
                void *p = (void*)pointers[i];
                printf("%d %d %d\n", UCS_PTR_IS_ERR(p), !!UCS_PTR_IS_PTR(p), UCS_PTR_STATUS(p));
            }
            for (int code = -100; code <= 1; ++code) {
                printf("%" PRIxPTR " %d %d\n", (uintptr_t)UCS_STATUS_PTR(code), UCS_IS_LINK_ERROR(code), UCS_IS_ENDPOINT_ERROR(code));
            }
            for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); ++i) {
                printf("%" PRIx64 "\n", (uint64_t)ucp_dt_make_contig(sizes[i]));
            }
            printf("%" PRIx64 " %" PRIx64 " %" PRIx64 "\n", (uint64_t)ucp_dt_make_iov(), (uint64_t)UCS_BIT(0), (uint64_t)UCS_BIT(63));
            return 0;
        }"#;
    let output = Command::new(compile("macros", source, &installed())).output().expect("was just compiled");
    assert!(output.status.success());

    let mut expected = String::new();
    for address in [0usize, 1, 2, -101isize as usize, -100isize as usize, -99isize as usize, -60isize as usize]
        .into_iter()
        .chain([-25isize as usize, -2isize as usize, usize::MAX, 4096])
    {
        let pointer = std::ptr::without_provenance_mut(address);
        let (error, request) = (u8::from(UCS_PTR_IS_ERR(pointer)), u8::from(UCS_PTR_IS_PTR(pointer)));
        writeln!(expected, "{error} {request} {}", UCS_PTR_STATUS(pointer).0).expect("writes to a string");
    }
    for status in (-100..=1).map(ucs_status_t) {
        let (link, endpoint) = (u8::from(UCS_IS_LINK_ERROR(status)), u8::from(UCS_IS_ENDPOINT_ERROR(status)));
        writeln!(expected, "{:x} {link} {endpoint}", UCS_STATUS_PTR(status) as usize).expect("writes to a string");
    }
    for size in [0, 1, 8, usize::MAX >> 3, usize::MAX] {
        writeln!(expected, "{:x}", ucp_dt_make_contig(size)).expect("writes to a string");
    }
    writeln!(expected, "{:x} {:x} {:x}", ucp_dt_make_iov(), UCS_BIT(0), UCS_BIT(63)).expect("writes to a string");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}
