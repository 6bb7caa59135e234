//! UCX's own benchmark, `ucx_perftest`, with the settings that the transport uses.

use std::{
    net::TcpListener,
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use super::{
    CLIENT_CPU, SERVER_CPU,
    process::{self, Figures, Guard},
};

/// The settings that change what UCX does on the path: as the transport's loader makes them, unless the environment says otherwise.
const SETTINGS: [&str; 4] =
    ["UCX_TCP_TX_SEG_SIZE", "UCX_TCP_RX_SEG_SIZE", "UCX_MM_ERROR_HANDLING", "UCX_KEEPALIVE_INTERVAL"];

/// What is compared with.
pub(crate) fn describe() -> String {
    if !is_here() {
        return "MISSING: no ratios to UCX (Debian: ucx-utils)".to_owned();
    }
    let setting = |name| {
        Some(format!("{name}={}", std::env::var(name).ok().or(ucrpc::transport::ucx_default(name).map(str::to_owned))?))
    };
    let settings: Vec<String> = SETTINGS.into_iter().filter_map(setting).collect();
    format!("-e (peer failure handling, as the transport), {}", settings.join(" "))
}

/// Whether it is installed.
pub(crate) fn is_here() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    *HERE.get_or_init(|| {
        Command::new("ucx_perftest").arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    })
}

/// Runs `ucp_am_lat` or `ucp_am_bw` over `tls` for about `time`.
pub(crate) fn measure(test: &str, tls: &str, size: usize, time: Duration) -> Result<Figures, String> {
    if !is_here() {
        return Err("ucx_perftest is missing".to_owned());
    }
    // A short run tells how many iterations fill the time.
    let first = run(test, tls, size, if size > 64 << 10 { 60 } else { 2000 })?;
    let seconds = first["overall"] / 1e6 * if test == "ucp_am_lat" { 2.0 } else { 1.0 };
    let iterations = (time.as_secs_f64() / seconds.max(1e-8)).clamp(60.0, 2e7) as u64;
    run(test, tls, size, iterations)
}

fn run(test: &str, tls: &str, size: usize, iterations: u64) -> Result<Figures, String> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(|e| e.to_string())?.port();
    let command = |cpu: usize| {
        let mut command = process::command("ucx_perftest");
        command.env("UCX_TLS", tls).args(["-e", "-f", "-t", test, "-p", &port.to_string(), "-c", &cpu.to_string()]);
        for name in SETTINGS.into_iter().filter(|name| std::env::var_os(name).is_none()) {
            command.envs(ucrpc::transport::ucx_default(name).map(|value| (name, value)));
        }
        command.stderr(Stdio::null());
        command
    };
    let mut server = command(SERVER_CPU);
    let server = server.stdout(Stdio::null()).spawn().map_err(|e| format!("ucx_perftest: {e}"))?;
    let _server = Guard(server);
    wait_for(port)?;
    let warm_up = (iterations / 4).max(10).to_string();
    let mut client = command(CLIENT_CPU);
    client.args(["127.0.0.1", "-s", &size.to_string(), "-n", &iterations.to_string(), "-w", &warm_up]);
    parse(&process::finish(client)?)
}

/// Waits until something listens at `port`, without connecting: the server takes one client only.
fn wait_for(port: u16) -> Result<(), String> {
    let wanted = format!(":{port:04X} 00000000:0000 0A");
    for _ in 0..1000 {
        let v4 = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        if v4.contains(&wanted) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    Err("ucx_perftest does not listen".to_owned())
}

/// With `-f` the numbers of the last line are: iterations, percentile, average and overall time (us, one way), average
/// and overall bandwidth (MB/s), average and overall rate (messages per second).
fn parse(text: &str) -> Result<Figures, String> {
    let numbers = |line: &str| -> Vec<f64> { line.split_whitespace().filter_map(|word| word.parse().ok()).collect() };
    let last = text.lines().rev().map(numbers).find(|numbers| numbers.len() >= 8);
    let Some(found) = last else { return Err(format!("ucx_perftest printed something else: {text:?}")) };
    let figure = |name: &str, value: f64| (name.to_owned(), value);
    Ok(Figures::from([
        // One way, as it prints; a round trip is twice that.
        figure("p50", found[1] * 2.0),
        figure("overall", found[3]),
        figure("bandwidth", found[5]),
        figure("rate", found[7]),
    ]))
}
