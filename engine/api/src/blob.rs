//! Bytes in JSON.

use std::borrow::Cow;
use std::os::unix::ffi::OsStringExt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mayfly_protocol::ByteString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes that are usually text. In JSON a plain string when they are UTF-8, and `{"base64": "..."}`
/// otherwise; both forms are taken.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blob(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form<'a> {
    Text(Cow<'a, str>),
    Encoded(Encoded),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Encoded {
    base64: String,
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => Form::Text(text.into()),
            Err(_) => Form::Encoded(Encoded { base64: STANDARD.encode(&self.0) }),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Text(text) => Ok(Self(text.into_owned().into_bytes())),
            Form::Encoded(encoded) => {
                STANDARD.decode(encoded.base64).map(Self).map_err(serde::de::Error::custom)
            }
        }
    }
}

/// Bytes as they are: a body that is no JSON.
#[derive(Debug, Clone, Copy)]
pub struct Content;

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl Blob {
    /// Returns the bytes as text; what is not UTF-8 becomes U+FFFD.
    pub fn to_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// Creates a blob from whatever Linux takes for arguments and paths.
    pub fn new(value: impl Into<ByteString>) -> Self {
        Self(value.into().into_os_string().into_vec())
    }
}

impl From<ByteString> for Blob {
    fn from(value: ByteString) -> Self {
        Self::new(value)
    }
}

impl From<&str> for Blob {
    fn from(value: &str) -> Self {
        Self(value.as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for Blob {
    fn from(value: Vec<u8>) -> Self {
        Self(value)
    }
}

impl From<Blob> for ByteString {
    fn from(blob: Blob) -> Self {
        blob.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_and_other_bytes_come_back_whole() {
        for (bytes, json) in
            [(&b"h\xc3\xa9"[..], r#""hé""#), (b"\xff\x00", r#"{"base64":"/wA="}"#), (b"", r#""""#)]
        {
            let blob = Blob(bytes.to_vec());
            assert_eq!(serde_json::to_string(&blob).unwrap(), json);
            assert_eq!(serde_json::from_str::<Blob>(json).unwrap(), blob);
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        serde_json::from_str::<Blob>(r#"{"base64":"?"}"#).unwrap_err();
        serde_json::from_str::<Blob>("7").unwrap_err();
    }
}
