//! The variables by which programs find the proxy.

use super::Listeners;
use std::net::Ipv4Addr;

/// Destinations that are never asked of the proxy: the guest itself, and the networks from which
/// dockerd takes those of its containers.
pub const NO_PROXY: &str = "localhost,127.0.0.0/8,::1,172.16.0.0/12,192.168.0.0/16";

/// Returns the environment of commands while there is egress.
pub fn variables(listeners: &Listeners) -> Vec<(&'static str, String)> {
    let proxy = format!("http://{}:{}", Ipv4Addr::LOCALHOST, listeners.ports.proxy);
    let mut variables = Vec::new();
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"] {
        variables.push((name, proxy.clone()));
    }
    for name in ["NO_PROXY", "no_proxy"] {
        variables.push((name, NO_PROXY.to_owned()));
    }
    variables
}
