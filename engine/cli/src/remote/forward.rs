//! `mayfly forward`: TCP ports of a session, on this host.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use mayfly_client::Client;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::there::{There, without_token};
use crate::args::{self, Cli};
use crate::failure::{EXIT_INTERRUPTED, Failure};
use crate::interrupt::Interrupts;

/// Most connections at a time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 128;
/// How often the daemon is asked whether the session still lives.
const LOOK: Duration = Duration::from_secs(2);
/// Pause after a failed accept(2), which out of descriptors fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port of a session and where it is on this host: `[ADDR:][LOCAL:]PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarded {
    /// Port 0 is a free one.
    local: SocketAddr,
    port: u16,
}

impl FromStr for Forwarded {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "`{text}` is no port to forward: write PORT, LOCAL:PORT or ADDR:LOCAL:PORT, such as 8080:80"
            )
        };
        let (rest, port) = match text.rsplit_once(':') {
            Some((rest, port)) => (Some(rest), port),
            None => (None, text),
        };
        let port = number(port).filter(|port| *port != 0).ok_or_else(bad)?;
        let (address, local) = match rest {
            None => (None, port),
            Some(rest) => match (rest.rsplit_once(':'), number(rest)) {
                (_, Some(local)) => (None, local),
                // An address alone has colons only inside of brackets.
                (Some((address, local)), None) if !rest.ends_with(']') => {
                    (Some(address), number(local).ok_or_else(bad)?)
                }
                _ => (Some(rest), port),
            },
        };
        let address = match address {
            None | Some("localhost") => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            Some(address) => match address.strip_prefix('[') {
                Some(inner) => inner.strip_suffix(']').and_then(|inner| inner.parse().ok()),
                None => address.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            },
        };
        Ok(Self { local: SocketAddr::new(address.ok_or_else(bad)?, local), port })
    }
}

/// A port in decimal digits; `+80` would be a number to Rust.
fn number(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

pub async fn run(cli: &Cli, args: &args::ForwardArgs) -> Result<ExitCode, Failure> {
    let mut interrupts = Interrupts::install().map_err(Failure::ours)?;
    let There { client, token, .. } = There::of(&args.elsewhere)?;
    let session = client.session(&args.id).await;
    let id = session.map_err(|error| without_token(&error, token.as_deref()))?.id;
    let mut listeners = Vec::new();
    // All or none, before anybody is told.
    for forwarded in &args.ports {
        let Forwarded { local, .. } = forwarded;
        let cannot = |error| Failure::ours(format!("cannot listen on {local}: {error}"));
        let listener = TcpListener::bind(local).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        listeners.push((listener, address, forwarded.port));
    }
    for (_, address, port) in &listeners {
        if cli.json {
            println!("{}", json!({ "address": address, "port": port }));
        } else {
            println!("{address} -> {port}");
        }
    }
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut serving = JoinSet::new();
    for (listener, _, port) in listeners {
        serving.spawn(serve(listener, client.clone(), id.clone(), port, Arc::clone(&places)));
    }
    tokio::select! {
        _ = interrupts.next() => {
            Err(Failure { message: "interrupted".into(), code: EXIT_INTERRUPTED })
        }
        failure = over(&client, &id) => Err(failure),
        // None ends by itself.
        Some(Err(lost)) = serving.join_next() => Err(Failure::ours(lost)),
    }
}

/// Resolves when the session is over. That it is asked for keeps it in use.
async fn over(client: &Client, id: &str) -> Failure {
    loop {
        tokio::time::sleep(LOOK).await;
        if let Err(error) = client.session(id).await {
            return Failure::ours(error);
        }
    }
}

async fn serve(
    listener: TcpListener,
    client: Client,
    id: String,
    port: u16,
    places: Arc<Semaphore>,
) {
    // Dropped with this task, and then ends what it carries.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let (client, id) = (client.clone(), id.clone());
                connections.spawn(async move {
                    let _place = place;
                    carry(stream, &client, &id, port).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept of a forwarded port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn carry(mut stream: TcpStream, client: &Client, id: &str, port: u16) {
    // The bytes come in pieces of others' making; the next one must not wait for an
    // acknowledgement.
    let _ = stream.set_nodelay(true);
    let mut tunnel = match client.connect_tcp(id, port).await {
        Ok(tunnel) => tunnel,
        // The client sees its connection closed.
        Err(error) => return tracing::warn!(port, %error, "a connection to the session"),
    };
    if let Err(error) = tokio::io::copy_bidirectional(&mut stream, &mut tunnel).await {
        tracing::debug!(port, %error, "a connection to the session");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_at_loopback_unless_another_address_is_named() {
        for (text, local, port) in [
            ("80", "127.0.0.1:80", 80),
            ("8080:80", "127.0.0.1:8080", 80),
            ("0:80", "127.0.0.1:0", 80),
            ("0.0.0.0:8080:80", "0.0.0.0:8080", 80),
            ("127.0.0.2:80", "127.0.0.2:80", 80),
            ("localhost:8080:80", "127.0.0.1:8080", 80),
            ("localhost:80", "127.0.0.1:80", 80),
            ("[::1]:8080:80", "[::1]:8080", 80),
            ("[::1]:80", "[::1]:80", 80),
        ] {
            let local = local.parse().unwrap();
            assert_eq!(text.parse(), Ok(Forwarded { local, port }), "{text}");
        }
        for bad in [
            "",
            "x",
            "0",
            "80:0",
            "80:",
            ":80",
            "65536",
            "+80",
            "x:80",
            "1:2:3",
            "::1:80",
            "[::1:80",
            "127.0.0.1:x:80",
            "a.example:80",
        ] {
            let error = bad.parse::<Forwarded>().unwrap_err();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
    }
}
