//! Processors: how many, how fast, and who else governs them.

use super::{Finding, Seen};

/// The most dispatchers that a program gets by default.
const DISPATCHERS: usize = 4;
/// Leaving an idle state that takes longer than this, microseconds, shows in latencies.
const DEEP: i64 = 100;

pub(super) fn check(seen: &Seen<'_>) -> Vec<Finding> {
    [cores(seen), quota(seen), governor(seen), idle(seen), clock(seen), balancing(seen), load(seen)]
        .into_iter()
        .flatten()
        .collect()
}

fn cores(seen: &Seen<'_>) -> Option<Finding> {
    match seen.machine.cpus().len() {
        0 => None,
        1 => Some(
            Finding::warning("cpus", "this process may run on one CPU only")
                .costs("a dispatcher and the thread that waits for it take turns: microseconds become milliseconds when one spins")
                .mend("give it more CPUs (taskset, cpuset), or WaitPolicy::Event"),
        ),
        n => Some(Finding::ok("cpus", format!("this process may run on {n} CPUs"))),
    }
}

/// The tightest CPU quota of the groups that this process is in, in CPUs.
fn quota_of(seen: &Seen<'_>) -> Option<f64> {
    let machine = seen.machine;
    let own = machine.text("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
    let mut paths = vec![String::new()];
    for name in own.split('/').filter(|name| !name.is_empty()) {
        paths.push(format!("{}/{name}", paths.last().map_or("", String::as_str)));
    }
    let second = paths.iter().filter_map(|path| {
        let text = machine.text(&format!("/sys/fs/cgroup{path}/cpu.max"))?;
        let (quota, period) = text.split_once(' ')?;
        Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
    });
    let first = || {
        let quota = machine.number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").filter(|quota| *quota > 0)?;
        Some(quota as f64 / machine.number("/sys/fs/cgroup/cpu/cpu.cfs_period_us")? as f64)
    };
    second.chain(first()).min_by(f64::total_cmp)
}

fn quota(seen: &Seen<'_>) -> Option<Finding> {
    let quota = quota_of(seen)?;
    let wanted = seen.machine.cpus().len().clamp(1, DISPATCHERS);
    if quota >= wanted as f64 {
        return Some(Finding::ok("cpu-quota", format!("the CPU quota is {quota} CPUs")));
    }
    Some(
        Finding::warning(
            "cpu-quota",
            format!("the control group has a quota of {quota} CPUs, and {wanted} dispatchers may spin"),
        )
        .costs("when the quota is used up, all threads stand still until the period ends: up to 100 ms")
        .mend("raise the quota (docker --cpus, Kubernetes limits), use fewer dispatchers, or WaitPolicy::Event"),
    )
}

fn governor(seen: &Seen<'_>) -> Option<Finding> {
    let machine = seen.machine;
    let base = "/sys/devices/system/cpu";
    let cpus = machine.list(base).into_iter().filter(|name| name.starts_with("cpu") && name.len() > 3);
    let mut governors: Vec<String> =
        cpus.filter_map(|cpu| machine.text(&format!("{base}/{cpu}/cpufreq/scaling_governor"))).collect();
    governors.sort();
    governors.dedup();
    let slow = governors.iter().find(|name| *name != "performance");
    let Some(slow) = slow else {
        let what =
            if governors.is_empty() { "nothing governs the CPUs' clock here" } else { "the governor is performance" };
        return Some(Finding::ok("cpu-governor", what));
    };
    let driver = machine.text(&format!("{base}/cpu0/cpufreq/scaling_driver")).unwrap_or_default();
    let own = driver.contains("pstate");
    let what = format!("the CPU governor is {slow} (driver {})", if driver.is_empty() { "unknown" } else { &driver });
    // With their own drivers, Intel's and AMD's CPUs raise the clock by themselves under every governor.
    let finding = match slow.as_str() {
        "schedutil" => Finding::info("cpu-governor", what),
        _ if own => Finding::info("cpu-governor", what),
        _ => Finding::warning("cpu-governor", what),
    };
    Some(
        finding
            .costs("after each pause the clock starts low: latencies of sleeping dispatchers vary, and benchmarks with them")
            .mend("cpupower frequency-set -g performance"),
    )
}

fn idle(seen: &Seen<'_>) -> Option<Finding> {
    let machine = seen.machine;
    let base = "/sys/devices/system/cpu/cpu0/cpuidle";
    let enabled = |state: &String| machine.number(&format!("{base}/{state}/disable")) != Some(1);
    let latencies = machine.list(base).into_iter().filter(enabled);
    let deepest = latencies.filter_map(|state| machine.number(&format!("{base}/{state}/latency"))).max()?;
    if deepest < DEEP {
        return Some(Finding::ok("idle-states", format!("idle states are left within {deepest} us")));
    }
    Some(
        Finding::info("idle-states", format!("the deepest idle state takes {deepest} us to leave"))
            .costs("that much on the first message after a pause, unless a dispatcher spins")
            .mend("WaitPolicy::Busy where it matters; or cpupower idle-set -D 50"),
    )
}

fn clock(seen: &Seen<'_>) -> Option<Finding> {
    let source = seen.machine.text("/sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    if !["hpet", "acpi_pm", "jiffies", "refined-jiffies"].contains(&source.as_str()) {
        return Some(Finding::ok("clock-source", format!("the clock source is {source}")));
    }
    Some(
        Finding::warning("clock-source", format!("the clock source is {source}"))
            .costs("each look at the clock is a system call of about a microsecond; a dispatcher looks every few turns")
            .mend("boot with tsc=reliable clocksource=tsc, if the machine's TSC is"),
    )
}

fn balancing(seen: &Seen<'_>) -> Option<Finding> {
    let nodes = seen.machine.list("/sys/devices/system/node");
    let nodes = nodes.iter().filter_map(|name| name.strip_prefix("node")?.parse::<u32>().ok()).count();
    let on = seen.machine.number("/proc/sys/kernel/numa_balancing")? > 0;
    (on && nodes > 1).then(|| {
        Finding::info("numa-balancing", format!("automatic NUMA balancing is on, with {nodes} nodes"))
            .costs("pages are unmapped now and then to see who uses them: faults in the middle of transfers")
            .mend("sysctl -w kernel.numa_balancing=0, with dispatchers pinned near the device")
    })
}

fn load(seen: &Seen<'_>) -> Option<Finding> {
    let text = seen.machine.text("/proc/loadavg")?;
    let load: f64 = text.split(' ').next()?.parse().ok()?;
    let cpus = seen.machine.cpus().len();
    (cpus > 0 && load > cpus as f64).then(|| {
        Finding::info("load", format!("the load is {load} on {cpus} CPUs"))
            .costs("whatever is measured now is measured beside other work")
            .mend("measure when the machine has nothing else to do: top says what it does")
    })
}
