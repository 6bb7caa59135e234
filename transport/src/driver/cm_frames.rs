//! Frames in Curve's messages: whole ones, one or several in each, in one piece.

use bytes::{Bytes, BytesMut};

use super::{ConnCore, Io, ucx_link::gather};
use crate::{
    Body, Error, ErrorKind, Frame, RecvBuf, Result,
    framing::{Cut, Framer},
    memory::Purpose,
    ucx::Payload,
};

/// Passes a message's content on: whole, or cut into its frames.
pub(super) fn deliver(core: &mut ConnCore, content: Bytes) -> Result<()> {
    let Some(framer) = core.config.framer.clone() else {
        core.hand_over(Frame { head: content, body: Body::Empty });
        return Ok(());
    };
    let mut rest = content;
    while !rest.is_empty() {
        let frame = cut(&*framer, &mut rest, core.config.max_head)?;
        core.hand_over(frame);
    }
    Ok(())
}

/// Cuts the first frame off. A message holds whole frames only.
fn cut(framer: &dyn Framer, rest: &mut Bytes, max_head: u32) -> Result<Frame> {
    let (head, body) = match framer.cut(rest) {
        Cut::Frame { head, body } => (head, body),
        Cut::Bad(text) => return Err(Error::new(ErrorKind::Protocol, text)),
        Cut::NeedMore(_) => return Err(partial(framer, rest.len())),
    };
    if head > max_head as usize {
        let text = format!("the peer sent a head of {head} bytes, max_head is {max_head}");
        return Err(Error::new(ErrorKind::Limit, text));
    }
    let left = rest.len().checked_sub(head).filter(|_| head > 0);
    match (left, usize::try_from(body)) {
        (Some(left), Ok(body)) if body <= left => {
            let head = rest.split_to(head);
            Ok(Frame { head, body: rest.split_to(body).into() })
        }
        _ => Err(partial(framer, rest.len())),
    }
}

#[cold]
fn partial(framer: &dyn Framer, len: usize) -> Error {
    Error::new(ErrorKind::Protocol, format!("a message ends in {len} bytes that are no whole {} frame", framer.name()))
}

/// A frame in one piece.
pub(super) fn join(io: &Io, frame: Frame) -> Result<Payload> {
    let Frame { head, body } = frame;
    if head.is_empty() {
        return gather(io, body);
    }
    let segments = match body {
        Body::Empty => return Ok(Payload::Bytes(head)),
        Body::Bytes(bytes) => vec![head, bytes],
        Body::Segments(segments) => std::iter::once(head).chain(segments).collect(),
        Body::Buf(buf) => {
            let (head_len, total) = (head.len(), head.len() + buf.len());
            let mut joined = match io.shared.pool.get(total, Purpose::Send) {
                Ok(pooled) => RecvBuf::Pool(pooled),
                Err(_) => RecvBuf::Bytes(BytesMut::zeroed(total)),
            };
            joined.as_mut_slice()[..head_len].copy_from_slice(&head);
            joined.as_mut_slice()[head_len..].copy_from_slice(buf.as_slice());
            return gather(io, Body::Buf(joined));
        }
        pending @ Body::Pending(_) => return gather(io, pending),
    };
    gather(io, Body::Segments(segments))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::Detect;

    /// Frames of two length bytes, head and body.
    struct Lengths;

    impl Framer for Lengths {
        fn name(&self) -> &'static str {
            "lengths"
        }

        fn detect(&self, _: &[u8]) -> Detect {
            Detect::Yes
        }

        fn cut(&self, bytes: &[u8]) -> Cut {
            match bytes {
                [] | [_] => Cut::NeedMore(2),
                [255, ..] => Cut::Bad("255".into()),
                [head, body, ..] => Cut::Frame { head: usize::from(*head), body: u64::from(*body) },
            }
        }
    }

    #[test]
    fn messages_hold_whole_frames_only() {
        let mut rest = Bytes::from_static(&[3, 1, 7, 8, 2, 0]);
        let first = cut(&Lengths, &mut rest, 10).unwrap();
        assert_eq!((&first.head[..], first.body.into_bytes().unwrap()), (&[3, 1, 7][..], Bytes::from_static(&[8])));
        let second = cut(&Lengths, &mut rest, 10).unwrap();
        assert_eq!((&second.head[..], second.body.is_empty(), rest.is_empty()), (&[2, 0][..], true, true));
        for (bytes, kind) in [
            (&[9][..], ErrorKind::Protocol),
            (&[2, 1], ErrorKind::Protocol),
            (&[4, 0, 1], ErrorKind::Protocol),
            (&[0, 0, 1], ErrorKind::Protocol),
            (&[255, 0], ErrorKind::Protocol),
            (&[11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], ErrorKind::Limit),
        ] {
            let error = cut(&Lengths, &mut Bytes::copy_from_slice(bytes), 10).unwrap_err();
            assert_eq!(error.kind(), kind, "{bytes:?}: {error}");
        }
    }
}
