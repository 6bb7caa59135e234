//! The child's side: loads UCX, connects to itself and to the peer, and prints what it learned as JSON.

use std::{io::Write, time::Duration};

use serde::{Deserialize, Serialize};
use ucrpc::transport::{
    Address, Connection, ConnectionConfig, Dispatcher, DispatcherConfig, Error, FallbackReason, ListenConfig,
    Transport, UcxLibrary, ucx_report,
};

use crate::{
    Done,
    exit::{Exit, Failure},
};

/// What UCX says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// The library, if one was loaded.
    pub(crate) library: Option<Library>,
    /// Why UCX cannot be used, if it cannot.
    pub(crate) unusable: Option<Reason>,
    /// `transport/device`, all that UCX may use.
    pub(crate) resources: Vec<String>,
    /// The settings that a peer must have too.
    pub(crate) must_agree: String,
    /// A connection between two workers of this process.
    pub(crate) loopback: Link,
    /// The connection to the peer that was asked about.
    pub(crate) peer: Option<Link>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Library {
    pub(crate) version: (u32, u32, u32),
    pub(crate) path: String,
    pub(crate) assertions: Option<bool>,
    pub(crate) multi_threaded: Option<bool>,
    pub(crate) plugins: Vec<String>,
    pub(crate) missing_symbols: Vec<String>,
    pub(crate) was_in_process: bool,
    pub(crate) settings: Vec<Setting>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) value: String,
    /// Ours, since nobody had set it.
    pub(crate) is_default: bool,
    pub(crate) acts: bool,
    pub(crate) why: String,
}

/// Why a connection does not run over UCX.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reason {
    pub(crate) kind: ReasonKind,
    pub(crate) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReasonKind {
    Disabled,
    NoLibrary,
    PeerHasNone,
    VersionMismatch,
    SettingsMismatch,
    Unreachable,
    ProofTimedOut,
    Failed,
}

impl From<&FallbackReason> for Reason {
    fn from(reason: &FallbackReason) -> Self {
        use FallbackReason as R;
        let kind = match reason {
            R::Disabled(_) => ReasonKind::Disabled,
            R::NoLibrary(_) => ReasonKind::NoLibrary,
            R::PeerHasNone(_) => ReasonKind::PeerHasNone,
            R::VersionMismatch { .. } => ReasonKind::VersionMismatch,
            R::SettingsMismatch { .. } => ReasonKind::SettingsMismatch,
            R::Unreachable(_) => ReasonKind::Unreachable,
            R::ProofTimedOut(_) => ReasonKind::ProofTimedOut,
            _ => ReasonKind::Failed,
        };
        Self { kind, text: reason.to_string() }
    }
}

/// A connection, or why there is none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Link {
    /// `ucx`, `tcp`, `unix`; nothing if it could not be opened.
    pub(crate) transport: Option<String>,
    /// UCX's lanes: `posix`, `tcp/lo`.
    pub(crate) lanes: Vec<String>,
    /// Why it does not run over UCX.
    pub(crate) fallback: Option<Reason>,
    /// Why it could not be opened.
    pub(crate) error: Option<String>,
}

impl Link {
    fn of(connection: Result<&Connection, &Error>) -> Self {
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) => return Self { error: Some(error.to_string()), ..Self::default() },
        };
        let (transport, lanes) = match connection.transport() {
            Some(Transport::Ucx(lanes)) => ("ucx", lanes.split('+').map(str::to_owned).collect()),
            Some(Transport::Tcp) => ("tcp", Vec::new()),
            Some(Transport::Unix) => ("unix", Vec::new()),
            _ => ("mem", Vec::new()),
        };
        let fallback = connection.fallback_reason().map(Reason::from);
        Self { transport: Some(transport.to_owned()), lanes, fallback, error: None }
    }

    pub(crate) fn is_ucx(&self) -> bool {
        self.transport.as_deref() == Some("ucx")
    }
}

/// Answers the doctor.
pub(crate) fn answer(peer: Option<&str>) -> Done {
    // A crash is a finding; nobody wants its core.
    let limit = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, limit);
    // First of all, while this is the only thread: loading UCX changes the environment.
    let report = ucx_report();
    let unusable = report.resources.as_ref().err().map(Reason::from);
    let facts = Facts {
        library: report.library.ok().map(library),
        unusable,
        resources: report.resources.unwrap_or_default().iter().map(ToString::to_string).collect(),
        must_agree: report.must_agree,
        loopback: loopback().unwrap_or_else(|error| Link::of(Err(&error))),
        peer: peer.map(|peer| to_peer(peer).unwrap_or_else(|error| Link::of(Err(&error)))),
    };
    let json = serde_json::to_string(&facts).map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
    let mut out = std::io::stdout();
    writeln!(out, "{json}")?;
    out.flush()?;
    Ok(())
}

fn library(library: UcxLibrary) -> Library {
    let setting = |s: ucrpc::transport::UcxSetting| Setting {
        name: s.name,
        value: s.value,
        is_default: s.is_default,
        acts: s.acts,
        why: s.why.to_owned(),
    };
    Library {
        version: library.version,
        path: library.path.display().to_string(),
        assertions: library.assertions,
        multi_threaded: library.multi_threaded,
        plugins: library.plugins,
        missing_symbols: library.missing_symbols.iter().map(|s| (*s).to_owned()).collect(),
        was_in_process: library.was_in_process,
        settings: library.settings.into_iter().map(setting).collect(),
    }
}

/// Connects one dispatcher of this process to another, by the address that a program would use.
fn loopback() -> Result<Link, Error> {
    let spawn =
        |name: &str| Dispatcher::spawn(DispatcherConfig { name: name.to_owned(), ..DispatcherConfig::default() });
    let (here, there) = (spawn("here")?, spawn("there")?);
    let mut listener = there.listen(&"auto://127.0.0.1:0".parse()?, ListenConfig::default())?;
    let connected = here.connect(listener.local_address(), config()).blocking();
    let accepted = connected.is_ok().then(|| listener.accept_blocking());
    let link = Link::of(connected.as_ref());
    drop((connected, accepted));
    here.shutdown();
    there.shutdown();
    Ok(link)
}

fn to_peer(peer: &str) -> Result<Link, Error> {
    let address: Address = peer.parse()?;
    let dispatcher = Dispatcher::spawn(DispatcherConfig::default())?;
    let connected = dispatcher.connect(&address, config()).blocking();
    let link = Link::of(connected.as_ref());
    drop(connected);
    dispatcher.shutdown();
    Ok(link)
}

fn config() -> ConnectionConfig {
    ConnectionConfig { connect_timeout: Duration::from_secs(5), ..ConnectionConfig::default() }
}
