//! The transport's side: an echo, a sink, and the clients that measure them. Busy-polled `block_on` on both sides.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ucrpc::transport::{
    Address, Body, Connection, ConnectionConfig, DispatcherConfig, Frame, ListenConfig, LocalDispatcher, Result,
    WaitPolicy,
};

use super::{
    CLIENT_CPU, SERVER_CPU,
    process::{self, Figures, Mode},
    sample::{Flood, RoundTrips},
};

/// A way to reach the peer: a name, an address to listen at, and the environment of both processes.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) address: &'static str,
    pub(crate) tls: Option<&'static str>,
}

/// UCX over shared memory.
pub(crate) const UCX_POSIX: Way = Way { name: "ucx posix", address: "ucx://127.0.0.1:0", tls: Some("posix") };
/// UCX over its own tcp transport.
pub(crate) const UCX_TCP: Way = Way { name: "ucx tcp", address: "ucx://127.0.0.1:0", tls: Some("tcp") };
/// Plain TCP.
pub(crate) const TCP: Way = Way { name: "tcp", address: "tcp://127.0.0.1:0", tls: None };
/// A Unix socket.
pub(crate) const UNIX: Way = Way { name: "unix", address: "unix://", tls: None };

/// Frames up to this size travel as a head, larger ones as a body, as RPC would send them.
const HEAD: usize = 4 << 10;

/// Sent instead of data to ask the sink whether it has everything; no measured size is as long as this.
const END: &[u8] = b"end";

/// Runs one measurement (`ping` or `flood`) in two processes.
pub(crate) fn measure(what: &str, way: Way, size: usize, time: Duration) -> Result<Figures, String> {
    measure_in(Mode::Spin, what, way, size, time)
}

impl Way {
    /// An address that a server of this run may listen at.
    pub(crate) fn to_listen(self) -> String {
        match self.address {
            "unix://" => format!("unix://{}/ucrpc-bench-{}.sock", std::env::temp_dir().display(), std::process::id()),
            other => other.to_owned(),
        }
    }

    /// The environment of both processes.
    pub(crate) fn env(self, mode: Mode) -> Vec<(&'static str, &'static str)> {
        self.tls.map(|tls| ("UCX_TLS", tls)).into_iter().chain([mode.env()]).collect()
    }
}

/// How a dispatcher of this child waits, and where.
pub(crate) fn dispatcher(own_cpu: usize) -> DispatcherConfig {
    let mode = Mode::of_child();
    let wait = match mode {
        Mode::Spin => WaitPolicy::Busy,
        Mode::OneCore => WaitPolicy::Event,
        Mode::TwoCores => WaitPolicy::default(),
    };
    DispatcherConfig { wait, pin: Some(mode.cpu(own_cpu)), ..DispatcherConfig::default() }
}

/// The same, with the processes where `mode` says.
pub(crate) fn measure_in(mode: Mode, what: &str, way: Way, size: usize, time: Duration) -> Result<Figures, String> {
    let (env, address) = (way.env(mode), way.to_listen());
    let server: Command = process::role(&["ours", "serve", &address], &env);
    let (size, millis) = (size.to_string(), time.as_millis().to_string());
    process::run_pair(server, |address| process::role(&["ours", what, address, &size, &millis], &env))
}

/// A child's part.
pub(crate) fn run(args: &[&str]) {
    let cpu = if args[0] == "serve" { SERVER_CPU } else { CLIENT_CPU };
    let local = LocalDispatcher::new(dispatcher(cpu)).expect("a dispatcher");
    let address: Address = args[1].parse().expect("an address");
    let result = match args {
        ["serve", _] => local.block_on(serve(&local, &address)),
        [what, _, size, millis] => {
            let size: usize = size.parse().expect("a size");
            let time = Duration::from_millis(millis.parse().expect("a time"));
            local.block_on(client(&local, &address, what, size, time))
        }
        other => panic!("no such role: {other:?}"),
    };
    result.expect("the measurement");
}

/// Answers frames of a ping-pong, and swallows those of a flood.
async fn serve(local: &LocalDispatcher, address: &Address) -> Result<()> {
    let mut listener = local.handle().listen(address, ListenConfig::default())?;
    println!("{}", listener.local_address());
    let mut connection = listener.accept().await?;
    let Ok(first) = connection.recv().await else { return Ok(()) };
    let echo = first.head != "flood";
    while let Ok(frame) = connection.recv().await {
        if echo || frame.head == END {
            connection.send_wait(frame).await?;
        }
    }
    Ok(())
}

async fn client(local: &LocalDispatcher, address: &Address, what: &str, size: usize, time: Duration) -> Result<()> {
    let mut connection = local.handle().connect(address, ConnectionConfig::default()).await?;
    connection.send_wait(Bytes::copy_from_slice(what.as_bytes())).await?;
    let payload = Bytes::from(vec![7; size]);
    match what {
        "ping" => ping(&mut connection, &payload, time).await?,
        "window" => window(&mut connection, &payload, time).await?,
        "flood" => {
            // The warm-up is a flood of its own.
            flood(&mut connection, &payload, time / 4).await?;
            flood(&mut connection, &payload, time).await?.tell(size);
        }
        other => panic!("no such role: {other:?}"),
    }
    connection.close().await
}

fn frame(payload: &Bytes) -> Frame {
    if payload.len() <= HEAD { payload.clone().into() } else { Frame::new("", Body::Bytes(payload.clone())) }
}

async fn ping(connection: &mut Connection, payload: &Bytes, time: Duration) -> Result<()> {
    let mut trips = RoundTrips::begin(payload.len(), time);
    let mut start = Instant::now();
    loop {
        for _ in 0..trips.batch() {
            connection.send_wait(frame(payload)).await?;
            let echo = connection.recv().await?;
            assert_eq!(echo.len(), payload.len() as u64);
        }
        let end = Instant::now();
        if !trips.record(start, end) {
            break;
        }
        start = end;
    }
    trips.tell();
    Ok(())
}

/// Frames under way at once, each sent again when it is back: what an RPC layer with that many calls asks of the transport.
const UNDER_WAY: usize = 64;

async fn window(connection: &mut Connection, payload: &Bytes, time: Duration) -> Result<()> {
    for _ in 0..UNDER_WAY {
        connection.send_wait(frame(payload)).await?;
    }
    let begin = Instant::now() + time / 4;
    let (mut counted, mut now) = (0_u64, Instant::now());
    for turn in 1_u64.. {
        connection.recv().await?;
        connection.send_wait(frame(payload)).await?;
        counted += u64::from(now >= begin);
        if turn.is_multiple_of(256) {
            now = Instant::now();
            if now >= begin + time {
                break;
            }
        }
    }
    process::tell("rate", counted as f64 / (now - begin).as_secs_f64());
    for _ in 0..UNDER_WAY {
        connection.recv().await?;
    }
    Ok(())
}

async fn flood(connection: &mut Connection, payload: &Bytes, time: Duration) -> Result<Flood> {
    let mut flood = Flood::begin(payload.len(), time);
    loop {
        connection.send_wait(frame(payload)).await?;
        if !flood.count() {
            break;
        }
    }
    connection.send_wait(Bytes::from_static(END)).await?;
    connection.recv().await?;
    Ok(flood)
}
