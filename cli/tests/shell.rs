//! Completions, manual pages, help.

mod util;

use util::{lines, run, stderr, stdout};

#[test]
fn every_shell_gets_its_completions() {
    for (shell, part) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef ucrpc"),
        ("fish", "complete -c ucrpc"),
        ("elvish", "ucrpc"),
        ("powershell", "ucrpc"),
    ] {
        let script = lines(&run(&["completions", shell])).join("\n");
        for part in [part, "press", "compare", "depth"] {
            assert!(script.contains(part), "{shell}: {part}");
        }
    }
    assert_eq!(run(&["completions", "csh"]).status.code(), Some(2));
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().expect("a directory");
    lines(&run(&["man", dir.path().to_str().expect("text")]));
    for page in ["ucrpc", "ucrpc-perf", "ucrpc-perf-server", "ucrpc-perf-client", "ucrpc-perf-compare", "ucrpc-press"] {
        let file = dir.path().join(format!("{page}.1"));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        assert!(text.contains(".TH ") && text.contains("SYNOPSIS"), "{page}");
    }
    assert!(lines(&run(&["man"])).iter().any(|line| line.starts_with(".TH")));
    let output = run(&["man", "/proc/nowhere"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/proc/nowhere"), "{}", stderr(&output));
}

#[test]
fn help_has_examples_and_exit_codes() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    for code in ["0  done", "3  the other side can't be reached", "5  UCX"] {
        assert!(stdout(&output).contains(code), "{code}");
    }
    for command in [&["perf", "server"][..], &["perf", "client"], &["perf", "compare"], &["press"], &["completions"]] {
        let output = run(&[command, &["--help"]].concat());
        assert!(output.status.success());
        assert!(stdout(&output).contains("Examples:\n  ucrpc "), "{command:?}");
    }
}

#[test]
fn who_stops_reading_is_no_failure() {
    let command = format!("{} completions bash | head -1", env!("CARGO_BIN_EXE_ucrpc"));
    let output = std::process::Command::new("bash").args(["-o", "pipefail", "-c", &command]).output().expect("bash");
    assert!(output.status.success(), "{}", stderr(&output));
}
