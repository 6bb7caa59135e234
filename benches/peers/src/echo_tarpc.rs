//! Echo over tarpc with bincode.

use futures::StreamExt;
use serde_bytes::ByteBuf;
use tarpc::context;
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;

#[tarpc::service]
trait Echo {
    async fn echo(payload: ByteBuf) -> ByteBuf;
}

#[derive(Clone)]
struct Service;

impl Echo for Service {
    async fn echo(self, _: context::Context, payload: ByteBuf) -> ByteBuf {
        payload
    }
}

const LIMIT: usize = 64 << 20;

pub(crate) async fn serve() {
    let mut incoming = tarpc::serde_transport::tcp::listen("127.0.0.1:0", Bincode::default).await.expect("a port");
    incoming.config_mut().max_frame_length(LIMIT);
    println!("{}", incoming.local_addr());
    while let Some(Ok(transport)) = incoming.next().await {
        let _ = transport.get_ref().set_nodelay(true);
        tokio::task::spawn_local(BaseChannel::with_defaults(transport).execute(Service.serve()).for_each(|call| async {
            tokio::task::spawn_local(call);
        }));
    }
}

#[derive(Clone)]
pub(crate) struct Client(EchoClient);

pub(crate) async fn connect(address: &str) -> Client {
    let mut connecting = tarpc::serde_transport::tcp::connect(address, Bincode::default);
    connecting.config_mut().max_frame_length(LIMIT);
    let transport = connecting.await.expect("connected");
    let _ = transport.get_ref().set_nodelay(true);
    let config = tarpc::client::Config::default();
    Client(EchoClient::new(config, transport).spawn())
}

impl super::Echo for Client {
    async fn echo(&mut self, payload: bytes::Bytes) -> usize {
        // tarpc takes what it sends by value.
        let payload = ByteBuf::from(payload.to_vec());
        self.0.echo(context::current(), payload).await.expect("an answer").len()
    }
}
