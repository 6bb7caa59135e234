//! What connections really run over: on this host, and to the peer that was asked about.

use super::{Finding, Seen};
use crate::doctor::probe::{Facts, Link, Reason, ReasonKind};

pub(super) fn check(seen: &Seen<'_>) -> Vec<Finding> {
    let Some(facts) = seen.facts() else { return Vec::new() };
    let mut found = Vec::new();
    // Where UCX cannot be used at all, that is the finding.
    if facts.unusable.is_none() {
        found.extend(here(seen, facts));
    }
    if let (Some(link), Some(peer)) = (&facts.peer, seen.peer) {
        found.push(to_peer(link, peer, facts));
    }
    found
}

/// Whether a lane is one of shared memory.
fn is_shared(lane: &str) -> bool {
    ["posix", "sysv", "xpmem"].iter().any(|name| lane.split('/').next() == Some(name))
}

fn here(seen: &Seen<'_>, facts: &Facts) -> Option<Finding> {
    let link = &facts.loopback;
    if let Some(error) = link.error.as_ref().filter(|error| error.starts_with("timed out")) {
        return Some(
            Finding::error("lanes", format!("two workers of one process do not connect in time: {error}"))
                .costs("programs that connect over UCX on this host run into the same deadline")
                .mend("wait until the machine is less busy, and look again; UCX_TLS with fewer transports connects faster"),
        );
    }
    if let Some(error) = &link.error {
        return Some(
            Finding::error("lanes", format!("two workers of one process cannot connect: {error}"))
                .costs("nothing on this host can talk to anything else on it")
                .mend("the findings about the network and the limits"),
        );
    }
    if !link.is_ucx() {
        let reason = link.fallback.as_ref().map_or("no reason given", |reason| reason.text.as_str());
        return Some(
            Finding::error("lanes", format!("UCX starts, but carries no connection on this host: {reason}"))
                .costs("auto:// goes over TCP, ucx:// is refused")
                .mend("unset UCX_TLS UCX_NET_DEVICES; peer-failure handling needs tcp, RDMA, or shared memory with UCX_MM_ERROR_HANDLING=y"),
        );
    }
    let lanes = link.lanes.join(" + ");
    if link.lanes.iter().any(|lane| is_shared(lane)) {
        return Some(Finding::ok("lanes", format!("connections on this host run over {lanes}")));
    }
    let cause = match seen.env_of(&["UCX_TLS", "UCX_MM_ERROR_HANDLING", "UCX_POSIX_ERROR_HANDLING"]) {
        Some((name, value)) => format!("{name}={value} may be why"),
        None => "shared memory was not possible".to_owned(),
    };
    Some(
        Finding::warning(
            "lanes",
            format!("connections on this host run over {lanes}, not over shared memory: {cause}"),
        )
        .costs("small messages on one host take many times as long as over shared memory")
        .mend("unset UCX_TLS, or add posix,sysv to it; make room in /dev/shm"),
    )
}

fn to_peer(link: &Link, peer: &str, facts: &Facts) -> Finding {
    if let Some(error) = &link.error {
        return Finding::error("peer", format!("no connection to {peer}: {error}"))
            .costs("programs cannot reach it either")
            .mend("is a ucrpc server running there? docs/troubleshooting.md has the errors of connecting");
    }
    if link.is_ucx() {
        let lanes = link.lanes.join(" + ");
        let local = link.lanes.iter().any(|lane| is_shared(lane));
        let rdma = facts.resources.iter().any(|r| r.contains("_mlx5/") || r.contains("_verbs/"));
        if rdma && !local && link.lanes.iter().all(|lane| lane.starts_with("tcp")) {
            return Finding::warning(
                "peer",
                format!("the connection to {peer} runs over {lanes}, and this host has RDMA"),
            )
            .costs("TCP's latency and CPU time in place of RDMA's")
            .mend(
                "run ucrpc doctor on the peer: its device, port or GID may be the cause; compare UCX_TLS of both sides",
            );
        }
        return Finding::ok("peer", format!("the connection to {peer} runs over ucx ({lanes})"));
    }
    let transport = link.transport.as_deref().unwrap_or("nothing");
    match &link.fallback {
        Some(reason) => {
            Finding::warning("peer", format!("the connection to {peer} runs over {transport}: {}", reason.text))
                .costs("no RDMA, no shared memory to that peer")
                .mend(remedy(reason))
        }
        None => Finding::info("peer", format!("the connection to {peer} runs over {transport}, as its address says"))
            .costs("no RDMA, no shared memory to that peer")
            .mend("an auto:// address in place of this one"),
    }
}

fn remedy(reason: &Reason) -> &'static str {
    match reason.kind {
        ReasonKind::Disabled => "unset what switched UCX off; the text says which",
        ReasonKind::NoLibrary => "the finding ucx-library or ucx-start of this host",
        ReasonKind::PeerHasNone => "run ucrpc doctor on the peer; apt-get install libucx0 there",
        ReasonKind::VersionMismatch => {
            "one version of UCX for both: install it, or UCRPC_UCX_LIBRARY=/path/libucp.so.0"
        }
        ReasonKind::SettingsMismatch => "the same UCX_* variables for both sides; the text prints both sets",
        ReasonKind::Unreachable => {
            "compare UCX_TLS and UCX_NET_DEVICES of both sides; on one host a common /dev/shm and IPC namespace"
        }
        ReasonKind::ProofTimedOut => {
            "a firewall between the hosts' ephemeral ports, a wrong UCX_NET_DEVICES, a device without a route"
        }
        ReasonKind::Failed => "UCX_LOG_LEVEL=debug on the side that says it",
    }
}
