//! Checks a peer's worker address before UCX sees it.
//!
//! `ucp_ep_create` takes no length: it walks the address by the lengths inside it, and UCX 1.13 aborts on a version nibble
//! that it does not know. So the same walk is done here first, within bounds. The format is UCX's own and may change with a
//! version; whether our walk still fits the running library is decided by our own address, which must be walked exactly to
//! its end. Where it does not fit, the peer's address gets the length check and the padding only.
//!
//! What is *not* checked is what the fields mean: a peer can name any IP address or shared-memory segment, and UCX will
//! connect there. Random changes of single bytes behind this check still found two ways to abort a UCX 1.13 with
//! assertions: a posix segment in another mode than ours, and numbers that make UCX use two tcp lanes whose connection is
//! then refused or closed before it is up. Only peers that passed the negotiation's checks get this far.

use crate::error::{Error, ErrorKind};

/// Longest address that is accepted, bytes. Ours are 50 to 500; each device and transport adds 20 to 60.
pub(super) const MAX_ADDRESS: usize = 4096;

/// Zeroes behind the copy that UCX reads. A walk that leaves the address ends in them: a transport entry of zeroes has no
/// bandwidth, which UCX refuses, and one entry is shorter than this.
const PADDING: usize = 8192;

/// Limits of UCX: resources in one address, endpoint addresses in one resource.
const MAX_ENTRIES: usize = 128;
const MAX_ENDPOINT_ADDRESSES: usize = 64;

const LAST: u8 = 0x80;
const EMPTY_DEVICE: u8 = 0x80;
const HAS_ENDPOINT: u8 = 0x40;
const NUM_PATHS: u8 = 0x40;
const SYS_DEVICE: u8 = 0x20;

/// Whether and how peers' addresses can be walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Checker {
    strict: bool,
}

impl Checker {
    /// Learns from our own address whether the running library's format is the one that we know.
    pub(super) fn new(own: &[u8]) -> Self {
        let strict = walk(own) == Some(own.len());
        if !strict {
            tracing::warn!(
                "the format of this UCX's worker addresses is unknown: peers' addresses are checked for length only"
            );
        }
        Self { strict }
    }

    /// A copy of `address` that UCX may walk.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] if it can't be a worker address.
    pub(super) fn check(self, address: &[u8]) -> Result<Vec<u8>, Error> {
        let refuse = |text| Err(Error::new(ErrorKind::Protocol, text));
        if address.is_empty() || address.len() > MAX_ADDRESS {
            return refuse("ucx worker address is empty or too long");
        }
        // Above 1, UCX asserts.
        if address[0] & 0x0f > 1 {
            return refuse("ucx worker address of an unknown version");
        }
        if self.strict && walk(address) != Some(address.len()) {
            return refuse("ucx worker address is malformed");
        }
        let mut copy = Vec::with_capacity(address.len() + PADDING);
        copy.extend_from_slice(address);
        copy.resize(address.len() + PADDING, 0);
        Ok(copy)
    }
}

struct Cursor<'a> {
    rest: &'a [u8],
    extended: bool,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|taken| taken[0])
    }

    /// A number in the low bits of `byte`; version 2 has a byte of its own for large ones.
    fn number(&mut self, byte: u8, mask: u8) -> Option<u8> {
        if self.extended && byte & mask == mask { self.byte() } else { Some(byte & mask) }
    }
}

/// Bytes that UCX's own walk would read, or `None` if it would leave `address` or refuse it.
fn walk(address: &[u8]) -> Option<usize> {
    let mut at = Cursor { rest: address, extended: false };
    let first = at.byte()?;
    let flags = match first & 0x0f {
        0 => first >> 4,
        1 => {
            at.extended = true;
            at.byte()?
        }
        _ => return None,
    };
    let (debug_info, uuid, client_id) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    if uuid || !at.extended {
        at.take(8)?;
    }
    if client_id {
        at.take(8)?;
    }
    if debug_info {
        let name = at.byte()?;
        at.take(name.into())?;
    }
    // An address without any transport is one byte, and no endpoint can be made of it.
    if *at.rest.first()? == 0xff {
        return None;
    }
    let mut entries = 0;
    while !device(&mut at, &mut entries)? {}
    Some(address.len() - at.rest.len())
}

