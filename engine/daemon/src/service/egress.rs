//! Egress configuration of the daemon, and the policy of one request under it.

use ipnet::IpNet;
use mayfly_api::EgressPolicy;
use mayfly_guest::egress::{Limits, Policy, check_exempt};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// Egress of all sessions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EgressConfig {
    /// Whether requests may ask for egress at all.
    pub enabled: bool,
    /// Most connections of one session at a time, and what it gets when its request says nothing.
    pub max_connections: usize,
    /// Most connections of one session to the outside in all.
    pub total_connections: u64,
    /// Most bytes of one session in all, both directions together, and what it gets when its
    /// request says nothing.
    pub max_bytes: u64,
    /// Networks that may be reached although they are private or reserved, such as that of a
    /// package mirror.
    #[serde(deserialize_with = "networks")]
    pub exempt_networks: Vec<IpNet>,
}

/// Networks, whose own error does not say which one is wrong.
fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    let network = |text: &String| {
        let parsed = text.parse();
        parsed.map_err(|_| D::Error::custom(format!("`{text}` is no network, such as 10.0.0.0/8")))
    };
    texts.iter().map(network).collect()
}

impl Default for EgressConfig {
    fn default() -> Self {
        let Limits { max_connections, total_connections, max_bytes } = Limits::default();
        Self {
            enabled: false,
            max_connections,
            total_connections,
            max_bytes,
            exempt_networks: Vec::new(),
        }
    }
}

impl EgressConfig {
    /// Checks what the types alone cannot. The error names the first value that cannot be used.
    pub(super) fn check(&self) -> Result<(), String> {
        let most = Limits::MAX_CONNECTIONS;
        if !(1..=most).contains(&self.max_connections) {
            return Err(format!(
                "egress.max_connections must be 1 to {most}, not {}",
                self.max_connections
            ));
        }
        self.exempt_networks
            .iter()
            .try_for_each(check_exempt)
            .map_err(|error| format!("egress.exempt_networks: {error}"))
    }

    /// What a session gets; `None` when it asks for nothing. The error is for whoever asked.
    pub(super) fn grant(&self, asked: &EgressPolicy) -> Result<Option<Granted>, String> {
        let granted = self.policy(asked)?.map(|policy| {
            let Limits { max_connections, max_bytes, .. } = *policy.limits();
            let shown = EgressPolicy {
                max_connections: Some(max_connections),
                max_bytes: Some(max_bytes),
                ..asked.clone()
            };
            Granted { shown, policy }
        });
        Ok(granted)
    }

    /// The policy of a session; `None` when it asks for nothing. The error is for whoever asked.
    pub(super) fn policy(&self, asked: &EgressPolicy) -> Result<Option<Policy>, String> {
        if asked.allow.is_empty() {
            if asked.max_connections.is_some()
                || asked.max_bytes.is_some()
                || !asked.deny.is_empty()
            {
                return Err("egress has limits or denies hosts but allows nothing: name hosts in egress.allow, or `*`"
                    .to_owned());
            }
            return Ok(None);
        }
        if !self.enabled {
            return Err(
                "egress is off on this daemon: set `enabled = true` below `[egress]` in its configuration, or \
                        leave egress.allow empty"
                    .to_owned(),
            );
        }
        let connections = asked.max_connections.unwrap_or(self.max_connections);
        if !(1..=self.max_connections).contains(&connections) {
            return Err(format!(
                "egress.max_connections must be 1 to {}, not {connections}",
                self.max_connections
            ));
        }
        let max_bytes = asked.max_bytes.unwrap_or(self.max_bytes);
        if max_bytes > self.max_bytes {
            return Err(format!(
                "egress.max_bytes must be at most {}, not {max_bytes}",
                self.max_bytes
            ));
        }
        let limits = Limits {
            max_connections: connections,
            total_connections: self.total_connections,
            max_bytes,
        };
        let policy =
            Policy::allow(&asked.allow).map_err(|error| format!("egress.allow: {error}"))?;
        let policy = policy.deny(&asked.deny).map_err(|error| format!("egress.deny: {error}"))?;
        let policy = policy
            .with_exempt(self.exempt_networks.iter().copied())
            .map_err(|error| error.to_string())?;
        Ok(Some(policy.with_limits(limits)))
    }
}

