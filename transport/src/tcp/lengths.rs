//! Where a frame's parts end, and whether they are within the limits.

use super::{MAX_HEADER, MIN_HEADER, Mode, PREFIX, Sink, decode_prefix};
use crate::{
    error::{Error, ErrorKind},
    framing::Cut,
};

/// Bodies of at least this many bytes are placed by the [`Sink`] and read straight into their target; shorter ones are
/// copied together with their head, which costs less than finding them a place.
pub(super) const DIRECT_BODY: u64 = 16 << 10;

/// What a peer may make us hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadLimits {
    /// Bytes of a head.
    pub(crate) max_head: u32,
    /// Bytes of head and body together.
    pub(crate) max_message: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Lengths {
    /// Bytes of prefix and header.
    pub(super) skip: usize,
    pub(super) head: usize,
    pub(super) body: u64,
    /// The body goes to a target of its own.
    pub(super) direct: bool,
}

pub(super) enum Found {
    /// At least this many bytes from the frame's start, more than were given.
    Need(usize),
    Frame(Lengths),
}

/// Looks for the lengths of the frame at `bytes[0]`. Limits are checked here, before memory is taken for anything.
pub(super) fn find_lengths(
    mode: &Mode,
    limits: &ReadLimits,
    bytes: &[u8],
    sink: &mut dyn Sink,
) -> Result<Found, Error> {
    let (skip, head, payload) = match mode {
        Mode::Native => {
            let Some(prefix) = bytes.first_chunk() else { return Ok(Found::Need(PREFIX)) };
            let (header_len, payload) = decode_prefix(*prefix);
            if !(MIN_HEADER..=MAX_HEADER).contains(&header_len) {
                return Err(Error::new(ErrorKind::Protocol, format!("a frame header of {header_len} bytes")));
            }
            limits.check_message(payload)?;
            let skip = PREFIX + header_len;
            let Some(header) = bytes.get(PREFIX..skip) else { return Ok(Found::Need(skip)) };
            let head = sink.on_header(header, payload)?;
            if head > payload {
                let text = format!("a head of {head} bytes in a payload of {payload}");
                return Err(Error::new(ErrorKind::Protocol, text));
            }
            (skip, head, payload)
        }
        Mode::Foreign(framer) => match framer.cut(bytes) {
            Cut::NeedMore(need) => {
                let need = need.max(bytes.len() + 1);
                limits.check_head(need as u64)?;
                return Ok(Found::Need(need));
            }
            Cut::Bad(text) => return Err(Error::new(ErrorKind::Protocol, text)),
            Cut::Frame { head: 0, .. } => {
                let text = format!("the {} framer cut a frame without a head", framer.name());
                return Err(Error::new(ErrorKind::Protocol, text));
            }
            Cut::Frame { head, body } => {
                let payload = body.saturating_add(head as u64);
                limits.check_message(payload)?;
                (0, head as u64, payload)
            }
        },
    };
    limits.check_head(head)?;
    let body = payload - head;
    let direct = body >= DIRECT_BODY || (body > 0 && sink.wants_plan());
    Ok(Found::Frame(Lengths { skip, head: head as usize, body, direct }))
}

impl ReadLimits {
    fn check_head(&self, len: u64) -> Result<(), Error> {
        if len > u64::from(self.max_head) {
            let text = format!("a head of at least {len} bytes, {} are allowed", self.max_head);
            return Err(Error::new(ErrorKind::Limit, text));
        }
        Ok(())
    }

    fn check_message(&self, len: u64) -> Result<(), Error> {
        // What this machine cannot address can't be received, whatever the limit says.
        if len > self.max_message.min(isize::MAX as u64) {
            let text = format!("a message of {len} bytes, {} are allowed", self.max_message);
            return Err(Error::new(ErrorKind::Limit, text));
        }
        Ok(())
    }
}

impl Lengths {
    /// Bytes that are gathered in one piece before anything is done with them.
    pub(super) fn together(&self) -> usize {
        self.skip + self.head + if self.direct { 0 } else { self.body as usize }
    }
}
