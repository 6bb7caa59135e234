//! What is planted for real: variables, limits, name spaces. These tests need UCX.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use ucrpc::transport::{Dispatcher, DispatcherConfig, ListenConfig};

use super::{Said, clean, doctor, doctor_under, run};

/// Runs with variables set, and expects what they break to be found; without them it must not be.
#[track_caller]
fn with_env(env: &[(&str, &str)], id: &str, severity: &str) -> (Said, String) {
    let mut command = doctor();
    command.arg("--quick").envs(env.iter().copied());
    compare(command, id, severity)
}

#[track_caller]
fn compare(command: Command, id: &str, severity: &str) -> (Said, String) {
    let before = run(doctor());
    assert!(before.find("ucx-library", "ok").is_some(), "this test needs UCX: {:?}", before.findings());
    assert!(before.find(id, severity).is_none(), "{id} was there before: {:?}", before.findings());
    let said = run(command);
    let text = said.expect(id, severity);
    (said, text)
}

/// Starts `unshare` so that it may be used without being root.
fn unshared(kind: &str, script: &str) -> Command {
    let own = rustix::process::geteuid().is_root();
    let flags = if own { kind.to_owned() } else { format!("{kind}r") };
    let script = format!("{script}; exec \"$@\"");
    doctor_under("unshare", &[flags.as_str(), "sh", "-c", script.as_str(), "sh"])
}

#[test]
fn here_ucx_is_found_and_says_what_it_does() {
    let said = run(doctor());
    let ucx = &said.report["ucx"];
    assert!(said.find("ucx-start", "ok").is_some(), "{:?}", said.findings());
    assert_eq!(ucx["facts"]["loopback"]["transport"], "ucx");
    let resources = ucx["facts"]["resources"].as_array().expect("a list");
    assert!(resources.iter().any(|r| r == "tcp/lo"), "{resources:?}");
    let alone = ucx["alone"].as_array().expect("a list");
    let works = |name: &str| alone.iter().find(|a| a["transport"] == name).map(|a| a["works"] == true);
    assert_eq!((works("tcp"), works("posix"), works("self")), (Some(true), Some(true), Some(false)), "{alone:?}");
}

