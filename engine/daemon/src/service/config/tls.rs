//! TLS of the TCP port.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Certificate of the TCP port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// File of the certificate and those above it, in PEM.
    pub certificate: PathBuf,
    /// File of its private key, in PEM.
    pub key: PathBuf,
}
