//! Addresses: the scheme chooses the transport.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use crate::{Error, ErrorKind};

/// A host name or IP address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// The TCP port. 0 lets the system choose when listening.
    pub port: u16,
}

impl HostPort {
    /// The socket address, if the host is a literal IP address: no name service is asked.
    pub fn literal(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.host.parse().ok()?, self.port))
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

/// Where to listen or whom to call, and over which transport.
///
/// ```
/// use ucrpc_transport::Address;
/// let address: Address = "node7:8000".parse()?;
/// assert_eq!(address.to_string(), "auto://node7:8000");
/// assert!("ucx://[::1]:8000".parse::<Address>().is_ok());
/// assert!("http://node7:8000".parse::<Address>().is_err());
/// # Ok::<(), ucrpc_transport::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// `auto://host:port` or `host:port`: UCX if both sides can, else TCP on the same socket with a reason.
    Auto(HostPort),
    /// `ucx://host:port`: UCX, or an error that says why not.
    Ucx(HostPort),
    /// `tcp://host:port`: plain TCP, never UCX.
    Tcp(HostPort),
    /// `ucx+cm://host:port`: UCX's own connection manager, compatible with Curve's brpc.
    ///
    /// This wire has no goodbye and no credit. An end is [`ErrorKind::Reset`] unless the peer is ucrpc too, because UCX
    /// does not tell a close from a crash. Connections stay with the dispatcher that listens. UCX needs
    /// `tcp` among its transports (`UCX_TLS`) for it.
    UcxCm(HostPort),
    /// `unix:///path`: a Unix stream socket.
    Unix(PathBuf),
    /// `mem://name`: inside this process.
    Mem(String),
}

/// Longest Unix socket path, bytes: `sun_path` less its final zero.
const MAX_UNIX_PATH: usize = 107;

impl Address {
    /// The scheme, without `://`.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Auto(_) => "auto",
            Self::Ucx(_) => "ucx",
            Self::Tcp(_) => "tcp",
            Self::UcxCm(_) => "ucx+cm",
            Self::Unix(_) => "unix",
            Self::Mem(_) => "mem",
        }
    }

    /// Host and port of the schemes that have them.
    pub fn host_port(&self) -> Option<&HostPort> {
        match self {
            Self::Auto(hp) | Self::Ucx(hp) | Self::Tcp(hp) | Self::UcxCm(hp) => Some(hp),
            Self::Unix(_) | Self::Mem(_) => None,
        }
    }

    /// The same address with another port, for printing what the system chose.
    #[must_use]
    pub fn with_socket_addr(&self, bound: SocketAddr) -> Self {
        let hp = HostPort::from(bound);
        match self {
            Self::Auto(_) => Self::Auto(hp),
            Self::Ucx(_) => Self::Ucx(hp),
            Self::Tcp(_) => Self::Tcp(hp),
            Self::UcxCm(_) => Self::UcxCm(hp),
            Self::Unix(_) | Self::Mem(_) => self.clone(),
        }
    }

    /// Applies `UCRPC_TRANSPORT` (`tcp`, `ucx` or `auto`) to an `auto://` address; others are returned as they are.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the variable holds anything else: a misspelt override must not pass silently.
    pub fn with_override(self) -> Result<Self, Error> {
        let Self::Auto(hp) = self else { return Ok(self) };
        match std::env::var("UCRPC_TRANSPORT").as_deref() {
            Ok("tcp") => Ok(Self::Tcp(hp)),
            Ok("ucx") => Ok(Self::Ucx(hp)),
            Ok("auto" | "") | Err(std::env::VarError::NotPresent) => Ok(Self::Auto(hp)),
            other => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "UCRPC_TRANSPORT must be tcp, ucx or auto, not {:?}",
                    other.unwrap_or("bytes that are not UTF-8")
                ),
            )),
        }
    }
}

fn host_port(text: &str) -> Result<HostPort, Error> {
    let bad = |why: &str| Error::new(ErrorKind::Invalid, format!("{why} in address {text:?}: write host:port"));
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once("]:").ok_or_else(|| bad("no port after the IPv6 address"))?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| bad("a bad IPv6 address"))?;
            (host, port)
        }
        None => {
            let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("no port"))?;
            if host.contains(':') {
                return Err(bad("an IPv6 address without brackets"));
            }
            (host, port)
        }
    };
    if host.is_empty() || host.len() > 253 || host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
        return Err(bad("a bad host"));
    }
    let port = port.parse().map_err(|_| bad("a bad port"))?;
    Ok(HostPort { host: host.to_owned(), port })
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Auto(host_port(text)?));
        };
        match scheme {
            "auto" => Ok(Self::Auto(host_port(rest)?)),
            "ucx" => Ok(Self::Ucx(host_port(rest)?)),
            "tcp" => Ok(Self::Tcp(host_port(rest)?)),
            "ucx+cm" => Ok(Self::UcxCm(host_port(rest)?)),
            "unix" if rest.is_empty() || rest.len() > MAX_UNIX_PATH || rest.contains('\0') => Err(Error::new(
                ErrorKind::Invalid,
                format!("a Unix socket path has 1 to {MAX_UNIX_PATH} bytes, {text:?} does not"),
            )),
            "unix" => Ok(Self::Unix(rest.into())),
            "mem" if rest.is_empty() => Err(Error::new(ErrorKind::Invalid, "mem:// needs a name")),
            "mem" => Ok(Self::Mem(rest.to_owned())),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!("unknown scheme {scheme:?} in {text:?}: use auto, ucx, tcp, ucx+cm, unix or mem"),
            )),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme())?;
        match self {
            Self::Auto(hp) | Self::Ucx(hp) | Self::Tcp(hp) | Self::UcxCm(hp) => hp.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
            Self::Mem(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_round_trips() {
        for text in [
            "auto://a:1",
            "ucx://10.0.0.1:65535",
            "tcp://[::1]:80",
            "ucx+cm://[fe80::1]:9",
            "unix:///tmp/x.sock",
            "mem://a b",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
        }
        assert_eq!("h:7".parse::<Address>().unwrap().to_string(), "auto://h:7");
    }

    #[test]
    fn bad_addresses_say_what_is_wrong() {
        for (text, part) in [
            ("h", "no port"),
            ("tcp://h:70000", "bad port"),
            ("tcp://::1:80", "without brackets"),
            ("tcp://[::1]", "no port after"),
            ("tcp://[nope]:1", "bad IPv6"),
            ("tcp://:1", "bad host"),
            ("tcp://a b:1", "bad host"),
            ("http://h:1", "unknown scheme"),
            ("unix://", "path"),
            ("mem://", "name"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.text().contains(part), "{text}: {error}");
        }
        let long = format!("unix:///{}", "x".repeat(107));
        assert!(long.parse::<Address>().is_err());
    }
}
