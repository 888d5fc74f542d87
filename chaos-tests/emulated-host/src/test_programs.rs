//! Finds the test programs of the workspace, which Cargo gives names that nobody can guess.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::{Error, IoContext as _};
use crate::progress;

/// Builds the programs of these test targets that are not yet built, and returns each with its
/// name.
///
/// # Errors
/// Cargo fails, or there is no such target.
pub fn build(
    checkout: &Path,
    target_dir: &Path,
    names: &[&str],
) -> Result<Vec<(String, PathBuf)>, Error> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    progress::say("building the test programs");
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(checkout)
        .env("CARGO_TARGET_DIR", target_dir)
        .stderr(Stdio::inherit())
        .stdin(Stdio::null());
    // As the launcher builds, so that nothing is built twice.
    cargo.args([
        "test",
        "--quiet",
        "--release",
        "--workspace",
        "--locked",
        "--no-run",
        "--message-format=json",
    ]);
    let output = cargo.output().context("start", "cargo".as_ref())?;
    if !output.status.success() {
        return Err(Error::Tests { detail: "cargo could not build them".to_owned() });
    }
    let built = executables(&String::from_utf8_lossy(&output.stdout));
    let find = |name: &&str| match built.get(*name) {
        Some(path) => Ok(((*name).to_owned(), path.clone())),
        None => Err(Error::Tests { detail: format!("the workspace has no test target {name:?}") }),
    };
    names.iter().map(find).collect()
}

/// The test executables in Cargo's messages, by the name of their target.
fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let tests = messages.filter(|message| message["profile"]["test"] == true);
    tests
        .filter_map(|message| {
            let (name, path) =
                (message["target"]["name"].as_str()?, message["executable"].as_str()?);
            Some((name.to_owned(), PathBuf::from(path)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_other_artifacts() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"mayfly"},"profile":{"test":false},"executable":"/t/mayfly"}
{"reason":"compiler-artifact","target":{"name":"sessions"},"profile":{"test":true},"executable":"/t/deps/sessions-1"}
{"reason":"compiler-artifact","target":{"name":"serde"},"profile":{"test":false},"executable":null}
not JSON
{"reason":"build-finished","success":true}"#;
        let found = executables(messages);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("sessions".to_owned(), "/t/deps/sessions-1".into())]
        );
    }
}
