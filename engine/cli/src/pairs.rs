//! `NAME=VALUE` arguments.

use std::collections::BTreeMap;

use super::failure::Failure;

/// Parses the pairs of option `option`; the last one of a name counts.
///
/// # Errors
/// Names the first that is no pair, with the exit code of arguments that cannot be used.
pub fn parse(option: &str, given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Failure::arguments(format!("{option} {text}: not of the form NAME=VALUE"))),
    };
    given.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_equals_signs_and_be_empty_names_may_not() {
        let given = ["A=1=2", "B=", "A=3"].map(str::to_owned);
        let pairs = parse("--env", &given).unwrap();
        assert_eq!(
            pairs.into_iter().collect::<Vec<_>>(),
            [("A".into(), "3".into()), ("B".into(), String::new())]
        );
        for bad in ["A", "=1", ""] {
            let failure = parse("--env", &[bad.to_owned()]).unwrap_err();
            assert_eq!(failure.code, 2);
            assert!(failure.message.starts_with(&format!("--env {bad}:")), "{}", failure.message);
        }
    }
}
