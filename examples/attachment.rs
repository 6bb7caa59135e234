//! Sends large attachments both ways, beside a small message, without copies: `attachment [ADDRESS] [MIB]`.

#[path = "util/echo.rs"]
mod echo;

use std::time::{Duration, Instant};

use bytes::Bytes;
use ucrpc::{Channel, DispatcherConfig, LocalDispatcher, Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "tcp://127.0.0.1:0".to_owned());
    let mib: usize = arguments.next().map_or(Ok(16), |text| text.parse())?;
    let service = echo::echo_server::EchoServer::new(echo::Echo { delay: Duration::ZERO });
    let server = Server::builder().service(service).listen(&address).start()?;
    // The client's side runs on this thread: no other one takes part in its calls.
    let local = LocalDispatcher::new(DispatcherConfig::default())?;
    local.block_on(async {
        let channel = Channel::builder(server.address()).on(local.handle()).connect().await?;
        let client = echo::echo_client::EchoClient::new(channel);
        let attachment = Bytes::from(vec![7_u8; mib << 20]);
        for _ in 0..5 {
            let start = Instant::now();
            let response = client.echo(echo::EchoRequest::default()).attachment(attachment.clone()).await?;
            assert!(response.attachment() == &attachment);
            let rate = 2.0 * attachment.len() as f64 / start.elapsed().as_secs_f64() / 1e9;
            println!("{mib} MiB there and back over {}: {rate:.2} GB/s", response.stats().transport);
        }
        Ok(())
    })
}
