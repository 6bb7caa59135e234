//! Streams: messages in both directions, in order, within windows.

use std::time::Duration;

use bytes::Bytes;
use ucrpc::rpc::client::RawCaller;
use ucrpc::rpc::service::StreamOffer;
use ucrpc::rpc::streaming::StreamConfig;
use ucrpc::transport::spawn_local;
use ucrpc::{CallContext, Channel, Code, Server, Status};

use crate::bed::{Bed, Case};
use crate::calls::check_stream;
use crate::echo::{self, EchoClient, EchoRequest, EchoResponse, EchoServer, Service, Way};
use crate::ending::eventually;
use crate::unary::{bytes_of, request};

pub const CASES: &[Case] = &[
    ("stream_both_ways", both_ways),
    ("stream_from_server", from_server),
    ("stream_to_server", to_server),
    ("stream_refused", refused),
    ("stream_accepted_in_vain", accepted_in_vain),
    ("stream_ends", ends),
    ("stream_window", window),
    ("stream_traits", traits),
    ("streams_beside_calls", beside_calls),
];

fn both_ways(bed: &Bed) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    for way in [Way::Local, Way::Tokio] {
        let (service, _) = Service::new(way);
        let mut server = Server::builder().service(EchoServer::new(service));
        if way == Way::Tokio {
            server = server.handlers_on(runtime.handle().clone());
        }
        let server = bed.serve(server);
        let channel = bed.channel(&server).connect_lazy().unwrap();
        let client = EchoClient::new(channel.clone());
        let reader = check_stream(&channel, &client);
        // Calls go beside streams.
        client.echo(request(bytes_of(1, 10))).blocking().unwrap();
        drop(reader);
        eventually("the server's task ended", || server.stats().running == 0);
    }
}

/// Sends or takes what the request asks for.
struct OneWay {
    taken: std::sync::mpsc::SyncSender<(usize, bool)>,
}

impl echo::echo_server::Echo for OneWay {
    async fn echo(&self, _: &mut CallContext, _: EchoRequest) -> Result<EchoResponse, Status> {
        Ok(EchoResponse::default())
    }

    async fn chat(
        &self,
        context: &mut CallContext,
        request: EchoRequest,
        offer: StreamOffer<EchoRequest, EchoResponse>,
    ) -> Result<EchoResponse, Status> {
        let mut stream = offer.accept_bytes(context, StreamConfig::default())?;
        let taken = self.taken.clone();
        if request.payload == "give" {
            spawn_local(async move {
                for i in 0..200 {
                    stream.send(bytes_of(i, i * 1000)).await.unwrap();
                }
                stream.close();
            })
            .unwrap();
        } else {
            spawn_local(async move {
                let mut count = 0;
                let end = loop {
                    match stream.next().await {
                        Some(Ok(message)) => {
                            assert!(message == bytes_of(count, count * 1000), "message {count}");
                            count += 1;
                        }
                        Some(Err(_)) => break false,
                        None => break true,
                    }
                };
                taken.send((count, end)).unwrap();
            })
            .unwrap();
        }
        Ok(EchoResponse::default())
    }
}

fn one_way(bed: &Bed) -> (Server, Channel, std::sync::mpsc::Receiver<(usize, bool)>) {
    let (taken, hear) = std::sync::mpsc::sync_channel(10);
    let server = bed.serve(Server::builder().service(EchoServer::new(OneWay { taken })));
    let channel = bed.channel(&server).connect_lazy().unwrap();
    (server, channel, hear)
}

fn from_server(bed: &Bed) {
    let (_server, channel, _) = one_way(bed);
    let client = EchoClient::new(channel.clone());
    for _ in 0..3 {
        let open = client.chat(request("give".into())).open_stream(StreamConfig::default());
        let (_, stream) = channel.block_on(open).unwrap();
        let mut stream = stream.into_bytes();
        for i in 0..200 {
            assert!(channel.block_on(stream.next()).unwrap().unwrap() == bytes_of(i, i * 1000), "message {i}");
        }
        assert!(channel.block_on(stream.next()).is_none(), "closed by the server");
        assert_eq!(channel.block_on(stream.send(bytes_of(1, 1))).unwrap_err().code(), Code::ECLOSE);
    }
}

