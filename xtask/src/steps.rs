//! The table of what `cargo xtask test` does. A new check is one more row.

use crate::{
    need::Need::{
        self, Deny, Fuzz, Iproute, Libclang, Miri, Nftables, Nightly, Pip, PkgConfig, Ucx, UcxHeaders, Valgrind,
    },
    run::Line,
};

/// One check.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// The word that chooses it on the command line.
    pub(crate) name: &'static str,
    /// One line about it.
    pub(crate) about: &'static str,
    /// Without these it cannot run.
    pub(crate) needs: &'static [Need],
    /// Installed where possible; without them some of it fails, or does less.
    pub(crate) wants: &'static [Need],
    /// Part of `--quick`.
    pub(crate) quick: bool,
    /// Takes many minutes: run with `--all`, or when it is named.
    pub(crate) long: bool,
    /// If it cannot run, the whole is still complete: tools that are not part of a stable toolchain.
    pub(crate) optional: bool,
    /// What it runs, in order; the first failure ends it.
    pub(crate) lines: &'static [Line],
    /// What it runs where it is named, and with `--all`; empty: the same.
    pub(crate) thorough: &'static [Line],
}

const STEP: Step = Step {
    name: "",
    about: "",
    needs: &[],
    wants: &[],
    quick: false,
    long: false,
    optional: false,
    lines: &[],
    thorough: &[],
};

const fn line(words: &'static [&'static str]) -> Line {
    Line { env: &[], words }
}

