//! The benchmark's service, as `proto/perf.proto` describes it.

use ucrpc::{
    CallContext, Dispatcher, Dispatchers, Status,
    rpc::{service::StreamOffer, streaming::StreamConfig},
    transport::spawn_local,
};

use super::Wait;
use crate::process;

#[allow(unreachable_pub, missing_docs, reason = "generated for any crate")]
mod generated {
    ucrpc::rpc::include_proto!("ucrpc.perf");
}

pub(crate) use self::generated::{
    Nothing, Payload, StatsReply, StatsRequest,
    perf_client::PerfClient,
    perf_server::{Perf, PerfServer},
};

/// What serves.
pub(crate) struct Service {
    pub(crate) dispatchers: Vec<Dispatcher>,
    pub(crate) raw_port: u16,
    /// Whether clients may choose how this process waits.
    pub(crate) obeys: bool,
}

impl Service {
    fn connections(&self) -> u64 {
        self.dispatchers.iter().map(|dispatcher| dispatcher.stats().connections).sum()
    }
}

/// The set's dispatchers.
pub(crate) fn all(set: &Dispatchers) -> Vec<Dispatcher> {
    set.all().to_vec()
}

impl Perf for Service {
    async fn echo(&self, context: &mut CallContext, request: Payload) -> Result<Payload, Status> {
        let attachment = context.take_attachment();
        if !attachment.is_empty() {
            context.set_attachment(attachment);
        }
        Ok(request)
    }

    async fn push(&self, _: &mut CallContext, _: Payload) -> Result<Nothing, Status> {
        Ok(Nothing {})
    }

    async fn chat(
        &self,
        context: &mut CallContext,
        _: Payload,
        stream: StreamOffer<Payload, Payload>,
    ) -> Result<Payload, Status> {
        let mut stream = stream.accept_bytes(context, StreamConfig::default())?;
        let echo = async move {
            while let Some(Ok(message)) = stream.next().await {
                if stream.send(message).await.is_err() {
                    break;
                }
            }
        };
        spawn_local(echo).map_err(|error| Status::new(ucrpc::Code::EINTERNAL, error.to_string()))?;
        Ok(Payload::default())
    }

    async fn stats(&self, _: &mut CallContext, request: StatsRequest) -> Result<StatsReply, Status> {
        let wait = [Wait::Busy, Wait::Adaptive, Wait::Event].into_iter().find(|wait| wait.name() == request.wait);
        if let Some(wait) = wait.filter(|_| self.obeys) {
            self.dispatchers.iter().for_each(|dispatcher| dispatcher.set_wait_policy(wait.policy()));
        }
        Ok(StatsReply {
            cpu_ns: process::cpu_time().as_nanos() as u64,
            rss_bytes: process::resident(),
            connections: self.connections(),
            raw_port: self.raw_port.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}
