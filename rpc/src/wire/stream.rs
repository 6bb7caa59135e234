//! One stream as a state machine: frames in, frames out, no I/O.
//!
//! A stream is opened by an ordinary call. The request's meta has the client's [`StreamSettings`], the response's the
//! server's. From then on both sides send `STRM` frames, each addressed to the receiver's id.
//!
//! **The response travels inside the stream.** A server that is asked for a stream sends its response (the whole `PRPC`
//! frame) as the data of the first `STRM` data frame to the client's stream, whether it accepts or not; if it does not,
//! the source id is [`INVALID_STREAM_ID`]. So the response keeps its place before the server's first messages.
//! [`StreamEvent::Response`] hands it out, and [`response_frame`] makes it. These bytes count in no window.
//!
//! **The window.** A writer writes as long as `written - consumed < window`, counting bytes of messages (not of frames), where
//! `consumed` is the total that the reader reported in feedback frames. So the last message may exceed the window, as brpc has it. The reader does not know the writer's window; so it reports at the latest when it has consumed all
//! that came, and on the way each time that [`StreamConfig::feedback_step`] bytes are unreported.
//!
//! **Closing** closes both directions at once, there is no half-close; messages that came before are still delivered.

use bytes::Bytes;
use thiserror::Error;

use super::{Segments, StreamFrameKind, StreamFrameMeta, StreamSettings};

/// The stream id of a server that did not accept a stream.
pub const INVALID_STREAM_ID: i64 = -1;

/// A stream's limits. All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamConfig {
    /// What may be written and not yet consumed by the peer before writing waits; the last message may exceed it. 0: no limit. Default
    /// 2 MiB, as brpc's.
    pub window: u64,
    /// Unreported consumption that makes a reader report before it is idle. Default 256 KiB.
    pub feedback_step: u64,
    /// The longest message accepted or written. Default 16 MiB.
    pub max_message: usize,
    /// What a peer may have sent and the application not yet consumed, beyond which the stream is reset: the peer ignores
    /// its window then, or has one larger than this. Default 20 MiB: a window and a longest message of a brpc peer, and reserve.
    pub max_unconsumed: u64,
    /// The most data in one frame; longer messages are sent in several. Default 1 MiB, so that other calls on the
    /// connection get their turn.
    pub max_segment: usize,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            window: 2 << 20,
            feedback_step: 256 << 10,
            max_message: 16 << 20,
            max_unconsumed: 20 << 20,
            max_segment: 1 << 20,
        }
    }
}

/// What a peer's frame did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// Nothing to do.
    None,
    /// The whole `PRPC` frame of the response to the call that opened the stream.
    Response(Bytes),
    /// A whole message. Report it with [`Stream::consume`] when the application took it.
    Message(Segments),
    /// There is room in the window again.
    Writable,
    /// The peer closed the stream.
    Closed,
    /// The peer does not know the stream (any more).
    Reset,
}

/// A frame that breaks the rules of streams. The stream is broken: send [`Stream::reset`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// A message is longer than [`StreamConfig::max_message`].
    #[error("stream message is longer than {limit} bytes")]
    MessageTooLong {
        /// The limit.
        limit: usize,
    },
    /// The peer sent more than [`StreamConfig::max_unconsumed`] allows.
    #[error("peer sent more than {limit} bytes ahead of consumption")]
    TooFarAhead {
        /// The limit.
        limit: u64,
    },
    /// The peer claims to have consumed what was not sent, or less than nothing.
    #[error("peer reports {consumed} bytes consumed of {written} written")]
    Feedback {
        /// The claim.
        consumed: i64,
        /// Bytes written so far.
        written: u64,
    },
    /// A frame has data that has no place in its kind.
    #[error("stream frame without messages carries {len} bytes of data")]
    UnexpectedData {
        /// Bytes of data.
        len: usize,
    },
}

/// Why a message was not written. The message comes back.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The window is full: wait for [`StreamEvent::Writable`].
    #[error("stream window is full")]
    Full(Segments),
    /// The peer's settings are not there yet: wait for the response.
    #[error("stream is not connected yet")]
    NotConnected(Segments),
    /// The peer does not read from this stream.
    #[error("peer does not read from this stream")]
    PeerDoesNotRead(Segments),
    /// The message is longer than [`StreamConfig::max_message`].
    #[error("stream message is too long")]
    TooLong(Segments),
    /// The stream is closed, on either side.
    #[error("stream is closed")]
    Closed(Segments),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The client side before the response.
    Opening,
    Open,
    Closed,
}

/// The half of a stream's peer that matters here.
#[derive(Debug, Clone, Copy)]
struct Peer {
    id: i64,
    need_feedback: bool,
    reads: bool,
}

