//! `ucrpc perf server` and `ucrpc perf client`, as programs and scripts see them.

mod util;

use std::{process::Stdio, time::Duration};

use rustix::process::Signal;
use util::{Server, finish, json, lines, number, run, run_with, stderr, stdout, ucrpc};

const FIELDS: &[&str] = &[
    "size",
    "depth",
    "conns",
    "count",
    "calls_s",
    "mb_s",
    "p50_us",
    "p90_us",
    "p99_us",
    "p999_us",
    "max_us",
    "cpu_s",
    "server_cpu_s",
    "cpu_s_per_100k",
    "server_cpu_s_per_100k",
    "errors",
    "unsent",
    "seconds",
];

fn client<'a>(address: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["perf", "client", "--addr", address, "--warmup", "0.05", "--seconds", "0.2"], more].concat()
}

#[test]
fn json_has_one_line_for_each_point_with_all_fields() {
    let server = Server::start("tcp://127.0.0.1:0");
    let points =
        json(&run(&client(&server.address, &["--size", "64,4k,64k", "--depth", "4", "--conns", "2", "--json"])));
    assert_eq!(points.iter().map(|point| number(point, "size") as u64).collect::<Vec<_>>(), [64, 4096, 65_536]);
    for point in &points {
        for field in FIELDS {
            assert!(number(point, field) >= 0.0, "{field}");
        }
        assert_eq!((number(point, "depth"), number(point, "conns"), number(point, "errors")), (4.0, 2.0, 0.0));
        assert_eq!(point["transport"], "tcp");
        assert!(point["fallback_reason"].is_null() && point["last_error"].is_null());
        let count = number(point, "count");
        assert!(count > 10.0, "{point}");
        // The figures agree with each other.
        let per_second = count / number(point, "seconds");
        assert!((number(point, "calls_s") / per_second - 1.0).abs() < 0.01, "{point}");
        let mb_s = per_second * number(point, "size") / 1e6;
        assert!((number(point, "mb_s") / mb_s - 1.0).abs() < 0.01, "{point}");
        let ordered = ["p50_us", "p90_us", "p99_us", "p999_us", "max_us"].map(|field| number(point, field));
        assert!(ordered.is_sorted(), "{point}");
        assert!(number(point, "cpu_s") > 0.0 && number(point, "server_cpu_s") > 0.0, "{point}");
        // Little's law: 8 calls are always under way, and more than half of the calls take about the median.
        let under_way = per_second * number(point, "p50_us") / 1e6;
        assert!(under_way > 0.5 && under_way < 16.0, "{under_way} calls under way in {point}");
    }
}

#[test]
fn every_mode_measures() {
    let server = Server::start("auto://127.0.0.1:0");
    let address = server.over("tcp");
    for mode in ["echo", "attachment", "oneway", "stream", "pingpong", "send"] {
        for depth in ["1", "8"] {
            let more = ["--mode", mode, "--depth", depth, "--size", "64,256k", "--json"];
            let points = json(&run(&client(&address, &more)));
            assert_eq!(points.len(), 2);
            for point in &points {
                assert_eq!(point["mode"], mode);
                assert!(number(point, "count") > 3.0 && number(point, "mb_s") > 0.0, "{point}");
                // Messages that nobody answers are not timed one by one.
                assert_eq!(point["p50_us"].is_null(), mode == "send", "{point}");
            }
        }
    }
}

#[test]
fn a_unix_socket_and_several_threads_serve() {
    let dir = tempfile::tempdir().expect("a directory");
    let address = format!("unix://{}", dir.path().join("perf.sock").display());
    let server = Server::start_with(&["--listen", &address, "--threads", "2"], &[]);
    for mode in ["echo", "stream", "pingpong"] {
        let points = json(&run(&client(&server.address, &["--mode", mode, "--conns", "3", "--depth", "2", "--json"])));
        assert_eq!(points[0]["transport"], "unix");
    }
}

