//! The stream state machine: two ends in memory, and frames that no honest peer sends.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use ucrpc_rpc::wire::stream::{Stream, StreamConfig, StreamError, StreamEvent, WriteError, response_frame};
use ucrpc_rpc::wire::{Segments, StreamFrameKind, StreamFrameMeta, StreamSettings};

fn config(window: u64) -> StreamConfig {
    let mut config = StreamConfig::default();
    config.window = window;
    config.max_segment = 10;
    config.feedback_step = 64;
    config
}

/// A connected pair, client first.
fn pair(client: StreamConfig, server: StreamConfig) -> (Stream, Stream) {
    let mut client = Stream::client(1, client);
    let server = Stream::server(2, &client.settings(true), server);
    let event = client.handle_frame(&response_frame(1, Some(2)), Bytes::from_static(b"response")).unwrap();
    assert_eq!(event, StreamEvent::Response(Bytes::from_static(b"response")));
    client.connect(&server.settings(true));
    (client, server)
}

fn message(len: usize) -> Segments {
    vec![7; len].into()
}

fn data(bytes: &'static [u8], more: bool) -> (StreamFrameMeta, Bytes) {
    let meta =
        StreamFrameMeta { has_continuation: Some(more), ..StreamFrameMeta::new(StreamFrameKind::Data, 2, Some(1)) };
    (meta, Bytes::from_static(bytes))
}

fn feedback(consumed: i64) -> StreamFrameMeta {
    StreamFrameMeta { consumed_size: Some(consumed), ..StreamFrameMeta::new(StreamFrameKind::Feedback, 2, Some(1)) }
}

/// Delivers one message; returns it as the peer got it.
fn deliver(from: &mut Stream, to: &mut Stream, message: Segments) -> Segments {
    let mut got = None;
    for (meta, data) in from.write(message).unwrap() {
        assert!(got.is_none(), "a message ended before its last frame");
        assert_eq!(meta.stream_id, to.id());
        if let StreamEvent::Message(message) = to.handle_frame(&meta, data.into_bytes()).unwrap() {
            got = Some(message);
        }
    }
    got.expect("the last frame completes the message")
}

#[test]
fn messages_are_cut_into_frames_and_joined() {
    let (mut client, mut server) = pair(config(1000), config(1000));
    for len in [0_usize, 1, 9, 10, 11, 20, 95] {
        let sent: Segments = (0..len).map(|byte| Bytes::from(vec![byte as u8])).collect();
        let frames = client.write(sent.clone()).unwrap().collect::<Vec<_>>();
        assert_eq!(frames.len(), usize::max(1, len.div_ceil(10)));
        let flags: Vec<_> = frames.iter().map(|(meta, _)| meta.has_continuation.unwrap()).collect();
        assert!(flags.iter().rev().skip(1).all(|more| *more) && !flags[flags.len() - 1]);
        let last = frames.into_iter().map(|(meta, data)| server.handle_frame(&meta, data.into_bytes()).unwrap()).last();
        assert_eq!(last, Some(StreamEvent::Message(sent)));
        server.consume(len);
        let report = server.poll_feedback();
        assert_eq!(report.is_some(), len > 0);
        if let Some(report) = report {
            client.handle_frame(&report, Bytes::new()).unwrap();
        }
    }
    assert_eq!((client.unacknowledged(), server.unconsumed()), (0, 0));
}

#[test]
fn the_window_stops_a_writer_until_feedback() {
    let (mut client, mut server) = pair(config(100), config(100));
    deliver(&mut client, &mut server, message(60));
    deliver(&mut client, &mut server, message(40));
    assert_eq!(client.write(message(1)).unwrap_err(), WriteError::Full(message(1)));
    assert!(client.write(Segments::new()).is_ok(), "an empty message needs no room");
    server.consume(60);
    assert_eq!(server.poll_feedback(), None, "neither idle nor a step");
    server.consume(40);
    let report = server.poll_feedback().unwrap();
    assert_eq!((report.consumed_size, report.stream_id, report.source_stream_id), (Some(100), 1, Some(2)));
    assert_eq!(server.poll_feedback(), None, "once");
    assert_eq!(client.handle_frame(&report, Bytes::new()).unwrap(), StreamEvent::Writable);
    assert_eq!(client.handle_frame(&report, Bytes::new()).unwrap(), StreamEvent::None, "an old report says nothing");
    // The last message may exceed the window, by any length.
    deliver(&mut client, &mut server, message(99));
    deliver(&mut client, &mut server, message(250));
    assert!(matches!(client.write(message(1)), Err(WriteError::Full(_))));
    server.consume(70);
    assert!(server.poll_feedback().is_some(), "a step is reported before the reader is idle");
}

