//! Every example of the RPC layer, run as a user would run it: to its end, within a minute.
//!
//! `cargo test` builds examples; where only this test was asked for, `cargo build --examples` comes first.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the issue allows each of them.
const LIMIT: Duration = Duration::from_secs(60);

fn example(name: &str) -> Command {
    let me = std::env::current_exe().expect("this program has a path");
    let built: PathBuf = me.parent().and_then(|deps| deps.parent()).expect("target/PROFILE/deps").join("examples");
    let path = built.join(name);
    assert!(path.exists(), "{} is not there: cargo build --examples", path.display());
    Command::new(path)
}

/// Runs it to its end, and returns what it printed.
fn run(name: &str, arguments: &[&str]) -> String {
    let mut child = example(name).args(arguments).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut stdout = child.stdout.take().expect("piped");
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text)
    });
    let status = wait(&mut child);
    let text = reader.join().expect("no panic").expect("text");
    assert!(status, "{name} {arguments:?} failed: {text}");
    text
}

/// Whether it ended well.
fn wait(child: &mut Child) -> bool {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status.success();
        }
        if Instant::now() > deadline {
            child.kill().expect("it runs");
            panic!("it did not end within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The server and its client are programs of their own.
#[test]
fn echo_server_and_client() {
    let socket = std::env::temp_dir().join(format!("ucrpc-examples-{}.sock", std::process::id()));
    let unix = format!("unix://{}", socket.display());
    let mut server = example("echo_server");
    let server = server.args(["auto://127.0.0.1:0", &unix]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = server.spawn().expect("it starts");
    let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines();
    let auto = lines.next().expect("an address").expect("text");
    assert_eq!(lines.next().expect("an address").expect("text"), unix);
    let port = auto.rsplit(':').next().expect("a port");
    for (scheme, transport) in [("tcp", "over tcp"), ("ucx", "over ucx"), ("auto", "over ucx")] {
        let said = run("echo_client", &[&format!("{scheme}://127.0.0.1:{port}"), "some", "words"]);
        assert!(said.contains("some words") && said.contains(transport), "{scheme}: {said}");
    }
    let said = run("echo_client", &[&unix]);
    assert!(said.contains("hello") && said.contains("over unix"), "{said}");
    // Its standard input ends, and so does it, with grace.
    drop(server.stdin.take());
    assert!(wait(&mut server));
    let counted = lines.next().expect("counters").expect("text");
    assert!(counted.contains("started: 4") && counted.contains("running: 0"), "{counted}");
}

#[test]
fn attachment() {
    for address in ["tcp://127.0.0.1:0", "ucx://127.0.0.1:0", "mem://attachment"] {
        let said = run("attachment", &[address, "4"]);
        assert_eq!(said.matches("4 MiB there and back").count(), 5, "{said}");
    }
}

#[test]
fn streaming() {
    for address in ["tcp://127.0.0.1:0", "ucx://127.0.0.1:0"] {
        let said = run("streaming", &[address]);
        assert!(said.contains("10000 messages"), "{said}");
    }
}

#[test]
fn deadline_and_cancel() {
    let said = run("deadline_and_cancel", &[]);
    assert!(said.contains("call timed out: ") && said.contains("still at work: true"), "{said}");
    assert_eq!(said.matches("a handler was dropped").count(), 2, "{said}");
}

#[test]
fn hedged() {
    let said = run("hedged", &[]);
    let p99 = |line: &str| {
        let (_, rest) = line.split_once("p99 ").expect("a p99");
        let text = rest.split(',').next().expect("a figure");
        match (text.strip_suffix("µs"), text.strip_suffix("ms")) {
            (Some(us), _) => us.parse::<f64>().expect("a number") / 1000.0,
            (_, Some(ms)) => ms.parse().expect("a number"),
            _ => panic!("no time: {text}"),
        }
    };
    let (without, with) = said.split_once('\n').expect("two lines");
    assert!(p99(without) >= 100.0 && p99(with) < p99(without), "{said}");
}

#[test]
fn swap_transport() {
    let socket = std::env::temp_dir().join(format!("ucrpc-swap-{}.sock", std::process::id()));
    for address in ["tcp://127.0.0.1:0", "ucx://127.0.0.1:0", "mem://swap", &format!("unix://{}", socket.display())] {
        let said = run("swap_transport", &[address]);
        let scheme = address.split(':').next().expect("a scheme");
        assert!(said.contains(&format!("over {scheme}")), "{address}: {said}");
    }
}
