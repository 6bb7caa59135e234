//! A call that takes too long, and one that nobody waits for any more: both end on the server, too.

#[path = "util/echo.rs"]
mod echo;

use std::time::Duration;

use ucrpc::rpc::client::RawCaller;
use ucrpc::{Channel, Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "tcp://127.0.0.1:0".to_owned());
    let service = echo::echo_server::EchoServer::new(echo::Echo { delay: Duration::ZERO });
    let server = Server::builder().service(service).listen(&address).start()?;
    let channel = Channel::builder(server.address()).connect_lazy()?;
    let client = echo::echo_client::EchoClient::new(channel.clone());
    let slow = || echo::EchoRequest { sleep_ms: 10_000, ..Default::default() };
    client.echo(echo::EchoRequest::default()).blocking()?;

    println!("a deadline of 50 ms for what takes 10 s:");
    match client.echo(slow()).timeout(Duration::from_millis(50)).blocking() {
        Ok(_) => return Err("it was to take 10 s".into()),
        Err(status) => println!("  {status}, after {:?}", status.stats().map(|stats| stats.latency)),
    }
    println!("a call that is dropped after 50 ms:");
    let call = client.echo(slow()).into_future();
    std::thread::sleep(Duration::from_millis(50));
    drop(call);
    std::thread::sleep(Duration::from_millis(50));
    println!("  the server counts {:?}", server.stats());
    println!("still at work: {:?}", channel.block_on(client.echo(echo::EchoRequest::default()).into_future()).is_ok());
    Ok(())
}
