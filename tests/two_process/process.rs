//! A peer process as the test sees it.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, LazyLock, Mutex,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::far;

/// The variable that makes the test binary a peer.
pub(crate) const ROLE: &str = "UCRPC_TEST_PEER";

/// How long anything may take that should be quick, on a machine that is busy.
pub(crate) static SOON: LazyLock<Duration> =
    LazyLock::new(|| Duration::from_secs(if std::env::var_os("UCRPC_TEST_RDMA").is_some() { 90 } else { 20 }));

/// Environment of a peer.
pub(crate) type Env<'a> = &'a [(&'a str, &'a str)];

/// The variable that says how far the test's clock is ahead of this machine's, in microseconds.
pub(crate) const CLOCK: &str = "UCRPC_TEST_CLOCK";

/// Microseconds of the clock that all processes of a test share.
pub(crate) fn now_us() -> u64 {
    static AHEAD: LazyLock<i64> =
        LazyLock::new(|| std::env::var(CLOCK).map_or(0, |text| text.parse().expect("a number of microseconds")));
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000;
    now.wrapping_add_signed(*AHEAD)
}

/// What a peer said: a name and fields.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) name: String,
    fields: Vec<(String, String)>,
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix('@')?.split('\t');
        let name = parts.next()?.to_owned();
        let field = |part: &str| part.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        Some(Self { name, fields: parts.filter_map(field).collect() })
    }

    /// A field, which must be there.
    #[track_caller]
    pub(crate) fn get(&self, field: &str) -> &str {
        let found = self.fields.iter().find(|(name, _)| name == field);
        &found.unwrap_or_else(|| panic!("no field {field} in {self:?}")).1
    }

    /// A field that is a number.
    #[track_caller]
    pub(crate) fn number(&self, field: &str) -> u64 {
        self.get(field).parse().unwrap_or_else(|_| panic!("field {field} of {self:?} is no number"))
    }
}

/// A running peer. Dropping it kills it.
pub(crate) struct Peer {
    name: &'static str,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Line>,
    unread: VecDeque<Line>,
    log: Arc<Mutex<String>>,
}

impl Peer {
    /// Starts one.
    pub(crate) fn start(name: &'static str, env: Env<'_>) -> Self {
        Self::start_in(None, name, env)
    }

    /// Starts one in a network namespace.
    pub(crate) fn start_in(namespace: Option<&str>, name: &'static str, env: Env<'_>) -> Self {
        // `ip` replaces itself by the program, so that the process id is the peer's.
        let by: Vec<&str> = namespace.map_or(Vec::new(), |namespace| vec!["ip", "netns", "exec", namespace]);
        Self::start_by(&by, name, env)
    }

    /// Starts one on the other guest.
    pub(crate) fn start_far(name: &'static str, env: Env<'_>) -> Self {
        let by = far::by();
        Self::start_by(&by.iter().map(String::as_str).collect::<Vec<_>>(), name, env)
    }