/// All checks, cheap ones first.
pub(crate) const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        about: "the sources are formatted",
        quick: true,
        lines: &[line(&["cargo", "fmt", "--all", "--check"])],
        ..STEP
    },
    Step {
        name: "clippy",
        about: "no warning in any target",
        quick: true,
        lines: &[line(&["cargo", "clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])],
        ..STEP
    },
    Step {
        name: "docs",
        about: "the documentation builds without a warning",
        quick: true,
        lines: &[Line {
            env: &[("RUSTDOCFLAGS", "-D warnings")],
            words: &["cargo", "doc", "--workspace", "--no-deps"],
        }],
        ..STEP
    },
    Step {
        name: "wheels",
        about: "other versions of UCX are here, for the tests that meet them",
        needs: &[Pip],
        quick: true,
        lines: &[line(&["sh", "ci/wheels.sh"])],
        ..STEP
    },
    Step {
        name: "test",
        about: "every test of the workspace, on every transport",
        needs: &[Ucx],
        wants: &[Iproute, Nftables],
        quick: true,
        lines: &[line(&["cargo", "test", "--workspace", "--no-fail-fast"])],
        ..STEP
    },
    Step {
        name: "no-ucx",
        about: "what needs no UCX, with UCX switched off",
        quick: true,
        lines: &[
            Line {
                env: &[("UCRPC_UCX_LIBRARY", "none")],
                words: &["cargo", "test", "-p", "ucrpc-transport", "--lib", "--", "--skip", "ucx::"],
            },
            Line {
                env: &[("UCRPC_UCX_LIBRARY", "none")],
                words: &[
                    "cargo", "test", "-p", "ucrpc", "--test", "contract", "--", "--skip", "ucx-", "--skip", "auto/",
                ],
            },
            Line {
                env: &[("UCRPC_UCX_LIBRARY", "none")],
                words: &["cargo", "test", "-p", "ucrpc", "-p", "ucrpc-transport", "-p", "ucx-sys", "--doc"],
            },
            line(&["cargo", "test", "-p", "ucx-sys", "--test", "disabled"]),
            Line {
                env: &[("UCRPC_UCX_LIBRARY", "none")],
                words: &["cargo", "test", "-p", "ucrpc-rpc", "-p", "ucrpc-build", "-p", "xtask"],
            },
            Line {
                env: &[("UCRPC_UCX_LIBRARY", "none")],
                words: &["cargo", "test", "-p", "ucrpc", "--test", "rpc", "--", "--skip", "ucx-"],
            },
            line(&["cargo", "test", "-p", "ucrpc-cli", "--test", "call"]),
            line(&["cargo", "test", "-p", "ucrpc-cli", "--test", "doctor", "planted::"]),
        ],
        ..STEP
    },
    Step {
        name: "corpus",
        about: "the kept fuzzing corpus decodes as its names say",
        quick: true,
        lines: &[line(&["cargo", "test", "-p", "ucrpc-transport", "--test", "corpus"])],
        ..STEP
    },
    Step {
        name: "rdma",
        about: "the suites over rc_verbs and ud_verbs, in guests with Soft-RoCE; --rdma and --all run more of them",
        needs: crate::rdma_vm::NEEDS,
        wants: &[Nftables],
        // Emulated guests are slow.
        lines: &[Line { env: &[("UCRPC_RDMA_SHORT", "1")], words: &["bash", "ci/rdma.sh"] }],
        thorough: &[line(&["bash", "ci/rdma.sh"])],
        ..STEP
    },
    Step {
        name: "link",
        about: "ucx-sys with libucp linked at build time",
        needs: &[Ucx, UcxHeaders, PkgConfig],
        lines: &[line(&["cargo", "test", "-p", "ucx-sys", "--features", "link"])],
        ..STEP
    },
    Step {
        name: "bindgen",
        about: "the committed bindings are what bindgen makes of the installed headers",
        needs: &[Ucx, UcxHeaders, Libclang, PkgConfig],
        lines: &[line(&["cargo", "test", "-p", "ucx-sys", "--features", "bindgen"])],
        ..STEP
    },
    Step {
        name: "tokio",
        about: "the transport inside tokio",
        needs: &[Ucx],
        lines: &[
            line(&[
                "cargo",
                "clippy",
                "-p",
                "ucrpc-transport",
                "--features",
                "tokio",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]),
            line(&["cargo", "test", "-p", "ucrpc", "--test", "tokio"]),
        ],
        ..STEP
    },
    Step {
        name: "stress",
        long: true,
        about: "100,000 calls over 100 connections with random faults, on every transport",
        needs: &[Ucx],
        lines: &[line(&["sh", "ci/stress.sh"])],
        ..STEP
    },
    Step {
        name: "tower",
        about: "the RPC layer with all its features",
        lines: &[line(&["cargo", "test", "-p", "ucrpc-rpc", "--all-features"])],
        ..STEP
    },
    Step {
        name: "loom",
        about: "all interleavings of the queues and of falling asleep",
        lines: &[line(&["sh", "ci/loom.sh"])],
        ..STEP
    },
    Step {
        name: "valgrind",
        long: true,
        about: "the UCX room, and UCX, under valgrind",
        needs: &[Ucx, Valgrind],
        lines: &[line(&["sh", "ci/valgrind.sh"])],
        ..STEP
    },
    Step {
        name: "san",
        long: true,
        about: "the queues under AddressSanitizer and ThreadSanitizer",
        needs: &[Nightly],
        optional: true,
        lines: &[line(&["sh", "ci/san.sh"])],
        ..STEP
    },
    Step {
        name: "san-ucx",
        long: true,
        about: "the contract over UCX under AddressSanitizer",
        needs: &[Nightly, Ucx],
        optional: true,
        lines: &[line(&["sh", "ci/san-ucx.sh"])],
        ..STEP
    },
    Step {
        name: "miri",
        about: "the queues under Miri",
        needs: &[Miri],
        optional: true,
        lines: &[line(&["sh", "ci/miri.sh"])],
        ..STEP
    },
    Step {
        name: "fuzz",
        about: "each fuzz target for a few seconds, from the kept corpus",
        needs: &[Fuzz],
        optional: true,
        lines: &[line(&["sh", "ci/fuzz.sh", "20"])],
        ..STEP
    },
    Step {
        name: "deny",
        about: "licences, advisories and sources of the dependencies",
        needs: &[Deny],
        optional: true,
        lines: &[line(&["cargo", "deny", "check"])],
        ..STEP
    },
];
