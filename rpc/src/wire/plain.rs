//! The frame that nearly every response is: success, an id, a message, nothing beside it. Its meta is five known bytes and a number,
//! so that it takes a comparison where the general way takes a meta.

use super::pb::{Back, Reader, Sink as _, signed};
use super::{FRAME_HEADER_LEN, Limits, PRPC_MAGIC};

/// `response { error_code: 0 }`, then the tag of `correlation_id`.
const START: [u8; 5] = [0x12, 2, 0x08, 0, 0x20];

/// The id, and where the message starts, if `frame` is such a response within `limits`. Anything else is for [`super::parse()`].
#[inline]
pub(crate) fn plain_response(frame: &[u8], limits: &Limits) -> Option<(i64, usize)> {
    let (header, payload) = frame.split_first_chunk::<FRAME_HEADER_LEN>()?;
    let [p, r, p2, c, b0, b1, b2, b3, m0, m1, m2, m3] = *header;
    let body_size = u32::from_be_bytes([b0, b1, b2, b3]);
    let meta_size = u32::from_be_bytes([m0, m1, m2, m3]);
    let lengths_fit = payload.len() as u64 == u64::from(body_size)
        && body_size <= limits.max_body_size
        && meta_size <= limits.max_meta_size;
    if [p, r, p2, c] != PRPC_MAGIC || !lengths_fit {
        return None;
    }
    let mut id = Reader::new(payload.get(..meta_size as usize)?.strip_prefix(&START)?);
    let number = id.varint().ok()?;
    id.is_empty().then_some((number as i64, FRAME_HEADER_LEN + meta_size as usize))
}

/// Writes such a meta to the end of `room` and says how long it is.
#[inline]
pub(super) fn write_plain(room: &mut [u8], correlation_id: i64) -> usize {
    let mut meta = Back::new(room);
    meta.varint(signed(correlation_id));
    meta.put(&START);
    meta.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Head, MessageBuf, ResponseMeta, RpcMeta, Step, parse};

    const LIMITS: Limits = Limits::DEFAULT;
    const IDS: [i64; 9] = [0, 1, 127, 128, 1 << 20, (1 << 34) - 1, i64::MAX, -1, i64::MIN];

    fn general(id: i64, message: &[u8]) -> Head {
        let meta = RpcMeta { response: Some(ResponseMeta::default()), correlation_id: id, ..RpcMeta::default() };
        MessageBuf::copy_from_slice(message, 0).into_head(&meta, 0, &LIMITS).expect("within limits")
    }

    #[test]
    fn both_ways_write_the_same_bytes_and_read_them_alike() {
        for (id, len) in IDS.into_iter().flat_map(|id| [0, 1, 64, 5000].map(|len| (id, len))) {
            let message = vec![len as u8; len];
            let head = general(id, &message);
            let plain = MessageBuf::copy_from_slice(&message, 0).into_plain_response(id, &LIMITS).expect("room");
            assert_eq!(plain, head);
            let Ok(Step::Prpc(parsed)) = parse(&head.bytes, &LIMITS) else { panic!("no frame") };
            assert_eq!(plain_response(&head.bytes, &LIMITS), Some((id, parsed.layout.message_at())));
        }
    }

    #[test]
    fn only_a_whole_frame_of_that_kind_within_limits_is_one() {
        let frame = general(77, b"message").bytes;
        for len in 0..frame.len() {
            assert_eq!(plain_response(&frame[..len], &LIMITS), None, "cut at {len}");
        }
        assert_eq!(plain_response(&[&frame[..], b"x"].concat(), &LIMITS), None);
        for at in 0..FRAME_HEADER_LEN + START.len() {
            let mut other = frame.to_vec();
            other[at] ^= 1;
            assert_eq!(plain_response(&other, &LIMITS), None, "byte {at}");
        }
        let narrow = |limits: Limits| plain_response(&frame, &limits).is_none();
        assert!(narrow(Limits { max_body_size: frame.len() as u32 - 13, ..LIMITS }));
        assert!(narrow(Limits { max_meta_size: START.len() as u32, ..LIMITS }));
        let refused = |limits| MessageBuf::copy_from_slice(b"message", 0).into_plain_response(77, &limits).is_err();
        assert!(refused(Limits { max_body_size: 12, ..LIMITS }) && refused(Limits { max_meta_size: 5, ..LIMITS }));
    }

    #[test]
    fn other_metas_go_the_general_way() {
        let response = Some(ResponseMeta::default());
        let plain = RpcMeta { response, correlation_id: 5, ..RpcMeta::default() };
        let failed = Some(ResponseMeta { error_code: 112, error_text: b"busy" });
        let others = [
            RpcMeta { response: failed, ..plain.clone() },
            RpcMeta { compress_type: 1, ..plain.clone() },
            RpcMeta { checksum_type: 1, ..plain.clone() },
            RpcMeta { signal: crate::wire::Signal::Hello, ..plain.clone() },
            RpcMeta { response: None, ..plain.clone() },
        ];
        for meta in others {
            let head = MessageBuf::copy_from_slice(b"m", 8).into_head(&meta, 0, &LIMITS).expect("within limits");
            assert_eq!(plain_response(&head.bytes, &LIMITS), None, "{meta:?}");
        }
    }
}
