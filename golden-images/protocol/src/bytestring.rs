//! Byte strings: what Linux takes for arguments, environment and paths.

use crate::Printable;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// A string of bytes without any promise of UTF-8, so that no file name or argument is lost on the
/// way.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ByteString(#[serde(with = "serde_bytes")] Vec<u8>);

impl ByteString {
    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the same bytes as an `OsStr`.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// Returns the same bytes as a path.
    pub fn as_path(&self) -> &Path {
        Path::new(self.as_os_str())
    }

    /// Returns the same bytes as an owned `OsString`.
    pub fn into_os_string(self) -> OsString {
        OsString::from_vec(self.0)
    }

    /// Returns whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(&String::from_utf8_lossy(&self.0)).fmt(f)
    }
}

macro_rules! from {
    ($($source:ty => |$value:ident| $bytes:expr),* $(,)?) => {
        $(impl From<$source> for ByteString {
            fn from($value: $source) -> Self {
                Self($bytes)
            }
        })*
    };
}

from! {
    &str => |value| value.as_bytes().to_vec(),
    &&str => |value| value.as_bytes().to_vec(),
    String => |value| value.into_bytes(),
    &String => |value| value.as_bytes().to_vec(),
    Vec<u8> => |value| value,
    &[u8] => |value| value.to_vec(),
    &OsStr => |value| value.as_bytes().to_vec(),
    OsString => |value| value.into_vec(),
    &OsString => |value| value.as_bytes().to_vec(),
    &Path => |value| value.as_os_str().as_bytes().to_vec(),
    &std::path::PathBuf => |value| value.as_os_str().as_bytes().to_vec(),
    std::path::PathBuf => |value| value.into_os_string().into_vec(),
}
