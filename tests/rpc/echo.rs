//! The service of these tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ucrpc::rpc::service::StreamOffer;
use ucrpc::rpc::streaming::StreamConfig;
use ucrpc::rpc::{Metadata, wire::Segments};
use ucrpc::transport::{Dispatcher, spawn_local};
use ucrpc::{CallContext, Code, Status};

ucrpc::rpc::include_proto!("ucrpc.example");

pub use self::echo_client::EchoClient;
pub use self::echo_server::EchoServer;

/// How a handler comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// At its first poll.
    Inline,
    /// Later, as a local task of the dispatcher.
    Local,
    /// On a tokio runtime.
    Tokio,
}

/// What handlers did.
#[derive(Debug, Default)]
pub struct Seen {
    pub started: AtomicU64,
    pub ended: AtomicU64,
    /// Dropped before their end.
    pub dropped: AtomicU64,
}

impl Seen {
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::SeqCst)
    }
}

pub struct Service {
    pub way: Way,
    pub seen: Arc<Seen>,
}

impl Service {
    pub fn new(way: Way) -> (Self, Arc<Seen>) {
        let seen = Arc::<Seen>::default();
        (Self { way, seen: seen.clone() }, seen)
    }
}

struct Watch<'a>(&'a Seen, bool);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let counter = if self.1 { &self.0.ended } else { &self.0.dropped };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

pub async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

impl echo_server::Echo for Service {
    async fn echo(&self, context: &mut CallContext, request: EchoRequest) -> Result<EchoResponse, Status> {
        self.seen.started.fetch_add(1, Ordering::SeqCst);
        let mut watch = Watch(&self.seen, false);
        match self.way {
            Way::Inline => {}
            Way::Local => yield_once().await,
            Way::Tokio => tokio::task::yield_now().await,
        }
        if request.sleep_ms > 0 {
            let duration = Duration::from_millis(request.sleep_ms.into());
            match Dispatcher::current() {
                Some(dispatcher) => dispatcher.sleep_until(Instant::now() + duration).await,
                None => tokio::time::sleep(duration).await,
            }
        }
        watch.1 = true;
        match request.fail_with {
            0 => {}
            -1 => panic!("as asked"),
            code => return Err(Status::new(Code::from_wire(code), "as asked")),
        }
        let mut metadata = Metadata::new();
        for (key, value) in context.metadata().iter() {
            metadata.insert(key.clone(), value.clone()).unwrap();
        }
        context.response.metadata = metadata;
        let attachment = context.take_attachment();
        if !attachment.is_empty() {
            context.set_attachment(Segments::from(attachment));
        }
        Ok(EchoResponse { payload: request.payload })
    }

    async fn chat(
        &self,
        context: &mut CallContext,
        request: EchoRequest,
        stream: StreamOffer<EchoRequest, EchoResponse>,
    ) -> Result<EchoResponse, Status> {
        if request.fail_with != 0 {
            return Err(Status::new(Code::from_wire(request.fail_with), "as asked"));
        }
        let mut stream = stream.accept(context, StreamConfig::default())?;
        let run = async move {
            while let Some(Ok(request)) = stream.next().await {
                if request.fail_with != 0 {
                    break;
                }
                if stream.send(&EchoResponse { payload: request.payload }).await.is_err() {
                    break;
                }
            }
        };
        match self.way {
            Way::Tokio => drop(tokio::spawn(run)),
            Way::Inline | Way::Local => spawn_local(run).unwrap(),
        }
        Ok(EchoResponse { payload: request.payload })
    }
}
