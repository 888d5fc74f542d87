//! `mayfly serve`: the engine as a daemon.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use mayfly_api::TenantName;
use mayfly_daemon::http::{self, Listeners};
use mayfly_daemon::service::config::TenantConfig;
use mayfly_daemon::service::{Service, ServiceConfig};
use mayfly_e2b::settings::Settings;
use mayfly_engine::Engine;
use mayfly_host::layout::Layout;

use super::args::{self, Cli};
use super::failure::Failure;
use super::interrupt::Interrupts;

pub async fn run(cli: &Cli, args: &args::ServeArgs) -> Result<ExitCode, Failure> {
    mayfly_host::descriptors::raise_limit();
    protect_from_oom("the daemon");
    let mut interrupts = Interrupts::install()?;
    let mut config = match &args.config {
        Some(path) => ServiceConfig::load(path)?,
        None => ServiceConfig::default(),
    };
    let e2b = E2b::prepare(args, &mut config)?;
    let layout = Layout::from_env();
    let socket = args.socket.clone().unwrap_or_else(|| layout.api_socket());
    let engine = Arc::new(match config.uids {
        Some(uids) => Engine::open_with(layout, uids).await?,
        None => Engine::open(layout).await?,
    });
    let service = Service::start(engine, config).await?;
    let address = args.listen.or_else(|| e2b.as_ref().map(|_| E2B_ADDRESS));
    let listeners = match listen(address, &socket, &service).await {
        Ok(listeners) => listeners,
        Err(failure) => {
            service.shutdown().await;
            return Err(failure);
        }
    };
    let e2b = e2b.map(|e2b| e2b.at(&listeners));
    announce(cli, &listeners, e2b.as_ref())?;
    let front_ends = e2b.map(|e2b| mayfly_e2b::front_end(service.clone(), e2b.settings));
    let front_ends = front_ends.into_iter().collect();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = http::serve(service, listeners, front_ends, async { drop(stopped.await) });
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => return Ok(ExitCode::SUCCESS),
        signal = interrupts.next() => {
            tracing::info!(signal, "shutting down");
            drop(stop);
        }
    }
    tokio::select! {
        () = serving => Ok(ExitCode::SUCCESS),
        _ = interrupts.next() => {
            // The VMMs die with us; the journal tells the next daemon what is left.
            Err(Failure::interrupted("sessions were not discarded in order; the next start removes what is left"))
        }
    }
}

/// Has the kernel kill this process last, where it may.
pub fn protect_from_oom(who: &str) {
    if let Err(error) = mayfly_host::oom::protect() {
        // Without the capability nothing else is wrong, so it is told and not warned of.
        tracing::info!(
            %error,
            "{who} is not protected from the OOM killer: give it CAP_SYS_RESOURCE, or start its container \
             with --oom-score-adj -900"
        );
    }
}

async fn listen(
    address: Option<SocketAddr>,
    socket: &std::path::Path,
    service: &Service,
) -> Result<Listeners, Failure> {
    let listeners = Listeners::new().unix(socket).await?;
    Ok(match address {
        Some(address) => listeners.tcp(address, service).await?,
        None => listeners,
    })
}

/// Where clients of E2B find the daemon, unless another place is named.
const E2B_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7070);
/// The tenant of a run for which none was configured.
const E2B_TENANT: &str = "e2b";

/// What clients of E2B are to know.
struct E2b {
    settings: Settings,
    /// The key that was made for this run, where the configuration has no tenants.
    key: Option<String>,
    url: String,
}

impl E2b {
    /// Reads the settings, if clients of E2B are to be answered, and makes a key for this run where
    /// nobody has one.
    fn prepare(
        args: &args::ServeArgs,
        config: &mut ServiceConfig,
    ) -> Result<Option<Self>, Failure> {
        if !args.e2b && config.e2b.is_none() {
            return Ok(None);
        }
        let settings = Settings::parse(config.e2b.as_ref().unwrap_or(&toml::Table::new()))?;
        let key = config.tenants.is_empty().then(mayfly_e2b::new_key).transpose()?;
        if let Some(key) = &key {
            config.tenants.push(TenantConfig::new(TenantName::new(E2B_TENANT)?, key));
        }
        Ok(Some(Self { settings, key, url: String::new() }))
    }

    /// Fills in what is known once the daemon listens.
    fn at(mut self, listeners: &Listeners) -> Self {
        let mut address = listeners.address().unwrap_or(E2B_ADDRESS);
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let scheme = if listeners.is_secure() { "https" } else { "http" };
        self.url = format!("{scheme}://{address}");
        // Names below `localhost` lead to this host (RFC 6761, section 6.3).
        let port = address.port();
        self.settings.domain.get_or_insert_with(|| format!("localhost:{port}"));
        self
    }
}

/// Says on standard output where it listens: one line, which comes when requests are answered, and
/// below it what clients of E2B need.
fn announce(cli: &Cli, listeners: &Listeners, e2b: Option<&E2b>) -> Result<(), Failure> {
    let socket = listeners.socket().map(|path| path.display().to_string());
    let address = listeners.address().map(|address| address.to_string());
    let mut out = std::io::stdout().lock();
    if cli.json {
        let mut line =
            serde_json::json!({ "socket": socket, "address": address, "pid": std::process::id() });
        if let Some(E2b { url, key, .. }) = e2b {
            line["e2b"] = serde_json::json!({ "api_url": url, "sandbox_url": url, "api_key": key });
        }
        writeln!(out, "{line}")?;
    } else {
        let scheme = if listeners.is_secure() { "https" } else { "http" };
        let places = socket
            .map(|path| format!("unix://{path}"))
            .into_iter()
            .chain(address.map(|a| format!("{scheme}://{a}")));
        writeln!(out, "listening on {}", places.collect::<Vec<_>>().join(" and "))?;
        if let Some(E2b { url, key, .. }) = e2b {
            writeln!(out, "export E2B_API_URL={url} E2B_SANDBOX_URL={url}")?;
            match key {
                Some(key) => writeln!(out, "export E2B_API_KEY={key}")?,
                None => {
                    writeln!(out, "# E2B_API_KEY is the token of a tenant in the configuration")?;
                }
            }
        }
    }
    Ok(out.flush()?)
}
