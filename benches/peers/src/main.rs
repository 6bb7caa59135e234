//! An echo over tonic or tarpc: `ucrpc-peers serve tonic`, `ucrpc-peers ping|rate tonic ADDRESS BYTES MILLIS CONNECTIONS OUTSTANDING`.
//!
//! The client prints its figures as `name value` lines, as the roles of the workspace's own benchmarks do. `UCRPC_BENCH_CPU` pins the process.

mod echo_tarpc;
mod echo_tonic;

use std::future::Future;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Something that echoes a payload. Clones share a connection.
trait Echo: Clone + 'static {
    fn echo(&mut self, payload: bytes::Bytes) -> impl Future<Output = usize>;
}

fn main() {
    if let Some(cpu) = std::env::var("UCRPC_BENCH_CPU").ok().and_then(|cpu| cpu.parse().ok()) {
        let mut set = rustix::thread::CpuSet::new();
        set.set(cpu);
        rustix::thread::sched_setaffinity(None, &set).expect("the CPU exists");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        match words.as_slice() {
            ["serve", "tonic"] => echo_tonic::serve().await,
            ["serve", "tarpc"] => echo_tarpc::serve().await,
            [what, "tonic", address, rest @ ..] => client(what, rest, || echo_tonic::connect(address)).await,
            [what, "tarpc", address, rest @ ..] => client(what, rest, || echo_tarpc::connect(address)).await,
            other => panic!("what is {other:?}?"),
        }
    });
}

async fn client<E: Echo, F: Future<Output = E>>(what: &str, numbers: &[&str], connect: impl Fn() -> F) {
    let number = |at: usize| -> u64 { numbers[at].parse().expect("a number") };
    let (size, time) = (number(0) as usize, Duration::from_millis(number(1)));
    let payload = bytes::Bytes::from(vec![7; size]);
    match what {
        "ping" => ping(connect().await, payload, time).await,
        "rate" => {
            let mut clients = Vec::new();
            for _ in 0..number(2) {
                clients.push(connect().await);
            }
            rate(&clients, number(3), payload, time).await;
        }
        other => panic!("what is {other}?"),
    }
}

async fn ping(mut echo: impl Echo, payload: bytes::Bytes, time: Duration) {
    let mut histogram = Histogram::<u64>::new(3).expect("valid bounds");
    let warm = Instant::now() + time / 4;
    loop {
        let start = Instant::now();
        assert_eq!(echo.echo(payload.clone()).await, payload.len());
        let end = Instant::now();
        if end >= warm {
            histogram.record((end - start).as_nanos() as u64).expect("in bounds");
        }
        if end >= warm + time {
            break;
        }
    }
    for (name, percentile) in [("p50", 50.0), ("p99", 99.0)] {
        println!("{name} {}", histogram.value_at_percentile(percentile) as f64 / 1000.0);
    }
}

async fn rate<E: Echo>(clients: &[E], outstanding: u64, payload: bytes::Bytes, time: Duration) {
    let begin = Instant::now() + time / 4;
    let tasks: Vec<_> = clients
        .iter()
        .flat_map(|client| (0..outstanding).map(move |_| client.clone()))
        .map(|mut client| {
            let payload = payload.clone();
            tokio::task::spawn_local(async move {
                let mut calls = 0_u64;
                loop {
                    client.echo(payload.clone()).await;
                    let now = Instant::now();
                    calls += u64::from(now >= begin);
                    if now >= begin + time {
                        return calls;
                    }
                }
            })
        })
        .collect();
    let mut calls = 0;
    for task in tasks {
        calls += task.await.expect("no panic");
    }
    println!("rate {}", calls as f64 / time.as_secs_f64());
}
