//! Which transport two sides take, and why not the other.
//!
//! # Which UCX versions may meet
//!
//! Only equal `major.minor`. UCX promises no compatibility of what it puts on the wire, and measurements found none to
//! rely on: of neighbouring minor versions some work (1.13 to 1.15, 1.16 to 1.18), others hang over shared memory
//! (1.15/1.16), fail on remote keys (1.18/1.19) or **abort the process** (1.19/1.20, 1.20/1.22). Which pairs work also
//! depends on the devices, so there is no list of good pairs here: a connection over TCP costs speed, a wrong guess
//! costs the process. Patch releases of one minor version work together.
//!
//! # Which settings must agree
//!
//! Both ends need the same error handling mode, and shared-memory FIFO and segment sizes that differ hang or abort
//! too. Whoever fills [`UcxInfo`] hashes those into `fingerprint` and prints them into `settings`; here fingerprints
//! are compared for equality. Settings that may differ (device lists, tcp segment sizes) must stay out of it.

use super::{
    clip,
    header::{Credit, MAX_PAYLOAD},
    hello::{Accept, ClientHello, MAX_TEXT, Transport, UcxInfo, Want},
};
use crate::{Error, ErrorKind, FallbackReason, Result};

mod reason;

pub use reason::{from_wire, mirror, to_wire};

/// What this side's address or configuration allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// UCX if it can be had, else TCP (`auto://`).
    #[default]
    Auto,
    /// TCP (`tcp://`).
    TcpOnly,
    /// UCX or nothing (`ucx://`).
    UcxRequired,
}

/// What this side brings into a negotiation.
#[derive(Clone, Debug)]
pub struct Local {
    /// What is allowed.
    pub policy: Policy,
    /// Features that the peer must have.
    pub required_features: u64,
    /// Features that this side has.
    pub supported_features: u64,
    /// Random per process.
    pub process_id: [u8; 16],
    /// This side's UCX, or why it has none.
    pub ucx: Result<UcxInfo, FallbackReason>,
    /// The longest head and body together that this side receives, in bytes.
    pub max_message: u64,
    /// The longest head that this side receives, in bytes.
    pub max_head: u32,
    /// What the peer may send before credit comes back.
    pub credit: Credit,
    /// Milliseconds of silence after which this side asks whether the peer is alive; 0: never.
    pub keepalive_ms: u32,
}

/// Codes of a Reject. Unknown ones count as [`RejectCode::Refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RejectCode {
    /// The server does not want the connection: it is full, draining or forbids it.
    Refused = 1,
    /// A version or a required feature is missing.
    Version = 2,
    /// A limit in the hello can't be worked with.
    Limit = 3,
    /// One side insists on UCX and it can't be had.
    NoUcx = 4,
    /// The hello breaks the protocol.
    Protocol = 5,
}

impl RejectCode {
    /// The number on the wire.
    pub const fn to_wire(self) -> u16 {
        self as u16
    }

    /// What the number means.
    pub const fn from_wire(code: u16) -> Self {
        match code {
            2 => Self::Version,
            3 => Self::Limit,
            4 => Self::NoUcx,
            5 => Self::Protocol,
            _ => Self::Refused,
        }
    }

    /// The kind of error that a client reports for it.
    pub const fn kind(self) -> ErrorKind {
        match self {
            Self::Refused => ErrorKind::Refused,
            Self::Version => ErrorKind::Version,
            Self::Limit => ErrorKind::Limit,
            Self::NoUcx => ErrorKind::NoUcx,
            Self::Protocol => ErrorKind::Protocol,
        }
    }
}

/// The client's error for a Reject.
#[cold]
pub fn reject_error(code: u16, text: &str) -> Error {
    Error::new(RejectCode::from_wire(code).kind(), format!("the server rejected the connection: {text}"))
}

/// What a server does with a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Accept over TCP; the reason, unless the client asked for TCP.
    AcceptTcp(Option<FallbackReason>),
    /// Accept over UCX: make an endpoint to this peer and prove the path.
    TryUcx(UcxInfo),
    /// Reject.
    Reject {
        /// The code.
        code: RejectCode,
        /// The text, written for the client.
        text: String,
    },
}

/// What a client does with an Accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The connection is open over TCP; the reason, unless this side asked for TCP.
    Tcp(Option<FallbackReason>),
    /// Make an endpoint to this peer and prove the path.
    TryUcx(UcxInfo),
    /// The server chose UCX but we must not try it: send a Fallback with this reason and go on over TCP.
    Decline(FallbackReason),
}

