//! `ucrpc press`.

mod util;

use util::{Server, json, lines, number, run, stderr, stdout};

#[test]
fn it_keeps_the_rate_and_sums_up() {
    let server = Server::start("tcp://127.0.0.1:0");
    let args = ["press", &server.address, "--rate", "500", "--ramp", "0.5", "--seconds", "1"];
    let output = run(&[&args[..], &["--size", "100", "--json"]].concat());
    let summary = &json(&output)[0];
    // The ramp is not counted.
    assert_eq!(number(summary, "count"), 500.0, "{summary}");
    assert!((number(summary, "calls_s") - 500.0).abs() < 50.0, "{summary}");
    assert_eq!(summary["method"], "ucrpc.perf.Perf/Echo");
    for field in ["p50_us", "p90_us", "p99_us", "p999_us", "max_us", "cpu_s"] {
        assert!(number(summary, field) > 0.0, "{field}: {summary}");
    }
    assert_eq!(stderr(&output).lines().count(), 1, "no live figures in a pipe: {}", stderr(&output));
    let text = lines(&run(&args));
    assert_eq!(text.len(), 3, "{text:?}");
    assert!(text[1].contains("500 calls") && text[2].starts_with("latency us: p50 "), "{text:?}");
}

#[test]
fn a_message_from_a_file_is_sent() {
    let server = Server::start("tcp://127.0.0.1:0");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("request");
    // Field 1, three bytes.
    std::fs::write(&file, [0x0a, 3, 1, 2, 3]).expect("written");
    let path = file.to_str().expect("text");
    let args = ["press", &server.address, "ucrpc.perf.Perf/Push", "--raw", path, "--rate", "200", "--seconds", "0.5"];
    assert_eq!(number(&json(&run(&[&args[..], &["--json"]].concat()))[0], "count"), 100.0);
    // Field 1, cut short: the server cannot read it.
    std::fs::write(&file, [0x0a, 3, 1]).expect("written");
    let output = run(&args);
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    let output = run(&["press", &server.address, "--raw", "/nowhere/request", "--rate", "200"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("/nowhere/request"), "{}", stderr(&output));
}

#[test]
fn json_becomes_a_message_by_its_proto_file() {
    let server = Server::start("tcp://127.0.0.1:0");
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto/perf.proto");
    let args = ["press", &server.address, "Perf/Echo", "--proto", proto, "--rate", "200", "--seconds", "0.5", "--json"];
    let summary = &json(&run(&[&args[..], &["--data", r#"{"payload": "AQID"}"#]].concat()))[0];
    assert_eq!((&summary["method"], number(summary, "count")), (&"ucrpc.perf.Perf/Echo".into(), 100.0));
    let output = run(&[&args[..], &["--data", r#"{"nonsense": 1}"#]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

#[test]
fn a_method_that_is_not_there_ends_it() {
    let server = Server::start("tcp://127.0.0.1:0");
    let output = run(&["press", &server.address, "no.Such/Method", "--rate", "200", "--seconds", "30"]);
    assert_eq!(output.status.code(), Some(6));
    assert!(stderr(&output).contains("no.Such"), "{}", stderr(&output));
    assert!(stdout(&output).is_empty());
    for args in [&["press", "tcp://127.0.0.1:1", "nothing", "--rate", "1"][..], &["press", "tcp://127.0.0.1:1"]] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
}
