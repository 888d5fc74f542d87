//! Lists and maps of requests, read up to a bound: of one that is longer, no more than that is ever
//! made.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Reads a list of at most `most` entries. The error calls it `what`.
///
/// # Errors
/// When it has more, or is none.
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    what: &'static str,
    most: usize,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(List(Bound { what, most }, PhantomData))
}

/// Reads a map of at most `most` entries, those that a later one replaces among them. The error
/// calls it `what`.
///
/// # Errors
/// When it has more, or is none.
pub fn map<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    what: &'static str,
    most: usize,
) -> Result<BTreeMap<String, T>, D::Error> {
    deserializer.deserialize_map(Map(Bound { what, most }, PhantomData))
}

#[derive(Clone, Copy)]
struct Bound {
    what: &'static str,
    most: usize,
}

impl Bound {
    fn check<E: Error>(self, entries: usize) -> Result<(), E> {
        if entries <= self.most {
            return Ok(());
        }
        Err(E::custom(format_args!(
            "{} has more than {} entries, the most that are possible: send fewer",
            self.what, self.most
        )))
    }
}

struct List<T>(Bound, PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list for {} of at most {} entries", self.0.what, self.0.most)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element()? {
            self.0.check(list.len() + 1)?;
            list.push(entry);
        }
        Ok(list)
    }
}

struct Map<T>(Bound, PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Map<T> {
    type Value = BTreeMap<String, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a map for {} of at most {} entries", self.0.what, self.0.most)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let (mut map, mut read) = (BTreeMap::new(), 0);
        while let Some((name, value)) = entries.next_entry()? {
            read += 1;
            self.0.check(read)?;
            map.insert(name, value);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static MADE: Cell<usize> = const { Cell::new(0) };
    }

    /// An entry that counts how many of it were made.
    #[derive(Debug)]
    struct Entry;

    impl<'de> Deserialize<'de> for Entry {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            MADE.set(MADE.get() + 1);
            u8::deserialize(deserializer).map(|_| Self)
        }
    }

    #[test]
    fn no_more_is_made_than_there_may_be() {
        let read_list =
            |text: &str| list::<_, Entry>(&mut serde_json::Deserializer::from_str(text), "argv", 3);
        let read_map =
            |text: &str| map::<_, Entry>(&mut serde_json::Deserializer::from_str(text), "env", 3);
        assert_eq!(read_list("[1,2,3]").unwrap().len(), 3);
        assert_eq!(read_map(r#"{"a":1,"b":2,"a":3}"#).unwrap().len(), 2);

        MADE.set(0);
        let many = format!("[{}1]", "1,".repeat(100_000));
        let error = read_list(&many).unwrap_err().to_string();
        assert!(error.contains("argv has more than 3 entries"), "{error}");
        let many = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(100_000));
        let error = read_map(&many).unwrap_err().to_string();
        assert!(error.contains("env has more than 3 entries"), "{error}");
        assert_eq!(MADE.get(), 8);

        let error = read_list("7").unwrap_err().to_string();
        assert!(error.contains("a list for argv"), "{error}");
    }
}
