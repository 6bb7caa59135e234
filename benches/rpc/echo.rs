//! The RPC side: an echo server, and the clients that measure it. `block_on` on both sides, no other thread.

use std::{
    cell::Cell,
    process::Command,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ucrpc::rpc::service::StreamOffer;
use ucrpc::transport::spawn_local;
use ucrpc::{CallContext, Channel, Dispatcher, LocalDispatcher, Server, Status};

use crate::util::{
    CLIENT_CPU, SERVER_CPU,
    ours::{self, Way},
    process::{self, Figures, Mode},
    sample::RoundTrips,
};

mod proto {
    #![allow(unreachable_pub, reason = "generated code is public, whatever includes it")]
    ucrpc::rpc::include_proto!("ucrpc.example");
}

use proto::echo_client::EchoClient;
use proto::echo_server::{Echo, EchoServer};
use proto::{EchoRequest, EchoResponse};

/// What a client asks for.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Bytes of the payload.
    pub(crate) size: usize,
    pub(crate) connections: usize,
    /// Calls at once on each connection.
    pub(crate) outstanding: usize,
}

impl Load {
    pub(crate) const ONE: Self = Self { size: 64, connections: 1, outstanding: 1 };
    pub(crate) const MANY: Self = Self { outstanding: 64, ..Self::ONE };
    pub(crate) const WIDE: Self = Self { size: 64, connections: 8, outstanding: 8 };

    /// As words of a command line.
    pub(crate) fn words(self) -> [String; 3] {
        [self.size, self.connections, self.outstanding].map(|number| number.to_string())
    }
}

struct Service;

impl Echo for Service {
    async fn echo(&self, context: &mut CallContext, request: EchoRequest) -> Result<EchoResponse, Status> {
        match request.sleep_ms {
            YOUR_TIME => return Ok(EchoResponse { payload: cpu_nanos().to_string().into() }),
            YOUR_MEMORY => {
                let (proportional, resident) = memory();
                return Ok(EchoResponse { payload: format!("{proportional} {resident}").into() });
            }
            _ => {}
        }
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

/// A `sleep_ms` that asks the server for its processor time.
const YOUR_TIME: u32 = u32::MAX;
/// A `sleep_ms` that asks the server for its memory.
const YOUR_MEMORY: u32 = u32::MAX - 1;

/// Processor time of this thread so far.
fn cpu_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    text.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}

/// Memory of this process in KiB: proportional, in which a page of shared memory counts once however many connections map it, and
/// resident, in which it counts as often as it is mapped.
fn memory() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("Linux has it");
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("Linux has it");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    (field("Pss:"), field("Rss:"))
}

/// Runs `ping`, `attach`, `rate` or `idle` in two processes.
pub(crate) fn measure(mode: Mode, what: &str, way: Way, load: Load, time: Duration) -> Result<Figures, String> {
    let (env, address) = (way.env(mode), way.to_listen());
    let server: Command = process::role(&["rpc", "serve", &address], &env);
    let ([size, connections, outstanding], millis) = (load.words(), time.as_millis().to_string());
    process::run_pair(server, |address| {
        process::role(&["rpc", what, address, &millis, &size, &connections, &outstanding], &env)
    })
}

/// A child's part.
pub(crate) fn run(words: &[&str]) {
    process::end_after(process::LIMIT);
    let cpu = if words[0] == "serve" { SERVER_CPU } else { CLIENT_CPU };
    let local = LocalDispatcher::new(ours::dispatcher(cpu)).expect("a dispatcher");
    let number = |at: usize| -> usize { words[at].parse().expect("a number") };
    match words[0] {
        "serve" => local.block_on(serve(local.handle(), words[1])),
        what => {
            let load = Load { size: number(3), connections: number(4), outstanding: number(5) };
            let time = Duration::from_millis(number(2) as u64);
            local.block_on(client(local.handle(), what, words[1], load, time));
        }
    }
}

async fn serve(on: Dispatcher, address: &str) {
    let server = Server::builder().service(EchoServer::new(Service)).on(&on).listen(address);
    let server = server.start().expect("listening");
    println!("{}", server.address());
    let mut met = false;
    // It ends with its clients.
    while !met || server.stats().tasks > 1 {
        met |= server.stats().tasks > 1;
        on.sleep_until(Instant::now() + Duration::from_millis(50)).await;
    }
}