/// One side of a stream.
#[derive(Debug)]
pub struct Stream {
    id: i64,
    config: StreamConfig,
    phase: Phase,
    peer: Option<Peer>,
    /// Bytes of messages written, and how many of them the peer reported consumed.
    written: u64,
    acknowledged: u64,
    /// Whether a write failed because of the window since there was room last.
    blocked: bool,
    /// Bytes of messages received, consumed by the application, reported to the peer.
    received: u64,
    consumed: u64,
    reported: u64,
    partial: Segments,
    partial_len: usize,
}

impl Stream {
    /// The side that opens a stream, with its own id `id`. [`Self::connect`] completes it.
    pub fn client(id: i64, config: StreamConfig) -> Self {
        Self {
            id,
            config,
            phase: Phase::Opening,
            peer: None,
            written: 0,
            acknowledged: 0,
            blocked: false,
            received: 0,
            consumed: 0,
            reported: 0,
            partial: Segments::new(),
            partial_len: 0,
        }
    }

    /// The side that accepts a stream, with its own id `id` and the settings from the request.
    pub fn server(id: i64, peer: &StreamSettings, config: StreamConfig) -> Self {
        let mut stream = Self::client(id, config);
        stream.connect(peer);
        stream
    }

    /// This side's id.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// What to tell the peer about this side; `reads` says whether this side takes messages.
    pub fn settings(&self, reads: bool) -> StreamSettings {
        StreamSettings {
            stream_id: self.id,
            need_feedback: self.config.window > 0,
            writable: reads,
            extra_stream_ids: Vec::new(),
        }
    }

    /// Takes the peer's settings from the response. Once connected, further settings change nothing.
    pub fn connect(&mut self, peer: &StreamSettings) {
        if self.phase == Phase::Opening {
            self.phase = Phase::Open;
            self.peer = Some(Peer { id: peer.stream_id, need_feedback: peer.need_feedback, reads: peer.writable });
        }
    }

    /// Whether neither side closed or reset the stream.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Bytes of messages that came and that the application did not consume yet, unfinished messages included.
    pub fn unconsumed(&self) -> u64 {
        self.received - self.consumed
    }

    /// Bytes of messages written that the peer did not report consumed yet.
    pub fn unacknowledged(&self) -> u64 {
        self.written - self.acknowledged
    }

    /// Takes a frame that is addressed to this stream, with its data. Frames to a closed stream change nothing.
    ///
    /// # Errors
    ///
    /// On a frame that breaks the rules: the stream is closed then, and the peer is to be sent [`Self::reset`].
    pub fn handle_frame(&mut self, meta: &StreamFrameMeta, data: Bytes) -> Result<StreamEvent, StreamError> {
        if self.phase == Phase::Closed {
            return Ok(StreamEvent::None);
        }
        if meta.kind != StreamFrameKind::Data && !data.is_empty() {
            self.phase = Phase::Closed;
            return Err(StreamError::UnexpectedData { len: data.len() });
        }
        let result = match meta.kind {
            StreamFrameKind::Data => self.handle_data(meta.has_continuation == Some(true), data),
            StreamFrameKind::Feedback => self.handle_feedback(meta.consumed_size.unwrap_or(0)),
            StreamFrameKind::Close => Ok(self.end(StreamEvent::Closed)),
            StreamFrameKind::Rst => Ok(self.end(StreamEvent::Reset)),
            StreamFrameKind::Other(_) => Ok(StreamEvent::None),
        };
        if result.is_err() {
            self.end(StreamEvent::None);
        }
        result
    }

    fn end(&mut self, event: StreamEvent) -> StreamEvent {
        self.phase = Phase::Closed;
        self.partial = Segments::new();
        event
    }

    fn handle_data(&mut self, more: bool, data: Bytes) -> Result<StreamEvent, StreamError> {
        let is_response = self.phase == Phase::Opening;
        self.partial_len += data.len();
        if self.partial_len > self.config.max_message {
            return Err(StreamError::MessageTooLong { limit: self.config.max_message });
        }
        if !is_response {
            self.received += data.len() as u64;
            if self.unconsumed() > self.config.max_unconsumed {
                return Err(StreamError::TooFarAhead { limit: self.config.max_unconsumed });
            }
        }
        self.partial.push(data);
        if more {
            return Ok(StreamEvent::None);
        }
        self.partial_len = 0;
        let message = std::mem::take(&mut self.partial);
        Ok(if is_response { StreamEvent::Response(message.into_bytes()) } else { StreamEvent::Message(message) })
    }

