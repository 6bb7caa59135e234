//! One program, the transport from the command line: `swap_transport tcp://127.0.0.1:0`, `ucx://127.0.0.1:0`, `unix:///tmp/swap.sock`,
//! `mem://swap`, or `auto://127.0.0.1:0`, which takes UCX where it can and says why where it can't.

#[path = "util/echo.rs"]
mod echo;

use std::time::{Duration, Instant};

use ucrpc::{Channel, DispatcherConfig, LocalDispatcher, Server};

const CALLS: usize = 10_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "auto://127.0.0.1:0".to_owned());
    let service = echo::echo_server::EchoServer::new(echo::Echo { delay: Duration::ZERO });
    let server = Server::builder().service(service).listen(&address).start()?;
    let local = LocalDispatcher::new(DispatcherConfig::default())?;
    local.block_on(async {
        let channel = Channel::builder(server.address()).on(local.handle()).connect().await?;
        let client = echo::echo_client::EchoClient::new(channel);
        let mut times = Vec::with_capacity(CALLS);
        let mut transport = "";
        for _ in 0..CALLS {
            let start = Instant::now();
            let response = client.echo(echo::EchoRequest { payload: vec![7; 64].into(), ..Default::default() }).await?;
            times.push(start.elapsed());
            transport = response.stats().transport;
        }
        times.sort_unstable();
        println!("{address} runs over {transport}: p50 {:?}, p99 {:?}", times[CALLS / 2], times[CALLS * 99 / 100]);
        Ok(())
    })
}