#[test]
fn csv_and_the_table_have_a_line_for_each_point() {
    let server = Server::start("tcp://127.0.0.1:0");
    let csv = lines(&run(&client(&server.address, &["--size", "64,1k", "--csv"])));
    assert_eq!(csv.len(), 3);
    assert!(csv[0].starts_with("mode,size,depth,"));
    assert!(csv.iter().all(|line| line.matches(',').count() == csv[0].matches(',').count()), "{csv:?}");
    let table = lines(&run(&client(&server.address, &["--size", "64,1k"])));
    assert_eq!(table.len(), 3);
    assert!(table[1].trim_start().starts_with("64 B") && table[2].trim_start().starts_with("1 KiB"), "{table:?}");
}

#[test]
fn a_pipe_gets_no_progress() {
    let server = Server::start("tcp://127.0.0.1:0");
    let output = run(&client(&server.address, &["--json"]));
    assert_eq!(stdout(&output).lines().count(), 1);
    let said = stderr(&output);
    assert_eq!(said.lines().count(), 1, "one line, about the connection: {said:?}");
    assert!(!said.contains(['\u{1b}', '\r', '[']), "{said:?}");
}

#[test]
fn a_picture_is_drawn() {
    let server = Server::start("tcp://127.0.0.1:0");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("perf.svg");
    let path = file.to_str().expect("text");
    lines(&run(&client(&server.address, &["--size", "64,4k", "--svg", path])));
    let text = std::fs::read_to_string(&file).expect("it was written");
    assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
    for part in ["p50", "p99.9", "64 B", "4 KiB", "Throughput"] {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn a_fallback_is_said() {
    let none = [("UCRPC_UCX_LIBRARY", "none")];
    let server = Server::start_with(&["--listen", "auto://127.0.0.1:0"], &none);
    let output = run_with(&client(&server.address, &["--json"]), &none);
    let point = &json(&output)[0];
    assert_eq!(point["transport"], "tcp");
    let reason = point["fallback_reason"].as_str().expect("a reason");
    assert!(reason.contains("UCRPC_UCX_LIBRARY=none"), "{reason}");
    assert!(stderr(&output).contains(&format!("note: not over ucx: {reason}")), "{}", stderr(&output));
}

#[test]
fn ucx_that_cannot_be_had_is_an_error() {
    let none = [("UCRPC_UCX_LIBRARY", "none")];
    let server = Server::start_with(&["--listen", "auto://127.0.0.1:0"], &none);
    let output = run_with(&client(&server.over("ucx"), &["--json"]), &none);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stdout(&output).is_empty());
}

#[test]
fn ucx_carries_it_where_it_is_installed() {
    let env = [("UCX_TLS", "posix")];
    let server = Server::start_with(&["--listen", "ucx://127.0.0.1:0"], &env);
    for mode in ["echo", "attachment", "stream", "pingpong", "send"] {
        let points = json(&run_with(&client(&server.address, &["--mode", mode, "--size", "64,256k", "--json"]), &env));
        for point in &points {
            assert_eq!(point["transport"], "ucx (posix)", "{point}");
            assert!(number(point, "count") > 3.0, "{point}");
        }
    }
}

#[test]
fn nobody_there_is_said_with_what_to_do() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let output = run(&["perf", "client", "--addr", &format!("tcp://127.0.0.1:{port}")]);
    assert_eq!(output.status.code(), Some(3));
    let said = stderr(&output);
    assert!(said.contains("refused") && said.contains("hint: "), "{said}");
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("tcp://{}", busy.local_addr().expect("bound"));
    let output = run(&["perf", "server", "--listen", &address]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("hint: "), "{}", stderr(&output));
}

#[test]
fn a_senseless_command_line_is_refused() {
    for args in [
        &["perf", "client", "--size", "big"][..],
        &["perf", "client", "--size", "0"],
        &["perf", "client", "--addr", "http://host:1"],
        &["perf", "client", "--json", "--csv"],
        &["perf", "client", "--rate", "5k", "--mode", "stream"],
        &["perf", "client", "--seconds", "0"],
        &["perf", "client", "--seconds", "-1"],
        &["perf", "client", "--depth", "0"],
        &["perf"],
        &["nonsense"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stdout(&output).is_empty() && !stderr(&output).is_empty(), "{args:?}");
    }
}

