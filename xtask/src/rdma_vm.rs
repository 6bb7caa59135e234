//! `cargo xtask rdma-vm`: a command in a guest with Soft-RoCE, by `ci/rdma-vm.sh`.

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use crate::{
    need::{self, Need},
    run,
};

/// What a guest needs of the host.
pub(crate) const NEEDS: &[Need] =
    &[Need::Ucx, Need::Verbs, Need::Qemu, Need::Busybox, Need::Cpio, Need::Kmod, Need::Xz, Need::Iproute];

/// Arguments of `cargo xtask rdma-vm`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Installs nothing
    #[arg(long)]
    no_install: bool,
    /// Guests; with 2, the command runs in both, and `RDMA_VM_NODE` is 0 or 1
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    nodes: u8,
    /// Seconds after which it is over, the guest's start included
    #[arg(long, default_value_t = 600)]
    timeout: u32,
    /// A folder that the guests may write to, at the same path
    #[arg(long)]
    share: Option<String>,
    /// auto, kvm or tcg (emulation)
    #[arg(long, default_value = "auto")]
    accel: String,
    /// This node may vanish without an exit status
    #[arg(long)]
    may_crash: Option<u8>,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the command; its exit code is ours.
pub(crate) fn run(args: &Args) -> Result<ExitCode, String> {
    if !args.no_install {
        need::install(NEEDS);
    }
    let missing: Vec<String> = NEEDS.iter().filter(|n| !n.is_met()).map(|n| n.remedy()).collect();
    if !missing.is_empty() {
        return Err(format!("a guest needs more than is here: {}", missing.join("; ")));
    }
    let mut command = Command::new(run::root().join("ci/rdma-vm.sh"));
    command.args(["--nodes", &args.nodes.to_string(), "--timeout", &args.timeout.to_string(), "--accel", &args.accel]);
    if let Some(share) = &args.share {
        command.args(["--share", share]);
    }
    if let Some(node) = args.may_crash {
        command.args(["--may-crash", &node.to_string()]);
    }
    command.arg("--").args(&args.command);
    // It takes our place, so that signals reach it.
    Err(format!("cannot start ci/rdma-vm.sh: {}", command.exec()))
}
