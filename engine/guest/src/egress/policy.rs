//! Egress policy: the hosts and ports that a session may reach, what is taken back from `*`, and
//! limits.

use super::addresses;
use super::error::{MAX_RULES, PolicyError};
use super::host::{BadHost, Host, shorten};
use super::limits::Limits;
use super::record::Observer;
use ipnet::{IpNet, Ipv6Net};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// Longest entry in bytes: a wildcard, the longest name and a port.
const MAX_RULE: usize = 264;
/// Ports of an entry that names none.
const DEFAULT_PORTS: [u16; 2] = [80, 443];
/// IPv4 addresses in IPv6's clothes (RFC 4291, section 2.5.5.2), which are compared as IPv4.
const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// Policy on what a session may reach. Everything that no entry names is refused, and so is an
/// address that is not public, whatever name leads to it.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    denied: Vec<Rule>,
    exempt: Vec<IpNet>,
    limits: Limits,
    tenant: Option<String>,
    observer: Option<Arc<dyn Observer>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    host: Pattern,
    ports: Ports,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    /// Every name, and every address.
    Any,
    Exactly(Host),
    /// Every name below this one, with a dot in front.
    Below(String),
    /// Every address of a network.
    Within(IpNet),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ports {
    /// Those of HTTP, [`DEFAULT_PORTS`].
    Web,
    One(u16),
    All,
}

impl Policy {
    /// Allows each of `entries`: `NAME`, `*.NAME` (all names below, not itself), an IP address or a
    /// network (`ADDRESS/PREFIX`, the addresses as they are given, not names that lead there), with
    /// `:PORT`, `:*` for every port, or else ports 80 and 443; or `*`, which is every name and
    /// address on every port, `*:PORT` on one. Names are compared in lower case; other scripts must
    /// be given in their ASCII form (`xn--`).
    ///
    /// # Errors
    /// [`PolicyError`], naming the entry.
    pub fn allow<S: AsRef<str>>(entries: impl IntoIterator<Item = S>) -> Result<Self, PolicyError> {
        Ok(Self {
            rules: parse_all(entries, Ports::Web, |entry| PolicyError::Entry { entry })?,
            denied: Vec::new(),
            exempt: Vec::new(),
            limits: Limits::default(),
            tenant: None,
            observer: None,
        })
    }

    /// Takes `entries` back from what `*` allows: names as in [`Policy::allow`], and addresses and
    /// networks, also where a name leads to them; on every port unless one is named. What an entry
    /// other than `*` allows stays allowed.
    ///
    /// # Errors
    /// [`PolicyError`], naming the entry; [`PolicyError::NothingToDeny`] when there is no `*`.
    pub fn deny<S: AsRef<str>>(
        mut self,
        entries: impl IntoIterator<Item = S>,
    ) -> Result<Self, PolicyError> {
        self.denied = parse_all(entries, Ports::All, |entry| PolicyError::Deny { entry })?;
        if !self.denied.is_empty() && !self.rules.iter().any(Rule::is_any) {
            return Err(PolicyError::NothingToDeny);
        }
        Ok(self)
    }

    /// Sets its limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Lets connections go to addresses in these networks although they are private, reserved or
    /// the host's own.
    ///
    /// # Errors
    /// [`PolicyError::Exempt`] for loopback, link-local, multicast and unspecified ones, and for
    /// metadata services of clouds, which are never reached.
    pub fn with_exempt(
        mut self,
        networks: impl IntoIterator<Item = IpNet>,
    ) -> Result<Self, PolicyError> {
        for network in networks {
            addresses::check_exempt(&network)?;
            self.exempt.push(network);
        }
        Ok(self)
    }

    /// Names the tenant in the egress log.
    #[must_use]
    pub fn with_tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// Tells `observer` of each line of the egress log.
    #[must_use]
    pub fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Returns whether the policy allows this host and port, as far as that can be told without
    /// looking the name up.
    pub fn allows(&self, host: &Host, port: u16) -> bool {
        let denied = || self.denied.iter().any(|rule| rule.names(host, port));
        self.names(host, port) || self.rules.iter().any(|rule| rule.is_any_at(port)) && !denied()
    }

