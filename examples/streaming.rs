//! Opens a stream with a call, and sends and receives messages on it at once: `streaming [ADDRESS]`.

#[path = "util/echo.rs"]
mod echo;

use std::time::Duration;

use bytes::Bytes;
use ucrpc::rpc::streaming::StreamConfig;
use ucrpc::transport::spawn_local;
use ucrpc::{Channel, DispatcherConfig, LocalDispatcher, Server};

const MESSAGES: usize = 10_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "tcp://127.0.0.1:0".to_owned());
    let service = echo::echo_server::EchoServer::new(echo::Echo { delay: Duration::ZERO });
    let server = Server::builder().service(service).listen(&address).start()?;
    let local = LocalDispatcher::new(DispatcherConfig::default())?;
    local.block_on(async {
        let channel = Channel::builder(server.address()).on(local.handle()).connect().await?;
        let client = echo::echo_client::EchoClient::new(channel);
        let open = client.chat(echo::EchoRequest::default()).open_stream(StreamConfig::default());
        let (_response, stream) = open.await?;
        let (mut reader, mut writer) = stream.into_bytes().split();
        spawn_local(async move {
            for i in 0..MESSAGES {
                use prost::Message;
                let message = echo::EchoRequest { payload: Bytes::from(vec![i as u8; 1000]), ..Default::default() };
                // The window holds the writer back when the reader is slow.
                if let Err(status) = writer.send(message.encode_to_vec()).await {
                    return eprintln!("the stream broke: {status}");
                }
            }
        })?;
        let mut bytes = 0;
        for i in 0..MESSAGES {
            use prost::Message;
            let message = reader.next().await.ok_or("the stream was closed")??;
            bytes += message.len();
            let number = echo::EchoResponse::decode(message)?.payload[0];
            assert_eq!(number, i as u8, "out of order");
        }
        println!("{MESSAGES} messages, {bytes} bytes, there and back, in order");
        Ok(())
    })
}
