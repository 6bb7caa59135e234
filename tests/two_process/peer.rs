//! The peer program: it takes commands on stdin, one a line, and reports on stdout.

mod calls;
mod late;
mod messages;
mod occupy;
mod perish;

use std::{
    collections::HashMap,
    fmt::Display,
    io::BufRead,
    process::ExitCode,
    str::FromStr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ucrpc::transport::{
    Address, Announcement, Connection, ConnectionConfig, Dispatcher, DispatcherConfig, Error, FallbackReason, Frame,
    ListenConfig, RecvPlan, Sender,
};

use crate::{block_on::block_on, process::now_us};

/// Prints one report in one piece.
fn report(name: &str, fields: &[(&str, &dyn Display)]) {
    use std::io::Write;
    let mut text = format!("@{name}");
    for (key, value) in fields {
        let value = value.to_string().replace(['\t', '\n'], " ");
        text.push_str(&format!("\t{key}={value}"));
    }
    text.push('\n');
    let mut out = std::io::stdout().lock();
    // The parent may be gone, and then nobody misses it.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A command: its verb, an address or other first word, and `key=value` options.
struct Words<'a> {
    verb: &'a str,
    target: &'a str,
    options: HashMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn parse(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let (verb, mut target, mut options) = (words.next().unwrap_or_default(), "", HashMap::new());
        for word in words {
            match word.split_once('=') {
                Some((key, value)) => drop(options.insert(key, value)),
                None => target = word,
            }
        }
        Self { verb, target, options }
    }

    fn get<T: FromStr>(&self, key: &str) -> Option<T> {
        let value = *self.options.get(key)?;
        Some(value.parse().unwrap_or_else(|_| panic!("bad option {key}={value}")))
    }

    fn mode(&self) -> String {
        self.get("mode").unwrap_or_else(|| "idle".to_owned())
    }

    fn connection(&self) -> ConnectionConfig {
        let mut config = ConnectionConfig::default();
        let ms = |key| self.get(key).map(Duration::from_millis);
        config.connect_timeout = ms("connect_timeout_ms").unwrap_or(config.connect_timeout);
        config.prove_timeout = ms("prove_timeout_ms").unwrap_or(config.prove_timeout);
        config.linger = ms("linger_ms").unwrap_or(config.linger);
        config.keepalive = config.keepalive.filter(|_| self.options.get("keepalive") != Some(&"off"));
        config.max_message = self.get("max_message").unwrap_or(config.max_message);
        config.max_head = self.get("max_head").unwrap_or(config.max_head);
        config.recv_window_frames = self.get("window_frames").unwrap_or(config.recv_window_frames);
        config.recv_window_bytes = self.get("window_bytes").unwrap_or(config.recv_window_bytes);
        config.send_queue_bytes = self.get("queue_bytes").unwrap_or(config.send_queue_bytes);
        if self.mode() == "load" {
            // Some bodies are fetched by the application, so that fetches are under way when the peer goes.
            config.planner = Some(Arc::new(
                |announced: &Announcement<'_>| {
                    if announced.body_len % 7 == 3 { RecvPlan::Later } else { RecvPlan::Pool }
                },
            ));
        }
        config
    }

    fn listener(&self) -> ListenConfig {
        let default = ListenConfig::default();
        ListenConfig {
            connection: self.connection(),
            ucx: self.get("ucx").unwrap_or(default.ucx),
            max_handshakes: self.get("max_handshakes").unwrap_or(default.max_handshakes),
            accept_queue: self.get("accept_queue").unwrap_or(default.accept_queue),
            ..default
        }
    }
}

/// What the program holds.
struct Program {
    dispatcher: Dispatcher,
    next_id: AtomicU64,
    senders: Mutex<HashMap<u64, Sender>>,
    serving: Mutex<Option<calls::Serving>>,
    storm: Arc<calls::Storm>,
}

/// Whether this is a guest of `cargo xtask rdma-vm`.
fn in_a_guest() -> bool {
    std::env::var_os("RDMA_VM").is_some()
}

