//! The service that the examples of one process share.
#![allow(unreachable_pub, reason = "generated code is public, whatever includes it")]

use std::time::{Duration, Instant};

use ucrpc::rpc::service::StreamOffer;
use ucrpc::rpc::streaming::StreamConfig;
use ucrpc::transport::{Dispatcher, spawn_local};
use ucrpc::{CallContext, Code, Status};

ucrpc::rpc::include_proto!("ucrpc.example");

/// Says when it is dropped before its end.
struct Watch(bool);

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.0 {
            println!("  a handler was dropped");
        }
    }
}

/// Answers after `delay`, or what the request asks for.
pub struct Echo {
    pub delay: Duration,
}

impl echo_server::Echo for Echo {
    async fn echo(&self, context: &mut CallContext, request: EchoRequest) -> Result<EchoResponse, Status> {
        let mut watch = Watch(false);
        let delay = self.delay + Duration::from_millis(request.sleep_ms.into());
        if let Some(dispatcher) = Dispatcher::current().filter(|_| !delay.is_zero()) {
            dispatcher.sleep_until(Instant::now() + delay).await;
        }
        watch.0 = true;
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
        let serve = async move {
            while let Some(Ok(request)) = stream.next().await {
                if stream.send(&EchoResponse { payload: request.payload }).await.is_err() {
                    break;
                }
            }
        };
        spawn_local(serve).map_err(|error| Status::new(Code::EINTERNAL, error.to_string()))?;
        Ok(EchoResponse::default())
    }
}
