//! UCX's own benchmark, `ucx_perftest`, with the settings that the transport uses.

use std::{
    collections::HashMap,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{Setup, control::Answer, ways::Way};

/// The settings that change what UCX does on the path: as the transport's loader makes them, unless the environment says otherwise.
const SETTINGS: [&str; 4] =
    ["UCX_TCP_TX_SEG_SIZE", "UCX_TCP_RX_SEG_SIZE", "UCX_MM_ERROR_HANDLING", "UCX_KEEPALIVE_INTERVAL"];
/// How long one run may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs it, and remembers how many iterations fill the time.
pub(super) struct Perftest {
    iterations: HashMap<(String, bool, usize), u64>,
}

/// A process that does not outlive this.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Perftest {
    /// `None` where it is not installed.
    pub(super) fn find() -> Option<Self> {
        let mut command = Command::new("ucx_perftest");
        command.arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        command.status().ok().map(|_| Self { iterations: HashMap::new() })
    }

    /// Measures active messages: round trips, or one way.
    pub(super) fn measure(&mut self, way: &Way, one_way: bool, size: usize, setup: &Setup) -> Result<Answer, String> {
        let key = (way.name.clone(), one_way, size);
        let iterations = match self.iterations.get(&key) {
            Some(iterations) => *iterations,
            None => {
                let first = run(way, one_way, size, setup, if size > 64 << 10 { 60 } else { 2000 })?;
                // A percentile of one way in the one test, the mean time of a message in the other.
                let seconds = first.overall_us / 1e6 * if one_way { 1.0 } else { 2.0 };
                let iterations = (setup.slice.as_secs_f64() / seconds.max(1e-8)).clamp(60.0, 2e7) as u64;
                self.iterations.insert(key, iterations);
                iterations
            }
        };
        let found = run(way, one_way, size, setup, iterations)?;
        Ok(if one_way {
            Answer { mb_s: Some(found.bandwidth), ..Answer::default() }
        } else {
            Answer { p50_us: Some(found.median_us * 2.0), ..Answer::default() }
        })
    }
}

struct Figures {
    median_us: f64,
    overall_us: f64,
    /// 10^6 bytes per second.
    bandwidth: f64,
}

fn run(way: &Way, one_way: bool, size: usize, setup: &Setup, iterations: u64) -> Result<Figures, String> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(|e| e.to_string())?.port();
    let test = if one_way { "ucp_am_bw" } else { "ucp_am_lat" };
    let command = |cpu: usize| {
        let mut command = Command::new("ucx_perftest");
        command.args(["-e", "-f", "-t", test, "-p", &port.to_string(), "-c", &cpu.to_string()]);
        for name in SETTINGS.into_iter().filter(|name| std::env::var_os(name).is_none()) {
            command.envs(ucrpc::transport::ucx_default(name).map(|value| (name, value)));
        }
        command.envs(way.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command
    };
    let server = command(setup.server_cpu).stdout(Stdio::null()).spawn().map_err(|e| format!("ucx_perftest: {e}"))?;
    let _server = Guard(server);
    wait_for(port)?;
    let warm_up = (iterations / 4).max(10).to_string();
    let mut client = command(setup.client_cpu);
    client.args(["127.0.0.1", "-s", &size.to_string(), "-n", &iterations.to_string(), "-w", &warm_up]);
    let mut client = Guard(client.stdout(Stdio::piped()).spawn().map_err(|e| format!("ucx_perftest: {e}"))?);
    let stdout = client.0.stdout.take();
    let reader = std::thread::spawn(move || stdout.map(std::io::read_to_string));
    let deadline = Instant::now() + LIMIT;
    loop {
        match client.0.try_wait() {
            Ok(Some(status)) if status.success() => break,
            Ok(Some(status)) => return Err(format!("ucx_perftest ended with {status}")),
            _ if Instant::now() >= deadline => return Err(format!("ucx_perftest did not end within {LIMIT:?}")),
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    let text = reader.join().ok().flatten().and_then(Result::ok).unwrap_or_default();
    parse(&text).ok_or_else(|| format!("ucx_perftest printed something else: {text:?}"))
}

/// Waits until something listens at `port`, without connecting: the server takes one client only.
fn wait_for(port: u16) -> Result<(), String> {
    let wanted = format!(":{port:04X} 00000000:0000 0A");
    for _ in 0..3000 {
        if std::fs::read_to_string("/proc/net/tcp").unwrap_or_default().contains(&wanted) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    Err("ucx_perftest does not listen".to_owned())
}

/// With `-f` the numbers of the last line are: iterations, percentile, average and overall time (us, one way), average and
/// overall bandwidth (2^20 bytes per second), average and overall rate.
fn parse(text: &str) -> Option<Figures> {
    let numbers = |line: &str| -> Vec<f64> { line.split_whitespace().filter_map(|word| word.parse().ok()).collect() };
    let found = text.lines().rev().map(numbers).find(|numbers| numbers.len() >= 8)?;
    Some(Figures { median_us: found[1], overall_us: found[3], bandwidth: found[5] * 1.048_576 })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_last_line_counts() {
        let text = "| header |\n[thread 0]  1000  9.0 9.0 9.0 10.0 10.0 1 1\nFinal: 2000 0.560 0.571 0.580 106.9 105.2 1751313 1724137\n";
        let found = super::parse(text).expect("it is understood");
        assert_eq!((found.median_us, found.overall_us), (0.560, 0.580));
        assert!((found.bandwidth - 105.2 * 1.048_576).abs() < 1e-9);
        assert!(super::parse("nothing").is_none());
    }
}
