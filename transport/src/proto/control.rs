//! Payloads of control frames.

use super::clip;

/// The longest text of a REFUSED frame, in bytes: enough for a sentence, small enough for the control budget.
pub const MAX_REFUSED_TEXT: usize = 512;

/// The longest payload of a control frame, in bytes. A receiver takes no longer one.
pub const MAX_CONTROL_PAYLOAD: usize = 4 + MAX_REFUSED_TEXT;

/// Why a control frame's payload can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// A PING or PONG payload is 8 bytes.
    #[error("ping payload of {0} bytes instead of 8")]
    PingLength(usize),
    /// A REFUSED payload is 4 bytes and a text of at most [`MAX_REFUSED_TEXT`] bytes.
    #[error("refused payload of {0} bytes instead of 4 to {MAX_CONTROL_PAYLOAD}")]
    RefusedLength(usize),
    /// The text is not UTF-8.
    #[error("text of a refused frame is not valid utf-8")]
    NotUtf8,
}

/// The payload of PING and PONG.
pub const fn encode_ping(id: u64) -> [u8; 8] {
    id.to_le_bytes()
}

/// Reads the payload of PING and PONG.
///
/// # Errors
/// Any length but 8.
pub fn decode_ping(payload: &[u8]) -> Result<u64, ControlError> {
    let bytes = payload.try_into().map_err(|_| ControlError::PingLength(payload.len()))?;
    Ok(u64::from_le_bytes(bytes))
}

/// The payload of REFUSED: which DATA frame was refused, and why. A text longer than [`MAX_REFUSED_TEXT`] is cut.
pub fn encode_refused(seq: u32, text: &str) -> Vec<u8> {
    let text = clip(text, MAX_REFUSED_TEXT);
    let mut payload = Vec::with_capacity(4 + text.len());
    payload.extend_from_slice(&seq.to_le_bytes());
    payload.extend_from_slice(text.as_bytes());
    payload
}

/// Reads the payload of REFUSED.
///
/// # Errors
/// A payload that is too short or too long, or whose text is not UTF-8.
pub fn decode_refused(payload: &[u8]) -> Result<(u32, &str), ControlError> {
    match payload.split_first_chunk::<4>() {
        Some((seq, text)) if text.len() <= MAX_REFUSED_TEXT => {
            let text = str::from_utf8(text).map_err(|_| ControlError::NotUtf8)?;
            Ok((u32::from_le_bytes(*seq), text))
        }
        _ => Err(ControlError::RefusedLength(payload.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        assert_eq!(encode_ping(0x0102), [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode_ping(&[2, 1, 0, 0, 0, 0, 0, 0]), Ok(0x0102));
        assert_eq!(encode_refused(7, "no"), [7, 0, 0, 0, b'n', b'o']);
        assert_eq!(decode_refused(&[7, 0, 0, 0, b'n', b'o']), Ok((7, "no")));
    }

    #[test]
    fn limits() {
        assert_eq!(decode_ping(&[0; 7]), Err(ControlError::PingLength(7)));
        assert_eq!(decode_ping(&[0; 9]), Err(ControlError::PingLength(9)));
        assert_eq!(decode_refused(&[0; 3]), Err(ControlError::RefusedLength(3)));
        assert_eq!(decode_refused(&[0; 517]), Err(ControlError::RefusedLength(517)));
        assert_eq!(decode_refused(&[0, 0, 0, 0, 0xff]), Err(ControlError::NotUtf8));
        let long = encode_refused(1, &"é".repeat(400));
        assert_eq!(decode_refused(&long).unwrap().1.len(), 512);
        let odd = encode_refused(1, &format!("x{}", "é".repeat(400)));
        assert_eq!(decode_refused(&odd).unwrap().1.len(), 511);
    }
}
