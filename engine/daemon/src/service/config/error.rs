//! Errors of the configuration.

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
    #[error("the configuration {path} is not valid: {cause}")]
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
    #[error("{0}")]
    Parse(toml::de::Error),
    /// A value cannot be used.
    #[error("{what}")]
    Value {
        /// Message that names the value, and what would be right.
        what: String,
    },
}

impl From<toml::de::Error> for InvalidConfig {
    fn from(cause: toml::de::Error) -> Self {
        Self::Parse(cause)
    }
}