    /// Returns whether the policy allows this host, with whatever port.
    pub fn allows_host(&self, host: &Host) -> bool {
        let denied =
            || self.denied.iter().any(|rule| rule.ports == Ports::All && rule.host.matches(host));
        let named = |rule: &Rule| !rule.is_any() && rule.host.matches(host);
        self.rules.iter().any(named) || self.rules.iter().any(Rule::is_any) && !denied()
    }

    /// Returns whether a connection to `host`, which is allowed, may go to this one of its
    /// addresses; without a port, whether it may to any.
    pub(super) fn allows_address(&self, host: &Host, port: Option<u16>, address: IpAddr) -> bool {
        let is_named = match port {
            Some(port) => self.names(host, port),
            None => self.rules.iter().any(|rule| !rule.is_any() && rule.host.matches(host)),
        };
        let is_denied = |rule: &Rule| {
            let here = port.map_or(rule.ports == Ports::All, |port| rule.ports.have(port));
            here && addresses::forms(address).any(|form| rule.host.matches(&Host::Address(form)))
        };
        is_named || !self.denied.iter().any(is_denied)
    }

    /// Whether an entry other than `*` names this host and port.
    fn names(&self, host: &Host, port: u16) -> bool {
        self.rules.iter().any(|rule| !rule.is_any() && rule.names(host, port))
    }

    /// Returns the limits of the policy.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn exempt(&self) -> &[IpNet] {
        &self.exempt
    }

    pub(super) fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    pub(super) fn observer(&self) -> Option<&Arc<dyn Observer>> {
        self.observer.as_ref()
    }
}

fn parse_all<S: AsRef<str>>(
    entries: impl IntoIterator<Item = S>,
    ports: Ports,
    bad: impl Fn(String) -> PolicyError,
) -> Result<Vec<Rule>, PolicyError> {
    let parse = |entry: S| {
        Rule::parse(entry.as_ref(), ports).map_err(|BadEntry| bad(shorten(entry.as_ref())))
    };
    let rules = entries.into_iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    if rules.len() > MAX_RULES {
        return Err(PolicyError::TooMany { count: rules.len() });
    }
    Ok(rules)
}

struct BadEntry;

impl From<BadHost> for BadEntry {
    fn from(_: BadHost) -> Self {
        Self
    }
}

impl Rule {
    /// Reads an entry, which is for `ports` when it names none.
    fn parse(entry: &str, ports: Ports) -> Result<Self, BadEntry> {
        if entry.len() > MAX_RULE {
            return Err(BadEntry);
        }
        if entry == "*" {
            return Ok(Self { host: Pattern::Any, ports: Ports::All });
        }
        let (host, every_port) = match entry.strip_suffix(":*") {
            Some(host) => (host, true),
            None => (entry, false),
        };
        let (host, port) = if host.contains('/') {
            let (network, port) = network(host)?;
            (Pattern::Within(network), port)
        } else if let Some(port) = host.strip_prefix("*:") {
            (Pattern::Any, Some(parse_port(port)?))
        } else {
            let below = host.strip_prefix("*.");
            let (host, port) = Host::parse_with_port(below.unwrap_or(host))?;
            let host = match (below, host) {
                (None, host) => Pattern::Exactly(host),
                (Some(_), Host::Name(name)) => Pattern::Below(format!(".{name}")),
                (Some(_), Host::Address(_)) => return Err(BadEntry),
            };
            (host, port)
        };
        let ports = match (every_port, port) {
            (true, None) => Ports::All,
            (false, Some(port)) => Ports::One(port),
            (false, None) => ports,
            (true, Some(_)) => return Err(BadEntry),
        };
        Ok(Self { host, ports })
    }

    fn names(&self, host: &Host, port: u16) -> bool {
        self.host.matches(host) && self.ports.have(port)
    }

    fn is_any(&self) -> bool {
        self.host == Pattern::Any
    }

    fn is_any_at(&self, port: u16) -> bool {
        self.is_any() && self.ports.have(port)
    }
}

