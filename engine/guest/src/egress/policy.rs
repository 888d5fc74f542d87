//! Egress policy: an allowlist of hosts and ports, and limits.

use super::addresses;
use super::error::{MAX_RULES, PolicyError};
use super::host::{BadHost, Host, shorten};
use super::limits::Limits;
use super::record::Observer;
use ipnet::IpNet;
use std::sync::Arc;

/// Longest entry in bytes: a wildcard, the longest name and a port.
const MAX_RULE: usize = 264;
/// Ports of an entry that names none.
const DEFAULT_PORTS: [u16; 2] = [80, 443];

/// Policy on what a session may reach. Everything that no entry names is refused, and so is an
/// address that is not public, whatever name leads to it.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    exempt: Vec<IpNet>,
    limits: Limits,
    tenant: Option<String>,
    observer: Option<Arc<dyn Observer>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    host: Pattern,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Exactly(Host),
    /// Every name below this one, with a dot in front.
    Below(String),
}

impl Policy {
    /// Allows each of `entries`: `NAME`, `*.NAME` (all names below, not itself) or an IP address,
    /// with `:PORT` or else ports 80 and 443. Names are compared in lower case; other scripts must
    /// be given in their ASCII form (`xn--`).
    ///
    /// # Errors
    /// [`PolicyError`], naming the entry.
    pub fn allow<S: AsRef<str>>(entries: impl IntoIterator<Item = S>) -> Result<Self, PolicyError> {
        let rules = entries
            .into_iter()
            .map(|entry| Rule::parse(entry.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        if rules.len() > MAX_RULES {
            return Err(PolicyError::TooMany { count: rules.len() });
        }
        Ok(Self {
            rules,
            exempt: Vec::new(),
            limits: Limits::default(),
            tenant: None,
            observer: None,
        })
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

    /// Returns whether an entry names this host and port.
    pub fn allows(&self, host: &Host, port: u16) -> bool {
        self.rules.iter().any(|rule| rule.host.matches(host) && rule.allows_port(port))
    }

    /// Returns whether an entry names this host, with whatever port.
    pub fn allows_host(&self, host: &Host) -> bool {
        self.rules.iter().any(|rule| rule.host.matches(host))
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

impl Rule {
    fn parse(entry: &str) -> Result<Self, PolicyError> {
        let bad = |_: BadHost| PolicyError::Entry { entry: shorten(entry) };
        if entry.len() > MAX_RULE {
            return Err(PolicyError::Entry { entry: shorten(entry) });
        }
        let below = entry.strip_prefix("*.");
        let (host, port) = Host::parse_with_port(below.unwrap_or(entry)).map_err(bad)?;
        let host = match (below, host) {
            (None, host) => Pattern::Exactly(host),
            (Some(_), Host::Name(name)) => Pattern::Below(format!(".{name}")),
            (Some(_), Host::Address(_)) => {
                return Err(PolicyError::Entry { entry: shorten(entry) });
            }
        };
        Ok(Self { host, port })
    }

    fn allows_port(&self, port: u16) -> bool {
        self.port.map_or(DEFAULT_PORTS.contains(&port), |own| own == port)
    }
}

impl Pattern {
    fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Exactly(own), host) => own == host,
            (Self::Below(suffix), Host::Name(name)) => {
                name.len() > suffix.len() && name.ends_with(suffix.as_str())
            }
            (Self::Below(_), Host::Address(_)) => false,
        }
    }
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
    fn entries_that_mean_nothing_are_named() {
        for bad in [
            "",
            "*",
            "*.",
            "a:0",
            "a:99999",
            "*.1.2.3.4",
            "http://a",
            "a/b",
            "a b",
            "*a.b",
            "a.*.b",
            "10.0.0.0/8",
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
