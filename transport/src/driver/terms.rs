//! What each side brings into the negotiation.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::OnceLock,
    time::Duration,
};

use super::{ConnCore, Io};
use crate::{
    FallbackReason,
    config::ConnectionConfig,
    connection::MAX_DELIVERED,
    event::poller::Key,
    proto::{
        header::Credit,
        hello::{Accept, ClientHello, UcxInfo},
        negotiate::{Local, Policy},
    },
};

/// What the peer said of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) key: Key,
    pub(super) credit: Credit,
    pub(super) max_message: u64,
    pub(super) max_head: u32,
    pub(super) keepalive_ms: u32,
}

impl Terms {
    pub(super) fn interval(self) -> Option<Duration> {
        (self.keepalive_ms > 0).then(|| Duration::from_millis(u64::from(self.keepalive_ms)))
    }
}

impl From<&ClientHello> for Terms {
    fn from(hello: &ClientHello) -> Self {
        let key = Key { index: hello.conn, generation: hello.generation };
        let ClientHello { credit, max_message, max_head, keepalive_ms, .. } = *hello;
        Self { key, credit, max_message, max_head, keepalive_ms }
    }
}

impl From<&Accept> for Terms {
    fn from(accept: &Accept) -> Self {
        let key = Key { index: accept.conn, generation: accept.generation };
        let Accept { credit, max_message, max_head, keepalive_ms, .. } = *accept;
        Self { key, credit, max_message, max_head, keepalive_ms }
    }
}

/// What this configuration lets a peer send.
pub(super) fn granted(config: &ConnectionConfig) -> Credit {
    Credit { messages: config.recv_window_frames.clamp(1, MAX_DELIVERED), bytes: config.recv_window_bytes.max(1) }
}

/// A number for this process that no other has, nor an earlier one under the same address.
fn process_id() -> [u8; 16] {
    static ID: OnceLock<[u8; 16]> = OnceLock::new();
    *ID.get_or_init(|| {
        let random = || RandomState::new().build_hasher().finish().to_le_bytes();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&random());
        id[8..].copy_from_slice(&random());
        id
    })
}

/// What this side brings into the negotiation.
pub(super) fn local(core: &ConnCore, io: &mut Io, policy: Policy) -> Local {
    let ucx = match policy {
        Policy::TcpOnly => Err(FallbackReason::Disabled("this address is tcp only".into())),
        Policy::Auto | Policy::UcxRequired => ucx_info(io),
    };
    let keepalive = core.config.keepalive.map_or(0, |k| k.interval.as_millis());
    Local {
        policy,
        required_features: 0,
        supported_features: 0,
        process_id: process_id(),
        ucx,
        max_message: core.config.max_message,
        max_head: core.config.max_head,
        credit: granted(&core.config),
        keepalive_ms: u32::try_from(keepalive).unwrap_or(u32::MAX),
    }
}

fn ucx_info(io: &mut Io) -> Result<UcxInfo, FallbackReason> {
    let worker_address = io.worker_for_new()?.address().to_vec();
    let context = crate::ucx::Context::get().map_err(Clone::clone)?;
    let (major, minor, patch) = context.version();
    let part = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    Ok(UcxInfo {
        version: (part(major), part(minor), part(patch)),
        fingerprint: context.fingerprint(),
        settings: context.settings().to_owned(),
        worker_address,
    })
}
