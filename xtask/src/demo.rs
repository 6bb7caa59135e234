//! `cargo xtask demo`: the same echo between two processes over every transport that works here.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
};

use crate::{
    need::{self, Need},
    report, run,
};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Installs nothing
    #[arg(long)]
    no_install: bool,
    /// Sizes of the messages, bytes
    #[arg(long, value_delimiter = ',', default_value = "64,4096,65536,1048576")]
    sizes: Vec<u32>,
}

/// One way to carry the echo.
struct Way {
    name: &'static str,
    /// What the server listens on; the client takes its scheme from `scheme`.
    listen: &'static str,
    scheme: &'static str,
    env: &'static [(&'static str, &'static str)],
    ucx: bool,
}

const WAYS: &[Way] = &[
    Way { name: "tcp", listen: "tcp://127.0.0.1:0", scheme: "tcp", env: &[], ucx: false },
    Way { name: "unix", listen: "unix://", scheme: "unix", env: &[], ucx: false },
    Way { name: "ucx over tcp", listen: "auto://127.0.0.1:0", scheme: "ucx", env: &[("UCX_TLS", "tcp")], ucx: true },
    Way {
        name: "ucx over shared memory",
        listen: "auto://127.0.0.1:0",
        scheme: "ucx",
        env: &[("UCX_TLS", "posix")],
        ucx: true,
    },
];

pub(crate) fn run(args: &Args) -> Result<ExitCode, String> {
    if !args.no_install {
        need::install(&[Need::Ucx, Need::UcxUtils]);
    }
    let program = build()?;
    println!("machine: {}", machine());
    println!("commit:  {}", commit());
    let sizes = args.sizes.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    println!("command: cargo xtask demo --sizes {sizes}");
    println!("two processes on one host, one message at a time, default wait policy (spin 50 us, then sleep)\n");
    let (mut rows, mut notes, mut failed) = (Vec::new(), Vec::new(), false);
    for way in WAYS {
        match measure(&program, way, &args.sizes) {
            Ok(points) => rows.extend(points.into_iter().map(|p| p.row(way.name))),
            Err(error) => {
                // Where UCX cannot be had, that is a result; all else is a failure.
                failed |= !way.ucx || Need::Ucx.is_met();
                rows.push(vec![way.name.to_owned(), "-".to_owned(), "-".to_owned(), "-".to_owned(), "-".to_owned()]);
                notes.push(format!("{}: not measured: {error}", way.name));
            }
        }
    }
    report::table(&["address and lanes", "bytes", "p50 us", "p99 us", "round trips/s"], &rows, &[1, 2, 3, 4]);
    if !Need::Ucx.is_met() {
        notes.push(format!("no UCX library on this machine: {}", Need::Ucx.remedy()));
    }
    notes.iter().for_each(|note| println!("\n{note}"));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Builds the example and returns its path.
fn build() -> Result<PathBuf, String> {
    let words = ["build", "--release", "-p", "ucrpc", "--example", "echo", "--message-format=json-render-diagnostics"];
    let mut command = Command::new("cargo");
    command.args(words).current_dir(run::root()).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().map_err(|e| format!("cannot start cargo: {e}"))?;
    if !output.status.success() {
        return Err("the example does not build".to_owned());
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let found = messages.lines().filter(|l| l.contains(r#""name":"echo""#)).find_map(|l| {
        let (_, rest) = l.split_once(r#""executable":""#)?;
        Some(PathBuf::from(rest.split_once('"')?.0))
    });
    found.ok_or_else(|| "cargo does not say where the example is".to_owned())
}

/// What one size took.
struct Point {
    fields: Vec<String>,
    transport: String,
}

impl Point {
    /// Of a line `size 64 p50_us 7.1 p99_us 9.0 calls_s 140000 transport ucx (posix)`.
    fn parse(line: &str) -> Option<Self> {
        let (numbers, transport) = line.strip_prefix("size ")?.split_once(" transport ")?;
        let fields: Vec<String> = numbers.split(' ').step_by(2).map(str::to_owned).collect();
        (fields.len() == 4).then(|| Self { fields, transport: transport.to_owned() })
    }

    fn row(self, name: &str) -> Vec<String> {
        let name =
            if self.transport.starts_with(name) { self.transport } else { format!("{name}: {}", self.transport) };
        [vec![name], self.fields].concat()
    }
}

/// Ends the process when it goes out of scope.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(program: &Path, way: &Way, sizes: &[u32]) -> Result<Vec<Point>, String> {
    let socket = std::env::temp_dir().join(format!("ucrpc-demo-{}.sock", std::process::id()));
    let listen = if way.scheme == "unix" { format!("unix://{}", socket.display()) } else { way.listen.to_owned() };
    let mut command = Command::new(program);
    command.args(["server", &listen]).envs(way.env.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut server = Server(command.spawn().map_err(|e| format!("cannot start the server: {e}"))?);
    let mut line = String::new();
    let out = server.0.stdout.take().ok_or("no pipe from the server")?;
    BufReader::new(out).read_line(&mut line).map_err(|e| format!("reading from the server: {e}"))?;
    let address = line.trim().strip_prefix("listening ").ok_or("the server does not listen")?;
    let (_, place) = address.split_once("://").ok_or("the server prints no address")?;

    let mut command = Command::new(program);
    command.args(["client", &format!("{}://{place}", way.scheme)]).args(sizes.iter().map(u32::to_string));
    command.envs(way.env.iter().copied()).stdin(Stdio::null());
    let output = command.output().map_err(|e| format!("cannot start the client: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("echo: ").to_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|l| Point::parse(l).ok_or_else(|| format!("the client said: {l}"))).collect()
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map_or("unknown CPU", |l| l.trim_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    let kernel = read("/proc/sys/kernel/osrelease");
    let ucx = need::output("ucx_info", &["-v"]);
    let ucx = ucx.as_deref().and_then(|text| text.lines().find_map(|l| l.strip_prefix("# Version ")));
    let ucx = ucx.map_or_else(String::new, |v| format!(", ucx {}", v.trim()));
    format!("{model}, {cores} cores, Linux {}{ucx}", kernel.trim())
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let root = run::root();
        let mut all = vec!["-C", root.to_str().unwrap_or(".")];
        all.extend(arguments);
        need::output("git", &all)
    };
    let Some(hash) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".to_owned() };
    let dirty = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    if dirty { format!("{hash} with local changes") } else { hash }
}