#[test]
fn a_server_that_dies_is_said() {
    for mode in ["echo", "stream", "pingpong", "send"] {
        let server = Server::start("tcp://127.0.0.1:0");
        let args = ["perf", "client", "--addr", &server.address, "--mode", mode, "--seconds", "60", "--json"];
        let child = ucrpc(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        std::thread::sleep(Duration::from_millis(900));
        server.signal(Signal::KILL);
        let start = std::time::Instant::now();
        let output = finish(child);
        assert_eq!(output.status.code(), Some(4), "{mode}: {}", stderr(&output));
        assert!(stdout(&output).is_empty(), "{mode}: a point was printed");
        assert!(stderr(&output).lines().any(|line| line.starts_with("ucrpc: ")), "{mode}: {}", stderr(&output));
        assert!(start.elapsed() < Duration::from_secs(20), "{mode}: it took {:?}", start.elapsed());
    }
}

/// Measures while the server stands still for 400 ms in the middle.
fn with_a_stall(more: &[&str]) -> serde_json::Value {
    let server = Server::start("tcp://127.0.0.1:0");
    let args = ["perf", "client", "--addr", &server.address, "--seconds", "2", "--warmup", "0", "--json"];
    let child =
        ucrpc(&[&args, more].concat()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    std::thread::sleep(Duration::from_millis(900));
    server.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(400));
    server.signal(Signal::CONT);
    json(&finish(child)).remove(0)
}

#[test]
fn an_open_loop_counts_the_calls_that_a_stall_kept_waiting() {
    let point = with_a_stall(&["--rate", "1000", "--depth", "16"]);
    // All that were due were made, late ones too.
    assert_eq!(number(&point, "count"), 2000.0, "{point}");
    assert_eq!((number(&point, "errors"), number(&point, "unsent")), (0.0, 0.0), "{point}");
    // 400 of 2000 calls were due during the stall and waited 200 ms on average: every 10th call waited 200 ms or more.
    assert!(number(&point, "p90_us") > 100_000.0, "{point}");
    assert!(number(&point, "p99_us") > 300_000.0, "{point}");
    // A closed loop makes one call in that time, and sees one slow call: that is what is corrected.
    let closed = with_a_stall(&["--depth", "1"]);
    assert!(number(&closed, "max_us") > 300_000.0, "{closed}");
    assert!(number(&closed, "p99_us") < 100_000.0, "{closed}");
}

#[test]
fn a_rate_that_the_server_cannot_keep_is_said() {
    let server = Server::start("tcp://127.0.0.1:0");
    // Far more than one call at a time can do; late calls may be made for 0.3 s after the end.
    let more = ["--rate", "10M", "--seconds", "0.3", "--timeout", "0.3", "--json"];
    let args = [&["perf", "client", "--addr", &server.address, "--warmup", "0"], &more[..]].concat();
    let output = run(&args);
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    let point: serde_json::Value = serde_json::from_str(stdout(&output).trim()).expect("a line of JSON");
    assert!(number(&point, "unsent") > 0.0, "{point}");
    assert!(stderr(&output).contains("does not keep up"), "{}", stderr(&output));
}

#[test]
fn idle_connections_are_weighed() {
    let server = Server::start("tcp://127.0.0.1:0");
    let output = run(&["perf", "client", "--addr", &server.address, "--idle", "200", "--seconds", "0.2", "--json"]);
    let idle = &json(&output)[0];
    assert_eq!((number(idle, "idle"), number(idle, "open"), number(idle, "errors")), (200.0, 200.0, 0.0));
    for field in ["rss_per_conn_kib", "server_rss_per_conn_kib"] {
        let kib = number(idle, field);
        assert!(kib > 0.0 && kib < 200.0, "{field}: {idle}");
    }
}

#[test]
fn a_server_of_something_else_is_told_apart() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("tcp://{}", other.local_addr().expect("bound"));
    let thread = std::thread::spawn(move || {
        // Takes the connection and closes it.
        drop(other.accept());
    });
    let output = run(&["perf", "client", "--addr", &address, "--timeout", "2"]);
    assert!(matches!(output.status.code(), Some(3 | 4)), "{}: {}", output.status, stderr(&output));
    thread.join().expect("it ends");
}
