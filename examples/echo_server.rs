//! Serves `Echo` on one or more addresses until standard input ends: `echo_server auto://127.0.0.1:7000 unix:///tmp/echo.sock`.
//!
//! One port takes ucrpc's clients over UCX and TCP, and brpc's.

use std::time::Duration;

use ucrpc::rpc::service::StreamOffer;
use ucrpc::rpc::streaming::StreamConfig;
use ucrpc::transport::spawn_local;
use ucrpc::{CallContext, Server, Status};

ucrpc::rpc::include_proto!("ucrpc.example");

struct Echo;

impl echo_server::Echo for Echo {
    async fn echo(&self, context: &mut CallContext, request: EchoRequest) -> Result<EchoResponse, Status> {
        // The attachment goes back as it came: the same memory, not a copy.
        let attachment = context.take_attachment();
        context.set_attachment(attachment);
        Ok(EchoResponse { payload: request.payload })
    }

    async fn chat(
        &self,
        context: &mut CallContext,
        _: EchoRequest,
        offer: StreamOffer<EchoRequest, EchoResponse>,
    ) -> Result<EchoResponse, Status> {
        let mut stream = offer.accept(context, StreamConfig::default())?;
        // The response goes first: so the stream is served by a task of its own.
        let serve = async move {
            while let Some(Ok(request)) = stream.next().await {
                if stream.send(&EchoResponse { payload: request.payload }).await.is_err() {
                    break;
                }
            }
        };
        spawn_local(serve).map_err(|error| Status::new(ucrpc::Code::EINTERNAL, error.to_string()))?;
        Ok(EchoResponse::default())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut addresses: Vec<String> = std::env::args().skip(1).collect();
    if addresses.is_empty() {
        addresses.push("auto://127.0.0.1:7000".to_owned());
    }
    let mut builder = Server::builder().service(echo_server::EchoServer::new(Echo));
    for address in &addresses {
        builder = builder.listen(address);
    }
    let server = builder.start()?;
    for address in server.addresses() {
        println!("{address}");
    }
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    // Calls that run may end; new ones are told to go elsewhere.
    let local = ucrpc::LocalDispatcher::new(ucrpc::DispatcherConfig::default())?;
    local.block_on(server.shutdown(Duration::from_secs(5)));
    println!("{:?}", server.stats());
    Ok(())
}