/// Runs the peer program until stdin ends or it is told to quit.
pub(crate) fn main() -> ExitCode {
    late::watch();
    let mut config = DispatcherConfig { name: "peer".to_owned(), ..DispatcherConfig::default() };
    if in_a_guest() {
        // In a guest a virtual CPU that is kept from running delays the interrupt that announces a completion.
        config.detector = Duration::from_millis(400);
    }
    let dispatcher = Dispatcher::spawn(config).expect("dispatcher");
    let program = Arc::new(Program {
        dispatcher,
        next_id: AtomicU64::new(0),
        senders: Mutex::default(),
        serving: Mutex::default(),
        storm: Arc::default(),
    });
    report("up", &[("pid", &std::process::id())]);
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words = Words::parse(&line);
        if words.verb == "quit" {
            program.dispatcher.shutdown();
            return ExitCode::SUCCESS;
        }
        program.obey(&words);
    }
    // The test is gone.
    ExitCode::FAILURE
}

/// The variant's name of a reason, and its text.
fn reason_fields(reason: Option<&FallbackReason>) -> (String, String) {
    let Some(reason) = reason else { return ("none".to_owned(), String::new()) };
    let name = format!("{reason:?}");
    let name = name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned();
    (name, reason.to_string())
}

fn report_failure(name: &str, id: u64, start: Instant, error: &Error) {
    let ms = start.elapsed().as_millis();
    let kind = format!("{:?}", error.kind());
    report(name, &[("id", &id), ("ok", &false), ("ms", &ms), ("at", &now_us()), ("kind", &kind), ("text", error)]);
}

fn report_open(name: &str, id: u64, start: Instant, connection: &Connection) {
    let transport = connection.transport().expect("open").to_string();
    let (reason, text) = reason_fields(connection.fallback_reason());
    let ms = start.elapsed().as_millis();
    report(
        name,
        &[
            ("id", &id),
            ("ok", &true),
            ("ms", &ms),
            ("at", &now_us()),
            ("transport", &transport),
            ("reason", &reason),
            ("text", &text),
        ],
    );
}

impl Program {
    fn obey(self: &Arc<Self>, words: &Words<'_>) {
        match words.verb {
            "listen" => self.listen(words),
            "connect" => self.connect(words),
            "close" => self.close(words),
            "abort" => self.with(words, Sender::abort),
            "perish" => self.with(words, perish::perish),
            "bodies" => self.bodies(words),
            "read" => messages::read(),
            "serve" => self.serve(words),
            "served" => self.served(),
            "unserve" => self.unserve(),
            "calls" => self.calls(words),
            "storm" => self.storm(words),
            "calm" => self.calm(),
            "fds" => self.limit_descriptors(words),
            "stats" => self.stats(),
            "balance" => self.balance(words),
            other => panic!("unknown command {other:?}"),
        }
    }

    fn with(&self, words: &Words<'_>, act: impl FnOnce(&Sender)) {
        let id = words.target.parse().expect("an id");
        act(self.senders.lock().expect("not poisoned").get(&id).expect("a known connection"));
    }

    fn listen(self: &Arc<Self>, words: &Words<'_>) {
        let listener = words.target.parse::<Address>().and_then(|a| self.dispatcher.listen(&a, words.listener()));
        let mut listener = match listener {
            Ok(listener) => listener,
            Err(error) => return report_failure("listening", 0, Instant::now(), &error),
        };
        report("listening", &[("ok", &true), ("addr", listener.local_address())]);
        let (program, mode) = (self.clone(), words.mode());
        std::thread::spawn(move || {
            let start = Instant::now();
            loop {
                match listener.accept_blocking() {
                    Ok(connection) => program.occupy("accepted", start, connection, &mode),
                    Err(error) => return report_failure("unlistened", 0, start, &error),
                }
            }
        });
    }

    fn connect(self: &Arc<Self>, words: &Words<'_>) {
        let start = Instant::now();
        let address = match words.target.parse::<Address>() {
            Ok(address) => address,
            Err(error) => return report_failure("connected", 0, start, &error),
        };
        let connecting = self.dispatcher.connect(&address, words.connection());
        let (program, mode) = (self.clone(), words.mode());
        std::thread::spawn(move || match connecting.blocking() {
            Ok(connection) => program.occupy("connected", start, connection, &mode),
            Err(error) => report_failure("connected", 0, start, &error),
        });
    }