#[test]
fn a_side_without_window_gets_no_feedback_and_one_that_does_not_read_no_messages() {
    let (mut client, mut server) = pair(config(0), config(100));
    for _ in 0..100 {
        deliver(&mut client, &mut server, message(50));
        server.consume(50);
        assert_eq!(server.poll_feedback(), None);
    }
    let deaf = StreamSettings { stream_id: 1, writable: false, ..StreamSettings::default() };
    let mut server = Stream::server(2, &deaf, config(100));
    assert!(matches!(server.write(message(1)), Err(WriteError::PeerDoesNotRead(_))));
    let mut client = Stream::client(1, config(100));
    assert!(matches!(client.write(message(1)), Err(WriteError::NotConnected(_))));
    assert_eq!(client.close(), None, "nobody to tell");
}

#[test]
fn closing_and_resetting_end_both_directions() {
    let (mut client, mut server) = pair(config(100), config(100));
    let close = client.close().unwrap();
    assert_eq!((close.kind, close.stream_id, close.source_stream_id), (StreamFrameKind::Close, 2, Some(1)));
    assert_eq!(client.close(), None, "once");
    assert_eq!(server.handle_frame(&close, Bytes::new()).unwrap(), StreamEvent::Closed);
    assert!(server.is_closed() && client.is_closed());
    assert!(matches!(server.write(message(1)), Err(WriteError::Closed(_))));
    let (meta, bytes) = data(b"late", false);
    assert_eq!(server.handle_frame(&meta, bytes).unwrap(), StreamEvent::None);
    assert_eq!(server.poll_feedback(), None);

    let (mut client, mut server) = pair(config(100), config(100));
    let reset = server.reset().unwrap();
    assert_eq!((reset.kind, reset.stream_id, reset.source_stream_id), (StreamFrameKind::Rst, 1, None));
    assert_eq!(client.handle_frame(&reset, Bytes::new()).unwrap(), StreamEvent::Reset);
}

#[test]
fn frames_for_unknown_streams_are_answered_without_loops() {
    let (data, _) = data(b"", false);
    let reset = data.unknown_stream_reply().unwrap();
    assert_eq!((reset.kind, reset.stream_id), (StreamFrameKind::Rst, 1));
    assert_eq!(reset.unknown_stream_reply(), None);
    assert_eq!(feedback(1).unknown_stream_reply(), None);
}

#[test]
fn broken_rules_break_the_stream_alone() {
    let expect = |frame: (StreamFrameMeta, Bytes), error: StreamError| {
        let (mut client, mut server) = pair(config(100), config(100));
        deliver(&mut server, &mut client, message(5));
        assert_eq!(server.handle_frame(&frame.0, frame.1), Err(error));
        assert!(server.is_closed());
        assert!(server.reset().is_some());
    };
    expect((feedback(6), Bytes::new()), StreamError::Feedback { consumed: 6, written: 5 });
    expect((feedback(-1), Bytes::new()), StreamError::Feedback { consumed: -1, written: 5 });
    expect((feedback(1), Bytes::from_static(b"x")), StreamError::UnexpectedData { len: 1 });

    let mut small = config(100);
    small.max_message = 8;
    small.max_unconsumed = 12;
    let (_, mut server) = pair(config(100), small);
    let frame = |more| data(b"123456", more);
    assert_eq!(server.handle_frame(&frame(true).0, frame(true).1), Ok(StreamEvent::None));
    let error = StreamError::MessageTooLong { limit: 8 };
    assert_eq!(server.handle_frame(&frame(true).0, frame(true).1), Err(error));

    let (_, mut server) = pair(config(100), small);
    for _ in 0..2 {
        assert!(matches!(server.handle_frame(&frame(false).0, frame(false).1), Ok(StreamEvent::Message(_))));
    }
    let error = StreamError::TooFarAhead { limit: 12 };
    assert_eq!(server.handle_frame(&frame(false).0, frame(false).1), Err(error));
    // Kinds that are not known are ignored.
    let (_, mut server) = pair(config(100), small);
    let other = StreamFrameMeta::new(StreamFrameKind::Other(9), 2, Some(1));
    assert_eq!(server.handle_frame(&other, Bytes::new()), Ok(StreamEvent::None));
}