    fn handle_feedback(&mut self, consumed: i64) -> Result<StreamEvent, StreamError> {
        let written = self.written;
        match u64::try_from(consumed) {
            Ok(consumed) if consumed <= written => self.acknowledged = self.acknowledged.max(consumed),
            _ => return Err(StreamError::Feedback { consumed, written }),
        }
        let room = self.config.window == 0 || self.unacknowledged() < self.config.window;
        if room && std::mem::take(&mut self.blocked) {
            return Ok(StreamEvent::Writable);
        }
        Ok(StreamEvent::None)
    }

    /// Accounts for a message and cuts it into frames, which must be sent in their order and without another message's
    /// frames of this stream between them.
    ///
    /// # Errors
    ///
    /// If it cannot be written, now or ever; the message comes back. After [`WriteError::Full`] there will be a
    /// [`StreamEvent::Writable`], or the stream's end.
    pub fn write(&mut self, message: Segments) -> Result<DataFrames, WriteError> {
        let peer = match (self.phase, self.peer) {
            (Phase::Closed, _) => return Err(WriteError::Closed(message)),
            (Phase::Opening, _) | (_, None) => return Err(WriteError::NotConnected(message)),
            (Phase::Open, Some(peer)) => peer,
        };
        let len = message.len();
        if !peer.reads {
            return Err(WriteError::PeerDoesNotRead(message));
        }
        if len > self.config.max_message {
            return Err(WriteError::TooLong(message));
        }
        if len > 0 && self.config.window > 0 && self.unacknowledged() >= self.config.window {
            self.blocked = true;
            return Err(WriteError::Full(message));
        }
        self.written += len as u64;
        let meta = StreamFrameMeta::new(StreamFrameKind::Data, peer.id, Some(self.id));
        Ok(DataFrames { meta, rest: Some(message), max_segment: self.config.max_segment.max(1) })
    }

    /// The application took `len` bytes of messages. More than came is counted as all that came.
    pub fn consume(&mut self, len: usize) {
        self.consumed = (self.consumed + len as u64).min(self.received);
    }

    /// The feedback frame to send now, if one is due. To be asked after each [`Self::consume`], or once for a batch.
    pub fn poll_feedback(&mut self) -> Option<StreamFrameMeta> {
        let peer = self.peer.filter(|peer| peer.need_feedback && self.phase == Phase::Open)?;
        let unreported = self.consumed - self.reported;
        // What is left of an unfinished message cannot be consumed, and its writer waits for no window within it.
        let idle = self.unconsumed() <= self.partial_len as u64;
        if unreported == 0 || !(idle || unreported >= self.config.feedback_step) {
            return None;
        }
        self.reported = self.consumed;
        let mut meta = StreamFrameMeta::new(StreamFrameKind::Feedback, peer.id, Some(self.id));
        meta.consumed_size = i64::try_from(self.consumed).ok();
        Some(meta)
    }

    /// Closes the stream. The frame tells the peer, if there is one to tell.
    pub fn close(&mut self) -> Option<StreamFrameMeta> {
        let was_open = self.phase == Phase::Open;
        self.end(StreamEvent::None);
        let peer = self.peer.filter(|_| was_open)?;
        Some(StreamFrameMeta::new(StreamFrameKind::Close, peer.id, Some(self.id)))
    }

    /// Breaks the stream off. The frame tells the peer, if there is one to tell.
    pub fn reset(&mut self) -> Option<StreamFrameMeta> {
        self.end(StreamEvent::None);
        self.peer.map(|peer| StreamFrameMeta::new(StreamFrameKind::Rst, peer.id, None))
    }
}

/// The frames of one message.
#[derive(Debug)]
#[must_use = "the message is accounted for and must be sent"]
pub struct DataFrames {
    meta: StreamFrameMeta,
    rest: Option<Segments>,
    max_segment: usize,
}

impl Iterator for DataFrames {
    type Item = (StreamFrameMeta, Segments);

    fn next(&mut self) -> Option<Self::Item> {
        let mut rest = self.rest.take()?;
        let more = rest.len() > self.max_segment;
        let data = if more { rest.split_to(self.max_segment) } else { std::mem::take(&mut rest) };
        self.rest = more.then_some(rest);
        self.meta.has_continuation = Some(more);
        Some((self.meta, data))
    }
}

/// The meta of the data frame that carries a response to the client's stream `client`; `server` is the id of the
/// accepted stream.
pub fn response_frame(client: i64, server: Option<i64>) -> StreamFrameMeta {
    let source = server.unwrap_or(INVALID_STREAM_ID);
    StreamFrameMeta {
        has_continuation: Some(false),
        ..StreamFrameMeta::new(StreamFrameKind::Data, client, Some(source))
    }
}