/// What a session may reach.
#[derive(Debug, Clone)]
pub(super) struct Granted {
    /// As its owner has asked for it, with the limits that it has.
    pub shown: EgressPolicy,
    pub policy: Policy,
}

/// Bytes that an entry takes beside its text, here and as a rule of the policy.
const PER_ENTRY: usize = 192;

impl Granted {
    /// Bytes of what is kept for its owner as long as the session has it.
    pub fn kept_bytes(&self) -> usize {
        let entries = self.shown.allow.iter().chain(&self.shown.deny);
        entries.map(|entry| 2 * entry.len() + PER_ENTRY).sum()
    }
}

/// Returns the policy of a session without a daemon, whose user is the operator.
///
/// # Errors
/// Says which entry of the policy cannot be.
pub fn without_daemon(asked: &EgressPolicy) -> Result<Option<Policy>, String> {
    EgressConfig { enabled: true, ..EgressConfig::default() }.policy(asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_guest::egress::Host;

    fn asked(allow: &[&str]) -> EgressPolicy {
        EgressPolicy {
            allow: allow.iter().map(|&entry| entry.to_owned()).collect(),
            ..EgressPolicy::default()
        }
    }

    #[test]
    fn it_is_off_unless_the_operator_turns_it_on() {
        let off = EgressConfig::default();
        assert!(off.policy(&asked(&[])).unwrap().is_none());
        assert!(off.policy(&asked(&["a"])).unwrap_err().contains("egress is off"));
        let on = EgressConfig { enabled: true, ..off };
        let policy = on.policy(&asked(&["a"])).unwrap().unwrap();
        assert!(policy.allows(&Host::parse("a").unwrap(), 443));
    }

    #[test]
    fn a_request_cannot_exceed_the_operators_ceilings() {
        let on = EgressConfig {
            enabled: true,
            max_connections: 5,
            max_bytes: 100,
            ..EgressConfig::default()
        };
        let limited = |max_connections, max_bytes| EgressPolicy {
            max_connections,
            max_bytes,
            ..asked(&["a"])
        };
        for (request, word) in [
            (limited(Some(6), None), "max_connections"),
            (limited(Some(0), None), "max_connections"),
            (limited(None, Some(101)), "max_bytes"),
            (EgressPolicy { max_bytes: Some(1), ..asked(&[]) }, "allows nothing"),
            (asked(&["a:b"]), "a:b"),
            (EgressPolicy { deny: vec!["b".into()], ..asked(&["a"]) }, "egress.deny"),
            (EgressPolicy { deny: vec!["b".into()], ..asked(&[]) }, "allows nothing"),
        ] {
            let error = on.policy(&request).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        let policy = on.policy(&limited(Some(2), None)).unwrap().unwrap();
        assert_eq!((policy.limits().max_connections, policy.limits().max_bytes), (2, 100));
        let all = EgressPolicy { deny: vec!["192.0.2.0/24".into()], ..asked(&["*"]) };
        let granted = on.grant(&all).unwrap().unwrap();
        assert_eq!((granted.shown.max_connections, granted.shown.max_bytes), (Some(5), Some(100)));
        assert!(granted.policy.allows(&Host::parse("192.0.3.1").unwrap(), 22));
        assert!(!granted.policy.allows(&Host::parse("192.0.2.1").unwrap(), 22));
    }

    #[test]
    fn a_configuration_that_opens_what_must_stay_closed_is_refused() {
        for bad in ["127.0.0.0/8", "169.254.169.254/32", "fe80::/64"] {
            let config = EgressConfig {
                exempt_networks: vec![bad.parse().unwrap()],
                ..EgressConfig::default()
            };
            assert!(config.check().unwrap_err().contains(bad));
        }
        assert!(EgressConfig { max_connections: 0, ..EgressConfig::default() }.check().is_err());
        EgressConfig {
            exempt_networks: vec!["10.0.0.0/8".parse().unwrap()],
            ..EgressConfig::default()
        }
        .check()
        .unwrap();
    }
}
