//! Names of golden images.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

/// A valid golden image name: 1 to 63 characters of `a-z 0-9 . _ -`, the first a letter or digit.
///
/// The rule keeps names usable as file names, host names and key prefixes (no `/`, no leading `-`
/// or `.`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GoldenName(String);

/// A name that breaks the rule of [`GoldenName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is not a golden image name: use 1 to 63 of a-z, 0-9, `.`, `_`, `-`, starting with a letter or digit",
    name.escape_debug()
)]
pub struct InvalidName {
    /// The text that was given.
    pub name: String,
}

impl GoldenName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`InvalidName`].
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
        let name = name.into();
        let bytes = name.as_bytes();
        let head = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let tail = |b: &u8| head(b) || matches!(b, b'.' | b'_' | b'-');
        if bytes.len() <= 63 && bytes.first().is_some_and(head) && bytes.iter().all(tail) {
            Ok(Self(name))
        } else {
            Err(InvalidName { name })
        }
    }
}

impl Deref for GoldenName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for GoldenName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GoldenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for GoldenName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

impl TryFrom<String> for GoldenName {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

impl From<GoldenName> for String {
    fn from(name: GoldenName) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule() {
        for good in ["a", "0", "default", "py3.12_ml-x", &"a".repeat(63)] {
            assert!(GoldenName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "-a", "_a", "A", "a/b", "a b", "ä", "a\n", "a\0", &"a".repeat(64)] {
            assert_eq!(GoldenName::new(bad).unwrap_err().name, bad);
            serde_json::from_value::<GoldenName>(bad.into()).unwrap_err();
        }
    }
}
