//! Which dispatchers channels and servers use.

use std::sync::OnceLock;

use ucrpc_transport::{
    Address, Connecting, ConnectionConfig, Dispatcher, DispatcherConfig, Dispatchers, ListenConfig, Listener,
    Placement, Result,
};

/// Where connections live: one dispatcher, a set of them, or the process's own.
#[derive(Debug, Clone)]
pub struct Place(Inner);

#[derive(Debug, Clone)]
enum Inner {
    One(Dispatcher),
    Set(Dispatchers),
}

impl Place {
    /// The dispatchers that are shared by all channels and servers of this process which name none: as many as there are
    /// cores, at most 4, started when they are first asked for.
    ///
    /// # Errors
    ///
    /// Of the operating system, the first time and ever after.
    pub fn process() -> Result<Self> {
        static SHARED: OnceLock<Result<Dispatchers>> = OnceLock::new();
        let spawn = || Dispatchers::spawn(0, &DispatcherConfig::default(), Placement::RoundRobin);
        SHARED.get_or_init(spawn).clone().map(|set| Self(Inner::Set(set)))
    }

    pub(crate) fn connect(&self, address: &Address, config: ConnectionConfig) -> Connecting {
        match &self.0 {
            Inner::One(dispatcher) => dispatcher.connect(address, config),
            Inner::Set(set) => set.connect(address, config),
        }
    }

    pub(crate) fn listen(&self, address: &Address, config: ListenConfig) -> Result<Listener> {
        match &self.0 {
            Inner::One(dispatcher) => dispatcher.listen(address, config),
            Inner::Set(set) => set.listen(address, config),
        }
    }

    /// The dispatcher for what is not bound to a connection: timers, accepting.
    pub(crate) fn home(&self) -> &Dispatcher {
        match &self.0 {
            Inner::One(dispatcher) => dispatcher,
            Inner::Set(set) => &set.all()[0],
        }
    }

    /// Whether this thread runs one of the dispatchers.
    pub(crate) fn is_current(&self) -> bool {
        match &self.0 {
            Inner::One(dispatcher) => dispatcher.is_current(),
            Inner::Set(set) => set.all().iter().any(Dispatcher::is_current),
        }
    }
}

/// What an address can be given as.
pub trait IntoAddress {
    /// The address, with `UCRPC_TRANSPORT` applied to `auto://` ones.
    ///
    /// # Errors
    ///
    /// If it cannot be parsed.
    fn into_address(self) -> Result<Address>;
}

impl IntoAddress for Address {
    fn into_address(self) -> Result<Address> {
        self.with_override()
    }
}

impl IntoAddress for &Address {
    fn into_address(self) -> Result<Address> {
        self.clone().with_override()
    }
}

impl IntoAddress for &str {
    fn into_address(self) -> Result<Address> {
        self.parse::<Address>()?.with_override()
    }
}

impl IntoAddress for &String {
    fn into_address(self) -> Result<Address> {
        self.as_str().into_address()
    }
}

impl IntoAddress for String {
    fn into_address(self) -> Result<Address> {
        self.as_str().into_address()
    }
}

impl From<Dispatcher> for Place {
    fn from(dispatcher: Dispatcher) -> Self {
        Self(Inner::One(dispatcher))
    }
}

impl From<&Dispatcher> for Place {
    fn from(dispatcher: &Dispatcher) -> Self {
        dispatcher.clone().into()
    }
}

impl From<Dispatchers> for Place {
    fn from(set: Dispatchers) -> Self {
        Self(Inner::Set(set))
    }
}
