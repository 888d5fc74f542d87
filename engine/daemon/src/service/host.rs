//! Names of hosts, as they are asked for in the `Host` header and written in the configuration.

use std::net::IpAddr;
use std::str::FromStr;

use hyper::http::uri::Authority;
use serde::{Deserialize, Serialize};

/// `NAME` or `NAME:PORT`, where a name may be an address (RFC 9110, section 7.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Host {
    /// In lower case, without the dot that ends a complete name. IPv6 addresses are in brackets.
    name: String,
    port: Option<u16>,
}

/// What names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no host: write NAME or NAME:PORT, such as build.example or build.example:7070")]
pub struct InvalidHost(String);

impl Host {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port, where there is one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The address that is written in place of a name.
    pub fn address(&self) -> Option<IpAddr> {
        let name = self.name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        name.unwrap_or(&self.name).parse().ok()
    }

    /// Whether `asked` is this host: on any port, unless this has one.
    pub fn covers(&self, asked: &Self) -> bool {
        self.name == asked.name && (self.port.is_none() || self.port == asked.port)
    }

    /// Whether a page of `other` has the origin of this, both with `default` as the port of their
    /// scheme.
    pub fn is_same(&self, other: &Self, default: u16) -> bool {
        let port = |host: &Self| host.port.unwrap_or(default);
        self.name == other.name && port(self) == port(other)
    }
}

impl FromStr for Host {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let invalid = || InvalidHost(text.escape_debug().to_string());
        let authority: Authority = text.parse().map_err(|_| invalid())?;
        // What is left out here is a user, which no `Host` has.
        let rest = text.strip_prefix(authority.host()).ok_or_else(invalid)?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port.parse().map_err(|_| invalid())?),
            None if rest.is_empty() => None,
            None => return Err(invalid()),
        };
        let host = authority.host();
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if name.is_empty() { Err(invalid()) } else { Ok(Self { name, port }) }
    }
}

impl TryFrom<String> for Host {
    type Error = InvalidHost;

    fn try_from(text: String) -> Result<Self, InvalidHost> {
        text.parse()
    }
}

impl From<Host> for String {
    fn from(host: Host) -> Self {
        match host.port {
            Some(port) => format!("{}:{port}", host.name),
            None => host.name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_with_or_without_a_port() {
        for (text, name, port) in [
            ("Build.Example", "build.example", None),
            ("build.example.:7070", "build.example", Some(7070)),
            ("192.0.2.1:1", "192.0.2.1", Some(1)),
            ("[FD00::1]", "[fd00::1]", None),
        ] {
            let host: Host = text.parse().unwrap();
            assert_eq!((host.name(), host.port()), (name, port), "{text}");
        }
        assert_eq!("[::1]:80".parse::<Host>().unwrap().address(), "::1".parse().ok());
        assert_eq!("1.example".parse::<Host>().unwrap().address(), None);
        for bad in [
            "", ".", ":80", "a:", "a:x", "a:65536", "u@a", "a@b:1", "http://a", "a/b", "a b",
            "[::1",
        ] {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
    }
}