impl Ports {
    fn have(self, port: u16) -> bool {
        match self {
            Self::Web => DEFAULT_PORTS.contains(&port),
            Self::One(own) => own == port,
            Self::All => true,
        }
    }
}

impl Pattern {
    fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Any, _) => true,
            (Self::Exactly(own), host) => own == host,
            (Self::Below(suffix), Host::Name(name)) => {
                name.len() > suffix.len() && name.ends_with(suffix.as_str())
            }
            (Self::Within(network), Host::Address(address)) => network.contains(address),
            (Self::Below(_), Host::Address(_)) | (Self::Within(_), Host::Name(_)) => false,
        }
    }
}

/// Reads `ADDRESS/PREFIX`, with `:PORT` or without; an IPv6 network with a port is in brackets.
fn network(text: &str) -> Result<(IpNet, Option<u16>), BadEntry> {
    let (network, port) = if let Some(rest) = text.strip_prefix('[') {
        rest.split_once(']').ok_or(BadEntry)?
    } else {
        let slash = text.find('/').ok_or(BadEntry)?;
        text.split_at(text[slash..].find(':').map_or(text.len(), |at| slash + at))
    };
    let port = match port.strip_prefix(':') {
        Some(port) => Some(parse_port(port)?),
        None if port.is_empty() => None,
        None => return Err(BadEntry),
    };
    let network: IpNet = network.parse().map_err(|_| BadEntry)?;
    if matches!(network, IpNet::V6(network) if MAPPED.contains(&network)) {
        return Err(BadEntry);
    }
    Ok((network.trunc(), port))
}