impl Local {
    /// The hello of a client whose id of the connection is `conn` and `generation`.
    ///
    /// # Errors
    /// [`ErrorKind::NoUcx`] if UCX is required and this side has none.
    pub fn client_hello(&self, conn: u32, generation: u32) -> Result<ClientHello> {
        let ucx = self.usable_ucx();
        let want = match self.policy {
            Policy::Auto => Want::Auto,
            Policy::TcpOnly => Want::Tcp,
            Policy::UcxRequired => match &ucx {
                Ok(_) => Want::Ucx,
                Err(reason) => return Err(no_ucx(reason)),
            },
        };
        // A client that wants TCP has nothing to explain.
        let explains = want != Want::Tcp;
        Ok(ClientHello {
            want,
            required_features: self.required_features,
            supported_features: self.supported_features,
            process_id: self.process_id,
            conn,
            generation,
            max_message: self.max_message,
            max_head: self.max_head,
            credit: self.credit,
            no_ucx_reason: ucx.as_ref().err().filter(|_| explains).map(to_wire),
            ucx: ucx.ok().filter(|_| explains).cloned(),
            keepalive_ms: self.keepalive_ms,
            least_endpoint: None,
        })
    }

    /// The Accept of a server over TCP (with the reason of [`Answer::AcceptTcp`]) or, for [`Answer::TryUcx`], UCX.
    pub fn accept(&self, transport: Transport, reason: Option<&FallbackReason>, conn: u32, generation: u32) -> Accept {
        let over_ucx = transport == Transport::Ucx;
        Accept {
            transport,
            fallback: reason.filter(|_| !over_ucx).map(to_wire),
            ucx: self.ucx.as_ref().ok().filter(|_| over_ucx).cloned(),
            required_features: self.required_features,
            supported_features: self.supported_features,
            process_id: self.process_id,
            conn,
            generation,
            max_message: self.max_message,
            max_head: self.max_head,
            credit: self.credit,
            keepalive_ms: self.keepalive_ms,
            endpoint: None,
        }
    }

    fn usable_ucx(&self) -> Result<&UcxInfo, FallbackReason> {
        if self.policy == Policy::TcpOnly {
            return Err(FallbackReason::Disabled("the policy is tcp only".into()));
        }
        match &self.ucx {
            Ok(info) if info.fits() => Ok(info),
            Ok(info) => {
                let len = info.worker_address.len();
                Err(FallbackReason::Failed(format!("the worker address has {len} bytes").into()))
            }
            Err(reason) => Err(reason.clone()),
        }
    }
}

/// The server's decision on `hello`.
pub fn answer(local: &Local, hello: &ClientHello) -> Answer {
    let theirs = (hello.required_features, hello.supported_features);
    if let Err(text) = check_features(local, theirs, "server", "client") {
        return Answer::Reject { code: RejectCode::Version, text };
    }
    if let Err(text) = check_limits(hello.max_message, hello.max_head, hello.credit) {
        return Answer::Reject { code: RejectCode::Limit, text };
    }
    if hello.want == Want::Tcp {
        return match local.policy {
            Policy::UcxRequired => {
                let text = "the client asks for tcp and this server takes ucx only".to_owned();
                Answer::Reject { code: RejectCode::NoUcx, text }
            }
            Policy::Auto | Policy::TcpOnly => Answer::AcceptTcp(None),
        };
    }
    match match_ucx(local, hello.ucx.as_ref(), hello.no_ucx_reason.as_ref()) {
        Ok(info) => Answer::TryUcx(info.clone()),
        Err(reason) if hello.want == Want::Ucx || local.policy == Policy::UcxRequired => {
            // The text is read on the other side, where "here" and "there" are swapped.
            let text = mirror(&reason).to_string();
            Answer::Reject { code: RejectCode::NoUcx, text: clip(&text, MAX_TEXT).to_owned() }
        }
        Err(reason) => Answer::AcceptTcp(Some(reason)),
    }
}

