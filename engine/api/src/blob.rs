//! Bytes in JSON.

use std::borrow::Cow;
use std::fmt;
use std::os::unix::ffi::OsStringExt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mayfly_protocol::ByteString;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes that are usually text. In JSON a plain string when they are UTF-8, and `{"base64": "..."}`
/// otherwise; both forms are taken.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blob(pub Vec<u8>);

#[derive(Serialize)]
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
        deserializer.deserialize_any(Bytes)
    }
}

/// Reads a [`Blob`] as it comes. What derives from an untagged enum would first take down whatever
/// there is, a list of a million numbers as well.
struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Blob;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or an object with the bytes as base64")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Blob, E> {
        Ok(text.into())
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Blob, E> {
        Ok(Blob(text.into_bytes()))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Blob, A::Error> {
        let Encoded { base64 } = Encoded::deserialize(MapAccessDeserializer::new(fields))?;
        STANDARD.decode(base64).map(Blob).map_err(serde::de::Error::custom)
    }
}

/// Bytes as they are: a body that is no JSON.
#[derive(Debug, Clone, Copy)]
pub struct Content;

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        serde_json::from_str::<Blob>("{}").unwrap_err();
        serde_json::from_str::<Blob>(r#"{"base64":"","base64":""}"#).unwrap_err();
        serde_json::from_str::<Blob>(r#"{"base64":"","more":""}"#).unwrap_err();
    }

    #[test]
    fn what_is_no_bytes_is_refused_where_it_begins() {
        // Broken behind that place, which is not looked at.
        for bad in ["[7,7,oops", r#"{"more":[7,oops"#] {
            let error = serde_json::from_str::<Blob>(bad).unwrap_err();
            assert!(error.is_data(), "{bad}: {error}");
        }
    }

    #[test]
    fn bytes_within_a_tagged_message_are_read_as_well() {
        for json in
            [r#"{"type":"stdout","data":"x\n"}"#, r#"{"type":"stdout","data":{"base64":"eAo="}}"#]
        {
            let message: crate::ExecMessage = serde_json::from_str(json).unwrap();
            assert_eq!(message, crate::ExecMessage::Stdout { data: "x\n".into() });
        }
    }
}
