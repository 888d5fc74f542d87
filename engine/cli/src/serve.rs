//! `mayfly serve`: the engine as a daemon.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use mayfly_daemon::http::{self, Listeners};
use mayfly_daemon::service::{Service, ServiceConfig};
use mayfly_engine::Engine;
use mayfly_host::layout::Layout;

use super::args::{self, Cli};
use super::failure::Failure;
use super::interrupt::Interrupts;

pub async fn run(cli: &Cli, args: &args::ServeArgs) -> Result<ExitCode, Failure> {
    mayfly_host::descriptors::raise_limit();
    protect_from_oom("the daemon");
    let mut interrupts = Interrupts::install()?;
    let config = match &args.config {
        Some(path) => ServiceConfig::load(path)?,
        None => ServiceConfig::default(),
    };
    let layout = Layout::from_env();
    let socket = args.socket.clone().unwrap_or_else(|| layout.api_socket());
    let engine = Arc::new(match config.uids {
        Some(uids) => Engine::open_with(layout, uids).await?,
        None => Engine::open(layout).await?,
    });
    let service = Service::start(engine, config).await?;
    let listeners = match listen(args, &socket, &service).await {
        Ok(listeners) => listeners,
        Err(failure) => {
            service.shutdown().await;
            return Err(failure);
        }
    };
    announce(cli, &listeners)?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = http::serve(service, listeners, Vec::new(), async { drop(stopped.await) });
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
    args: &args::ServeArgs,
    socket: &std::path::Path,
    service: &Service,
) -> Result<Listeners, Failure> {
    let listeners = Listeners::new().unix(socket).await?;
    Ok(match args.listen {
        Some(address) => listeners.tcp(address, service).await?,
        None => listeners,
    })
}

/// Says on standard output where it listens: one line, which comes when requests are answered.
fn announce(cli: &Cli, listeners: &Listeners) -> Result<(), Failure> {
    let socket = listeners.socket().map(|path| path.display().to_string());
    let address = listeners.address().map(|address| address.to_string());
    let mut out = std::io::stdout().lock();
    if cli.json {
        let line =
            serde_json::json!({ "socket": socket, "address": address, "pid": std::process::id() });
        writeln!(out, "{line}")?;
    } else {
        let places = socket
            .map(|path| format!("unix://{path}"))
            .into_iter()
            .chain(address.map(|a| format!("http://{a}")));
        writeln!(out, "listening on {}", places.collect::<Vec<_>>().join(" and "))?;
    }
    Ok(out.flush()?)
}