proptest! {
    /// Whatever sizes and whenever the reader consumes: all messages arrive whole and in order, the window holds, and
    /// nobody waits for ever.
    #[test]
    fn a_transfer_always_ends(sizes in vec(0..300_usize, 1..60), window in 1..400_u64, step in 1..500_u64,
                              eager in vec(any::<bool>(), 60)) {
        let mut reader = config(0);
        reader.feedback_step = step;
        let (mut client, mut server) = pair(config(window), reader);
        let mut waiting = std::collections::VecDeque::new();
        let mut done = 0;
        for (round, &size) in sizes.iter().enumerate() {
            let mut message: Segments = vec![round as u8; size].into();
            let mut tries = 0;
            loop {
                match client.write(message) {
                    Ok(frames) => {
                        for (meta, data) in frames {
                            if let StreamEvent::Message(got) = server.handle_frame(&meta, data.into_bytes()).unwrap() {
                                waiting.push_back(got);
                            }
                        }
                        prop_assert!(size == 0 || client.unacknowledged() < window + size as u64);
                        break;
                    }
                    Err(WriteError::Full(back)) => message = back,
                    Err(error) => panic!("{error}"),
                }
                tries += 1;
                prop_assert!(tries < 200, "the writer waits for ever");
                consume_one(&mut waiting, &mut done, &sizes, &mut server, &mut client);
            }
            if eager[round] {
                consume_one(&mut waiting, &mut done, &sizes, &mut server, &mut client);
            }
        }
        while !waiting.is_empty() {
            consume_one(&mut waiting, &mut done, &sizes, &mut server, &mut client);
        }
        prop_assert_eq!(done, sizes.len());
        prop_assert_eq!((client.unacknowledged(), server.unconsumed()), (0, 0));
    }

    #[test]
    fn arbitrary_frames_never_panic(frames in vec((0..6_i32, any::<Option<bool>>(), any::<Option<i64>>(), 0..40_usize), 0..50),
                                    client: bool) {
        let mut stream = Stream::client(1, config(50));
        if !client {
            stream.connect(&StreamSettings { stream_id: 9, need_feedback: true, writable: true, extra_stream_ids: vec![] });
        }
        for (kind, has_continuation, consumed_size, len) in frames {
            let kinds = [StreamFrameKind::Rst, StreamFrameKind::Close, StreamFrameKind::Data, StreamFrameKind::Feedback,
                         StreamFrameKind::Data, StreamFrameKind::Other(77)];
            let meta = StreamFrameMeta { has_continuation, consumed_size, ..StreamFrameMeta::new(kinds[kind as usize], 1, None) };
            let _ = stream.handle_frame(&meta, vec![0; len].into());
            let _ = stream.write(vec![0; len].into()).map(Iterator::count);
            stream.consume(len / 2);
            let _ = stream.poll_feedback();
        }
    }
}

fn consume_one(
    waiting: &mut std::collections::VecDeque<Segments>,
    done: &mut usize,
    sizes: &[usize],
    server: &mut Stream,
    client: &mut Stream,
) {
    let Some(message) = waiting.pop_front() else { return };
    assert_eq!(message, Segments::from(vec![*done as u8; sizes[*done]]));
    *done += 1;
    server.consume(message.len());
    if let Some(report) = server.poll_feedback() {
        client.handle_frame(&report, Bytes::new()).unwrap();
    }
}
