//! What an idle connection costs: memory of both processes before and after many of them.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::mpsc;
use ucrpc::{Address, Channel, Dispatcher, transport::spawn_local};

use super::{
    Client,
    client::json,
    session::{Session, connect},
};
use crate::{
    Done,
    exit::{Exit, Failure},
    out::{self, Progress},
    process, units,
};

/// Connections being opened at once.
const OPENING: usize = 32;
/// Opened first and kept, so that what is made once is not counted.
const FIRST: u32 = 8;

/// What was found.
#[derive(Serialize)]
struct Idle {
    idle: u32,
    transport: String,
    fallback_reason: Option<String>,
    /// Time to open them.
    connect_s: f64,
    /// How long they were held.
    held_s: f64,
    /// Those that were still open then.
    open: u64,
    /// Resident memory of this process and of the server's, bytes, before and after.
    rss_before: u64,
    rss_after: u64,
    server_rss_before: u64,
    server_rss_after: u64,
    /// KiB for each connection: a channel with one connection here, a connection there. Without the kernel's memory.
    rss_per_conn_kib: f64,
    server_rss_per_conn_kib: f64,
    errors: u64,
}

/// Opens `count` connections, holds them, reports.
pub(super) async fn run(
    dispatcher: &Dispatcher,
    session: &Session,
    address: &Address,
    count: u32,
    args: &Client,
) -> Done {
    let files = process::raise_files();
    if files < u64::from(count) * 2 + 64 {
        let text = format!("{count} connections need more than the {files} open files that this process may have");
        return Err(Failure::usage(text).hint("ulimit -n, or LimitNOFILE in a unit; the server needs as many"));
    }
    let first = open(dispatcher, address, FIRST, args.timeout()).await?;
    settle(dispatcher).await;
    let before = (process::resident(), session.stats(None).await?);
    let start = Instant::now();
    let channels = open(dispatcher, address, count, args.timeout()).await?;
    let connect_s = start.elapsed().as_secs_f64();
    settle(dispatcher).await;
    dispatcher.sleep_until(Instant::now() + args.hold()).await;
    let after = (process::resident(), session.stats(None).await?);
    let per_conn = |before: u64, after: u64| (after as f64 - before as f64) / 1024.0 / f64::from(count);
    let open = channels.iter().filter(|channel| !channel.transports().is_empty()).count() as u64;
    let (transport, fallback_reason) = session.transport();
    let idle = Idle {
        idle: count,
        transport,
        fallback_reason,
        connect_s,
        held_s: args.hold().as_secs_f64(),
        open,
        rss_before: before.0,
        rss_after: after.0,
        server_rss_before: before.1.rss_bytes,
        server_rss_after: after.1.rss_bytes,
        rss_per_conn_kib: per_conn(before.0, after.0),
        server_rss_per_conn_kib: per_conn(before.1.rss_bytes, after.1.rss_bytes),
        errors: u64::from(count) - open,
    };
    drop(first);
    if args.is_json() {
        out::line(&json(&idle)?)?;
    } else {
        let (mine, theirs) = (units::number(idle.rss_per_conn_kib), units::number(idle.server_rss_per_conn_kib));
        out::line(&format!("{count} idle connections over {}, opened in {:.2} s", idle.transport, connect_s))?;
        out::line(&format!("resident memory per connection: {mine} KiB here, {theirs} KiB at the server"))?;
    }
    if idle.errors > 0 {
        return Err(Failure::new(Exit::Bad, format!("{} of {count} connections did not stay open", idle.errors)));
    }
    Ok(())
}

/// Memory is counted after what opening them started has ended.
async fn settle(dispatcher: &Dispatcher) {
    dispatcher.sleep_until(Instant::now() + Duration::from_millis(300)).await;
}

async fn open(
    dispatcher: &Dispatcher,
    address: &Address,
    count: u32,
    timeout: Duration,
) -> Result<Vec<Channel>, Failure> {
    let progress = Progress::steps(count.into(), "connections");
    let (tell, mut hear) = mpsc::unbounded_channel();
    let room = Rc::new(tokio::sync::Semaphore::new(OPENING));
    for _ in 0..count {
        let (tell, room) = (tell.clone(), room.clone());
        let (dispatcher, address) = (dispatcher.clone(), address.clone());
        spawn_local(async move {
            let _permit = room.acquire().await;
            let _ = tell.send(connect(&dispatcher, &address, timeout).await);
        })?;
    }
    drop(tell);
    let mut channels = Vec::with_capacity(count as usize);
    while let Some(channel) = hear.recv().await {
        let opened = channels.len();
        channels.push(channel.map_err(|f| f.while_doing(format!("after {opened} of {count} connections")))?);
        progress.step("connections".to_owned());
    }
    Ok(channels)
}