fn to_server(bed: &Bed) {
    let (_server, channel, hear) = one_way(bed);
    let client = EchoClient::new(channel.clone());
    for _ in 0..3 {
        let open = client.chat(request("take".into())).open_stream(StreamConfig::default());
        let (_, stream) = channel.block_on(open).unwrap();
        let mut stream = stream.into_bytes();
        channel.block_on(async {
            for i in 0..200 {
                stream.send(bytes_of(i, i * 1000)).await.unwrap();
            }
        });
        // What was sent before the close still arrives.
        stream.close();
        assert_eq!(hear.recv_timeout(Duration::from_secs(30)).unwrap(), (200, true));
    }
}

fn refused(bed: &Bed) {
    let (service, _) = Service::new(Way::Local);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)).max_streams(2));
    let channel = bed.channel(&server).connect_lazy().unwrap();
    let client = EchoClient::new(channel.clone());
    let failing = EchoRequest { fail_with: 4242, ..EchoRequest::default() };
    let open = client.chat(failing).open_stream(StreamConfig::default());
    assert_eq!(channel.block_on(open).unwrap_err().code(), Code::from_wire(4242));
    // A method that takes no stream.
    let open = client.echo(EchoRequest::default()).open_stream(StreamConfig::default());
    assert_eq!(channel.block_on(open).unwrap_err().code(), Code::EREQUEST);
    // A stream method without a stream.
    assert_eq!(client.chat(EchoRequest::default()).blocking().unwrap_err().code(), Code::EREQUEST);
    let open = || channel.block_on(client.chat(EchoRequest::default()).open_stream(StreamConfig::default()));
    let streams = [open().unwrap(), open().unwrap()];
    assert_eq!(open().unwrap_err().code(), Code::ELIMIT);
    drop(streams);
    eventually("there is room again", || open().is_ok());
    client.echo(request(bytes_of(1, 10))).blocking().unwrap();
}

/// Accepts a stream, and then does not stay with it.
struct Fickle {
    ended: std::sync::mpsc::SyncSender<bool>,
}

impl echo::echo_server::Echo for Fickle {
    async fn echo(&self, _: &mut CallContext, _: EchoRequest) -> Result<EchoResponse, Status> {
        Ok(EchoResponse::default())
    }

    async fn chat(
        &self,
        context: &mut CallContext,
        request: EchoRequest,
        offer: StreamOffer<EchoRequest, EchoResponse>,
    ) -> Result<EchoResponse, Status> {
        assert_eq!(offer.count(), 1);
        let mut stream = offer.accept_bytes(context, StreamConfig::default())?;
        if request.payload.starts_with(b"keep") {
            let ended = self.ended.clone();
            spawn_local(async move {
                let sent = stream.send(Bytes::from_static(b"never")).await;
                ended.send(sent.is_err_and(|status| status.code() == Code::ECLOSE)).unwrap();
            })
            .unwrap();
        } else {
            drop(stream);
        }
        if request.sleep_ms > 0 {
            let later = std::time::Instant::now() + Duration::from_millis(request.sleep_ms.into());
            ucrpc::Dispatcher::current().unwrap().sleep_until(later).await;
        }
        match request.fail_with {
            0 => Ok(EchoResponse { payload: request.payload }),
            -1 => panic!("as asked"),
            code => Err(Status::new(Code::from_wire(code), "as asked")),
        }
    }
}

