//! Pairs of processes: a server that says where it listens, and a client that prints what it measured.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

/// The nice value of children: above ordinary work. Not a real-time class: two processes that spin in one starve the
/// kernel's softirq threads, which carry loopback TCP, and UCX's helper thread, which accepts its connections.
const NICE: &str = "-10";

/// How long one measurement may take, with its connection and its end.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// How children are scheduled.
pub(crate) fn scheduling() -> String {
    if wrapper().is_empty() {
        "as this process (a better nice value is not allowed: expect noise)".to_owned()
    } else {
        format!("nice {NICE}")
    }
}

fn wrapper() -> &'static [&'static str] {
    static FOUND: OnceLock<&'static [&'static str]> = OnceLock::new();
    FOUND.get_or_init(|| {
        const BETTER: &[&str] = &["nice", "-n", NICE];
        let mut command = Command::new(BETTER[0]);
        command.args(&BETTER[1..]).arg("true").stdout(Stdio::null()).stderr(Stdio::piped());
        // Where it is not allowed, `nice` complains and goes on.
        match command.output() {
            Ok(output) if output.status.success() && output.stderr.is_empty() => BETTER,
            _ => &[],
        }
    })
}

/// Where the two processes run, and how they wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A core each, both spinning.
    Spin,
    /// Both on the server's core, asleep when there is nothing to do.
    OneCore,
    /// A core each, waiting as each does by default: ours spins for a while before it sleeps, tokio's runtimes sleep.
    TwoCores,
}

const MODE: &str = "UCRPC_BENCH_MODE";

impl Mode {
    /// What tells a child.
    pub(crate) fn env(self) -> (&'static str, &'static str) {
        let name = match self {
            Self::Spin => "spin",
            Self::OneCore => "one-core",
            Self::TwoCores => "two-cores",
        };
        (MODE, name)
    }

    /// What this child was told.
    pub(crate) fn of_child() -> Self {
        match std::env::var(MODE).as_deref() {
            Ok("one-core") => Self::OneCore,
            Ok("two-cores") => Self::TwoCores,
            _ => Self::Spin,
        }
    }

    /// The core of a side that would have `own` to itself.
    pub(crate) fn cpu(self, own: usize) -> usize {
        if self == Self::OneCore { super::SERVER_CPU } else { own }
    }
}

/// A command that runs with the benchmark's scheduling.
pub(crate) fn command(program: &str) -> Command {
    match wrapper().split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

/// This benchmark again, in another role.
pub(crate) fn role(args: &[&str], env: &[(&str, &str)]) -> Command {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = command(&program.to_string_lossy());
    command.arg("--role").args(args).envs(env.iter().copied());
    command
}

/// What a client measured: names and numbers, as it printed them.
pub(crate) type Figures = HashMap<String, f64>;

/// Prints one figure of a client.
pub(crate) fn tell(name: &str, value: f64) {
    println!("{name} {value}");
}

/// Runs a server, which prints its address first, then a client with that address in place of `ADDRESS`.
pub(crate) fn run_pair(mut server: Command, client: impl FnOnce(&str) -> Command) -> Result<Figures, String> {
    let mut server = Guard(server.stdout(Stdio::piped()).spawn().map_err(|e| format!("the server: {e}"))?);
    let mut address = String::new();
    let stdout = server.0.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut address).map_err(|e| format!("the server: {e}"))?;
    if address.trim().is_empty() {
        return Err("the server ended before it listened".to_owned());
    }
    let text = finish(client(address.trim()))?;
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
}

/// Runs a client to its end and returns what it printed.
pub(crate) fn finish(mut client: Command) -> Result<String, String> {
    let mut client = Guard(client.stdout(Stdio::piped()).spawn().map_err(|e| format!("the client: {e}"))?);
    let mut stdout = client.0.stdout.take().expect("it is piped");
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text)
    });
    let status = client.wait(LIMIT).ok_or_else(|| format!("the client did not end within {LIMIT:?}"))?;
    let text = reader.join().expect("it does not panic").map_err(|e| format!("the client: {e}"))?;
    if status.success() { Ok(text) } else { Err(format!("the client ended with {status}: {text}")) }
}

/// A child that does not outlive the measurement. Servers end by themselves when their client is gone.
pub(crate) struct Guard(pub(crate) Child);

impl Guard {
    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return Some(status),
                _ if Instant::now() >= deadline => return None,
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.wait(Duration::from_secs(1)).is_none() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Ends this child after `limit`: one that spins at real-time priority must not be left behind.
pub(crate) fn end_after(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        eprintln!("a benchmark's child took longer than {limit:?}");
        std::process::exit(3);
    });
}

/// Pins this thread to what the child's mode makes of `cpu`.
pub(crate) fn pin(cpu: usize) {
    let cpu = Mode::of_child().cpu(cpu);
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).expect("the CPU exists");
}
