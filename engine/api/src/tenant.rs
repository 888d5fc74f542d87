//! Tenants: on whose behalf a request is made.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Header with which a request over the Unix socket speaks for another tenant than `default`.
pub const TENANT_HEADER: &str = "mayfly-tenant";
/// Longest name of a tenant, in bytes.
const MAX_LEN: usize = 64;

/// Name of a tenant: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantName(String);

/// A name that breaks the rule of [`TenantName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a tenant name: use 1 to 64 of A-Z, a-z, 0-9, `.`, `_`, `-`", .0.escape_debug())]
pub struct InvalidTenant(String);

impl TenantName {
    /// Name of the tenant whose requests come over the Unix socket.
    pub const LOCAL: &'static str = "default";

    /// Checks `name`.
    ///
    /// # Errors
    /// [`InvalidTenant`].
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidTenant> {
        let name = name.into();
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if (1..=MAX_LEN).contains(&name.len()) && name.bytes().all(valid) {
            Ok(Self(name))
        } else {
            Err(InvalidTenant(name.chars().take(MAX_LEN).collect()))
        }
    }

    /// Returns the tenant of requests that come over the Unix socket.
    pub fn local() -> Self {
        Self(Self::LOCAL.to_owned())
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TenantName {
    type Error = InvalidTenant;

    fn try_from(name: String) -> Result<Self, InvalidTenant> {
        Self::new(name)
    }
}

impl From<TenantName> for String {
    fn from(name: TenantName) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule() {
        for good in ["default", "CI-7", "a.b_c", &"x".repeat(64)] {
            assert!(TenantName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "ü", "a\n", &"x".repeat(65)] {
            assert!(TenantName::new(bad).is_err(), "{bad}");
        }
        assert_eq!(TenantName::new(TenantName::LOCAL), Ok(TenantName::local()));
    }
}