/// One device with its transports; true if it was the last one.
fn device(at: &mut Cursor<'_>, entries: &mut usize) -> Option<bool> {
    let memory = at.byte()?;
    let empty = memory & EMPTY_DEVICE != 0;
    at.number(memory, if at.extended { 0x7f } else { 0x1f })?;
    let flags = at.byte()?;
    let address = at.number(flags, 0x1f)?;
    let options = u8::from(flags & NUM_PATHS != 0) + u8::from(flags & SYS_DEVICE != 0);
    at.take(options.into())?;
    at.take(address.into())?;
    let mut last = empty;
    while !last {
        *entries += 1;
        if *entries > MAX_ENTRIES {
            return None;
        }
        last = transport(at)?;
    }
    Some(flags & LAST != 0)
}

/// Whether a transport's numbers make sense: overhead and latency in seconds, bandwidth in bytes per second. UCX computes
/// scores from them, and asserts that these are not negative.
fn plausible(attributes: &[u8]) -> bool {
    let float = |at: usize| attributes[at..].first_chunk().map(|bytes| f32::from_le_bytes(*bytes));
    let (Some(overhead), Some(bandwidth), Some(latency)) = (float(0), float(4), float(8)) else { return false };
    (0.0..=1.0).contains(&overhead) && (1.0..=1e15).contains(&bandwidth) && (0.0..=1.0).contains(&latency)
}

/// One transport of a device; true if it was the last one.
fn transport(at: &mut Cursor<'_>) -> Option<bool> {
    at.take(2)?;
    // Version 1: overhead, bandwidth, latency (floats), priority and flags. Version 2: the same in 8 bytes.
    let attributes = at.take(if at.extended { 8 } else { 16 })?;
    if !at.extended && !plausible(attributes) {
        return None;
    }
    let flags = at.byte()?;
    let length = at.number(flags, 0x3f)?;
    at.take(length.into())?;
    let mut more = flags & HAS_ENDPOINT != 0;
    let mut count = 0;
    while more {
        count += 1;
        if count > MAX_ENDPOINT_ADDRESSES {
            return None;
        }
        let length = at.byte()?;
        at.take(length.into())?;
        more = at.byte()? & LAST == 0;
    }
    Some(flags & LAST != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Header without options and identity, one device with one tcp-like transport.
    fn small() -> Vec<u8> {
        let mut bytes = vec![0x20];
        bytes.extend([7; 8]);
        bytes.extend([0x01, LAST | 4, 127, 0, 0, 1]);
        bytes.extend([0xaa, 0xbb]);
        bytes.extend(1e-6_f32.to_le_bytes());
        bytes.extend(1e9_f32.to_le_bytes());
        bytes.extend(5e-6_f32.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend([LAST | 2, 0x12, 0x34]);
        bytes
    }

    #[test]
    fn a_good_address_is_walked_to_its_end() {
        let good = small();
        assert_eq!(walk(&good), Some(good.len()));
        let checker = Checker::new(&good);
        let copy = checker.check(&good).expect("good");
        assert!(copy.starts_with(&good) && copy.len() == good.len() + PADDING);
        assert!((0..good.len()).all(|len| checker.check(&good[..len]).is_err()));
        let mut negative = good.clone();
        negative[17 + 3] = 0xc0;
        assert_eq!(walk(&negative), None);
        let mut many = good;
        many[17 - 2 + 18] &= !LAST;
        assert_eq!(walk(&many), None);
    }

    #[test]
    fn an_unknown_format_gets_the_length_check_only() {
        let checker = Checker::new(&[0; 40]);
        assert!(!checker.strict);
        assert!(checker.check(&[0; 10]).is_ok());
        assert!(checker.check(&[]).is_err() && checker.check(&[0; MAX_ADDRESS + 1]).is_err());
        assert!(checker.check(&[2; 10]).is_err());
    }

    proptest! {
        #[test]
        fn walking_stays_inside(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(walk(&bytes).is_none_or(|end| end <= bytes.len()));
        }

        #[test]
        fn changed_addresses_stay_inside(at in 0_usize..36, to in any::<u8>()) {
            let mut bytes = small();
            let at = at % bytes.len();
            bytes[at] = to;
            prop_assert!(walk(&bytes).is_none_or(|end| end <= bytes.len()));
        }
    }
}