fn parse_port(text: &str) -> Result<u16, BadEntry> {
    // `+80` would be a number to Rust.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| *port != 0 && digits).ok_or(BadEntry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn allows(policy: &Policy, host: &str, port: u16) -> bool {
        policy.allows(&Host::parse(host).unwrap(), port)
    }

    #[test]
    fn only_what_is_named_is_allowed() {
        let policy = Policy::allow([
            "PyPI.org.",
            "*.debian.org:80",
            "h:8443",
            "192.0.2.7:5000",
            "[2001:db8::1]",
        ])
        .unwrap();
        for (host, port) in [
            ("pypi.org", 80),
            ("pypi.org", 443),
            ("deb.debian.org", 80),
            ("a.b.debian.org", 80),
            ("h", 8443),
            ("192.0.2.7", 5000),
            ("::ffff:192.0.2.7", 5000),
            ("2001:db8::1", 443),
        ] {
            assert!(allows(&policy, host, port), "{host}:{port}");
        }
        for (host, port) in [
            ("pypi.org", 22),
            ("files.pypi.org", 443),
            ("evilpypi.org", 443),
            ("debian.org", 80),
            ("evildebian.org", 80),
            ("deb.debian.org", 443),
            ("deb.debian.org.evil", 80),
            ("h", 443),
            ("192.0.2.7", 80),
            ("192.0.2.8", 5000),
            ("2001:db8::2", 443),
        ] {
            assert!(!allows(&policy, host, port), "{host}:{port}");
        }
        assert!(
            policy.allows_host(&Host::parse("h").unwrap())
                && !policy.allows_host(&Host::parse("i").unwrap())
        );
        assert!(!allows(&Policy::allow([""; 0]).unwrap(), "pypi.org", 443));
    }

    #[test]
    fn a_star_is_everything_and_deny_takes_from_it_alone() {
        let policy = Policy::allow(["*", "good.evil.test", "192.0.2.7:443"]).unwrap();
        for (host, port) in [("a.test", 22), ("8.8.8.8", 53), ("2001:db8::1", 1)] {
            assert!(allows(&policy, host, port), "{host}:{port}");
        }
        let denied = ["*.evil.test", "192.0.2.0/24", "bad.test:25", "[2001:db8::/32]:80"];
        let policy = policy.deny(denied).unwrap();
        for (host, port, allowed) in [
            ("a.test", 22, true),
            ("x.evil.test", 443, false),
            ("good.evil.test", 443, true),
            ("good.evil.test", 22, false),
            ("192.0.2.7", 443, true),
            ("192.0.2.7", 80, false),
            ("::ffff:192.0.2.8", 80, false),
            ("192.0.3.1", 80, true),
            ("bad.test", 25, false),
            ("bad.test", 443, true),
            ("2001:db8::9", 80, false),
            ("2001:db8::9", 443, true),
        ] {
            assert_eq!(allows(&policy, host, port), allowed, "{host}:{port}");
        }
        let host = |host: &str| Host::parse(host).unwrap();
        assert!(!policy.allows_host(&host("x.evil.test")) && policy.allows_host(&host("bad.test")));
        assert!(policy.allows_host(&host("good.evil.test")));
        // Whatever name leads there, and in whatever clothes.
        for (name, port, address, allowed) in [
            ("a.test", Some(443), "192.0.2.9", false),
            ("a.test", None, "192.0.2.9", false),
            ("a.test", Some(443), "64:ff9b::c000:209", false),
            ("good.evil.test", Some(443), "192.0.2.9", true),
            ("good.evil.test", Some(22), "192.0.2.9", false),
            ("a.test", Some(443), "2001:db8::1", true),
            ("a.test", Some(80), "2001:db8::1", false),
            ("a.test", None, "2001:db8::1", true),
        ] {
            let address = address.parse().unwrap();
            let got = policy.allows_address(&host(name), port, address);
            assert_eq!(got, allowed, "{name} {port:?} {address}");
        }
        let one_port = Policy::allow(["*:443"]).unwrap();
        assert!(allows(&one_port, "a", 443) && !allows(&one_port, "a", 80));
        assert!(matches!(
            Policy::allow(["a"]).unwrap().deny(["b"]),
            Err(PolicyError::NothingToDeny)
        ));
        Policy::allow(["a"]).unwrap().deny([""; 0]).unwrap();
        let error = Policy::allow(["*"]).unwrap().deny(["b c"]).unwrap_err();
        assert!(error.to_string().contains("b c"), "{error}");
    }

    #[test]
    fn networks_and_all_ports_are_entries() {
        let policy =
            Policy::allow(["192.0.2.9/24:*", "a.test:*", "[2001:db8::/32]:7", "10.0.0.0/8"])
                .unwrap();
        for (host, port, allowed) in [
            ("192.0.2.200", 9, true),
            ("192.0.3.1", 9, false),
            ("a.test", 9, true),
            ("2001:db8::5", 7, true),
            ("2001:db8::5", 8, false),
            ("10.1.1.1", 443, true),
            ("10.1.1.1", 22, false),
            ("b.test", 443, false),
        ] {
            assert_eq!(allows(&policy, host, port), allowed, "{host}:{port}");
        }
    }

    #[test]
    fn entries_that_mean_nothing_are_named() {
        for bad in [
            "",
            "**",
            "*:",
            "*:0",
            "*:+1",
            "*/8",
            "a:1:*",
            "*.",
            "a:0",
            "a:99999",
            "*.1.2.3.4",
            "http://a",
            "a/b",
            "a b",
            "*a.b",
            "a.*.b",
            "10.0.0.0/33",
            "10.0.0.0/8:0",
            "[::/0]x",
            "[::/0",
            "::ffff:10.0.0.0/104",
        ] {
            let error = Policy::allow([bad]).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
        assert!(Policy::allow([&"a".repeat(10_000)]).unwrap_err().to_string().len() < 500);
        assert!(matches!(Policy::allow(vec!["a"; 257]), Err(PolicyError::TooMany { count: 257 })));
    }

    proptest! {
        #[test]
        fn a_wildcard_allows_names_below_only(name in "[a-z]{1,5}(\\.[a-z]{1,5}){0,3}", base in "[a-z]{1,3}\\.[a-z]{2}") {
            let policy = Policy::allow([format!("*.{base}")]).unwrap();
            let below = name.ends_with(&format!(".{base}"));
            prop_assert_eq!(allows(&policy, &name, 443), below);
            let joined = format!("{name}.{base}");
            prop_assert!(allows(&policy, &joined, 443));
        }
    }
}
