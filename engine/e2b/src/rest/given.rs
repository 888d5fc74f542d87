//! Whether a client has given a field that is only looked at to be refused. Its value takes no
//! memory, whatever its size.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Whether a field has a value that is neither null nor an empty list or object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Given(bool);

impl Given {
    pub fn is_something(self) -> bool {
        self.0
    }
}

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Given;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Given, E> {
        Ok(Given(false))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Given, E> {
        Ok(Given(true))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Given, E> {
        Ok(Given(true))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Given, E> {
        Ok(Given(true))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Given, E> {
        Ok(Given(true))
    }

    fn visit_str<E>(self, _: &str) -> Result<Given, E> {
        Ok(Given(true))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Given, A::Error> {
        let mut given = false;
        while items.next_element::<IgnoredAny>()?.is_some() {
            given = true;
        }
        Ok(Given(given))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Given, A::Error> {
        let mut given = false;
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            given = true;
        }
        Ok(Given(given))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_what_is_empty_are_nothing() {
        let given = |text: &str| serde_json::from_str::<Given>(text).unwrap().is_something();
        for nothing in ["null", "[]", "{}"] {
            assert!(!given(nothing), "{nothing}");
        }
        for something in ["false", "0", "-1", "1.5", "\"\"", "[null]", "{\"a\": [1, {}]}"] {
            assert!(given(something), "{something}");
        }
        serde_json::from_str::<Given>("[1").unwrap_err();
    }
}
