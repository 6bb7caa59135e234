//! `ucrpc perf compare`, short.

mod util;

use serde_json::Value;
use util::{json, lines, number, run, run_with, stderr, stdout};

const SHORT: &[&str] = &["perf", "compare", "--rounds", "2", "--slice", "0.02", "--size", "64,64k"];

fn of_kind<'a>(all: &'a [Value], kind: &str) -> Vec<&'a Value> {
    all.iter().filter(|value| value["kind"] == kind).collect()
}

#[test]
fn each_transport_has_its_control_and_ratio() {
    let all = json(&run(&[SHORT, &["--only", "tcp,unix", "--json"]].concat()));
    assert_eq!(all[0]["kind"], "machine");
    for field in ["cpu", "kernel", "commit", "version", "command"] {
        assert!(all[0][field].as_str().is_some_and(|text| !text.is_empty()), "{field}");
    }
    let points = of_kind(&all, "point");
    for name in ["tcp", "unix"] {
        let points: Vec<_> = points.iter().filter(|point| point["name"] == name).collect();
        assert_eq!(points.len(), 2, "{name}: {all:?}");
        for point in points {
            assert_eq!(point["transport"], name);
            // Three in each round.
            assert_eq!(number(point, "samples"), 6.0);
            for field in ["rpc_p50_us", "rpc_calls_s", "rpc_ratio"] {
                assert!(number(point, field) > 0.0, "{field}: {point}");
            }
            for (ours, control, ratio) in [
                ("pingpong_p50_us", "control_p50_us", "pingpong_ratio"),
                ("one_way_mb_s", "control_mb_s", "one_way_ratio"),
            ] {
                // The ratio is a median of ratios, not a ratio of medians; all are there.
                assert!(
                    number(point, ours) > 0.0 && number(point, control) > 0.0 && number(point, ratio) > 0.0,
                    "{point}"
                );
            }
        }
    }
    assert_eq!(of_kind(&all, "control").len(), 2, "shared memory at both sizes: {all:?}");
}

#[test]
fn ucx_is_measured_over_what_was_asked_for() {
    let all = json(&run(&[SHORT, &["--only", "ucx over tcp,memory", "--json"]].concat()));
    let points = of_kind(&all, "point");
    for (name, transport) in [("ucx over tcp", "ucx (tcp/"), ("ucx over shared memory", "ucx (posix")] {
        let points: Vec<_> = points.iter().filter(|point| point["name"] == name).collect();
        assert_eq!(points.len(), 2, "{name}: {all:?}");
        for point in points {
            assert!(point["transport"].as_str().is_some_and(|text| text.starts_with(transport)), "{point}");
            assert!(number(point, "pingpong_p50_us") > 0.0, "{point}");
        }
    }
    assert!(all[0]["ucx"].as_str().is_some_and(|version| version.starts_with("1.")), "{}", all[0]);
}

#[test]
fn a_transport_that_is_not_what_was_asked_for_is_not_measured_under_its_name() {
    for (env, why) in [
        (("UCRPC_UCX_LIBRARY", "none"), "UCRPC_UCX_LIBRARY=none"),
        (("UCRPC_TRANSPORT", "tcp"), "UCRPC_TRANSPORT=tcp is set"),
    ] {
        let output = run_with(&[SHORT, &["--size", "64"]].concat(), &[env]);
        let text = lines(&output).join("\n");
        for name in ["ucx over tcp", "ucx over shared memory"] {
            let note =
                text.lines().find(|line| line.starts_with(&format!("note: {name}: not measured: asked for {name}")));
            let note = note.unwrap_or_else(|| panic!("{text}"));
            assert!(note.contains("and got tcp") && note.contains(why), "{note}");
        }
        // All else is measured.
        let row = text.lines().find(|line| line.starts_with("| unix ")).unwrap_or_else(|| panic!("{text}"));
        assert!(!row.contains("not measured"), "{row}");
    }
}

#[test]
fn the_picture_and_the_table_are_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("compare.svg");
    let output = run(&[SHORT, &["--only", "unix", "--svg", file.to_str().expect("text")]].concat());
    let text = lines(&output).join("\n");
    assert!(
        text.contains("machine  ") && text.contains("| transport ") && text.contains("control: a bare Unix socket"),
        "{text}"
    );
    let picture = std::fs::read_to_string(&file).expect("it was written");
    for part in ["unix: bare socket", "shared memory, two threads", "64 KiB"] {
        assert!(picture.contains(part), "{part}");
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let output = run(&["perf", "compare", "--only", "pigeons"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("ucx over shared memory"), "the names are listed: {}", stderr(&output));
    for args in [&["--cpus", "0,4000"][..], &["--slice", "0"], &["--rounds", "0"]] {
        assert_eq!(run(&[&["perf", "compare"], args].concat()).status.code(), Some(2), "{args:?}");
    }
    assert!(stdout(&output).is_empty());
}