#[test]
fn the_text_names_lanes_costs_and_remedies() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ucrpc"));
    command.args(["doctor", "--all"]).env("UCX_TSL", "tcp");
    let output = command.output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for part in [
        "a connection on this host runs over: ucx (",
        "warning  misspelt: UCX does not use UCX_TSL",
        "costs",
        "mend   did you mean UCX_TLS?",
        "our default",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn a_transport_that_does_not_exist() {
    let (said, text) = with_env(&[("UCX_TLS", "bogus")], "ucx-tls", "error");
    assert!(text.contains("transport 'bogus' is not available"), "{text}");
    said.expect("ucx-start", "error");
}

#[test]
fn a_device_that_does_not_exist() {
    let (_, text) = with_env(&[("UCX_NET_DEVICES", "eth7")], "ucx-devices", "error");
    assert!(text.contains("'eth7' is not available"), "{text}");
}

#[test]
fn a_library_that_does_not_exist() {
    let (_, text) = with_env(&[("UCRPC_UCX_LIBRARY", "/nonexistent")], "ucx-library", "error");
    assert!(text.contains("/nonexistent"), "{text}");
}

#[test]
fn ucx_switched_off_is_a_warning_and_an_error_where_it_was_demanded() {
    let (said, _) = with_env(&[("UCRPC_UCX_LIBRARY", "none")], "ucx-library", "warning");
    assert_eq!(said.code, Some(0));
    let env = [("UCRPC_UCX_LIBRARY", "none"), ("UCRPC_TRANSPORT", "ucx")];
    with_env(&env, "ucx-library", "error");
    let mut strict = doctor();
    strict.arg("--strict").env("UCRPC_UCX_LIBRARY", "none");
    assert_eq!(run(strict).code, Some(6));
}

#[test]
fn a_misspelt_variable_of_ucx() {
    let (_, text) = with_env(&[("UCX_NET_DEVICE", "lo")], "misspelt", "warning");
    assert!(text.contains("UCX_NET_DEVICES"), "{text}");
}

#[test]
fn a_setting_of_a_transport_that_is_left_out() {
    with_env(&[("UCX_TLS", "posix"), ("UCX_TCP_TX_SEG_SIZE", "64k")], "unused", "info");
}

#[test]
fn a_misspelt_variable_of_ours() {
    let (_, text) = with_env(&[("UCRPC_TRANPORT", "tcp")], "misspelt", "warning");
    assert!(text.contains("did you mean UCRPC_TRANSPORT?"), "{text}");
}

#[test]
fn an_override_that_is_none() {
    with_env(&[("UCRPC_TRANSPORT", "rdma")], "ucrpc-transport", "error");
    with_env(&[("UCRPC_TRANSPORT", "tcp")], "ucrpc-transport", "warning");
}

#[test]
fn shared_memory_without_failure_handling() {
    let (said, _) = with_env(&[("UCX_MM_ERROR_HANDLING", "n")], "shm-failure-handling", "warning");
    let lanes = said.expect("lanes", "warning");
    assert!(lanes.contains("tcp/lo"), "{lanes}");
}

#[test]
fn shared_memory_left_out() {
    let (_, text) = with_env(&[("UCX_TLS", "tcp")], "lanes", "warning");
    assert!(text.contains("UCX_TLS=tcp may be why"), "{text}");
}

#[test]
fn transports_that_cannot_carry_a_connection() {
    let (_, text) = with_env(&[("UCX_TLS", "self")], "lanes", "error");
    assert!(text.contains("carries no connection"), "{text}");
}

#[test]
fn a_setting_that_breaks_this_version() {
    let (said, _) = with_env(&[("UCX_TCP_SYN_CNT", "2")], "tcp-syn-count", "error");
    said.expect("lanes", "error");
}

#[test]
fn a_value_that_ucx_cannot_read() {
    let (_, text) = with_env(&[("UCX_KEEPALIVE_INTERVAL", "soon")], "ucx-value", "error");
    assert!(text.contains("KEEPALIVE_INTERVAL"), "{text}");
}

#[test]
fn harmful_settings() {
    with_env(&[("UCX_KEEPALIVE_INTERVAL", "inf")], "keepalive", "warning");
    with_env(&[("UCX_KEEPALIVE_INTERVAL", "20s")], "keepalive", "warning");
    with_env(&[("UCX_TCP_CONN_NB", "n")], "tcp-connect", "warning");
    with_env(&[("UCX_LOG_LEVEL", "debug")], "log-level", "warning");
    with_env(&[("UCX_POSIX_FIFO_SIZE", "128")], "shm-segments", "warning");
    with_env(&[("UCX_MM_ERROR_HANDLING", "y"), ("UCX_POSIX_ERROR_HANDLING", "n")], "conflict", "warning");
}

#[test]
fn few_open_files() {
    let command = doctor_under("sh", &["-c", "ulimit -n 200; exec \"$@\"", "sh"]);
    let (_, text) = compare(command, "open-files", "error");
    assert!(text.contains("only 200 files") && text.contains("ulimit -n"), "{text}");
}

#[test]
fn little_locked_memory() {
    let script = "ulimit -l 64; exec \"$@\"";
    let said = run(doctor_under("sh", &["-c", script, "sh"]));
    // Without an RDMA device it costs nothing, and root is not bound by it: a note, and the amount.
    let text = said.find("memlock", "info").expect("found").to_string();
    assert!(text.contains("only 64 KiB"), "{text}");
}

#[test]
fn a_limited_address_space() {
    let command = doctor_under("sh", &["-c", "ulimit -v 8000000; exec \"$@\"", "sh"]);
    compare(command, "address-space", "warning");
}

#[test]
fn a_small_dev_shm() {
    let command = unshared("-m", "mount -t tmpfs -o size=1m tmpfs /dev/shm");
    let (_, text) = compare(command, "dev-shm", "error");
    assert!(text.contains("of 1 MiB"), "{text}");
}

#[test]
fn a_loopback_that_is_down() {
    let command = unshared("-n", "true");
    let (_, text) = compare(command, "lanes", "error");
    assert!(text.contains("cannot connect"), "{text}");
}

#[test]
fn one_cpu() {
    let (_, text) = compare(doctor_under("taskset", &["-c", "0"]), "cpus", "warning");
    assert!(text.contains("one CPU"), "{text}");
}

#[test]
fn a_ucx_that_is_preloaded() {
    with_env(&[("LD_PRELOAD", "libucp.so.0")], "ucx-preloaded", "warning");
}

#[test]
fn a_settings_file() {
    let home = tempfile::tempdir().expect("a directory");
    std::fs::write(home.path().join("ucx.conf"), "UCX_TLS=tcp\n").expect("a file");
    let path = home.path().to_str().expect("UTF-8");
    with_env(&[("HOME", path)], "ucx-conf", "info");
}

#[test]
fn a_peer_is_asked_for_its_lanes() {
    let ask = |peer: &str| {
        let mut command = doctor();
        command.args(["--quick", "--peer", peer]);
        run(command)
    };
    // One that speaks UCX: the lanes are named.
    let mut server =
        clean(Command::new(env!("CARGO_BIN_EXE_ucrpc")), &["perf", "server", "--listen", "auto://127.0.0.1:0"]);
    let mut server = server.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("a pipe")).read_line(&mut line).expect("it says where");
    let said = ask(line.trim().strip_prefix("listening ").expect("an address"));
    server.kill().expect("it runs");
    server.wait().expect("it ends");
    let finding = said.find("peer", "ok").unwrap_or_else(|| panic!("{:?}", said.findings())).to_string();
    assert!(finding.contains("runs over ucx (sysv") || finding.contains("runs over ucx (posix"), "{finding}");
    // One that does not (this process must not load it, since that changes the environment): the reason.
    let dispatcher = Dispatcher::spawn(DispatcherConfig::default()).expect("a dispatcher");
    let address = "tcp://127.0.0.1:0".parse().expect("an address");
    let mut listener = dispatcher.listen(&address, ListenConfig::default()).expect("it listens");
    let peer = listener.local_address().host_port().expect("a port").to_string();
    let accepting = std::thread::spawn(move || listener.accept_blocking());
    let text = ask(&peer).expect("peer", "warning");
    assert!(text.contains("runs over tcp: the peer has no ucx"), "{text}");
    drop(accepting.join());
    dispatcher.shutdown();
    // Nobody.
    let text = ask("127.0.0.1:1").expect("peer", "error");
    assert!(text.contains("no connection to 127.0.0.1:1: refused"), "{text}");
}

#[test]
fn the_command_line_is_checked() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ucrpc"));
    command.args(["doctor", "--no-such-flag"]);
    assert_eq!(command.output().expect("it runs").status.code(), Some(2));
}
