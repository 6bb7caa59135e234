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
    /// Virtual CPUs of each guest; 2, or 1 where there are two guests
    #[arg(long)]
    cpus: Option<u8>,
    /// Memory of each guest, MiB
    #[arg(long, default_value_t = 1024)]
    mem: u32,
    /// The guests' Ethernet MTU; the RDMA MTU is the largest power of two that fits with RoCE's headers
    #[arg(long, default_value_t = 4200)]
    mtu: u16,
    /// A variable that the command also gets, beside UCX_*, UCRPC_*, RUST* and the like (repeatable)
    #[arg(long, value_name = "NAME")]
    env: Vec<String>,
    /// Shows the guests' consoles
    #[arg(long)]
    verbose: bool,
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
    let mut option = |name: &str, value: &dyn ToString| {
        command.args([name, &value.to_string()]);
    };
    option("--nodes", &args.nodes);
    option("--timeout", &args.timeout);
    option("--accel", &args.accel);
    option("--mem", &args.mem);
    option("--mtu", &args.mtu);
    args.cpus.iter().for_each(|cpus| option("--cpus", cpus));
    args.share.iter().for_each(|folder| option("--share", folder));
    args.may_crash.iter().for_each(|node| option("--may-crash", node));
    args.env.iter().for_each(|name| option("--env", name));
    if args.verbose {
        command.arg("--verbose");
    }
    command.arg("--").args(&args.command);
    // It takes our place, so that signals reach it.
    Err(format!("cannot start ci/rdma-vm.sh: {}", command.exec()))
}
