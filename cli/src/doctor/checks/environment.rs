//! Variables and files that configure ucrpc and UCX: misspelt, conflicting, or harmful.

use super::{Finding, Seen, is_no, is_yes};

/// Our own variables.
const OURS: &[&str] = &["UCRPC_TRANSPORT", "UCRPC_UCX_LIBRARY"];

/// UCX's that are set most often, to find what a misspelt one meant.
const KNOWN: &[&str] = &[
    "UCX_TLS",
    "UCX_NET_DEVICES",
    "UCX_SHM_DEVICES",
    "UCX_LOG_LEVEL",
    "UCX_LOG_FILE",
    "UCX_HANDLE_ERRORS",
    "UCX_ERROR_SIGNALS",
    "UCX_WARN_UNUSED_ENV_VARS",
    "UCX_KEEPALIVE_INTERVAL",
    "UCX_MM_ERROR_HANDLING",
    "UCX_POSIX_ERROR_HANDLING",
    "UCX_SYSV_ERROR_HANDLING",
    "UCX_POSIX_SEG_SIZE",
    "UCX_POSIX_FIFO_SIZE",
    "UCX_TCP_TX_SEG_SIZE",
    "UCX_TCP_RX_SEG_SIZE",
    "UCX_TCP_CONN_NB",
    "UCX_TCP_CM_REUSEADDR",
    "UCX_RNDV_THRESH",
    "UCX_RNDV_SCHEME",
    "UCX_ZCOPY_THRESH",
    "UCX_IB_GID_INDEX",
    "UCX_IB_SL",
    "UCX_IB_TRAFFIC_CLASS",
    "UCX_IB_PATH_MTU",
    "UCX_RC_VERBS_TIMEOUT",
    "UCX_RC_VERBS_RETRY_COUNT",
    "UCX_RC_MLX5_TIMEOUT",
    "UCX_UD_VERBS_ETH_DGID_CHECK",
    "UCX_MAX_EAGER_LANES",
    "UCX_MAX_RNDV_LANES",
    "UCX_MAX_EAGER_RAILS",
    "UCX_MAX_RNDV_RAILS",
    "UCX_PROTO_ENABLE",
    "UCX_PROTO_INFO",
    "UCX_MEM_EVENTS",
    "UCX_MEM_MMAP_HOOK_MODE",
    "UCX_UNIFIED_MODE",
    "UCX_ADDRESS_VERSION",
    "UCX_MODULE_DIR",
    "UCX_SOCKADDR_TLS_PRIORITY",
    "UCX_STATS_DEST",
];

pub(super) fn check(seen: &Seen<'_>) -> Vec<Finding> {
    let mut found = ours(seen);
    found.extend(unused(seen));
    let single = [peer_failure, keepalive, segments, memory_events, connecting, syn_count, log_level, aliases, conf];
    found.extend(single.iter().filter_map(|check| check(seen)));
    found
}

/// `UCRPC_*`.
fn ours(seen: &Seen<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    match seen.machine.env("UCRPC_TRANSPORT") {
        None | Some("auto") => {}
        Some("ucx") => found.push(Finding::ok("ucrpc-transport", "UCRPC_TRANSPORT=ucx: no fallback to TCP")),
        Some("tcp") => found.push(
            Finding::warning("ucrpc-transport", "UCRPC_TRANSPORT=tcp pins every auto:// address to TCP")
                .costs("UCX is never used, whatever is installed; right for CI, a silent brake anywhere else")
                .mend("unset UCRPC_TRANSPORT"),
        ),
        Some(other) => found.push(
            Finding::error("ucrpc-transport", format!("UCRPC_TRANSPORT={other} is none of tcp, ucx, auto"))
                .costs("every auto:// address is refused")
                .mend("unset UCRPC_TRANSPORT, or set it to tcp, ucx or auto"),
        ),
    }
    for (name, _) in seen.machine.env_from("UCRPC_").filter(|(name, _)| !OURS.contains(name)) {
        // Tests and benches of this project have their own, which are no settings.
        let meant = nearest(name, OURS).filter(|(_, distance)| *distance <= 4);
        if let Some((meant, _)) = meant {
            found.push(
                Finding::warning("misspelt", format!("{name} is no variable of ucrpc"))
                    .costs("it does nothing")
                    .mend(format!("did you mean {meant}? unset {name}")),
            );
        }
    }
    found
}