/// Whatever a handler does with a stream that it accepted, its caller gets the response, and before it nothing else.
fn accepted_in_vain(bed: &Bed) {
    let (ended, hear) = std::sync::mpsc::sync_channel(10);
    let server = bed.serve(Server::builder().service(EchoServer::new(Fickle { ended })));
    let channel = bed.channel(&server).connect_lazy().unwrap();
    let client = EchoClient::new(channel.clone());
    let open = |payload: &'static str, fail_with, sleep_ms, timeout| {
        let request = EchoRequest { payload: payload.into(), fail_with, sleep_ms };
        let call = client.chat(request).timeout(Duration::from_millis(timeout));
        channel.block_on(call.open_stream(StreamConfig::default()))
    };
    let (response, mut stream) = open("drop", 0, 0, 20_000).unwrap();
    assert_eq!(response.payload, &b"drop"[..]);
    assert!(channel.block_on(stream.next()).is_none(), "closed after the response");
    for (fail_with, code) in [(4242, Code::from_wire(4242)), (-1, Code::EINTERNAL)] {
        assert_eq!(open("drop", fail_with, 0, 20_000).unwrap_err().code(), code);
        assert_eq!(open("keep", fail_with, 0, 20_000).unwrap_err().code(), code);
        assert!(hear.recv_timeout(Duration::from_secs(20)).unwrap(), "the stream ended with its call");
    }
    assert_eq!(open("keep", 0, 10_000, 50).unwrap_err().code(), Code::ERPCTIMEDOUT);
    assert!(hear.recv_timeout(Duration::from_secs(5)).unwrap(), "the stream ended with its call's deadline");
    client.echo(EchoRequest::default()).blocking().unwrap();
}

fn ends(bed: &Bed) {
    let (server, channel, hear) = one_way(bed);
    let client = EchoClient::new(channel.clone());
    // Dropping the call before its response leaves nothing behind.
    drop(client.chat(request("take".into())).open_stream(StreamConfig::default()));
    let (_, stream) =
        channel.block_on(client.chat(request("take".into())).open_stream(StreamConfig::default())).unwrap();
    let (_, mut other) =
        channel.block_on(client.chat(request("take".into())).open_stream(StreamConfig::default())).unwrap();
    // Too long for a message.
    let error = channel.block_on(other.send(&request(vec![0; 17 << 20].into()))).unwrap_err();
    assert_eq!(error.code(), Code::EMSGSIZE);
    drop(stream);
    assert!(hear.recv_timeout(Duration::from_secs(30)).unwrap().0 == 0);
    // The server goes: the stream breaks.
    drop(server);
    let end = channel.block_on(other.next());
    assert!(end.is_none_or(|end| end.is_err()));
    assert!(channel.block_on(other.send(&EchoRequest::default())).is_err());
}

/// Accepts a stream and takes nothing from it before it is told to.
struct Reluctant {
    go: std::sync::Arc<std::sync::atomic::AtomicBool>,
    taken: std::sync::mpsc::SyncSender<usize>,
}

impl echo::echo_server::Echo for Reluctant {
    async fn echo(&self, _: &mut CallContext, _: EchoRequest) -> Result<EchoResponse, Status> {
        Ok(EchoResponse::default())
    }

    async fn chat(
        &self,
        context: &mut CallContext,
        _: EchoRequest,
        offer: StreamOffer<EchoRequest, EchoResponse>,
    ) -> Result<EchoResponse, Status> {
        let mut stream = offer.accept_bytes(context, StreamConfig::default())?;
        let (go, taken) = (self.go.clone(), self.taken.clone());
        spawn_local(async move {
            while !go.load(std::sync::atomic::Ordering::SeqCst) {
                let soon = std::time::Instant::now() + Duration::from_millis(1);
                ucrpc::Dispatcher::current().unwrap().sleep_until(soon).await;
            }
            let mut count = 0;
            while let Some(Ok(message)) = stream.next().await {
                assert!(message == bytes_of(count, MESSAGE), "message {count}");
                count += 1;
            }
            taken.send(count).unwrap();
        })
        .unwrap();
        Ok(EchoResponse::default())
    }
}

const MESSAGE: usize = 16 << 10;

/// What a reader has not taken holds the writer back, and other calls of the connection go on.
fn window(bed: &Bed) {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    let (go, (taken, hear)) = (std::sync::Arc::new(AtomicBool::new(false)), std::sync::mpsc::sync_channel(1));
    let server = bed.serve(Server::builder().service(EchoServer::new(Reluctant { go: go.clone(), taken })));
    let channel = bed.channel(&server).connect_lazy().unwrap();
    let client = EchoClient::new(channel.clone());
    let mut config = StreamConfig::default();
    config.window = 256 << 10;
    let (_, stream) = channel.block_on(client.chat(EchoRequest::default()).open_stream(config)).unwrap();
    let mut stream = stream.into_bytes();
    let sent = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..100 {
                channel.block_on(stream.send(bytes_of(i, MESSAGE))).unwrap();
                sent.fetch_add(1, Ordering::SeqCst);
            }
            stream.close();
        });
        let full = (256 << 10) / MESSAGE;
        eventually("the window is full", || sent.load(Ordering::SeqCst) >= full);
        for _ in 0..50 {
            client.echo(EchoRequest::default()).blocking().unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(sent.load(Ordering::SeqCst), full, "no more than the window");
        go.store(true, Ordering::SeqCst);
        assert_eq!(hear.recv_timeout(Duration::from_secs(30)).unwrap(), 100);
    });
}

