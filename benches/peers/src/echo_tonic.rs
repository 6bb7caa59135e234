//! Echo over tonic.

use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

mod proto {
    tonic::include_proto!("ucrpc.peers");
}

use proto::Message;
use proto::echo_client::EchoClient;
use proto::echo_server::{Echo, EchoServer};

struct Service;

#[tonic::async_trait]
impl Echo for Service {
    async fn echo(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

const LIMIT: usize = 64 << 20;

pub(crate) async fn serve() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("http://{}", listener.local_addr().expect("bound"));
    let service = EchoServer::new(Service).max_decoding_message_size(LIMIT);
    let incoming = TcpListenerStream::new(listener);
    Server::builder().tcp_nodelay(true).add_service(service).serve_with_incoming(incoming).await.expect("serving");
}

#[derive(Clone)]
pub(crate) struct Client(EchoClient<Channel>);

pub(crate) async fn connect(address: &str) -> Client {
    let endpoint = Endpoint::from_shared(address.to_owned()).expect("an address").tcp_nodelay(true);
    let channel = endpoint.connect().await.expect("connected");
    Client(EchoClient::new(channel).max_decoding_message_size(LIMIT))
}

impl super::Echo for Client {
    async fn echo(&mut self, payload: bytes::Bytes) -> usize {
        self.0.echo(Message { payload }).await.expect("an answer").into_inner().payload.len()
    }
}