/// Variables that UCX did not use, by its own words.
fn unused(seen: &Seen<'_>) -> Vec<Finding> {
    let words = seen.answer().log.iter().filter_map(|line| line.text.strip_prefix("unused env variable"));
    let names = words.filter_map(|rest| rest.split_once(": ")?.1.split(" (").next()).flat_map(|list| list.split(','));
    // Our defaults for transports that are not there are in that list, too: those are nobody's mistake.
    let names = names.map(str::trim).filter(|name| seen.machine.env(name).is_some());
    let finding = |name: &str| {
        let nearest = nearest(name, KNOWN);
        if nearest.is_some_and(|(_, distance)| distance == 0) {
            return Finding::info("unused", format!("UCX knows {name} and does not use it"))
                .costs("nothing, unless it was meant to act: its transport is not in use (UCX_TLS, UCX_NET_DEVICES, no device)")
                .mend(format!("unset {name}, or what keeps the transport out"));
        }
        let finding = Finding::warning("misspelt", format!("UCX does not use {name}"));
        match nearest {
            Some((meant, distance)) if distance <= 2 => finding
                .costs("a setting that does nothing: the name is misspelt")
                .mend(format!("did you mean {meant}? unset {name}")),
            _ => finding
                .costs("a setting that does nothing: the name is misspelt, or of a transport that this UCX does not use here")
                .mend(format!("unset {name}; ucx_info -c -f lists the names")),
        }
    };
    names.map(finding).collect()
}

fn peer_failure(seen: &Seen<'_>) -> Option<Finding> {
    let names =
        ["UCX_MM_ERROR_HANDLING", "UCX_POSIX_ERROR_HANDLING", "UCX_SYSV_ERROR_HANDLING", "UCX_XPMEM_ERROR_HANDLING"];
    let (name, value) = names.iter().find_map(|n| Some((*n, seen.machine.env(n)?)).filter(|(_, v)| is_no(v)))?;
    Some(
        Finding::warning("shm-failure-handling", format!("{name}={value}"))
            .costs("shared memory cannot be used with peer-failure handling, which ucrpc needs: connections on this host use tcp, many times slower")
            .mend(format!("unset {name}")),
    )
}

/// `1s`, `500ms`, as UCX reads a time, in seconds.
fn seconds(value: &str) -> Option<f64> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().ok()?;
    match &value[digits.len()..] {
        "m" => Some(number * 60.0),
        "s" | "" => Some(number),
        "ms" => Some(number / 1e3),
        "us" => Some(number / 1e6),
        "ns" => Some(number / 1e9),
        _ => None,
    }
}

fn keepalive(seen: &Seen<'_>) -> Option<Finding> {
    let name = "UCX_KEEPALIVE_INTERVAL";
    let value = seen.machine.env(name)?;
    let is_off = value == "inf" || seconds(value) == Some(0.0);
    if !seen.machine.list("/sys/class/infiniband").is_empty() {
        return (!is_off).then(|| {
            Finding::warning("keepalive", format!("{name}={value}"))
                .costs("a peer that RDMA packets do not reach can end the process: UCX 1.13.1 with assertions aborts when the keepalive lane of RC gets no answer")
                .mend(format!("unset {name}; our default with RDMA devices is inf"))
        });
    }
    if !is_off && seconds(value).is_none_or(|s| s <= 3.0) {
        return None;
    }
    Some(
        Finding::warning("keepalive", format!("{name}={value}"))
            .costs(if is_off {
                "UCX does not look after its peers: operations to one that died over shared memory never end"
            } else {
                "UCX notices late that a peer over shared memory has died: its memory is held for that long"
            })
            .mend(format!("unset {name}; our default is 1s")),
    )
}

fn segments(seen: &Seen<'_>) -> Option<Finding> {
    let names = [
        "UCX_POSIX_SEG_SIZE",
        "UCX_SYSV_SEG_SIZE",
        "UCX_MM_SEG_SIZE",
        "UCX_POSIX_FIFO_SIZE",
        "UCX_SYSV_FIFO_SIZE",
        "UCX_MM_FIFO_SIZE",
    ];
    let (name, value) = seen.env_of(&names)?;
    Some(
        Finding::warning("shm-segments", format!("{name}={value}"))
            .costs(
                "a peer with another value hangs or aborts; ucrpc compares them and goes over TCP instead. Segments of 64k abort UCX 1.13.1",
            )
            .mend(format!("unset {name}, or set it for every process of the cluster")),
    )
}

fn memory_events(seen: &Seen<'_>) -> Option<Finding> {
    let (name, value) = seen.env_of(&["UCX_MEM_EVENTS"])?;
    if !is_no(value) {
        return None;
    }
    let version = seen.library().map(|library| library.version);
    if version.is_some_and(|version| ((1, 16, 0)..(1, 22, 0)).contains(&version)) {
        return Some(
            Finding::error("memory-events", format!("{name}={value} with a UCX from 1.16 to 1.21"))
                .costs("those crash when an endpoint ends with a large transfer pending: ucrpc refuses to use them so, and goes over TCP")
                .mend(format!("unset {name}")),
        );
    }
    (!seen.devices.is_empty()).then(|| {
        Finding::warning("memory-events", format!("{name}={value} beside an RDMA device"))
            .costs(
                "UCX cannot cache registrations: each large transfer from the application's memory registers it anew",
            )
            .mend(format!("unset {name}"))
    })
}

