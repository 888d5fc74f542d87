//! `mayfly token`: tokens for clients over TCP, and their hashes for the configuration.

use std::io::{Read, Write};
use std::process::ExitCode;

use mayfly_api::TenantName;
use mayfly_daemon::service::config::TenantConfig;
use rand::TryRng;
use rand::rngs::SysRng;

use super::args::{Cli, TokenArgs};
use super::failure::Failure;

/// Longest token, in bytes.
const LONGEST: usize = 4096;

pub fn run(cli: &Cli, args: &TokenArgs) -> Result<ExitCode, Failure> {
    let made = match (args.hash, args.e2b) {
        (true, _) => None,
        (false, true) => Some(mayfly_e2b::new_key()?),
        (false, false) => Some(new_token()?),
    };
    let token = match &made {
        Some(token) => token.clone(),
        None => given(std::io::stdin().lock())?,
    };
    let hash = TenantConfig::new(TenantName::local(), &token).token_blake3.to_hex();
    let mut out = std::io::stdout().lock();
    if cli.json {
        let line = serde_json::json!({ "token": made, "token_blake3": hash.as_str() });
        writeln!(out, "{line}")?;
    } else {
        if let Some(token) = made {
            writeln!(out, "{token}")?;
        }
        writeln!(out, "token_blake3 = \"{hash}\"")?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// 256 random bits, with a word by which people and scanners know what it is.
fn new_token() -> Result<String, Failure> {
    let mut bytes = [0_u8; 32];
    SysRng.try_fill_bytes(&mut bytes).map_err(Failure::new)?;
    Ok(bytes.iter().fold("mayfly_".to_owned(), |token, byte| format!("{token}{byte:02x}")))
}

/// Reads a token, without the line's end behind it.
fn given(from: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    from.take(LONGEST as u64 + 1).read_to_string(&mut text)?;
    let token = text.strip_suffix('\n').unwrap_or(&text);
    let token = token.strip_suffix('\r').unwrap_or(token);
    let is_token =
        (1..=LONGEST).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
    if is_token {
        return Ok(token.to_owned());
    }
    Err(Failure::new(format!(
        "standard input has no token: one line of 1 to {LONGEST} printable ASCII characters without spaces"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_line_without_its_end() {
        for text in ["abc", "abc\n", "abc\r\n"] {
            assert_eq!(given(text.as_bytes()).unwrap(), "abc");
        }
        for bad in ["", "\n", "a b", "a\nb", "\u{e9}", &"x".repeat(5000)] {
            given(bad.as_bytes()).unwrap_err();
        }
        assert_ne!(new_token().unwrap(), new_token().unwrap());
    }
}