async fn connect(on: &Dispatcher, address: &str) -> EchoClient {
    let channel = Channel::builder(address).on(on).timeout(Duration::from_secs(60)).connect();
    EchoClient::new(channel.await.expect("connected"))
}

/// Asks the server about itself.
async fn about_server(client: &EchoClient, what: u32) -> Vec<u64> {
    let request = EchoRequest { sleep_ms: what, ..EchoRequest::default() };
    let response = client.echo(request).await.expect("an answer");
    let text = String::from_utf8_lossy(&response.payload).into_owned();
    text.split(' ').map(|word| word.parse().expect("a number")).collect()
}

async fn client(on: Dispatcher, what: &str, address: &str, load: Load, time: Duration) {
    let payload = Bytes::from(vec![7; load.size]);
    if what == "idle" {
        return idle(&on, address, load).await;
    }
    let mut clients = Vec::new();
    for _ in 0..load.connections {
        clients.push(connect(&on, address).await);
    }
    match what {
        "ping" | "attach" => ping(&clients[0], &payload, time, what == "attach").await,
        "rate" => rate(&on, &clients, load.outstanding, &payload, time).await,
        other => panic!("no such role: {other}"),
    }
}

async fn call(client: &EchoClient, payload: &Bytes, attach: bool) {
    if attach {
        let response = client.echo(EchoRequest::default()).attachment(payload.clone()).await.expect("an answer");
        assert_eq!(response.attachment().len(), payload.len());
    } else {
        let request = EchoRequest { payload: payload.clone(), ..EchoRequest::default() };
        assert_eq!(client.echo(request).await.expect("an answer").payload.len(), payload.len());
    }
}

async fn ping(client: &EchoClient, payload: &Bytes, time: Duration, attach: bool) {
    let mut trips = RoundTrips::begin(payload.len(), time);
    let mut start = Instant::now();
    loop {
        for _ in 0..trips.batch() {
            call(client, payload, attach).await;
        }
        let end = Instant::now();
        if !trips.record(start, end) {
            break;
        }
        start = end;
    }
    trips.tell();
}

async fn rate(on: &Dispatcher, clients: &[EchoClient], outstanding: usize, payload: &Bytes, time: Duration) {
    let counted = Rc::new(Cell::new(0_u64));
    let over = Rc::new(Cell::new(false));
    for client in clients.iter().flat_map(|client| std::iter::repeat_n(client, outstanding)) {
        let (client, payload, counted, over) = (client.clone(), payload.clone(), counted.clone(), over.clone());
        let task = async move {
            while !over.get() {
                call(&client, &payload, false).await;
                counted.set(counted.get() + 1);
            }
        };
        spawn_local(task).expect("on the dispatcher");
    }
    on.sleep_until(Instant::now() + time / 4).await;
    let before = (counted.get(), cpu_nanos(), about_server(&clients[0], YOUR_TIME).await[0], Instant::now());
    on.sleep_until(Instant::now() + time).await;
    let after = (counted.get(), cpu_nanos(), about_server(&clients[0], YOUR_TIME).await[0], Instant::now());
    over.set(true);
    let calls = (after.0 - before.0) as f64;
    process::tell("rate", calls / (after.3 - before.3).as_secs_f64());
    process::tell("client", (after.1 - before.1) as f64 / 1e9 / calls * 1e5);
    process::tell("server", (after.2 - before.2) as f64 / 1e9 / calls * 1e5);
}

/// What each of many connections takes of the server's memory, after one call.
async fn idle(on: &Dispatcher, address: &str, load: Load) {
    let first = connect(on, address).await;
    let mut others = Vec::new();
    // What the first hundred take may be there for good.
    let mut before = Vec::new();
    for i in 0..load.connections {
        if i == load.connections / 10 {
            before = about_server(&first, YOUR_MEMORY).await;
        }
        let client = connect(on, address).await;
        call(&client, &Bytes::from_static(b"hello"), false).await;
        others.push(client);
    }
    let after = about_server(&first, YOUR_MEMORY).await;
    let counted = load.connections - load.connections / 10;
    for (name, (before, after)) in ["idle", "resident"].into_iter().zip(before.into_iter().zip(after)) {
        process::tell(name, after.saturating_sub(before) as f64 / counted as f64);
    }
}
