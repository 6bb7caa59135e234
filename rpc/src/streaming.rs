//! Streams: messages in order, in both directions, opened by a call.
//!
//! A client opens one with [`Call::open_stream`](crate::client::Call::open_stream), a server accepts it with
//! [`StreamOffer::accept`](crate::service::StreamOffer::accept). [`ByteStream`] carries messages as bytes, [`MessageStream`] as protobuf;
//! both are `futures_core::Stream`s of what comes and `futures_sink::Sink`s of what goes, and can be split.
//!
//! brpc's streams have no half-close: closing, or dropping both halves, ends both directions. Messages that came before
//! are still read. A side that only writes learns that everything was read when the peer closes.

mod core;

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;
use futures_sink::Sink;
use prost::Message;

pub(crate) use self::core::{Core, Streams};
use self::core::{End, Written};
use crate::Status;
use crate::codec::decode_response_message;
use crate::wire::{MessageBuf, Segments};

pub use crate::wire::stream::StreamConfig;

/// Closes the stream when both halves are gone.
struct Owner(Arc<Core>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The reading half of a stream: messages as bytes.
///
/// It ends (`None`) when the peer closed the stream, and with an error when the stream broke.
pub struct StreamReader {
    owner: Arc<Owner>,
    over: bool,
}

impl StreamReader {
    /// The next message. `None` after the peer closed the stream.
    ///
    /// # Errors
    ///
    /// Why the stream broke, after all messages that had come; once.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no message.
    pub async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for StreamReader {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        let owner = self.owner.clone();
        let mut state = owner.0.lock();
        if let Some(message) = state.received.pop_front() {
            state.wire.consume(message.len());
            if let Some(feedback) = state.wire.poll_feedback() {
                owner.0.tell(&mut state, &feedback);
            }
            drop(state);
            return Poll::Ready(Some(Ok(message.into_bytes())));
        }
        match &state.end {
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(end) => {
                self.over = true;
                Poll::Ready(match end {
                    End::Closed => None,
                    End::Broken(status) => Some(Err(status.clone())),
                })
            }
        }
    }
}

/// The writing half of a stream: messages as bytes.
///
/// A message is accepted when the transport has it; the window decides when that is. A server's half waits until its handler
/// has returned: the response goes first. So write from a task of its own ([`ucrpc_transport::spawn_local`], or the runtime
/// that handlers run on), not in the handler.
pub struct StreamWriter {
    owner: Arc<Owner>,
    pending: Option<Segments>,
    blocked: Option<Room>,
}

type Room = Pin<Box<dyn Future<Output = ucrpc_transport::Result<()>> + Send>>;

impl StreamWriter {
    /// Sends a message; waits for the window and the transport.
    ///
    /// # Errors
    ///
    /// [`Code::ECLOSE`](crate::Code::ECLOSE) if the stream was closed, [`Code::EMSGSIZE`](crate::Code::EMSGSIZE) for a message above
    /// [`StreamConfig::max_message`], or why the stream broke.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, the message may be sent or not, never in part.
    pub async fn send(&mut self, message: impl Into<Segments>) -> Result<(), Status> {
        std::future::poll_fn(|cx| self.poll_write(cx)).await?;
        self.pending = Some(message.into());
        std::future::poll_fn(|cx| self.poll_write(cx)).await
    }

    /// Closes the stream in both directions. Messages sent before still arrive.
    pub fn close(self) {
        self.owner.0.close();
    }

    /// Gives the transport what waits; ready when nothing does.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        loop {
            if let Some(room) = &mut self.blocked {
                let _ = ready!(room.as_mut().poll(cx));
                self.blocked = None;
            }
            let core = &self.owner.0;
            let mut state = core.lock();
            let sender = match state.write(self.pending.take(), &core.table.limits) {
                Written::Done => return Poll::Ready(Ok(())),
                Written::Failed(status) => return Poll::Ready(Err(status)),
                Written::Blocked(sender) => sender,
                Written::Wait(message) => {
                    self.pending = Some(message);
                    match state.blocked_on() {
                        Some(sender) => sender,
                        None => {
                            state.writer = Some(cx.waker().clone());
                            return Poll::Pending;
                        }
                    }
                }
            };
            drop(state);
            self.blocked = Some(Box::pin(async move { sender.ready().await }));
        }
    }
}

