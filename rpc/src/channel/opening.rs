//! Calls that open streams.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use prost::Message;

use super::{Channel, ChannelCall};
use crate::call::{RawResponse, Response};
use crate::client::Call;
use crate::codec::decode_response_message;
use crate::streaming::{ByteStream, MessageStream, StreamConfig};
use crate::{Code, Status};

/// A call that opens a stream: the response, and the stream that the server accepted. Dropping it cancels both.
#[derive(Debug)]
#[must_use = "dropping it cancels the call"]
pub struct OpenStream {
    call: ChannelCall,
}

impl OpenStream {
    pub(super) fn new(call: ChannelCall) -> Self {
        Self { call }
    }
}

impl Future for OpenStream {
    /// [`Code::EREQUEST`] if the server answered well but did not accept the stream.
    type Output = Result<(RawResponse, ByteStream), Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(Pin::new(&mut self.call).poll(cx))?;
        let stream = self.call.take_stream().map(ByteStream::new);
        let refused = || Status::new(Code::EREQUEST, "the server did not accept the stream");
        match stream.filter(|_| response.stream.is_some()) {
            Some(stream) => Poll::Ready(Ok((response, stream))),
            None => Poll::Ready(Err(refused())),
        }
    }
}

/// A typed call that opens a stream.
#[derive(Debug)]
#[must_use = "dropping it cancels the call"]
pub struct OpenMessages<Resp, Out, In> {
    call: Result<OpenStream, Option<Status>>,
    types: PhantomData<fn(Out) -> (Resp, In)>,
}

impl<Resp: Message + Default, Out, In> Future for OpenMessages<Resp, Out, In> {
    type Output = Result<(Response<Resp>, MessageStream<Out, In>), Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (mut raw, stream) = match &mut self.call {
            Ok(call) => ready!(Pin::new(call).poll(cx))?,
            Err(status) => return Poll::Ready(Err(status.take().unwrap_or(Code::EINTERNAL.into()))),
        };
        let message = decode_response_message(std::mem::take(&mut raw.message))?;
        Poll::Ready(Ok((Response { message, raw }, stream.into_messages())))
    }
}

impl<Req: Message, Resp: Message + Default> Call<Channel, Req, Resp> {
    /// Makes the call and opens a stream with it, on which requests go and responses come, as a method that is declared with
    /// `stream` has them.
    pub fn open_stream(self, config: StreamConfig) -> OpenMessages<Resp, Req, Resp> {
        self.open_stream_of(config)
    }

    /// As [`Self::open_stream`], with messages of other types: `Out` goes, `In` comes.
    pub fn open_stream_of<Out, In>(self, config: StreamConfig) -> OpenMessages<Resp, Out, In> {
        let call = self.into_raw().map(|(channel, call)| channel.open_raw(call, config)).map_err(Some);
        OpenMessages { call, types: PhantomData }
    }
}
