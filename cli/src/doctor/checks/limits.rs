//! Limits of the process.

use super::{Finding, Seen};
use crate::doctor::machine::bytes;

/// `CAP_IPC_LOCK`: who has it may lock without limit.
const IPC_LOCK: u32 = 14;
/// Less locked memory than this, and pools and receive queues cannot be registered with a device.
const MEMLOCK: u64 = 1 << 30;
/// Descriptors of a process before its first connection: dispatchers, workers, standard streams.
const BASE: u64 = 64;
/// Descriptors of one connection over UCX: the control socket and its lanes' sockets.
const EACH: u64 = 3;

pub(super) fn check(seen: &Seen<'_>) -> Vec<Finding> {
    [memlock(seen), files(seen), address_space(seen)].into_iter().flatten().collect()
}

fn memlock(seen: &Seen<'_>) -> Option<Finding> {
    let limit = seen.machine.limit("Max locked memory")?;
    let Some(soft) = limit.soft.filter(|soft| *soft < MEMLOCK) else {
        return Some(Finding::ok("memlock", "enough memory may be locked"));
    };
    let what = format!("only {} of memory may be locked", bytes(soft));
    if seen.machine.has_capability(IPC_LOCK) {
        return Some(
            Finding::info("memlock", format!("{what}, but this process has CAP_IPC_LOCK, and is not bound by it"))
                .costs("nothing for a process with that capability; one without it fails to register memory"),
        );
    }
    if seen.devices.is_empty() {
        return Some(Finding::info("memlock", what).costs("nothing without an RDMA device: only those lock memory"));
    }
    let finding = if soft <= 16 << 20 { Finding::error("memlock", what) } else { Finding::warning("memlock", what) };
    Some(
        finding
            .costs("an RDMA device cannot register more: UCX does not start its transports, or fails under load")
            .mend(
                "ulimit -l unlimited; for good: LimitMEMLOCK=infinity in the systemd unit, '* - memlock unlimited' in \
                 /etc/security/limits.d/rdma.conf, docker run --ulimit memlock=-1",
            ),
    )
}

fn files(seen: &Seen<'_>) -> Option<Finding> {
    let limit = seen.machine.limit("Max open files")?;
    let Some(soft) = limit.soft.filter(|soft| *soft <= 4096) else {
        return Some(Finding::ok("open-files", "enough files may be open"));
    };
    let room = soft.saturating_sub(BASE) / EACH;
    let what = format!("only {soft} files may be open");
    let finding = match soft {
        ..256 => Finding::error("open-files", what),
        256..2048 => Finding::warning("open-files", what),
        _ => Finding::info("open-files", what),
    };
    let hard = limit.hard.map_or_else(|| "1048576".to_owned(), |hard| hard.to_string());
    Some(
        finding
            .costs(format!("room for about {room} connections over UCX ({EACH} descriptors each); the next is refused"))
            .mend(format!("ulimit -n {hard}; for good: LimitNOFILE=1048576 in the systemd unit")),
    )
}

fn address_space(seen: &Seen<'_>) -> Option<Finding> {
    let soft = seen.machine.limit("Max address space")?.soft?;
    Some(
        Finding::warning("address-space", format!("the address space is limited to {}", bytes(soft)))
            .costs("mapping pools and shared memory fails when it is used up, although memory is free")
            .mend("ulimit -v unlimited"),
    )
}