/// As `futures` has them: a `Sink` that is fed, flushed and closed, a `Stream` that is read to its end.
fn traits(bed: &Bed) {
    use std::pin::Pin;
    async fn feed<T, S: futures_sink::Sink<T, Error = Status> + Unpin>(sink: &mut S, items: impl Iterator<Item = T>) {
        for item in items {
            std::future::poll_fn(|cx| Pin::new(&mut *sink).poll_ready(cx)).await.unwrap();
            Pin::new(&mut *sink).start_send(item).unwrap();
        }
        std::future::poll_fn(|cx| Pin::new(&mut *sink).poll_flush(cx)).await.unwrap();
    }
    async fn close<S: futures_sink::Sink<EchoRequest, Error = Status> + Unpin>(sink: &mut S) -> Result<(), Status> {
        std::future::poll_fn(|cx| Pin::new(&mut *sink).poll_close(cx)).await
    }
    async fn next<S: futures_core::Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
        std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
    }
    let (service, _) = Service::new(Way::Local);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)));
    let channel = bed.channel(&server).connect_lazy().unwrap();
    let client = EchoClient::new(channel.clone());
    channel.block_on(async {
        let open = || client.chat(EchoRequest::default()).open_stream(StreamConfig::default());
        let (_, mut messages) = open().await.unwrap();
        feed(&mut messages, (0..20).map(|i| request(bytes_of(i, i * 50)))).await;
        for i in 0..20 {
            assert_eq!(next(&mut messages).await.unwrap().unwrap().payload, bytes_of(i, i * 50));
        }
        let (mut reader, mut writer) = messages.into_bytes().split();
        let last = EchoRequest { fail_with: 1, ..EchoRequest::default() };
        feed(&mut writer, std::iter::once(prost::Message::encode_to_vec(&last).into())).await;
        assert!(next(&mut reader).await.is_none(), "the server closed");
        let (_, mut messages) = open().await.unwrap();
        close(&mut messages).await.unwrap();
        let late = close(&mut messages).await;
        assert_eq!(late.unwrap_err().code(), Code::ECLOSE);
        assert!(next(&mut messages).await.is_none());
    });
}

/// Several streams and many calls on one connection: each stream in order, each call its own answer.
fn beside_calls(bed: &Bed) {
    let (service, _) = Service::new(Way::Local);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)));
    let channel = bed.channel(&server).connect_lazy().unwrap();
    let client = EchoClient::new(channel.clone());
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (channel, client) = (&channel, &client);
            scope.spawn(move || {
                let open = client.chat(EchoRequest::default()).open_stream(StreamConfig::default());
                let (_, mut stream) = channel.block_on(open).unwrap();
                for round in 0..20 {
                    let payload = |i: usize| bytes_of(thread * 1000 + round * 10 + i, (round * 10 + i) * 211);
                    channel.block_on(async {
                        for i in 0..10 {
                            stream.send(&request(payload(i))).await.unwrap();
                        }
                        for i in 0..10 {
                            assert!(stream.next().await.unwrap().unwrap().payload == payload(i), "round {round}, {i}");
                        }
                    });
                }
            });
            scope.spawn(move || {
                for i in 0..100 {
                    let attachment = bytes_of(i, i * 700);
                    let call = client.echo(request(bytes_of(i, 30))).attachment(attachment.clone());
                    let response = call.blocking().unwrap();
                    assert!(response.payload == bytes_of(i, 30) && response.attachment() == &attachment);
                }
            });
        }
    });
    assert_eq!(channel.stats().connects, 1);
}
