//! Whether this process may lock the memory that verbs need.
//!
//! UCX does not survive that it may not: opening a UD interface fills its receive queue in a loop that ends when the queue is full
//! (`while (rx.available >= rx_max_batch)` in `ud_verbs.c` and `ud_mlx5.c`), and buffers that cannot be registered never
//! fill it. `ucp_worker_create` then does not return.

use std::path::Path;

use rustix::process::{Resource, getrlimit};

/// What one worker locks for receiving and sending over RC with its UD helper: chunks of 20, 40 and 10 MB.
const NEEDED: u64 = 80 << 20;

/// `CAP_IPC_LOCK`, with which there is no limit.
const CAP_IPC_LOCK: u32 = 14;

/// Why UCX must not be started here; `None` if it can be.
pub(super) fn refusal() -> Option<String> {
    let device = std::fs::read_dir("/sys/class/infiniband").is_ok_and(|mut list| list.next().is_some());
    let tls = std::env::var("UCX_TLS").unwrap_or_default();
    if !device || !uses_verbs(&tls) || has_capability(Path::new("/proc/self/status")) {
        return None;
    }
    let limit = getrlimit(Resource::Memlock).current.filter(|limit| *limit < NEEDED)?;
    Some(format!(
        "this process may lock {} KiB of memory, and verbs need {} MiB: raise the limit (ulimit -l), or leave verbs out (UCX_TLS=^ib)",
        limit >> 10,
        NEEDED >> 20
    ))
}

/// Whether a value of `UCX_TLS` lets UCX open RDMA devices.
fn uses_verbs(tls: &str) -> bool {
    let (excludes, list) = tls.strip_prefix('^').map_or((false, tls), |list| (true, list));
    let mut words = list.split(',').map(str::trim).filter(|word| !word.is_empty()).peekable();
    if excludes {
        return !words.any(|word| word == "ib");
    }
    let none = words.peek().is_none();
    none || words.any(|word| word == "all" || ["ib", "rc", "ud", "dc"].iter().any(|verbs| word.starts_with(verbs)))
}

fn has_capability(status: &Path) -> bool {
    let text = std::fs::read_to_string(status).unwrap_or_default();
    let mask = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> CAP_IPC_LOCK & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_use_verbs_are_known() {
        for tls in ["", "all", "rc", "rc_verbs,sm", "tcp,ud_v", "ib", "dc_x", "^tcp"] {
            assert!(uses_verbs(tls), "{tls}");
        }
        for tls in ["tcp", "posix,sysv", "^ib", "^tcp,ib", "self,sm"] {
            assert!(!uses_verbs(tls), "{tls}");
        }
    }

    #[test]
    fn the_capability_is_read() {
        let path = std::env::temp_dir().join(format!("ucrpc-memlock-{}", std::process::id()));
        for (mask, has) in [("000001ffffffffff", true), ("0000000000004000", true), ("0000000000000000", false)] {
            std::fs::write(&path, format!("Name:\tx\nCapEff:\t{mask}\n")).expect("temporary folder");
            assert_eq!(has_capability(&path), has);
        }
        std::fs::remove_file(&path).expect("temporary folder");
        assert!(!has_capability(&path));
    }
}
