//! The report as text for people.

use std::fmt::Write;

use super::{
    finding::{Finding, Report, Severity},
    probe::{Facts, Link},
};

/// The whole text. What is well is shown with `all`.
pub(crate) fn text(report: &Report, all: bool) -> String {
    let mut text = format!("{}\n", report.machine);
    let facts = report.ucx.answer.facts.as_ref();
    if let Some(facts) = facts {
        about_ucx(&mut text, facts);
    }
    lanes(&mut text, report);
    text.push('\n');
    for finding in report.findings.iter().filter(|f| all || f.severity > Severity::Ok) {
        one(&mut text, finding);
    }
    if let Some(library) = facts.and_then(|f| f.library.as_ref()).filter(|_| all) {
        text += "UCX's settings on which there is an opinion:\n";
        for setting in &library.settings {
            let source = if setting.is_default { "our default" } else { "set by the user" };
            let late = if setting.acts { "" } else { ", too late to act" };
            let _ = writeln!(text, "  {}={} ({source}{late}): {}", setting.name, setting.value, setting.why);
        }
        text.push('\n');
    }
    let counts = report.counts;
    let _ = writeln!(
        text,
        "{}, {}, {}; {} checks passed{}",
        plural(counts.error, "error"),
        plural(counts.warning, "warning"),
        plural(counts.info, "note"),
        counts.ok,
        if all { "" } else { " (--all shows them)" }
    );
    text
}

fn plural(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

fn one(text: &mut String, finding: &Finding) {
    let _ = writeln!(text, "{:<8} {}: {}", finding.severity.word(), finding.id, finding.what);
    for (word, content) in [("costs", &finding.costs), ("mend", &finding.mend)] {
        if let Some(content) = content {
            let _ = writeln!(text, "         {word:<6} {content}");
        }
    }
}

fn about_ucx(text: &mut String, facts: &Facts) {
    if let Some(library) = &facts.library {
        let (major, minor, release) = library.version;
        let plugins = if library.plugins.is_empty() { "none".to_owned() } else { library.plugins.join(" ") };
        let _ = writeln!(text, "UCX {major}.{minor}.{release} from {}, plug-ins: {plugins}", library.path);
    }
    if !facts.resources.is_empty() {
        let _ = writeln!(text, "transports and devices: {}", facts.resources.join(" "));
    }
}

fn lanes(text: &mut String, report: &Report) {
    let Some(facts) = &report.ucx.answer.facts else { return };
    let link = |link: &Link| match (&link.transport, &link.error) {
        (Some(transport), _) if link.is_ucx() => format!("{transport} ({})", link.lanes.join(" + ")),
        (Some(transport), _) => transport.clone(),
        (None, error) => format!("none: {}", error.as_deref().unwrap_or("unknown")),
    };
    let _ = writeln!(text, "a connection on this host runs over: {}", link(&facts.loopback));
    for alone in &report.ucx.alone {
        let chosen = |lane: &String| lane.split('/').next() == Some(&alone.transport);
        let verdict = match (facts.loopback.lanes.iter().any(chosen), alone.works, &alone.reason) {
            (true, ..) => "chosen".to_owned(),
            (_, true, _) => "would do; UCX rates it lower".to_owned(),
            (_, false, reason) => why_not(&alone.transport, reason.as_deref().unwrap_or("no reason given")),
        };
        let _ = writeln!(text, "  {:<12} {verdict}", alone.transport);
    }
    if let Some(peer) = &facts.peer {
        let _ = writeln!(text, "the connection to the peer runs over: {}", link(peer));
    }
    for line in report.ucx.answer.log.iter().filter(|line| line.text.starts_with("ep_cfg[")) {
        let _ = writeln!(text, "  UCX's use of the lanes: {}", line.text);
    }
}

/// What UCX's "unreachable" means for transports that never carry a connection of ours alone.
fn why_not(transport: &str, said: &str) -> String {
    match transport {
        "self" => "not possible: only from a worker to itself".to_owned(),
        "cma" | "xpmem" | "knem" => {
            "not possible: bulk copies only, and none with peer-failure handling, which ucrpc needs".to_owned()
        }
        _ => format!("not possible: {said}"),
    }
}
