//! brpc's frames on streams as they are: no ucrpc hello, no framing of ours.

use ucrpc_transport::framing::{Cut, Detect, Framer};

use crate::wire::{FRAME_HEADER_LEN, Limits, PRPC_MAGIC, STRM_MAGIC, Step, parse};

/// Messages of at least this many bytes, without an attachment, are cut off as the body: the transport reads them straight
/// into a buffer of their own.
pub(crate) const MESSAGE_AS_BODY: usize = 16 << 10;

/// Frames with at most this many bytes after the header are all head.
const SHORT: u32 = 4 << 10;

/// Cuts a byte stream into `PRPC` and `STRM` frames: what makes `tcp://` and `unix://` connections speak with brpc.
///
/// The head of a frame is its header, meta and message, the body is the attachment or the stream's data. Short frames are all
/// head.
#[derive(Debug, Clone, Default)]
pub struct PrpcFramer {
    limits: Limits,
}

impl PrpcFramer {
    /// A framer that refuses frames above `limits`.
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }
}

impl Framer for PrpcFramer {
    fn name(&self) -> &'static str {
        "baidu_std"
    }

    fn detect(&self, first: &[u8]) -> Detect {
        let known = first.len().min(4);
        if first[..known] != PRPC_MAGIC[..known] && first[..known] != STRM_MAGIC[..known] {
            return Detect::No;
        }
        if known == 4 { Detect::Yes } else { Detect::NeedMore }
    }

    fn cut(&self, bytes: &[u8]) -> Cut {
        if let Some(whole) = short(bytes, &self.limits) {
            return Cut::Frame { head: whole, body: 0 };
        }
        let layout = match parse(bytes, &self.limits) {
            Err(error) => return Cut::Bad(error.to_string().into()),
            Ok(Step::NeedMore(need)) => return Cut::NeedMore(need),
            // Answered by who reads the frame; it is within the limits.
            Ok(Step::Reject { frame_len, .. }) => return Cut::Frame { head: frame_len as usize, body: 0 },
            Ok(Step::Prpc(head)) => head.layout,
            Ok(Step::Strm(head)) => head.layout,
        };
        if layout.body_len == 0 && layout.message_len as usize >= MESSAGE_AS_BODY {
            return Cut::Frame { head: layout.message_at(), body: layout.message_len.into() };
        }
        Cut::Frame { head: layout.head_len(), body: layout.body_len.into() }
    }
}

/// The length of a frame that is shorter than it is worth to look for its parts: whoever takes it apart decodes its meta once,
/// and finds an attachment in it without a copy.
fn short(bytes: &[u8], limits: &Limits) -> Option<usize> {
    let header: &[u8; FRAME_HEADER_LEN] = bytes.first_chunk()?;
    let (magic, sizes) = header.split_at(4);
    if magic != PRPC_MAGIC && magic != STRM_MAGIC {
        return None;
    }
    let body = u32::from_be_bytes(*sizes.first_chunk()?);
    let meta = u32::from_be_bytes(*sizes.last_chunk()?);
    let fits = body <= SHORT.min(limits.max_body_size) && meta <= body.min(limits.max_meta_size);
    fits.then_some(FRAME_HEADER_LEN + body as usize)
}
