//! Errors of the configuration.

use std::fmt;
use std::path::PathBuf;

/// Reason why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {cause}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Cause of the failure.
        cause: std::io::Error,
    },
    /// What the file says cannot be used.
    #[error("{}{}: {cause}", .path.display(), Position(cause))]
    Invalid {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with it.
        cause: InvalidConfig,
    },
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// The text is no valid TOML, or names something that does not exist.
    #[error("{message}")]
    Parse {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// Message that says what is wrong.
        message: String,
    },
    /// A value cannot be used.
    #[error("{what}")]
    Value {
        /// Message that names the value, and what would be right.
        what: String,
    },
}

/// Characters of a line that a message shows.
const SHOWN: usize = 80;

impl InvalidConfig {
    /// What a parser says of `text`, with its place.
    pub(super) fn parse(text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().map_or(0, |span| span.start);
        let before = text.get(..at).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let message: Vec<_> = error.message().lines().map(str::trim).collect();
        let line: String = text[line_start..].lines().take(1).collect();
        let shown: String = line.trim().chars().take(SHOWN).collect();
        Self::Parse {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: format!("{}, in `{}`", message.join("; "), shown.escape_debug()),
        }
    }
}

/// `:3:14`, as compilers write it.
struct Position<'a>(&'a InvalidConfig);

impl fmt::Display for Position<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            InvalidConfig::Parse { line, column, .. } => write!(f, ":{line}:{column}"),
            InvalidConfig::Value { .. } => Ok(()),
        }
    }
}
