//! Fallback reasons on the wire.
//!
//! A reason is sent as a code and a text. It is written from the sender's point of view and read from the receiver's:
//! what is "here" for one is "there" for the other.

use crate::{
    FallbackReason,
    proto::{clip, hello::MAX_TEXT},
};

/// Between the sender's and the receiver's half of a text.
const HALVES: char = '\n';

/// How a peer that has no UCX words why, so that it is understood when it comes back to it.
const SWITCHED_OFF: &str = "switched off: ";
const NO_LIBRARY: &str = "no library: ";

/// One kind of reason.
struct Row {
    code: u16,
    /// The text, if the reason is of this kind.
    say: fn(&FallbackReason) -> Option<String>,
    /// What the text means to the side that reads it.
    hear: fn(&str) -> FallbackReason,
}

/// Both directions of each code. A number is never used again for something else.
const TABLE: [Row; 8] = [
    Row {
        code: 1,
        say: |reason| match reason {
            FallbackReason::Disabled(text) => Some(text.to_string()),
            _ => None,
        },
        hear: |text| FallbackReason::PeerHasNone(format!("{SWITCHED_OFF}{text}").into()),
    },
    Row {
        code: 2,
        say: |reason| match reason {
            FallbackReason::NoLibrary(text) => Some(text.to_string()),
            _ => None,
        },
        hear: |text| FallbackReason::PeerHasNone(format!("{NO_LIBRARY}{text}").into()),
    },
    Row {
        code: 3,
        say: |reason| match reason {
            FallbackReason::PeerHasNone(text) => Some(text.to_string()),
            _ => None,
        },
        hear: |text| {
            if let Some(text) = text.strip_prefix(NO_LIBRARY) {
                FallbackReason::NoLibrary(text.to_owned().into())
            } else {
                FallbackReason::Disabled(text.strip_prefix(SWITCHED_OFF).unwrap_or(text).to_owned().into())
            }
        },
    },
    Row {
        code: 4,
        say: |reason| match reason {
            FallbackReason::VersionMismatch { ours, theirs } => Some(join(ours, theirs)),
            _ => None,
        },
        hear: |text| {
            let (theirs, ours) = split(text);
            FallbackReason::VersionMismatch { ours, theirs }
        },
    },
    Row {
        code: 5,
        say: |reason| match reason {
            FallbackReason::SettingsMismatch { ours, theirs } => Some(join(ours, theirs)),
            _ => None,
        },
        hear: |text| {
            let (theirs, ours) = split(text);
            FallbackReason::SettingsMismatch { ours, theirs }
        },
    },
    Row {
        code: 6,
        say: |reason| match reason {
            FallbackReason::Unreachable(text) => Some(text.to_string()),
            _ => None,
        },
        hear: |text| FallbackReason::Unreachable(text.to_owned().into()),
    },
    Row {
        code: 7,
        say: |reason| match reason {
            FallbackReason::ProofTimedOut(ms) => Some(ms.to_string()),
            _ => None,
        },
        hear: |text| match text.parse() {
            Ok(ms) => FallbackReason::ProofTimedOut(ms),
            Err(_) => FallbackReason::Failed("the proof timed out".into()),
        },
    },
    Row {
        code: FAILED,
        say: |reason| match reason {
            FallbackReason::Failed(text) => Some(text.to_string()),
            _ => None,
        },
        hear: |text| FallbackReason::Failed(text.to_owned().into()),
    },
];

const FAILED: u16 = 8;

/// The code and text to send for `reason`, which is this side's.
pub fn to_wire(reason: &FallbackReason) -> (u16, String) {
    let said = TABLE.iter().find_map(|row| (row.say)(reason).map(|text| (row.code, text)));
    let (code, mut text) = said.unwrap_or_else(|| (FAILED, reason.to_string()));
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    (code, text)
}

/// What a peer's code and text mean to this side. A code that is not known here becomes [`FallbackReason::Failed`].
pub fn from_wire(code: u16, text: &str) -> FallbackReason {
    match TABLE.iter().find(|row| row.code == code) {
        Some(row) => (row.hear)(text),
        None => FallbackReason::Failed(format!("the peer gave reason {code}: {text}").into()),
    }
}

/// The reason as the other side sees it.
pub fn mirror(reason: &FallbackReason) -> FallbackReason {
    let (code, text) = to_wire(reason);
    from_wire(code, &text)
}

fn join(ours: &str, theirs: &str) -> String {
    let half = |text: &str| clip(text, MAX_TEXT / 2 - 1).replace(HALVES, " ");
    format!("{}{HALVES}{}", half(ours), half(theirs))
}

fn split(text: &str) -> (String, String) {
    let (ours, theirs) = text.split_once(HALVES).unwrap_or((text, "unknown"));
    (ours.to_owned(), theirs.to_owned())
}
