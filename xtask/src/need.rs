//! What a step needs of the machine, how to see whether it is there, and which Debian package brings it.

use std::{
    path::Path,
    process::{Command, Stdio},
};

/// Something that must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// libucp, to be loaded at run time.
    Ucx,
    /// UCX's headers and pkg-config file.
    UcxHeaders,
    /// libclang, for bindgen.
    Libclang,
    /// `pkg-config`.
    PkgConfig,
    /// `ip`, for network namespaces.
    Iproute,
    /// `nft`, to cut links silently.
    Nftables,
    /// The providers of libibverbs; UCX loads the library itself.
    Verbs,
    /// `qemu-system-x86_64`, for guests with RDMA devices.
    Qemu,
    /// A static busybox, the guest's first program.
    Busybox,
    /// `cpio`, to pack the guest's first files.
    Cpio,
    /// `depmod` and `modprobe`.
    Kmod,
    /// `xz`, to unpack the guest's kernel.
    Xz,
    /// `ucx_perftest`, the control of the benchmarks.
    UcxUtils,
    /// `valgrind`.
    Valgrind,
    /// Python with pip, to fetch other versions of UCX.
    Pip,
    /// A nightly toolchain, for its sanitizers.
    Nightly,
    /// A nightly toolchain with cargo-fuzz.
    Fuzz,
    /// A nightly toolchain with Miri.
    Miri,
    /// cargo-deny.
    Deny,
}

impl Need {
    /// The Debian package that brings it.
    pub(crate) const fn package(self) -> Option<&'static str> {
        match self {
            Self::Ucx => Some("libucx0"),
            Self::UcxHeaders => Some("libucx-dev"),
            Self::Libclang => Some("libclang-dev"),
            Self::PkgConfig => Some("pkg-config"),
            Self::Iproute => Some("iproute2"),
            Self::Nftables => Some("nftables"),
            Self::Verbs => Some("ibverbs-providers"),
            Self::Qemu => Some("qemu-system-x86"),
            Self::Busybox => Some("busybox-static"),
            Self::Cpio => Some("cpio"),
            Self::Kmod => Some("kmod"),
            Self::Xz => Some("xz-utils"),
            Self::UcxUtils => Some("ucx-utils"),
            Self::Valgrind => Some("valgrind"),
            Self::Pip => Some("python3-pip"),
            Self::Nightly | Self::Fuzz | Self::Miri | Self::Deny => None,
        }
    }

    /// What to do about its absence.
    pub(crate) fn remedy(self) -> String {
        match self {
            Self::Nightly => "rustup toolchain install nightly".to_owned(),
            Self::Fuzz => "rustup toolchain install nightly && cargo install cargo-fuzz".to_owned(),
            Self::Miri => "rustup +nightly component add miri rust-src".to_owned(),
            Self::Deny => "cargo install cargo-deny".to_owned(),
            _ => format!("apt-get install {}", self.package().unwrap_or_default()),
        }
    }

    /// Whether it is here.
    pub(crate) fn is_met(self) -> bool {
        match self {
            Self::Ucx => ucx_is_here(),
            Self::UcxHeaders => {
                std::env::var_os("UCX_DIR").is_some_and(|dir| Path::new(&dir).join("include/ucp/api/ucp.h").is_file())
                    || Path::new("/usr/include/ucp/api/ucp.h").is_file()
                    || works("pkg-config", &["--exists", "ucx"])
            }
            Self::Libclang => libclang_is_here(),
            Self::PkgConfig => works("pkg-config", &["--version"]),
            Self::Iproute => works("ip", &["-Version"]),
            Self::Nftables => works("nft", &["--version"]),
            Self::Verbs => Path::new("/etc/libibverbs.d").is_dir(),
            Self::Qemu => works("qemu-system-x86_64", &["--version"]),
            Self::Busybox => works("busybox", &["true"]),
            Self::Cpio => works("cpio", &["--version"]),
            Self::Kmod => works("/sbin/modprobe", &["--version"]),
            Self::Xz => works("xz", &["--version"]),
            Self::UcxUtils => works("ucx_info", &["-v"]),
            Self::Valgrind => works("valgrind", &["--version"]),
            Self::Pip => works("python3", &["-m", "pip", "--version"]),
            Self::Nightly => works("cargo", &["+nightly", "--version"]),
            Self::Fuzz => works("cargo", &["+nightly", "fuzz", "--version"]),
            Self::Miri => works("cargo", &["+nightly", "miri", "--version"]),
            Self::Deny => works("cargo", &["deny", "--version"]),
        }
    }
}

/// Whether the program can be run and says so.
pub(crate) fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Whether a libucp that the loader would find exists. The tests say whether it works.
fn ucx_is_here() -> bool {
    match std::env::var("UCRPC_UCX_LIBRARY").as_deref() {
        Ok("none") => return false,
        Ok(path) if !path.is_empty() => return Path::new(path).exists(),
        _ => {}
    }
    output("ldconfig", &["-p"])
        .or_else(|| output("/sbin/ldconfig", &["-p"]))
        .is_some_and(|all| all.contains("libucp.so.0"))
        || std::env::var("LD_LIBRARY_PATH")
            .is_ok_and(|path| path.split(':').any(|dir| Path::new(dir).join("libucp.so.0").exists()))
}

fn libclang_is_here() -> bool {
    if let Some(dir) = std::env::var_os("LIBCLANG_PATH") {
        return Path::new(&dir).exists();
    }
    if works("llvm-config", &["--version"]) {
        return true;
    }
    // Debian keeps each version in a folder of its own.
    let Ok(versions) = std::fs::read_dir("/usr/lib") else { return false };
    let mut versions = versions.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("llvm-"));
    versions.any(|e| {
        std::fs::read_dir(e.path().join("lib")).is_ok_and(|mut files| {
            files.any(|f| f.is_ok_and(|f| f.file_name().to_string_lossy().starts_with("libclang")))
        })
    })
}

/// What a program prints, if it succeeds.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Installs the packages of all unmet needs if this machine and user can, and says what stays missing and why.
pub(crate) fn install(needs: &[Need]) {
    let mut packages: Vec<_> = needs.iter().filter(|n| !n.is_met()).filter_map(|n| n.package()).collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return;
    }
    let list = packages.join(" ");
    if !works("apt-get", &["--version"]) {
        println!("setup: missing, and this machine has no apt-get: {list} (names of the Debian packages)");
        return;
    }
    let sudo: &[&str] = match output("id", &["-u"]).as_deref() {
        Some("0") => &[],
        _ if works("sudo", &["-n", "true"]) => &["sudo", "-n"],
        _ => {
            println!(
                "setup: missing, and neither root nor sudo without a password is there: sudo apt-get install {list}"
            );
            return;
        }
    };
    println!("setup: installing {list}");
    let apt = |arguments: &[&str]| {
        let line: Vec<&str> = [sudo, &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"], arguments].concat();
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).stdin(Stdio::null()).stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !apt(&["update"]) {
        println!("setup: apt-get update failed; trying to install all the same");
    }
    if apt(&[&["install", "-y", "--no-install-recommends"], packages.as_slice()].concat()) {
        return;
    }
    // One missing name fails the whole call: what can be had is still wanted.
    for package in packages {
        if !apt(&["install", "-y", "--no-install-recommends", package]) {
            println!("setup: apt-get install {package} failed");
        }
    }
}