    fn occupy(self: &Arc<Self>, name: &str, start: Instant, connection: Connection, mode: &str) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        // Commands about it may come as soon as it is known.
        self.senders.lock().expect("not poisoned").insert(id, connection.sender());
        report_open(name, id, start, &connection);
        let (program, mode) = (self.clone(), mode.to_owned());
        std::thread::spawn(move || {
            occupy::run(id, connection, &mode, || {
                program.senders.lock().expect("not poisoned").remove(&id);
            });
        });
    }

    fn close(self: &Arc<Self>, words: &Words<'_>) {
        self.with(words, |sender| {
            let (sender, id, start) = (sender.clone(), words.target.parse().expect("an id"), Instant::now());
            std::thread::spawn(move || match block_on(sender.close()) {
                Ok(()) => report("closed", &[("id", &id), ("ok", &true), ("at", &now_us())]),
                Err(error) => report_failure("closed", id, start, &error),
            });
        });
    }

    /// Sends `count` bodies of `size` bytes, and says how many were taken by the other side.
    fn bodies(&self, words: &Words<'_>) {
        let (count, size): (u64, usize) = (words.get("count").expect("a number"), words.get("size").expect("a number"));
        self.with(words, |sender| {
            let (sender, id) = (sender.clone(), words.target.to_owned());
            std::thread::spawn(move || {
                let mut ok = 0_u64;
                for n in 0..count {
                    let frame = Frame::new(n.to_le_bytes().to_vec(), vec![n as u8; size]);
                    match sender.send_tracked(frame).map(block_on) {
                        Ok(Ok(())) => ok += 1,
                        other => return report("sent", &[("id", &id), ("ok", &ok), ("text", &format!("{other:?}"))]),
                    }
                }
                report("sent", &[("id", &id), ("ok", &ok)]);
            });
        });
    }

    /// Lowers the limit of descriptors to what is open now and `more`; 0 lifts it again.
    fn limit_descriptors(&self, words: &Words<'_>) {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let more: u64 = words.get("more").expect("a number");
        let maximum = getrlimit(Resource::Nofile).maximum;
        // Reading the folder takes a descriptor, which is counted.
        let open = || std::fs::read_dir("/proc/self/fd").expect("proc").count() as u64 - 1;
        let current = if more == 0 { maximum } else { Some(open() + more) };
        setrlimit(Resource::Nofile, Rlimit { current, maximum }).expect("setrlimit");
        report("fds", &[("more", &more)]);
    }

    fn stats(&self) {
        let stats = self.dispatcher.stats();
        let pool = self.dispatcher.pool().stats();
        report(
            "stats",
            &[
                ("connections", &stats.connections),
                ("handshakes", &stats.handshakes),
                ("handshakes_failed", &stats.handshakes_failed),
                ("failed", &stats.failed),
                ("stale_messages", &stats.stale_messages),
                ("fallbacks", &stats.fallbacks),
                ("opened_ucx", &stats.opened_ucx),
                ("opened_tcp", &stats.opened_tcp),
                ("accept_pauses", &stats.accept_pauses),
                ("ucx_blocked_workers", &stats.ucx_blocked_workers),
                ("turns", &stats.turns),
                ("receive_in_use", &pool.receive_in_use),
                ("rss_kb", &status_kb("VmRSS:")),
                ("peak_kb", &status_kb("VmHWM:")),
                ("fds", &std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)),
            ],
        );
    }

    /// Waits until everything but the listeners is gone.
    fn balance(&self, words: &Words<'_>) {
        let deadline = Instant::now() + Duration::from_millis(words.get("within_ms").unwrap_or(5000));
        loop {
            let stats = self.dispatcher.stats();
            let pool = self.dispatcher.pool().stats();
            let left = [
                ("connections", stats.connections),
                ("handshakes", stats.handshakes),
                ("timers", stats.timers),
                ("tasks", stats.tasks),
                ("ucx_inflight", stats.ucx_inflight),
                ("ucx_held", stats.ucx_held),
                ("ucx_endpoints", stats.ucx_endpoints),
                ("receive_in_use", pool.receive_in_use),
                ("send_in_use", pool.send_in_use),
            ];
            let rest = left.iter().all(|(_, n)| *n == 0);
            if rest || Instant::now() > deadline {
                let ok = rest && stats.wake_detector_hits == 0;
                let left = format!("{left:?}, wake-up detector hits {}", stats.wake_detector_hits);
                return report("balance", &[("ok", &ok), ("left", &left)]);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A line of `/proc/self/status`, in KiB.
fn status_kb(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
