//! Bare tokio on current-thread runtimes: length-prefixed frames, an id in each, a task for each call that waits for its answer.
//! What remains of an RPC framework over tokio without the framework: no meta, no protobuf, no deadlines.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};

use crate::echo::Load;
use crate::util::{
    CLIENT_CPU, SERVER_CPU,
    process::{self, Figures, Mode},
};

/// What framing adds to a payload: its length and the call's id.
const LEAD: usize = 8;
const READ: usize = 64 << 10;

/// Runs the load in two processes.
pub(crate) fn measure(mode: Mode, load: Load, time: Duration) -> Result<Figures, String> {
    let env = [mode.env()];
    let ([size, connections, outstanding], millis) = (load.words(), time.as_millis().to_string());
    let server = process::role(&["tokio", "serve", &connections], &env);
    process::run_pair(server, |address| {
        process::role(&["tokio", "rate", address, &millis, &size, &connections, &outstanding], &env)
    })
}

/// A child's part.
pub(crate) fn run(words: &[&str]) {
    process::end_after(process::LIMIT);
    process::pin(if words[0] == "serve" { SERVER_CPU } else { CLIENT_CPU });
    let number = |at: usize| -> usize { words[at].parse().expect("a number") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        match words {
            ["serve", _] => serve(number(1)).await,
            ["rate", address, ..] => rate(address, number(2) as u64, number(3), number(4), number(5)).await,
            other => panic!("no such role: {other:?}"),
        }
    });
}

async fn serve(connections: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("{}", listener.local_addr().expect("bound"));
    let mut tasks = Vec::new();
    for _ in 0..connections {
        let (stream, _) = listener.accept().await.expect("a client");
        stream.set_nodelay(true).expect("a socket");
        let (mut reader, mut writer) = stream.into_split();
        tasks.push(tokio::task::spawn_local(async move {
            let (mut frames, mut out) = (Frames::default(), Vec::new());
            while frames.read(&mut reader).await {
                while let Some((id, payload)) = frames.next() {
                    put(&mut out, id, payload);
                }
                if writer.write_all(&out).await.is_err() {
                    break;
                }
                out.clear();
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
}

fn put(out: &mut Vec<u8>, id: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(payload);
}

/// What was read, cut into frames.
#[derive(Default)]
struct Frames {
    bytes: Vec<u8>,
    at: usize,
}

impl Frames {
    /// `false` at the end.
    async fn read(&mut self, reader: &mut OwnedReadHalf) -> bool {
        self.bytes.drain(..self.at);
        self.at = 0;
        let len = self.bytes.len();
        self.bytes.resize(len + READ, 0);
        let got = reader.read(&mut self.bytes[len..]).await.unwrap_or(0);
        self.bytes.truncate(len + got);
        got > 0
    }

    fn next(&mut self) -> Option<(u32, &[u8])> {
        let rest = &self.bytes[self.at..];
        let number = |at: usize| Some(u32::from_le_bytes(*rest.get(at..)?.first_chunk()?));
        let (len, id) = (number(0)? as usize, number(4)?);
        let payload = rest.get(LEAD..LEAD + len)?;
        self.at += LEAD + len;
        Some((id, payload))
    }
}

/// A connection of the client: requests that wait to be written, and calls that wait for answers.
#[derive(Default)]
struct Client {
    out: RefCell<Vec<u8>>,
    filled: Notify,
    waiting: RefCell<Vec<Option<oneshot::Sender<Vec<u8>>>>>,
}

impl Client {
    async fn call(&self, id: u32, payload: &[u8]) -> Vec<u8> {
        let (tell, hear) = oneshot::channel();
        self.waiting.borrow_mut()[id as usize] = Some(tell);
        put(&mut self.out.borrow_mut(), id, payload);
        self.filled.notify_one();
        hear.await.expect("an answer")
    }

    async fn write(self: Rc<Self>, mut writer: OwnedWriteHalf) {
        loop {
            self.filled.notified().await;
            // Whoever is ready to call may do so before it is written: one system call for all.
            tokio::task::yield_now().await;
            let out = self.out.take();
            if writer.write_all(&out).await.is_err() {
                return;
            }
        }
    }

    async fn read(self: Rc<Self>, mut reader: OwnedReadHalf) {
        let mut frames = Frames::default();
        while frames.read(&mut reader).await {
            while let Some((id, payload)) = frames.next() {
                if let Some(tell) = self.waiting.borrow_mut()[id as usize].take() {
                    let _ = tell.send(payload.to_vec());
                }
            }
        }
    }
}

async fn rate(address: &str, millis: u64, len: usize, connections: usize, outstanding: usize) {
    let time = Duration::from_millis(millis);
    let begin = Instant::now() + time / 4;
    let mut tasks = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(address).await.expect("connected");
        stream.set_nodelay(true).expect("a socket");
        let (reader, writer) = stream.into_split();
        let client = Rc::new(Client::default());
        client.waiting.borrow_mut().resize_with(outstanding, || None);
        tokio::task::spawn_local(client.clone().write(writer));
        tokio::task::spawn_local(client.clone().read(reader));
        for id in 0..outstanding as u32 {
            tasks.push(tokio::task::spawn_local(calls(client.clone(), id, len, begin, begin + time)));
        }
    }
    let mut counted = 0;
    for task in tasks {
        counted += task.await.expect("no panic");
    }
    process::tell("rate", counted as f64 / time.as_secs_f64());
}

/// One call after the other.
async fn calls(client: Rc<Client>, id: u32, len: usize, begin: Instant, end: Instant) -> u64 {
    let payload = vec![7; len];
    let mut counted = 0;
    for turn in 0_u64.. {
        assert_eq!(client.call(id, &payload).await.len(), len);
        counted += 1;
        if turn.is_multiple_of(16) {
            let now = Instant::now();
            if now < begin {
                counted = 0;
            } else if now >= end {
                break;
            }
        }
    }
    counted
}
