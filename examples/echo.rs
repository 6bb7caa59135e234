//! An echo server and a client that measures round trips. The address chooses the transport:
//!
//! ```text
//! cargo run --release --example echo -- server auto://127.0.0.1:7000
//! cargo run --release --example echo -- client tcp://127.0.0.1:7000 64 4096
//! cargo run --release --example echo -- client ucx://127.0.0.1:7000 64 4096
//! ```
//!
//! The server prints where it listens, and echoes until its standard input ends or it is killed. The client prints one line
//! for each size.

use std::{
    io::Read,
    process::ExitCode,
    time::{Duration, Instant},
};

use ucrpc::transport::{
    Address, Connection, ConnectionConfig, DispatcherConfig, ErrorKind, Frame, ListenConfig, LocalDispatcher, Result,
    spawn_local,
};

/// Round trips before the clock runs.
const WARM_UP: u32 = 200;
/// How long each size is measured.
const MEASURE: Duration = Duration::from_millis(1500);
/// What goes into the head; the rest of a message is its body.
const HEAD: usize = 64;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["server", address] => server(address),
        ["client", address, sizes @ ..] => client(address, sizes),
        _ => {
            eprintln!("usage: echo server ADDRESS | echo client ADDRESS [BYTES]...");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn server(address: &str) -> Result<()> {
    let address: Address = address.parse()?;
    let local = LocalDispatcher::new(DispatcherConfig::default())?;
    let mut listener = local.handle().listen(&address, ListenConfig::default())?;
    println!("listening {}", listener.local_address());
    // Whoever started us holds the other end; when it is gone, so are we.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    local.block_on(async {
        loop {
            let connection = listener.accept().await?;
            spawn_local(async { report(echo(connection).await) })?;
        }
    })
}

/// Sends everything back until the client closes.
async fn echo(mut connection: Connection) -> Result<()> {
    loop {
        let frame = connection.recv().await?;
        connection.send_wait(frame).await?;
    }
}

fn report(result: Result<()>) {
    match result {
        Err(error) if error.kind() != ErrorKind::PeerClosed => eprintln!("echo: {error}"),
        _ => {}
    }
}

fn client(address: &str, sizes: &[&str]) -> Result<()> {
    let address: Address = address.parse()?;
    let local = LocalDispatcher::new(DispatcherConfig::default())?;
    let dispatcher = local.handle();
    local.block_on(async {
        let mut connection = dispatcher.connect(&address, ConnectionConfig::default()).await?;
        let transport = connection.transport().map(ToString::to_string).unwrap_or_default();
        if let Some(reason) = connection.fallback_reason() {
            println!("note not ucx: {reason}");
        }
        for size in if sizes.is_empty() { &["64"] } else { sizes } {
            let Ok(size) = size.parse::<usize>() else {
                eprintln!("echo: {size} is no number of bytes");
                continue;
            };
            let (mut times, elapsed) = measure(&mut connection, size).await?;
            times.sort_unstable();
            let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_nanos() as f64 / 1e3;
            let rate = times.len() as f64 / elapsed.as_secs_f64();
            println!(
                "size {size} p50_us {:.1} p99_us {:.1} calls_s {rate:.0} transport {transport}",
                at(0.5),
                at(0.99)
            );
        }
        connection.close().await
    })
}

/// Round trips one after the other, and how long they took in all.
async fn measure(connection: &mut Connection, size: usize) -> Result<(Vec<Duration>, Duration)> {
    let data = bytes::Bytes::from(vec![0x5a; size]);
    let (head, body) = (data.slice(..size.min(HEAD)), data.slice(size.min(HEAD)..));
    let mut times = Vec::with_capacity(1 << 16);
    let mut started = Instant::now();
    for turn in 0.. {
        if turn == WARM_UP {
            started = Instant::now();
        }
        let sent = Instant::now();
        connection.send_wait(Frame::new(head.clone(), body.clone())).await?;
        let answer = connection.recv().await?;
        assert_eq!(answer.len(), size as u64, "the echo has another length");
        if turn >= WARM_UP {
            times.push(sent.elapsed());
            if started.elapsed() >= MEASURE {
                break;
            }
        }
    }
    Ok((times, started.elapsed()))
}
