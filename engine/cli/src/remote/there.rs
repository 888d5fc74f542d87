//! The daemon of a command that can be told which: this host's, or one over TCP with a token.

use std::path::Path;

use mayfly_client::{Client, ClientError, Endpoint};
use mayfly_host::layout::Layout;

use crate::args::Elsewhere;
use crate::failure::{EXIT_OURS, Failure};

/// Where the token for a daemon over TCP is.
pub const TOKEN: &str = "MAYFLY_TOKEN";

/// A daemon, and how it is reached.
#[derive(Debug)]
pub struct There {
    pub endpoint: Endpoint,
    /// Only for a daemon over TCP.
    pub token: Option<String>,
    pub client: Client,
}

impl There {
    /// The daemon that the arguments name.
    ///
    /// # Errors
    /// When there is no such file, or what is to be the token cannot be one.
    pub fn of(elsewhere: &Elsewhere) -> Result<Self, Failure> {
        let endpoint = elsewhere
            .daemon
            .clone()
            .unwrap_or_else(|| Endpoint::Unix(Layout::from_env().api_socket()));
        let token = match &endpoint {
            Endpoint::Unix(_) => None,
            Endpoint::Tcp(_) => token(elsewhere.token_file.as_deref())?,
        };
        let client = Client::new(endpoint.clone(), token.as_deref()).map_err(Failure::ours)?;
        Ok(Self { endpoint, token, client })
    }
}

/// The failure of a first request, which may lack a token.
pub fn without_token(error: &ClientError, token: Option<&str>) -> Failure {
    match (error.code(), token) {
        (Some("unauthorized"), None) => {
            Failure::ours(format!("{error}; set {TOKEN}, or name a file with --token-file"))
        }
        _ => Failure::ours(error),
    }
}

fn token(file: Option<&Path>) -> Result<Option<String>, Failure> {
    let text = match file {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            Failure::ours(format!("cannot read the token in {}: {error}", path.display()))
        })?,
        None => match std::env::var(TOKEN) {
            Ok(text) => text,
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(error) => {
                return Err(Failure { message: format!("{TOKEN}: {error}"), code: EXIT_OURS });
            }
        },
    };
    Ok(Some(text.trim().to_owned()))
}
