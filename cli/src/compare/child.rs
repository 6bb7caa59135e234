//! Processes that live through the comparison and do what a line on their standard input asks for.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

/// Beyond the time that a measurement was given: connecting, warm-up, a server that is slow to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// A process that answers lines with lines.
pub(crate) struct Worker {
    child: Child,
    /// Dropping it ends the child.
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// The last thing it said on stderr.
    last_words: Arc<Mutex<String>>,
}

impl Worker {
    /// Starts this program again with other arguments.
    pub(crate) fn start(args: &[&str], env: &[(String, String)]) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|e| format!("this program has no path: {e}"))?;
        let mut command = Command::new(program);
        command.args(args).envs(env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("cannot start a process: {e}"))?;
        let (tell, lines) = channel();
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let last_words = Arc::new(Mutex::new(String::new()));
        let words = last_words.clone();
        std::thread::spawn(move || {
            for line in stdout.into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        std::thread::spawn(move || {
            for line in stderr.into_iter().flat_map(|err| BufReader::new(err).lines()).map_while(Result::ok) {
                // Failures come with a hint under them that is not for who reads the comparison.
                if !line.starts_with("  hint:") && !line.starts_with("note:") {
                    *words.lock().unwrap_or_else(|e| e.into_inner()) = line;
                }
            }
        });
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, lines, last_words })
    }

    /// Its next line.
    pub(crate) fn line(&mut self, time: Duration) -> Result<String, String> {
        match self.lines.recv_timeout(time + PATIENCE) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => Err(format!("no answer within {:?}", time + PATIENCE)),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().map(|status| status.to_string()).unwrap_or_default();
                let words = self.last_words.lock().unwrap_or_else(|e| e.into_inner());
                let words = words.trim_start_matches("ucrpc: ");
                Err(if words.is_empty() { format!("a process ended with {status}") } else { words.to_owned() })
            }
        }
    }

    /// Asks for something that takes `time`, and waits for the answer.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, what: &impl Serialize, time: Duration) -> Result<T, String> {
        let line = serde_json::to_string(what).map_err(|e| e.to_string())?;
        if let Some(stdin) = &mut self.stdin {
            // If it has ended, its last words say more than this.
            let _ = writeln!(stdin, "{line}");
        }
        let answer = self.line(time)?;
        serde_json::from_str(&answer).map_err(|e| format!("{answer}: {e}"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stdin = None;
        for _ in 0..500 {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