/// The client's decision on the server's `accept`.
///
/// # Errors
/// [`ErrorKind::Version`] for missing features, [`ErrorKind::Protocol`] for limits that can't be worked with or a
/// transport that was not asked for, [`ErrorKind::NoUcx`] if UCX is required and can't be had. The client then sends a
/// Nak and closes.
pub fn judge(local: &Local, accept: &Accept) -> Result<Verdict> {
    let theirs = (accept.required_features, accept.supported_features);
    check_features(local, theirs, "client", "server").map_err(|text| Error::new(ErrorKind::Version, text))?;
    check_limits(accept.max_message, accept.max_head, accept.credit)
        .map_err(|text| Error::new(ErrorKind::Protocol, text))?;
    match accept.transport {
        Transport::Ucx => {
            if local.usable_ucx().is_err() {
                return Err(Error::new(ErrorKind::Protocol, "the server chose ucx, which was not offered"));
            }
            // The server should have compared as well, but what a wrong pair may cost is our process too.
            match match_ucx(local, accept.ucx.as_ref(), None) {
                Ok(info) => Ok(Verdict::TryUcx(info.clone())),
                Err(reason) if local.policy == Policy::UcxRequired => Err(no_ucx(&reason)),
                Err(reason) => Ok(Verdict::Decline(reason)),
            }
        }
        Transport::Tcp => {
            if local.policy == Policy::TcpOnly {
                return Ok(Verdict::Tcp(None));
            }
            let reason = fallback_reason(local, accept.fallback.as_ref());
            if local.policy == Policy::UcxRequired { Err(no_ucx(&reason)) } else { Ok(Verdict::Tcp(Some(reason))) }
        }
    }
}

/// Why the peer, which says `theirs`, takes TCP. What this side knows about itself goes before hearsay.
pub fn fallback_reason(local: &Local, theirs: Option<&(u16, String)>) -> FallbackReason {
    match (local.usable_ucx(), theirs) {
        (Err(ours), _) => ours,
        (Ok(_), Some((code, text))) => from_wire(*code, text),
        (Ok(_), None) => FallbackReason::PeerHasNone("it chose tcp without a reason".into()),
    }
}

/// The error of a side that insists on UCX.
#[cold]
pub fn no_ucx(reason: &FallbackReason) -> Error {
    Error::new(ErrorKind::NoUcx, reason.to_string())
}

fn match_ucx<'a>(
    local: &Local,
    theirs: Option<&'a UcxInfo>,
    why_not: Option<&(u16, String)>,
) -> Result<&'a UcxInfo, FallbackReason> {
    let ours = local.usable_ucx()?;
    let Some(theirs) = theirs else {
        return Err(match why_not {
            Some((code, text)) => from_wire(*code, text),
            None => FallbackReason::PeerHasNone("it gave no reason".into()),
        });
    };
    let minor = |info: &UcxInfo| (info.version.0, info.version.1);
    if minor(ours) != minor(theirs) {
        return Err(FallbackReason::VersionMismatch { ours: version(ours), theirs: version(theirs) });
    }
    if ours.fingerprint != theirs.fingerprint {
        return Err(FallbackReason::SettingsMismatch { ours: settings(ours), theirs: settings(theirs) });
    }
    Ok(theirs)
}

fn version(info: &UcxInfo) -> String {
    let (major, minor, patch) = info.version;
    format!("{major}.{minor}.{patch}")
}

/// The printed settings, cut so that two of them fit a reason, and the fingerprint, which also tells cut ones apart.
fn settings(info: &UcxInfo) -> String {
    format!("{} [{:016x}]", clip(&info.settings, MAX_TEXT / 2 - 32), info.fingerprint)
}

fn check_features(local: &Local, theirs: (u64, u64), our_name: &str, their_name: &str) -> Result<(), String> {
    let (required, supported) = theirs;
    let missing_there = local.required_features & !supported;
    if missing_there != 0 {
        return Err(format!("the {their_name} lacks features {missing_there:#x} that the {our_name} requires"));
    }
    let missing_here = required & !local.supported_features;
    if missing_here != 0 {
        return Err(format!("the {our_name} lacks features {missing_here:#x} that the {their_name} requires"));
    }
    Ok(())
}

/// A limit of nothing would make a connection that never carries anything.
fn check_limits(max_message: u64, max_head: u32, credit: Credit) -> Result<(), String> {
    if max_message == 0 || max_head == 0 || credit.messages == 0 || credit.bytes == 0 {
        return Err("a limit in the hello is zero".to_owned());
    }
    if max_message > MAX_PAYLOAD {
        return Err(format!("a message limit of {max_message} bytes exceeds what a frame can say"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
