//! Programs on the other guest: an agent there starts them, and a process here stands for each.
//!
//! `two_process agent ADDR` serves; `two_process far COMMAND...` runs a command there, with this process's `UCX_*` and `UCRPC_*`
//! variables, standard streams and exit status. When the process here ends, the one there is killed. They talk over the
//! guests' second link, which no test breaks.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::process::{CLOCK, now_us};

/// The agent's address, as the guest's environment has it.
pub(crate) const AGENT: &str = "UCRPC_TEST_AGENT";

/// No part of this protocol is larger; a test's reports are short.
const MAX_PART: usize = 1 << 16;

const OUT: u8 = 1;
const ERR: u8 = 2;
const STATUS: u8 = 3;

/// Whether the two ends are in two guests; this process is in the client's.
pub(crate) fn two_guests() -> bool {
    std::env::var_os(AGENT).is_some()
}

/// The words that run what follows them on the other guest.
pub(crate) fn by() -> Vec<String> {
    let me = std::env::current_exe().expect("own path");
    vec![me.to_str().expect("a path of the tests").to_owned(), "far".to_owned()]
}

/// A command for the other guest.
pub(crate) fn command(words: &[&str]) -> Command {
    let by = by();
    let mut command = Command::new(&by[0]);
    command.args(&by[1..]).args(words);
    command
}

/// What this process is if it was started as one end of this protocol.
pub(crate) fn role() -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (role, rest) = arguments.split_first()?;
    match role.as_str() {
        "agent" => Some(serve(rest.first().expect("an address"))),
        "far" => Some(stand_for(rest)),
        _ => None,
    }
}

fn write_part(to: &mut impl Write, part: &[u8]) -> std::io::Result<()> {
    let len = u32::try_from(part.len()).expect("parts are short");
    to.write_all(&len.to_le_bytes())?;
    to.write_all(part)
}

fn read_part(from: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_PART {
        return Err(std::io::Error::other("a part is too long"));
    }
    let mut part = vec![0; len];
    from.read_exact(&mut part)?;
    Ok(part)
}

fn words_of(part: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(part).split_terminator('\0').map(str::to_owned).collect()
}

/// Here: asks for the command and passes everything on.
fn stand_for(words: &[String]) -> ExitCode {
    let agent = std::env::var(AGENT).expect("two guests");
    let mut stream = TcpStream::connect(&agent).unwrap_or_else(|e| panic!("no agent at {agent}: {e}"));
    stream.set_nodelay(true).expect("a socket");
    // What it says about time is in this guest's clock.
    let theirs: u64 =
        String::from_utf8_lossy(&read_part(&mut stream).expect("the agent's clock")).parse().expect("a clock");
    let shift = now_us().wrapping_sub(theirs) as i64;
    let mine = |name: &str| (name.starts_with("UCX_") || name.starts_with("UCRPC_")) && name != AGENT;
    let mut env: String = std::env::vars().filter(|(k, _)| mine(k)).map(|(k, v)| format!("{k}={v}\0")).collect();
    env.push_str(&format!("{CLOCK}={shift}\0"));
    let command: String = words.iter().map(|word| format!("{word}\0")).collect();
    for part in [env, command] {
        write_part(&mut stream, part.as_bytes()).expect("the agent listens");
    }
    let mut input = stream.try_clone().expect("a descriptor");
    std::thread::spawn(move || {
        let mut buffer = vec![0; MAX_PART];
        while let Ok(n) = std::io::stdin().read(&mut buffer) {
            if write_part(&mut input, &buffer[..n]).is_err() || n == 0 {
                break;
            }
        }
    });
    while let Ok(part) = read_part(&mut stream) {
        let Some((kind, text)) = part.split_first() else { break };
        let passed = match *kind {
            OUT => std::io::stdout().write_all(text).and_then(|()| std::io::stdout().flush()),
            ERR => std::io::stderr().write_all(text),
            _ => {
                eprint!("{}", String::from_utf8_lossy(&text[1..]));
                return ExitCode::from(text[0]);
            }
        };
        if passed.is_err() {
            break;
        }
    }
    eprintln!("the other guest is gone");
    ExitCode::FAILURE
}

/// There: starts what it is asked for, until it is asked for nothing.
fn serve(address: &str) -> ExitCode {
    let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    for stream in listener.incoming() {
        let mut stream = stream.expect("accept");
        stream.set_nodelay(true).expect("a socket");
        let asked = write_part(&mut stream, now_us().to_string().as_bytes())
            .and_then(|()| Ok((read_part(&mut stream)?, read_part(&mut stream)?)));
        match asked {
            Ok((_, command)) if command.is_empty() => {
                let _ = write_part(&mut stream, &[STATUS, 0]);
                return ExitCode::SUCCESS;
            }
            Ok((env, command)) => drop(std::thread::spawn(move || obey(stream, &words_of(&env), &words_of(&command)))),
            // A guest that looks whether the agent is there says nothing.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
            Err(error) => eprintln!("agent: {error}"),
        }
    }
    ExitCode::FAILURE
}

fn obey(stream: TcpStream, env: &[String], words: &[String]) {
    let out = Arc::new(Mutex::new(stream.try_clone().expect("a descriptor")));
    let tell = |kind: u8, text: &[u8]| say(&out, kind, text);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).envs(env.iter().filter_map(|pair| pair.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            tell(STATUS, format!("\x7f{}: {error}\n", words[0]).as_bytes());
            return;
        }
    };
    let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let copies = [copy(stdout, &out, OUT), copy(stderr, &out, ERR)];
    let ended = Arc::new(Mutex::new(false));
    feed(stream, &mut child, ended.clone());
    for copy in copies {
        let _ = copy.join();
    }
    // Its streams have ended: it has, or is about to.
    let status = loop {
        // Until it is waited for, its number is its own.
        let mut ended = ended.lock().expect("not poisoned");
        if let Some(status) = child.try_wait().expect("a child") {
            *ended = true;
            break status;
        }
        drop(ended);
        std::thread::sleep(Duration::from_millis(5));
    };
    let (code, text) = match status.code() {
        Some(code) => (code as u8, String::new()),
        None => (1, format!("{status}\n")),
    };
    let mut last = vec![code];
    last.extend(text.as_bytes());
    tell(STATUS, &last);
}

fn say(out: &Mutex<TcpStream>, kind: u8, text: &[u8]) {
    let mut part = vec![kind];
    part.extend(text);
    // Who asked may be gone; then the command is killed, below.
    let _ = write_part(&mut *out.lock().expect("not poisoned"), &part);
}

fn copy(mut from: impl Read + Send + 'static, out: &Arc<Mutex<TcpStream>>, kind: u8) -> std::thread::JoinHandle<()> {
    let out = out.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; MAX_PART - 1];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            say(&out, kind, &buffer[..n]);
        }
    })
}

/// Gives it what comes, and kills it when who asked is gone.
fn feed(mut stream: TcpStream, child: &mut Child, ended: Arc<Mutex<bool>>) {
    let (mut stdin, pid) = (child.stdin.take(), Pid::from_child(child));
    std::thread::spawn(move || {
        while let Ok(part) = read_part(&mut stream) {
            match &mut stdin {
                Some(pipe) if !part.is_empty() => drop(pipe.write_all(&part)),
                _ => stdin = None,
            }
        }
        let ended = ended.lock().expect("not poisoned");
        if !*ended {
            let _ = kill_process(pid, Signal::KILL);
        }
    });
}
