//! Unary echo between two processes on loopback, beside its controls in the same run: blocking TCP sockets and tokio's.
//!
//! `cargo bench --bench rpc` prints p50 of one outstanding call with both ends asleep on one core, and calls/s of 64 outstanding ones on one
//! connection; each with its ratio to the control. `cargo bench --bench rpc -- 1000` is a quick look with fewer calls; `rate` or `latency` runs one half.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ucrpc::rpc::service::StreamOffer;
use ucrpc::transport::spawn_local;
use ucrpc::{CallContext, Channel, DispatcherConfig, LocalDispatcher, Server, Status, WaitPolicy};

ucrpc::rpc::include_proto!("ucrpc.example");

use echo_client::EchoClient;
use echo_server::{Echo, EchoServer};

struct Service;

impl Echo for Service {
    async fn echo(&self, context: &mut CallContext, request: EchoRequest) -> Result<EchoResponse, Status> {
        let attachment = context.take_attachment();
        context.set_attachment(attachment);
        Ok(EchoResponse { payload: request.payload })
    }

    async fn chat(
        &self,
        _: &mut CallContext,
        _: EchoRequest,
        _: StreamOffer<EchoRequest, EchoResponse>,
    ) -> Result<EchoResponse, Status> {
        Ok(EchoResponse::default())
    }
}

const SERVER: &str = "UCRPC_BENCH_SERVER";

fn main() {
    if let Ok(kind) = std::env::var(SERVER) {
        return serve(&kind);
    }
    let count: usize = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(20_000);
    pin(0);
    let only = |what: &str| std::env::args().skip(1).any(|arg| arg == what);
    if !only("rate") {
        latencies(count);
    }
    if !only("latency") {
        rates(count);
    }
}

fn latencies(count: usize) {
    println!("one outstanding, both ends on one core, sleeping: p50 us");
    for size in [64, 4 << 10, 64 << 10, 1 << 20] {
        let count = (count * 64 / (size / 16 + 64)).max(200);
        // Interleaved rounds, the quietest one counts: the machine is shared.
        let mut best = [f64::MAX; 4];
        for _ in 0..3 {
            best[0] = best[0].min(raw_latency(size, count));
            best[1] = best[1].min(rpc_latency("tcp", size, count, false));
            best[2] = best[2].min(rpc_latency("tcp", size, count, true));
            best[3] = best[3].min(rpc_latency("unix", size, count, false));
        }
        let [raw, rpc, attachment, unix] = best;
        println!(
            "{size:>8} B: raw {raw:.1}, rpc {rpc:.1} ({:.2}x), as attachment {attachment:.1} ({:.2}x), unix {unix:.1}",
            rpc / raw,
            attachment / raw
        );
    }
}

fn rates(count: usize) {
    println!("64 B, 64 outstanding on one connection, both ends on one core: calls/s");
    let (mut tokio, mut rpc) = (0.0_f64, 0.0_f64);
    for _ in 0..3 {
        tokio = tokio.max(tokio_rate(count * 5));
        rpc = rpc.max(rpc_rate("tcp", count * 5));
    }
    println!("tokio {tokio:.0}, rpc {rpc:.0} ({:.2}x)", rpc / tokio);
}

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).expect("pinning");
}

struct Peer(Child, String);

