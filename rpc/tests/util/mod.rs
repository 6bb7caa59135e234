//! What several tests need.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod oracle;

/// Bytes from hex digits; white space and `'text'` in between are allowed.
pub fn hex(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, part) in text.split('\'').enumerate() {
        if at % 2 == 1 {
            out.extend_from_slice(part.as_bytes());
            continue;
        }
        let digits: Vec<u8> = part.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        assert!(digits.len().is_multiple_of(2), "odd number of digits in {part:?}");
        let digit = |b: u8| (b as char).to_digit(16).expect("a hex digit") as u8;
        out.extend(digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])));
    }
    out
}
