//! Shared memory, huge pages, and who may read whose memory.

use super::{Finding, Seen, is_yes};
use crate::doctor::machine::bytes;

/// What a few dispatchers and their queues take, bytes.
const SHM_NEEDED: u64 = 64 << 20;
/// Less than one worker's queues, bytes.
const SHM_NOTHING: u64 = 8 << 20;

pub(super) fn check(seen: &Seen<'_>) -> Vec<Finding> {
    [dev_shm(seen), sysv(seen), huge_pages(seen), transparent(seen), overcommit(seen), ptrace(seen)]
        .into_iter()
        .flatten()
        .collect()
}

fn dev_shm(seen: &Seen<'_>) -> Option<Finding> {
    let machine = seen.machine;
    if !machine.exists("/dev/shm") {
        // Below a planted root that holds nothing of the kind there is nothing to say.
        return machine.is_real().then(|| {
            Finding::warning("dev-shm", "there is no /dev/shm")
                .costs("UCX's posix lanes cannot be opened; what is left on this host is sysv or tcp")
                .mend("mount -t tmpfs -o size=1g tmpfs /dev/shm")
        });
    }
    let space = machine.space("/dev/shm")?;
    if space.free >= SHM_NEEDED {
        return Some(Finding::ok("dev-shm", format!("/dev/shm has {} free", bytes(space.free))));
    }
    let what = format!("/dev/shm has {} free of {}", bytes(space.free), bytes(space.total));
    let finding =
        if space.free < SHM_NOTHING { Finding::error("dev-shm", what) } else { Finding::warning("dev-shm", what) };
    Some(
        finding
            .costs("each worker needs about 5 MiB of it: when it is full, posix lanes are not opened, and connections on this host get slower ones")
            .mend("mount -o remount,size=1g /dev/shm; docker run --shm-size=1g; remove what dead processes left there"),
    )
}

fn sysv(seen: &Seen<'_>) -> Option<Finding> {
    let max = seen.machine.text("/proc/sys/kernel/shmmax")?.parse::<u64>().ok()?;
    let pages = seen.machine.text("/proc/sys/kernel/shmall").and_then(|text| text.parse::<u64>().ok());
    let all = pages.map_or(u64::MAX, |pages| pages.saturating_mul(4096));
    if max.min(all) >= SHM_NEEDED {
        return Some(Finding::ok("sysv-shm", "System V segments may be large enough"));
    }
    Some(
        Finding::warning("sysv-shm", format!("System V shared memory is limited to {}", bytes(max.min(all))))
            .costs("UCX's sysv lanes, its first choice on one host, cannot be opened for every worker")
            .mend("sysctl -w kernel.shmmax=18446744073692774399 kernel.shmall=18446744073692774399"),
    )
}

fn huge_pages(seen: &Seen<'_>) -> Option<Finding> {
    let info = seen.machine.text("/proc/meminfo")?;
    let number = |name: &str| {
        let rest = info.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (total, free) = (number("HugePages_Total:")?, number("HugePages_Free:")?);
    let names = ["UCX_MM_HUGETLB_MODE", "UCX_POSIX_HUGETLB_MODE", "UCX_SYSV_HUGETLB_MODE"];
    if let Some((name, value)) = seen.env_of(&names).filter(|(_, value)| free == 0 && is_yes(value)) {
        return Some(
            Finding::error("huge-pages", format!("{name}={value} demands huge pages, and none is free (of {total})"))
                .costs("UCX cannot allocate its shared memory: lanes on this host are not opened")
                .mend(format!("sysctl -w vm.nr_hugepages=512, or {name}=try")),
        );
    }
    Some(match total {
        0 => Finding::info("huge-pages", "no huge pages are reserved")
            .costs("a few per cent on large transfers and with RDMA, by TLB misses; UCX goes on without")
            .mend("sysctl -w vm.nr_hugepages=512"),
        _ => Finding::ok("huge-pages", format!("{free} of {total} huge pages are free")),
    })
}

fn transparent(seen: &Seen<'_>) -> Option<Finding> {
    let text = seen.machine.text("/sys/kernel/mm/transparent_hugepage/enabled")?;
    text.contains("[never]").then(|| {
        Finding::info("transparent-huge-pages", "transparent huge pages are switched off")
            .costs("large buffers are made of small pages: more TLB misses, slower registration")
            .mend("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
    })
}

fn overcommit(seen: &Seen<'_>) -> Option<Finding> {
    (seen.machine.number("/proc/sys/vm/overcommit_memory")? == 2).then(|| {
        Finding::warning("overcommit", "the kernel does not overcommit memory (vm.overcommit_memory=2)")
            .costs("mappings that are reserved and never touched count in full: pools fail to grow early")
            .mend("sysctl -w vm.overcommit_memory=0")
    })
}

fn ptrace(seen: &Seen<'_>) -> Option<Finding> {
    let scope = seen.machine.number("/proc/sys/kernel/yama/ptrace_scope")?;
    if scope == 0 {
        return Some(Finding::ok("ptrace-scope", "processes of one user may read each other's memory"));
    }
    Some(
        Finding::info("ptrace-scope", format!("kernel.yama.ptrace_scope is {scope}"))
            .costs(
                "UCX's cma cannot copy between unrelated processes. ucrpc does not use cma (it has no peer-failure handling); \
                 ucx_perftest and MPI programs here do, and get slower",
            )
            .mend("sysctl -w kernel.yama.ptrace_scope=0"),
    )
}