fn connecting(seen: &Seen<'_>) -> Option<Finding> {
    let name = "UCX_TCP_CONN_NB";
    let value = seen.machine.env(name).filter(|value| is_no(value))?;
    Some(
        Finding::warning("tcp-connect", format!("{name}={value}"))
            .costs("an unreachable peer stops a whole dispatcher until the kernel gives up: two minutes")
            .mend(format!("unset {name}")),
    )
}

/// Reading this setting, UCX 1.13.1 writes over the one beside it, and then makes no worker with tcp among its transports.
fn syn_count(seen: &Seen<'_>) -> Option<Finding> {
    let name = "UCX_TCP_SYN_CNT";
    let value = seen.machine.env(name).filter(|value| *value != "auto")?;
    seen.library().filter(|library| library.version < (1, 14, 0))?;
    Some(
        Finding::error("tcp-syn-count", format!("{name}={value} with UCX 1.13"))
            .costs("UCX 1.13 cannot use tcp then (Invalid memory pool parameters): all goes over TCP without UCX, ucx:// is refused")
            .mend(format!("unset {name}")),
    )
}

fn log_level(seen: &Seen<'_>) -> Option<Finding> {
    let value = seen.machine.env("UCX_LOG_LEVEL")?;
    let loud = ["debug", "trace", "req", "data", "async", "func", "poll"];
    loud.iter().any(|level| value.to_ascii_lowercase().starts_with(level)).then(|| {
        Finding::warning("log-level", format!("UCX_LOG_LEVEL={value}"))
            .costs("UCX formats a line for much of what it does: microseconds for each message")
            .mend("unset UCX_LOG_LEVEL")
    })
}

/// Two names of one setting with two values.
fn aliases(seen: &Seen<'_>) -> Option<Finding> {
    let pairs = [
        ("UCX_MM_ERROR_HANDLING", "UCX_POSIX_ERROR_HANDLING"),
        ("UCX_MM_ERROR_HANDLING", "UCX_SYSV_ERROR_HANDLING"),
        ("UCX_CM_REUSEADDR", "UCX_TCP_CM_REUSEADDR"),
        ("UCX_RC_TIMEOUT", "UCX_RC_VERBS_TIMEOUT"),
        ("UCX_RC_RETRY_COUNT", "UCX_RC_VERBS_RETRY_COUNT"),
        ("UCX_UD_ETH_DGID_CHECK", "UCX_UD_VERBS_ETH_DGID_CHECK"),
    ];
    let same = |a: &str, b: &str| a == b || (is_no(a) && is_no(b)) || (is_yes(a) && is_yes(b));
    pairs.iter().find_map(|(general, special)| {
        let (a, b) = (seen.machine.env(general)?, seen.machine.env(special)?);
        (!same(a, b)).then(|| {
            Finding::warning("conflict", format!("{general}={a} and {special}={b}"))
                .costs("both set one thing; which wins depends on the version of UCX, and peers may differ")
                .mend(format!("unset {general} {special}, or set both to one value"))
        })
    })
}

/// UCX's file of settings.
fn conf(seen: &Seen<'_>) -> Option<Finding> {
    let folders = ["UCX_CONFIG_DIR", "HOME"].iter().filter_map(|name| seen.machine.env(name).map(str::to_owned));
    let here = seen.machine.is_real().then(|| ".".to_owned());
    let path = folders.chain(here).map(|folder| format!("{folder}/ucx.conf")).find(|path| {
        if path.starts_with('.') { std::path::Path::new(path).exists() } else { seen.machine.exists(path) }
    })?;
    Some(
        Finding::info("ucx-conf", format!("there is {path}"))
            .costs(
                "UCX reads it, but a line in it does not win over a default of ours, and peers without it may differ",
            )
            .mend("use variables for what must win; ucrpc doctor --all lists our defaults"),
    )
}

/// The name that is nearest to a misspelt one, and how many letters differ.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<(&'a str, usize)> {
    known.iter().map(|candidate| (*candidate, distance(name, candidate))).min_by_key(|(_, distance)| *distance)
}

/// How many letters must be changed, added, left out, or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_names_are_near_what_was_meant() {
        assert_eq!(nearest("UCX_TSL", KNOWN), Some(("UCX_TLS", 1)));
        assert_eq!(nearest("UCX_NET_DEVICE", KNOWN), Some(("UCX_NET_DEVICES", 1)));
        assert_eq!(distance("", "ab"), 2);
        assert!(nearest("UCX_SOMETHING_ELSE", KNOWN).is_some_and(|(_, distance)| distance > 2));
        assert!(nearest("UCRPC_TRANPORT", OURS).is_some_and(|(meant, _)| meant == "UCRPC_TRANSPORT"));
    }

    #[test]
    fn times_are_read() {
        assert_eq!(seconds("20s"), Some(20.0));
        assert_eq!(seconds("500ms"), Some(0.5));
        assert_eq!(seconds("inf"), None);
    }
}
