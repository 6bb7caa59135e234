//! Host names become addresses, on a thread that may block.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    Address, Error, ErrorKind, Result, address::HostPort, connection::DriverHalf, dispatcher, driver::Command,
};

/// Look-ups at once in this process: each blocks a thread for as long as the name service takes.
const MAX_LOOKUPS: usize = 64;

static LOOKUPS: AtomicUsize = AtomicUsize::new(0);

/// Looks a name up now, on this thread.
pub(crate) fn now(hp: &HostPort) -> Result<Vec<SocketAddr>> {
    if let Some(literal) = hp.literal() {
        return Ok(vec![literal]);
    }
    let unreachable = |text| Error::new(ErrorKind::Unreachable, text);
    let found: Vec<_> = (hp.host.as_str(), hp.port)
        .to_socket_addrs()
        .map_err(|e| unreachable(format!("cannot look up {}: {e}", hp.host)))?
        .collect();
    if found.is_empty() { Err(unreachable(format!("{} has no address", hp.host))) } else { Ok(found) }
}

/// Sends the dispatcher a connect command, after looking the name up if there is one.
pub(crate) fn connect(dispatcher: &Arc<dispatcher::Shared>, address: Address, half: DriverHalf) {
    let address = match address.with_override() {
        Ok(address) => address,
        Err(error) => return half.shared.finish(error),
    };
    let Some(hp) = address.host_port().cloned() else {
        return dispatcher.command(Command::Connect { half, address, resolved: Vec::new() });
    };
    if let Some(literal) = hp.literal() {
        return dispatcher.command(Command::Connect { half, address, resolved: vec![literal] });
    }
    if LOOKUPS.fetch_add(1, Ordering::AcqRel) >= MAX_LOOKUPS {
        LOOKUPS.fetch_sub(1, Ordering::AcqRel);
        let text = format!("{MAX_LOOKUPS} name look-ups are running already");
        return half.shared.finish(Error::new(ErrorKind::Limit, text));
    }
    let (target, shared) = (dispatcher.clone(), half.shared.clone());
    let body = move || {
        let found = now(&hp);
        LOOKUPS.fetch_sub(1, Ordering::AcqRel);
        match found {
            Ok(resolved) => target.command(Command::Connect { half, address, resolved }),
            Err(error) => half.shared.finish(error),
        }
    };
    if let Err(error) = std::thread::Builder::new().name("ucrpc-resolve".to_owned()).spawn(body) {
        LOOKUPS.fetch_sub(1, Ordering::AcqRel);
        shared.finish(Error::from_io("thread for the name look-up", &error));
    }
}