    /// Starts one by another program, whose last argument is the peer's.
    pub(crate) fn start_by(by: &[&str], name: &'static str, env: Env<'_>) -> Self {
        let me = std::env::current_exe().expect("own path");
        let mut command = match by.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(me);
                command
            }
            None => Command::new(me),
        };
        for (key, _) in std::env::vars().filter(|(key, _)| far::is_setting(key)) {
            command.env_remove(key);
        }
        // For runs with another UCX than the installed one.
        if let Some(library) = std::env::var_os("UCRPC_TEST_UCX") {
            command.env("UCRPC_UCX_LIBRARY", library);
        }
        command.env(ROLE, name).envs(env.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start a peer");
        let log = Arc::new(Mutex::new(String::new()));
        let (tell, lines) = channel();
        let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let note = log.clone();
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = writeln!(note.lock().unwrap_or_else(|e| e.into_inner()), "  {text}");
                if let Some(line) = Line::parse(&text) {
                    let _ = tell.send(line);
                }
            }
        });
        let note = log.clone();
        std::thread::spawn(move || {
            for text in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = writeln!(note.lock().unwrap_or_else(|e| e.into_inner()), "  (err) {text}");
            }
        });
        let stdin = child.stdin.take();
        let mut peer = Self { name, child, stdin, lines, unread: VecDeque::new(), log };
        peer.expect("up");
        peer
    }

    /// Gives a command.
    pub(crate) fn say(&mut self, command: &str) {
        let _ = writeln!(self.log.lock().unwrap_or_else(|e| e.into_inner()), "> {command}");
        let stdin = self.stdin.as_mut().expect("open");
        if let Err(error) = writeln!(stdin, "{command}") {
            self.fail(&format!("does not take {command:?}: {error}"));
        }
    }

    /// Waits for what it says next under `name`; what it says meanwhile is kept.
    pub(crate) fn expect(&mut self, name: &str) -> Line {
        self.expect_within(name, *SOON)
    }

    /// As [`Peer::expect`], with another deadline.
    pub(crate) fn expect_within(&mut self, name: &str, within: Duration) -> Line {
        self.expect_where(name, within, |line| line.name == name)
    }

    /// As [`Peer::expect`], for the connection `id`.
    pub(crate) fn expect_of(&mut self, name: &str, id: &str) -> Line {
        self.expect_where(name, *SOON, |line| line.name == name && line.get("id") == id)
    }

    /// As [`Peer::expect`], for whatever of several comes first.
    pub(crate) fn expect_any(&mut self, names: &[&str]) -> Line {
        self.expect_where(&names.join(" or "), *SOON, |line| names.contains(&line.name.as_str()))
    }

    fn expect_where(&mut self, name: &str, within: Duration, is_it: impl Fn(&Line) -> bool) -> Line {
        if let Some(at) = self.unread.iter().position(&is_it) {
            return self.unread.remove(at).expect("found");
        }
        let deadline = Instant::now() + within;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if is_it(&line) => return line,
                Ok(line) => self.unread.push_back(line),
                Err(RecvTimeoutError::Timeout) => self.fail(&format!("did not say {name:?} within {within:?}")),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait();
                    self.fail(&format!("ended ({status:?}) before it said {name:?}"))
                }
            }
        }
    }

    /// As [`Peer::expect_of`], but it may also die: then all that it said.
    pub(crate) fn expect_of_or_death(&mut self, name: &str, id: &str) -> Result<Line, String> {
        let deadline = Instant::now() + *SOON;
        loop {
            let found = self.unread.iter().position(|line| line.name == name && line.get("id") == id);
            if let Some(at) = found {
                return Ok(self.unread.remove(at).expect("found"));
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.unread.push_back(line),
                Err(RecvTimeoutError::Timeout) => self.fail(&format!("neither said {name:?} nor died")),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait();
                    // Its last words may still be on their way.
                    std::thread::sleep(Duration::from_millis(200));
                    return Err(format!("{status:?}: {}", self.log()));
                }
            }
        }
    }

    /// Gives a command and waits for its answer.
    pub(crate) fn ask(&mut self, command: &str, answer: &str) -> Line {
        self.say(command);
        self.expect(answer)
    }

    /// Whether it has said something under `name` that nobody has read.
    pub(crate) fn has_said(&mut self, name: &str) -> bool {
        self.unread.extend(self.lines.try_iter());
        self.unread.iter().any(|line| line.name == name)
    }

    /// All that it said so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    #[track_caller]
    fn fail(&self, text: &str) -> ! {
        // Its last words may still be on their way.
        std::thread::sleep(Duration::from_millis(100));
        // What it said follows when it is dropped.
        panic!("{} {text}", self.name)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("signal");
    }

    /// `kill -9`. It stays a zombie until it is dropped, as under a parent that does not wait.
    pub(crate) fn kill(&self) -> u64 {
        let at = now_us();
        self.signal(Signal::KILL);
        at
    }

    /// SIGSTOP; returns when every thread stands still.
    pub(crate) fn stop(&self) -> u64 {
        let at = now_us();
        self.signal(Signal::STOP);
        let deadline = Instant::now() + *SOON;
        while !self.stands_still() {
            assert!(Instant::now() < deadline, "a process does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
        at
    }

    fn stands_still(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("proc");
        threads.flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The state follows the name, which is in parentheses.
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        })
    }

    /// SIGCONT.
    pub(crate) fn go_on(&self) -> u64 {
        let at = now_us();
        self.signal(Signal::CONT);
        at
    }

    /// Listens; the address with its port.
    pub(crate) fn listen(&mut self, rest: &str) -> String {
        self.ask(&format!("listen {rest}"), "listening").get("addr").to_owned()
    }

    /// Connects; the id of the connection. It must work.
    pub(crate) fn connect(&mut self, rest: &str) -> Line {
        let line = self.ask(&format!("connect {rest}"), "connected");
        if line.get("ok") != "true" {
            self.fail(&format!("cannot connect: {line:?}"));
        }
        line
    }

    /// All connections gone, all counters at zero, no lost wake-up.
    pub(crate) fn check_balance(&mut self) {
        self.check_balance_within(5000);
    }

    /// As [`Peer::check_balance`], with another deadline in milliseconds.
    pub(crate) fn check_balance_within(&mut self, ms: u64) {
        let line = self.ask(&format!("balance within_ms={ms}"), "balance");
        if line.get("ok") != "true" {
            self.fail(&format!("does not come to rest: {}", line.get("left")));
        }
    }

    /// A counter of its dispatcher.
    pub(crate) fn stat(&mut self, name: &str) -> u64 {
        self.ask("stats", "stats").number(name)
    }

    /// Lets it end by itself, which it must do well.
    pub(crate) fn quit(mut self) {
        self.say("quit");
        let deadline = Instant::now() + *SOON;
        loop {
            match self.child.try_wait().expect("wait") {
                Some(status) if status.success() => return,
                Some(status) => self.fail(&format!("ended badly: {status}")),
                None if Instant::now() > deadline => self.fail("does not end"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} was asked and said:\n{}", self.name, self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
