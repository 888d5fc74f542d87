//! What a sandbox may reach, and who may reach it, in E2B's words.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use ipnet::IpNet;
use mayfly_api::{EgressPolicy, bounded};
use mayfly_daemon::http::error::ApiError;
use mayfly_daemon::service::held::Full;
use serde::{Deserialize, Deserializer, Serialize};

use super::given::Given;
use super::{Body, Own, RestError};
use crate::sandboxes::Sandboxes;

/// Most entries of a list, and the longest of them in bytes.
const MOST_ENTRIES: usize = 256;
const LONGEST_ENTRY: usize = 264;
/// Longest name in place of the host, in bytes.
const LONGEST_HOST: usize = 255;
/// Every public address.
const ALL: &str = "*";

/// What a client sends.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NetworkBody {
    #[serde(default, deserialize_with = "entries")]
    allow_out: Vec<String>,
    #[serde(default, deserialize_with = "entries")]
    deny_out: Vec<String>,
    allow_public_traffic: Option<bool>,
    mask_request_host: Option<String>,
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    #[serde(default)]
    rules: Given,
    #[serde(default)]
    egress_proxy: Given,
    #[serde(default)]
    dns_servers: Given,
}

/// A list, or null.
struct Entries(Vec<String>);

fn entries<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Entries>::deserialize(from)?.map_or_else(Vec::new, |entries| entries.0))
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        bounded::list(from, "network.allowOut or network.denyOut", MOST_ENTRIES).map(Self)
    }
}

/// What a client has asked for, and is told again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Network {
    pub allow_out: Vec<String>,
    pub deny_out: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_request_host: Option<String>,
    /// Told elsewhere.
    #[serde(skip)]
    pub allow_internet: Option<bool>,
}

impl Network {
    /// # Errors
    /// 400 for what cannot be, 501 for what is not here.
    pub fn new(body: NetworkBody) -> Result<Self, RestError> {
        for (name, value) in [
            ("rules", body.rules),
            ("egressProxy", body.egress_proxy),
            ("dnsServers", body.dns_servers),
        ] {
            if value.is_something() {
                let message = format!("not implemented by Mayfly: network.{name}");
                return Err(RestError::new(StatusCode::NOT_IMPLEMENTED, message));
            }
        }
        let mut lists = body.allow_out.iter().chain(&body.deny_out);
        if let Some(entry) = lists.find(|entry| entry.len() > LONGEST_ENTRY) {
            let start: String = entry.chars().take(32).collect();
            return Err(RestError::bad_request(format!(
                "network: the entry that begins with `{}` has more than {LONGEST_ENTRY} bytes",
                start.escape_debug()
            )));
        }
        if let Some(host) = &body.mask_request_host
            && (host.len() > LONGEST_HOST || HeaderValue::from_str(host).is_err())
        {
            return Err(RestError::bad_request("network.maskRequestHost is no name of a host"));
        }
        Ok(Self {
            allow_out: body.allow_out,
            deny_out: body.deny_out,
            allow_public_traffic: body.allow_public_traffic,
            mask_request_host: body.mask_request_host,
            allow_internet: body.allow_internet_access,
        })
    }

    /// Returns whether whoever knows the sandbox's id may talk to its ports.
    pub fn is_public(&self) -> bool {
        self.allow_public_traffic != Some(false)
    }

    /// Returns how many bytes it takes in memory beside its own size.
    pub fn held_bytes(&self) -> usize {
        let texts = self.allow_out.iter().chain(&self.deny_out).chain(&self.mask_request_host);
        texts.map(|text| size_of::<String>() + text.len().max(16)).sum()
    }

    /// Returns the policy for what it says. Who denies nothing may reach all that is public, if the
    /// daemon lets sessions out at all (`enabled`); what is allowed wins over what is denied.
    pub fn policy(&self, enabled: bool) -> EgressPolicy {
        let denies_all =
            self.allow_internet == Some(false) || self.deny_out.iter().any(|entry| is_all(entry));
        let allows_all = self.allow_out.iter().any(|entry| is_all(entry));
        let is_open = allows_all || !denies_all;
        if is_open && !enabled {
            // Whoever asks for nothing gets a sandbox all the same.
            return EgressPolicy::default();
        }
        let entries = |list: &[String]| -> Vec<String> {
            list.iter().filter(|entry| !is_all(entry)).map(|entry| of_entry(entry)).collect()
        };
        let mut allow = entries(&self.allow_out);
        let deny = if is_open && !allows_all { entries(&self.deny_out) } else { Vec::new() };
        if is_open {
            allow.insert(0, ALL.to_owned());
        }
        EgressPolicy { allow, deny, ..EgressPolicy::default() }
    }
}