impl Sink<Bytes> for StreamWriter {
    type Error = Status;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.poll_write(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Bytes) -> Result<(), Status> {
        self.pending = Some(message.into());
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.poll_write(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        ready!(self.poll_write(cx))?;
        self.owner.0.close();
        Poll::Ready(Ok(()))
    }
}

/// Both halves of a stream of bytes.
pub struct ByteStream {
    reader: StreamReader,
    writer: StreamWriter,
}

impl ByteStream {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let owner = Arc::new(Owner(core));
        let reader = StreamReader { owner: owner.clone(), over: false };
        Self { reader, writer: StreamWriter { owner, pending: None, blocked: None } }
    }

    /// The next message: see [`StreamReader::next`].
    ///
    /// # Errors
    ///
    /// As [`StreamReader::next`].
    pub async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        self.reader.next().await
    }

    /// Sends a message: see [`StreamWriter::send`].
    ///
    /// # Errors
    ///
    /// As [`StreamWriter::send`].
    pub async fn send(&mut self, message: impl Into<Segments>) -> Result<(), Status> {
        self.writer.send(message).await
    }

    /// Its halves. The stream closes when both are dropped, or one closes it.
    pub fn split(self) -> (StreamReader, StreamWriter) {
        (self.reader, self.writer)
    }

    /// Closes the stream in both directions. Messages sent before still arrive.
    pub fn close(self) {
        self.writer.close();
    }

    /// The same stream with messages of protobuf: `Out` goes, `In` comes.
    pub fn into_messages<Out, In>(self) -> MessageStream<Out, In> {
        MessageStream { bytes: self, types: PhantomData }
    }
}

impl Stream for ByteStream {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.reader).poll_next(cx)
    }
}

impl Sink<Bytes> for ByteStream {
    type Error = Status;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Pin::new(&mut self.writer).poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Bytes) -> Result<(), Status> {
        Pin::new(&mut self.writer).start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Pin::new(&mut self.writer).poll_close(cx)
    }
}

/// Both halves of a stream of protobuf messages: `Out` goes, `In` comes.
pub struct MessageStream<Out, In> {
    bytes: ByteStream,
    types: PhantomData<fn(Out) -> In>,
}

impl<Out: Message, In: Message + Default> MessageStream<Out, In> {
    /// The next message. `None` after the peer closed the stream.
    ///
    /// # Errors
    ///
    /// As [`StreamReader::next`]; [`Code::ERESPONSE`](crate::Code::ERESPONSE) for bytes that are no `In`.
    pub async fn next(&mut self) -> Option<Result<In, Status>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Sends a message: see [`StreamWriter::send`].
    ///
    /// # Errors
    ///
    /// As [`StreamWriter::send`].
    pub async fn send(&mut self, message: &Out) -> Result<(), Status> {
        self.bytes.send(MessageBuf::encode(message, 0).freeze()).await
    }

    /// The stream of bytes below.
    pub fn into_bytes(self) -> ByteStream {
        self.bytes
    }

    /// Closes the stream in both directions. Messages sent before still arrive.
    pub fn close(self) {
        self.bytes.close();
    }
}

impl<Out, In: Message + Default> Stream for MessageStream<Out, In> {
    type Item = Result<In, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(Pin::new(&mut self.bytes).poll_next(cx));
        Poll::Ready(next.map(|bytes| decode_response_message(bytes?)))
    }
}

impl<Out: Message, In> Sink<Out> for MessageStream<Out, In> {
    type Error = Status;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Pin::new(&mut self.bytes).poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Out) -> Result<(), Status> {
        Pin::new(&mut self.bytes).start_send(MessageBuf::encode(&message, 0).freeze())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Pin::new(&mut self.bytes).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Pin::new(&mut self.bytes).poll_close(cx)
    }
}

macro_rules! debug_by_id {
    ($($type:ident $(<$($param:ident),*>)? => $($path:ident).+;)*) => {$(
        impl$(<$($param),*>)? fmt::Debug for $type$(<$($param),*>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($type), "({})"), self.$($path).+.owner.0.id())
            }
        }
    )*};
}

debug_by_id! {
    ByteStream => reader;
    MessageStream<Out, In> => bytes.reader;
}

impl fmt::Debug for StreamReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamReader({})", self.owner.0.id())
    }
}

impl fmt::Debug for StreamWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamWriter({})", self.owner.0.id())
    }
}
