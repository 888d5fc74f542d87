//! `mayfly docker`: this host's docker client against the Docker daemon of a session.
//!
//! The client sends the headers of its configuration to every daemon that it is pointed to, and the
//! logins in it to daemons that build. So it gets a folder of its own, which has the token for the
//! one daemon it is for, and nothing of the person's. The folder is removed with the client.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mayfly_client::Endpoint;
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use super::there::{TOKEN, There, without_token};
use crate::args;
use crate::failure::Failure;
use crate::host_command;
use crate::interrupt::Interrupts;

/// Variables that lead docker or its plugins to another daemon, or add what they send to it; and
/// ours, which is not for them.
const REMOVED: [&str; 9] = [
    "DOCKER_CONTEXT",
    "DOCKER_TLS",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "DOCKER_CUSTOM_HEADERS",
    "DOCKER_AUTH_CONFIG",
    "BUILDX_BUILDER",
    "BUILDX_CONFIG",
    TOKEN,
];

pub async fn run(args: &args::DockerArgs) -> Result<ExitCode, Failure> {
    if let Some(option) = elsewhere(&args.arguments) {
        return Err(Failure::ours(format!(
            "{option} would lead docker to another daemon, with what is meant for this one; leave it out, or run docker \
             itself"
        )));
    }
    let mut interrupts = Interrupts::install().map_err(Failure::ours)?;
    let There { endpoint, token, client } = There::of(&args.elsewhere)?;
    let session =
        client.session(&args.id).await.map_err(|error| without_token(&error, token.as_deref()))?;
    let host = match &endpoint {
        Endpoint::Unix(_) => format!("unix://{}", session.docker_socket.display()),
        Endpoint::Tcp(address) => format!("tcp://{address}/v1/sessions/{}/docker", session.id),
    };
    let config = configuration(token.as_deref(), plugins()).map_err(|error| {
        Failure::ours(format!("cannot make a folder for docker's configuration: {error}"))
    })?;
    let mut command = Command::new("docker");
    for name in REMOVED {
        command.env_remove(name);
    }
    // Not through a proxy, which would read the token. Plugins keep it for what else they reach.
    if let Endpoint::Tcp(address) = &endpoint {
        for name in ["NO_PROXY", "no_proxy"] {
            let others = std::env::var(name).unwrap_or_default();
            command.env(name, without_proxy(&others, address));
        }
    }
    command.args(&args.arguments).env("DOCKER_HOST", host).env("DOCKER_CONFIG", config.path());
    // The client hears of the end of the session by itself.
    let over = std::future::pending();
    host_command::attend(command, over, &mut interrupts, "docker was killed").await
}

/// A list of hosts without a proxy, and the host of `address` (`HOST:PORT`) among them.
fn without_proxy(others: &str, address: &str) -> String {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if others.is_empty() { host.to_owned() } else { format!("{others},{host}") }
}

/// A folder for `DOCKER_CONFIG` that only its owner may enter.
fn configuration(token: Option<&str>, plugins: Option<PathBuf>) -> std::io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("mayfly-docker-").permissions(Permissions::from_mode(0o700));
    // In memory, and gone with the login, where the host has that.
    let folder = match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_dir()) {
        Some(dir) => builder.tempdir_in(dir)?,
        None => builder.tempdir()?,
    };
    let mut config = serde_json::Map::new();
    if let Some(token) = token {
        let headers = json!({ "Authorization": format!("Bearer {token}") });
        config.insert("HttpHeaders".into(), headers);
    }
    if let Some(plugins) = plugins {
        config.insert("cliPluginsExtraDirs".into(), json!([plugins]));
    }
    let path = folder.path().join("config.json");
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(serde_json::Value::from(config).to_string().as_bytes())?;
    Ok(folder)
}

/// Where the person has plugins of docker, such as compose.
fn plugins() -> Option<PathBuf> {
    let own = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let folder = own.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    Some(folder.join("cli-plugins")).filter(|folder| folder.is_dir())
}

/// The option among those before docker's command that names another daemon or configuration.
fn elsewhere(arguments: &[String]) -> Option<&str> {
    let mut arguments = arguments.iter().map(String::as_str);
    while let Some(argument) = arguments.next() {
        if let Some(long) = argument.strip_prefix("--") {
            let name = long.split('=').next().unwrap_or(long);
            if ["host", "context", "config"].contains(&name) || name.starts_with("tls") {
                return Some(argument);
            }
            if long == "log-level" {
                arguments.next();
            }
        } else if let Some(letters) = argument.strip_prefix('-') {
            // Those before a letter that takes a value, which is the rest, or the next argument.
            let (flags, value) = match letters.split_once('l') {
                Some((flags, value)) => (flags, Some(value)),
                None => (letters, None),
            };
            if flags.contains(['H', 'c']) {
                return Some(argument);
            }
            if value == Some("") {
                arguments.next();
            }
        } else {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_is_reached_without_a_proxy() {
        assert_eq!(without_proxy("", "build.example:7070"), "build.example");
        assert_eq!(
            without_proxy("a.example,10.0.0.0/8", "[fd00::1]:80"),
            "a.example,10.0.0.0/8,fd00::1"
        );
    }

    fn refused(line: &str) -> bool {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        elsewhere(&arguments).is_some()
    }

    #[test]
    fn docker_is_not_led_elsewhere() {
        for line in [
            "-H tcp://other ps",
            "-Htcp://other ps",
            "-DH tcp://other ps",
            "--host=tcp://other ps",
            "--host tcp://other ps",
            "-c other ps",
            "--context other ps",
            "-l debug --config /root/.docker ps",
            "--log-level debug --tlsverify ps",
        ] {
            assert!(refused(line), "{line}");
        }
        for line in ["ps", "run -h name -c 5 busybox", "-D ps --host x", "-lcritical ps -H", "-v"] {
            assert!(!refused(line), "{line}");
        }
    }

    #[test]
    fn only_its_owner_reads_the_configuration_and_it_goes() {
        let folder = configuration(Some("secret"), Some("/plugins".into())).unwrap();
        let path = folder.path().join("config.json");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(folder.path()), mode(&path)), (0o700, 0o600));
        let config: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(config["HttpHeaders"], json!({ "Authorization": "Bearer secret" }));
        assert_eq!(config["cliPluginsExtraDirs"], json!(["/plugins"]));
        drop(folder);
        assert!(!path.exists());
        let folder = configuration(None, None).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("config.json")).unwrap(), "{}");
    }
}