impl Peer {
    fn start(kind: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        let mut child = command.env(SERVER, kind).stdout(Stdio::piped()).spawn().expect("a child");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("an address");
        Self(child, line.trim().to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(kind: &str) {
    pin(0);
    match kind {
        "raw" => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            println!("{}", listener.local_addr().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut len = [0; 4];
            while stream.read_exact(&mut len).is_ok() {
                let mut buf = vec![0; 4 + u32::from_le_bytes(len) as usize];
                buf[..4].copy_from_slice(&len);
                if stream.read_exact(&mut buf[4..]).is_err() {
                    break;
                }
                stream.write_all(&buf).unwrap();
            }
        }
        "tokio" => tokio_runtime().block_on(async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            println!("{}", listener.local_addr().unwrap());
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut buf = vec![0; 64 << 10];
            loop {
                let n = stream.read(&mut buf).await.unwrap_or(0);
                if n == 0 || stream.write_all(&buf[..n]).await.is_err() {
                    break;
                }
            }
        }),
        scheme => {
            let address = match scheme {
                "unix" => format!("unix:///tmp/ucrpc-bench-{}.sock", std::process::id()),
                scheme => format!("{scheme}://127.0.0.1:0"),
            };
            let local = local();
            local.block_on(async {
                let server = Server::builder().service(EchoServer::new(Service)).on(local.handle()).listen(address);
                let server = server.start().unwrap();
                println!("{}", server.address());
                server.stopped().await;
            });
        }
    }
}

fn local() -> LocalDispatcher {
    LocalDispatcher::new(DispatcherConfig { wait: WaitPolicy::Event, ..DispatcherConfig::default() }).unwrap()
}

fn tokio_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn p50(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_nanos() as f64 / 1000.0
}

fn raw_latency(size: usize, count: usize) -> f64 {
    let peer = Peer::start("raw");
    let mut stream = TcpStream::connect(&peer.1).unwrap();
    stream.set_nodelay(true).unwrap();
    let frame = [&(size as u32).to_le_bytes()[..], &vec![7; size]].concat();
    let mut back = frame.clone();
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        stream.write_all(&frame).unwrap();
        stream.read_exact(&mut back).unwrap();
        times.push(start.elapsed());
    }
    p50(times)
}

fn rpc_latency(scheme: &str, size: usize, count: usize, attached: bool) -> f64 {
    let peer = Peer::start(scheme);
    let local = local();
    let payload = Bytes::from(vec![7; size]);
    local.block_on(async {
        let channel = Channel::builder(&peer.1).on(local.handle()).connect().await.unwrap();
        let client = EchoClient::new(channel);
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            let got = if attached {
                client.echo(EchoRequest::default()).attachment(payload.clone()).await.unwrap().attachment().len()
            } else {
                client
                    .echo(EchoRequest { payload: payload.clone(), ..EchoRequest::default() })
                    .await
                    .unwrap()
                    .payload
                    .len()
            };
            times.push(start.elapsed());
            assert_eq!(got, size);
        }
        p50(times)
    })
}

const OUTSTANDING: usize = 64;

fn rpc_rate(scheme: &str, count: usize) -> f64 {
    let peer = Peer::start(scheme);
    let local = local();
    let payload = Bytes::from(vec![7; 64]);
    local.block_on(async {
        let channel = Channel::builder(&peer.1).on(local.handle()).connect().await.unwrap();
        let client = EchoClient::new(channel);
        let start = Instant::now();
        let (tell, mut hear) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..OUTSTANDING {
            let (client, payload, tell) = (client.clone(), payload.clone(), tell.clone());
            spawn_local(async move {
                for _ in 0..count / OUTSTANDING {
                    client.echo(EchoRequest { payload: payload.clone(), ..EchoRequest::default() }).await.unwrap();
                }
                tell.send(()).unwrap();
            })
            .unwrap();
        }
        for _ in 0..OUTSTANDING {
            hear.recv().await.unwrap();
        }
        count as f64 / start.elapsed().as_secs_f64()
    })
}

/// 64 frames on their way at any time: each that comes back is sent again, as tokio's buffers have them.
fn tokio_rate(count: usize) -> f64 {
    let peer = Peer::start("tokio");
    tokio_runtime().block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let stream = tokio::net::TcpStream::connect(&peer.1).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut reader, writer) = stream.into_split();
        let writer = std::sync::Arc::new(tokio::sync::Mutex::new(tokio::io::BufWriter::new(writer)));
        const LEN: usize = 72;
        let start = Instant::now();
        writer.lock().await.write_all(&[7; LEN * OUTSTANDING]).await.unwrap();
        writer.lock().await.flush().await.unwrap();
        let (mut done, mut partial, mut buf) = (0, 0, vec![0; 64 << 10]);
        while done < count {
            partial += reader.read(&mut buf).await.unwrap();
            let frames = partial / LEN;
            partial %= LEN;
            done += frames;
            let mut writer = writer.lock().await;
            for _ in 0..frames {
                writer.write_all(&[7; LEN]).await.unwrap();
            }
            writer.flush().await.unwrap();
        }
        count as f64 / start.elapsed().as_secs_f64()
    })
}
