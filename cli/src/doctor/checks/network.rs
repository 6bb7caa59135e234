//! The network under TCP, which carries negotiation, fallback and UCX's tcp lanes.

use super::{Finding, Seen};

pub(super) fn check(seen: &Seen<'_>) -> Vec<Finding> {
    [ports(seen), loopback(seen), buffers(seen)].into_iter().flatten().collect()
}

fn ports(seen: &Seen<'_>) -> Option<Finding> {
    let text = seen.machine.text("/proc/sys/net/ipv4/ip_local_port_range")?;
    let mut numbers = text.split_whitespace().map_while(|word| word.parse::<u32>().ok());
    let count = numbers.next().zip(numbers.next()).map(|(first, last)| last.saturating_sub(first) + 1)?;
    if count >= 4096 {
        return Some(Finding::ok("ephemeral-ports", format!("{count} ephemeral ports")));
    }
    Some(
        Finding::warning("ephemeral-ports", format!("only {count} ephemeral ports"))
            .costs("each connection takes one or more, and closed ones block theirs for a minute: connecting fails")
            .mend("sysctl -w net.ipv4.ip_local_port_range='32768 60999'"),
    )
}

fn loopback(seen: &Seen<'_>) -> Option<Finding> {
    // IFF_UP is bit 0.
    let flags = seen.machine.text("/sys/class/net/lo/flags")?;
    let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()?;
    if flags & 1 == 1 {
        return None;
    }
    Some(
        Finding::error("loopback", "the loopback interface is down")
            .costs("nothing on this host can connect to anything else on it by TCP, and UCX's negotiation neither")
            .mend("ip link set lo up"),
    )
}

fn buffers(seen: &Seen<'_>) -> Option<Finding> {
    let max = |name: &str| {
        let text = seen.machine.text(&format!("/proc/sys/net/ipv4/{name}"))?;
        text.split_whitespace().nth(2)?.parse::<u64>().ok()
    };
    let least = max("tcp_rmem")?.min(max("tcp_wmem")?);
    (least < 1 << 20).then(|| {
        Finding::warning("tcp-buffers", format!("TCP buffers grow to {least} bytes only"))
            .costs("a connection moves at most that much for each round trip: slow over any distance")
            .mend("sysctl -w net.ipv4.tcp_rmem='4096 131072 6291456' net.ipv4.tcp_wmem='4096 16384 4194304'")
    })
}
