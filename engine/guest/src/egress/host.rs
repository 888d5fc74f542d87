//! Names and addresses as guests and policies write them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// RFC 1035, section 2.3.4, without the root's dot.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Destination of a connection, before anything is looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A DNS name: lower case, no dot at its end, labels of `a-z 0-9 _ -`.
    Name(String),
    /// An address. An IPv4 address in IPv6's clothes (`::ffff:0:0/96`) is the IPv4 address.
    Address(IpAddr),
}

/// Error of a text that is neither a name nor an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a DNS name nor an IP address")]
pub struct BadHost(String);

impl Host {
    /// Parses a name, an IPv4 address in its usual form, or an IPv6 address with or without
    /// brackets.
    ///
    /// # Errors
    /// [`BadHost`]. Other forms of IPv4 addresses, such as `127.1` and `0x7f000001`, are refused:
    /// name look-ups would take them for addresses.
    pub fn parse(text: &str) -> Result<Self, BadHost> {
        let bad = || BadHost(shorten(text));
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or_else(bad)?;
            return Ok(Self::Address(
                IpAddr::V6(inner.parse::<Ipv6Addr>().map_err(|_| bad())?).to_canonical(),
            ));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_label = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        let last = name.rsplit('.').next().unwrap_or_default();
        if name.len() > MAX_NAME || !name.split('.').all(is_label) || is_number(last) {
            return Err(bad());
        }
        Ok(Self::Name(name))
    }

    /// Splits `HOST:PORT`; without a port, it is absent.
    ///
    /// # Errors
    /// [`BadHost`], also for port 0.
    pub fn parse_with_port(text: &str) -> Result<(Self, Option<u16>), BadHost> {
        if text.parse::<Ipv6Addr>().is_ok() {
            return Ok((Self::parse(text)?, None));
        }
        let end_of_host = text.rfind(']').unwrap_or(0);
        match text[end_of_host..].rfind(':').map(|at| at + end_of_host) {
            None => Ok((Self::parse(text)?, None)),
            Some(at) => {
                let port = &text[at + 1..];
                // `+80` would be a number to Rust.
                let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
                let port = port.parse().ok().filter(|port| *port != 0 && digits);
                Ok((Self::parse(&text[..at])?, Some(port.ok_or_else(|| BadHost(shorten(text)))?)))
            }
        }
    }
}

/// Whether inet_aton(3) may take a name that ends with this label for an address.
fn is_number(label: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    digits(label)
        || label
            .strip_prefix("0x")
            .is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Text of a guest for people: escaped, and cut at a length that any name has room in.
pub(super) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_NAME + 2).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_NAME + 2).is_some() {
        short.push_str("...");
    }
    short
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_host_has_one_form() {
        let name = |text: &str| Host::Name(text.into());
        assert_eq!(Host::parse("PyPI.org.").unwrap(), name("pypi.org"));
        assert_eq!(Host::parse("xn--mnchen-3ya.de").unwrap(), name("xn--mnchen-3ya.de"));
        assert_eq!(Host::parse("_a.b-c").unwrap(), name("_a.b-c"));
        for mapped in ["::ffff:127.0.0.1", "[::ffff:7f00:1]", "127.0.0.1"] {
            assert_eq!(
                Host::parse(mapped).unwrap(),
                Host::Address("127.0.0.1".parse().unwrap()),
                "{mapped}"
            );
        }
        assert_eq!(Host::parse_with_port("a.b:80").unwrap(), (name("a.b"), Some(80)));
        assert_eq!(Host::parse_with_port("a.b").unwrap(), (name("a.b"), None));
        let v6 = Host::Address("2001:db8::1".parse().unwrap());
        assert_eq!(Host::parse_with_port("[2001:db8::1]:443").unwrap(), (v6.clone(), Some(443)));
        assert_eq!(Host::parse_with_port("[2001:db8::1]").unwrap(), (v6.clone(), None));
        assert_eq!(Host::parse_with_port("2001:db8::1").unwrap(), (v6, None));
    }

    #[test]
    fn what_a_look_up_would_take_for_an_address_is_no_name() {
        for bad in [
            "",
            ".",
            "a..b",
            ".a",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "a.1",
            "a.0x",
            "1.2.3.4.5",
            "a b",
            "a/b",
            "a@b",
            "münchen.de",
            "a\0b",
            "[127.0.0.1]",
            "[::1",
            "::1%lo",
            "fe80::1%1",
            "a:b",
            "*",
            "*.a",
        ] {
            assert!(Host::parse(bad).is_err(), "{bad:?} {:?}", Host::parse(bad));
        }
        Host::parse(&"a".repeat(64)).unwrap_err();
        Host::parse(&["a"; 128].join(".")).unwrap_err();
        for bad in ["a:", "a:0", "a:65536", "a:+80", "a:-1", "a:8 0", ":80", "[::1]80", "u@a:80"] {
            assert!(
                Host::parse_with_port(bad).is_err(),
                "{bad:?} {:?}",
                Host::parse_with_port(bad)
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_stable(text in "\\PC{0,40}") {
            if let Ok(host) = Host::parse(&text) {
                prop_assert_eq!(Host::parse(&host.to_string()).unwrap(), host);
            }
            if let Ok((host, Some(port))) = Host::parse_with_port(&text) {
                prop_assert_eq!(Host::parse_with_port(&format!("{host}:{port}")).unwrap(), (host, Some(port)));
            }
            prop_assert!(shorten(&text).is_ascii() || !shorten(&text).contains(char::is_control));
        }
    }
}