/// Whether an entry names every address.
fn is_all(entry: &str) -> bool {
    entry == "*" || entry.parse().is_ok_and(|network: IpNet| network.prefix_len() == 0)
}

/// An entry as the policy has it: an address or a network is meant with all its ports.
fn of_entry(entry: &str) -> String {
    if let Ok(network) = entry.parse::<IpNet>() {
        let is_one = network.prefix_len() == network.max_prefix_len();
        return if is_one { format!("{}:*", network.addr()) } else { format!("{network}:*") };
    }
    match entry.parse::<IpAddr>() {
        Ok(address) => format!("{address}:*"),
        Err(_) => entry.to_owned(),
    }
}

/// `PUT /sandboxes/ID/network`: replaces all that a sandbox may reach.
pub(crate) async fn replace(
    State(sandboxes): State<Arc<Sandboxes>>,
    Own(sandbox): Own,
    Body(body, _held): Body<NetworkBody>,
) -> Result<StatusCode, RestError> {
    let network = Network::new(body)?;
    let policy = network.policy(sandboxes.service.config().egress.enabled);
    let asked = (!policy.allow.is_empty()).then_some(&policy);
    let session = &sandbox.session;
    let held = session.account().take(network.held_bytes()).ok_or(Full).map_err(super::too_much)?;
    let set = sandboxes.service.set_egress(session.tenant(), session.id(), asked).await;
    set.map_err(ApiError::from)?;
    sandbox.replace_network(network, held);
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        Network::new(serde_json::from_str(text).unwrap()).unwrap()
    }

    #[test]
    fn what_is_allowed_is_what_the_policy_allows() {
        for (text, allow, deny) in [
            ("{}", vec!["*"], vec![]),
            (r#"{"allow_internet_access": true}"#, vec!["*"], vec![]),
            (r#"{"allow_internet_access": false}"#, vec![], vec![]),
            (r#"{"denyOut": ["0.0.0.0/0"]}"#, vec![], vec![]),
            (r#"{"denyOut": ["::/0"], "allowOut": null}"#, vec![], vec![]),
            (
                r#"{"denyOut": ["0.0.0.0/0"], "allowOut": ["pypi.org", "*.github.com", "8.8.8.8/32"]}"#,
                vec!["pypi.org", "*.github.com", "8.8.8.8:*"],
                vec![],
            ),
            (
                r#"{"denyOut": ["10.0.0.0/8", "x.org"], "allowOut": ["10.1.0.0/16"]}"#,
                vec!["*", "10.1.0.0/16:*"],
                vec!["10.0.0.0/8:*", "x.org"],
            ),
            (r#"{"denyOut": ["10.0.0.0/8"], "allowOut": ["0.0.0.0/0"]}"#, vec!["*"], vec![]),
        ] {
            let policy = network(text).policy(true);
            assert_eq!((policy.allow, policy.deny), (owned(&allow), owned(&deny)), "{text}");
        }
        // A daemon that lets nobody out has sandboxes all the same.
        assert_eq!(network("{}").policy(false), EgressPolicy::default());
        // But says so to whoever needs a host.
        let needs = network(r#"{"denyOut": ["0.0.0.0/0"], "allowOut": ["pypi.org"]}"#);
        assert_eq!(needs.policy(false).allow, ["pypi.org"]);
    }

    fn owned(entries: &[&str]) -> Vec<String> {
        entries.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_not_here_is_refused_and_what_is_empty_is_not() {
        for text in [
            r#"{"rules": {"a": [{}]}}"#,
            r#"{"egressProxy": {"url": "x"}}"#,
            r#"{"dnsServers": ["1.1.1.1"]}"#,
            r#"{"maskRequestHost": "a\nb"}"#,
        ] {
            Network::new(serde_json::from_str(text).unwrap()).unwrap_err();
        }
        let empty = network(r#"{"rules": {}, "egressProxy": null, "dnsServers": []}"#);
        assert_eq!(empty, Network::default());
    }
}
