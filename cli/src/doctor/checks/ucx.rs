//! The library of UCX: there or not, which, how it was built, and what it complains of.

use super::{Finding, Seen};
use crate::doctor::probe::{Library, Reason, ReasonKind};

pub(super) fn check(seen: &Seen<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(ended) = &seen.answer().ended {
        let log = &seen.answer().log;
        let said = log.iter().rfind(|line| line.level == "ERROR" || line.level == "FATAL");
        let said = said.map_or_else(String::new, |line| format!("; it said: {}", line.text));
        found.push(
            Finding::error(
                "ucx-crash",
                format!("a process that uses UCX with these settings ended badly: {ended}{said}"),
            )
            .costs("programs on this machine can end the same way")
            .mend("unset the UCX_* variables one by one; UCRPC_UCX_LIBRARY=none keeps programs off UCX until then"),
        );
    }
    let Some(facts) = seen.facts() else { return found };
    if let Some(reason) = &facts.unusable {
        found.push(unusable(seen, reason));
    }
    if let Some(library) = &facts.library {
        found.extend(about(library));
    }
    if facts.unusable.is_none() {
        let transports = facts.resources.len();
        found.push(Finding::ok("ucx-start", format!("UCX starts and has {transports} transports and devices")));
    }
    found.extend(complaints(seen));
    found
}

/// UCX cannot be used at all.
fn unusable(seen: &Seen<'_>, reason: &Reason) -> Finding {
    let machine = seen.machine;
    let chosen = machine.env("UCRPC_UCX_LIBRARY");
    let demanded = machine.env("UCRPC_TRANSPORT") == Some("ucx") || chosen.is_some_and(|path| path != "none");
    let costs = if demanded {
        "UCX was asked for: ucx:// addresses are refused, auto:// ones go over TCP or are refused"
    } else {
        "no RDMA, no shared memory: auto:// goes over TCP, ucx:// is refused"
    };
    let (id, mend) = match (reason.kind, chosen) {
        (ReasonKind::Disabled, _) => ("ucx-library", "unset UCRPC_UCX_LIBRARY".to_owned()),
        _ if seen.library().is_some() => ("ucx-start", "mend what UCX says of it in the findings beside this one".to_owned()),
        (_, Some(path)) => ("ucx-library", format!("UCRPC_UCX_LIBRARY={path} must name a libucp.so.0 or its folder; unset it to use the installed one")),
        (_, None) => ("ucx-library", "apt-get install libucx0 (Debian, Ubuntu), dnf install ucx (Fedora, RHEL), or UCRPC_UCX_LIBRARY=/path/libucp.so.0".to_owned()),
    };
    let is_error = demanded || id == "ucx-start";
    let finding =
        if is_error { Finding::error(id, reason.text.clone()) } else { Finding::warning(id, reason.text.clone()) };
    finding.costs(costs).mend(mend)
}

/// Version and build.
fn about(library: &Library) -> Vec<Finding> {
    let (major, minor, release) = library.version;
    let mut found = vec![Finding::ok("ucx-library", format!("UCX {major}.{minor}.{release} from {}", library.path))];
    if library.version < (1, 16, 0) {
        found.push(
            Finding::info("ucx-version", format!("UCX {major}.{minor} is older than 1.16"))
                .costs("it does not notice a peer that died with a full shared-memory queue; ucrpc's own control socket does")
                .mend("a newer UCX on all hosts (both sides need the same major.minor), by UCRPC_UCX_LIBRARY"),
        );
    } else if library.version >= (1, 23, 0) {
        found.push(
            Finding::info(
                "ucx-version",
                format!("UCX {major}.{minor} is newer than what ucrpc was tested with (1.13 to 1.22)"),
            )
            .costs("probably nothing"),
        );
    }
    if library.assertions == Some(true) {
        found.push(
            Finding::info("ucx-assertions", "this build of UCX has its assertions on, as Debian's has")
                .costs("small messages over shared memory take about 1.8 times as long as with a release build; misuse aborts")
                .mend("a release build of UCX, by UCRPC_UCX_LIBRARY"),
        );
    }
    if library.multi_threaded == Some(false) {
        found.push(
            Finding::warning("ucx-threads", "this build of UCX is for one thread only")
                .costs("several dispatchers share one context, which such a build does not protect")
                .mend("a UCX that was configured with --enable-mt"),
        );
    }
    if !library.missing_symbols.is_empty() {
        let names = library.missing_symbols.join(", ");
        found.push(Finding::info("ucx-symbols", format!("UCX lacks {names}")).costs("nothing: ucrpc has other ways"));
    }
    if library.was_in_process {
        found.push(
            Finding::warning(
                "ucx-preloaded",
                "UCX is in every process before ucrpc loads it (LD_PRELOAD, or another library)",
            )
            .costs("it has read its environment already: our defaults for signals, log and memory hooks come too late")
            .mend("unset LD_PRELOAD, or set the variables that ucrpc doctor --all marks as too late"),
        );
    }
    found
}

/// UCX's own warnings and errors.
fn complaints(seen: &Seen<'_>) -> Vec<Finding> {
    let lines = seen.answer().log.iter().filter(|line| line.level == "WARN" || line.level == "ERROR");
    let mut found: Vec<Finding> = Vec::new();
    for line in lines.filter(|line| !line.text.starts_with("unused env variable")) {
        let finding = complaint(&line.text, line.level == "ERROR");
        if !found.iter().any(|other| other.what == finding.what) {
            found.push(finding);
        }
    }
    found
}

fn complaint(text: &str, is_error: bool) -> Finding {
    if text.starts_with("transport '") {
        return Finding::error("ucx-tls", format!("UCX_TLS: {text}"))
            .costs("the lanes that were meant are not used; if none is left, UCX does not start and all goes over TCP")
            .mend("unset UCX_TLS, or name transports of the list above");
    }
    if text.contains("device '") && text.contains("is not available") {
        return Finding::error("ucx-devices", format!("UCX_NET_DEVICES: {text}"))
            .costs("without its device the transport is left out: other hosts are not reached over UCX, and all goes over TCP")
            .mend("unset UCX_NET_DEVICES, or name devices of the list above");
    }
    if text.starts_with("no usable transports/devices") {
        return Finding::error("ucx-start", text)
            .costs("UCX does not start: all goes over TCP, and ucx:// is refused")
            .mend("unset UCX_TLS UCX_NET_DEVICES");
    }
    if text.starts_with("Invalid value for ") {
        return Finding::error("ucx-value", text)
            .costs("UCX does not start: all goes over TCP, and ucx:// is refused")
            .mend("correct or unset that variable (its name begins with UCX_)");
    }
    let finding = if is_error { Finding::error("ucx-says", text) } else { Finding::warning("ucx-says", text) };
    finding.costs("UCX's own words").mend("docs/troubleshooting.md; UCX_LOG_LEVEL=debug says more")
}
