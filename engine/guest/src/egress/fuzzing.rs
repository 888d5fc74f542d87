//! The inner parts that read a guest's bytes, for fuzz targets and property tests.

use super::addresses;
use super::decision::NoName;
use super::desk::{Begun, Desk};
use super::dns;
use super::gate::Gate;
use super::limits::{EgressAccount, Limits};
use super::link::Link;
use super::messages::{Begin, FromProxy};
use super::policy::Policy;
use super::proxies::{NoProxy, Proxies, ProxyProcess, SessionLink};
use super::proxy::{self, Outside, Served};
use super::resolve;
use futures::future::BoxFuture;
use ipnet::IpNet;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// The egress of a session without its channel: its gate, and the proxy with its messages.
#[derive(Debug)]
pub struct Inner {
    outside: Arc<Outside>,
    _desk: AbortOnDropHandle<()>,
}

impl Inner {
    /// Creates an egress that `policy` binds. Needs a tokio runtime.
    pub fn new(policy: Policy) -> Self {
        let gate = Gate::new("fuzz", policy, EgressAccount::default());
        let Limits { max_connections, max_bytes, .. } = gate.limits_left();
        let (sender, mut messages) = mpsc::unbounded_channel();
        let outside = Arc::new(Outside::new(Begin { max_connections, max_bytes }, sender));
        let proxy = Arc::downgrade(&outside);
        let desk = tokio::spawn(async move {
            let Ok((engine, end)) = Link::pair() else { return };
            let (desk, Ok(end)) =
                (Desk::new(Arc::new(gate), engine, Begun::default()), Link::new(end))
            else {
                return;
            };
            while let Some(message) = messages.recv().await {
                if matches!(message, FromProxy::Ended(_) | FromProxy::Answer(_)) {
                    continue;
                }
                if desk.serve(message).await.is_err() {
                    return;
                }
                let (Ok(Some((answer, socket))), Some(proxy)) =
                    (end.receive().await, proxy.upgrade())
                else {
                    return;
                };
                proxy.answered(answer, socket);
            }
        });
        Self { outside, _desk: AbortOnDropHandle::new(desk) }
    }

    /// Answers a DNS message.
    pub async fn answer(&self, message: &[u8]) -> Vec<u8> {
        dns::answer(&self.outside, message).await
    }

    /// Serves a client of the proxy; one that is too many is told so.
    pub async fn serve<S>(&self, client: S, is_too_many: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let served = if is_too_many { Served::TooMany } else { Served::All };
        proxy::serve(client, Arc::clone(&self.outside), served).await;
    }
}

/// The proxy as tasks of this process, which keeps it from nothing. For tests of what goes through
/// it; programs have a process for it.
#[derive(Debug, Default)]
pub struct InThisProcess(tokio::sync::Mutex<Option<(ProxyProcess, AbortOnDropHandle<()>)>>);

impl InThisProcess {
    /// Ends the proxy, as if its process had died.
    pub async fn end(&self) {
        self.0.lock().await.take();
    }
}

impl Proxies for InThisProcess {
    fn connect(&self, limits: Limits) -> BoxFuture<'_, Result<SessionLink, NoProxy>> {
        let connect = async move {
            let mut running = self.0.lock().await;
            if running.is_none() {
                let (process, end) = ProxyProcess::pair()?;
                let run = tokio::spawn(async move {
                    if let Err(error) = proxy::run(end).await {
                        tracing::warn!(%error, "the egress proxy");
                    }
                });
                *running = Some((process, AbortOnDropHandle::new(run)));
            }
            let (process, _) = running.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            let (link, end) = Link::pair()?;
            process.begin(limits, end.as_fd()).await?;
            drop(end);
            link.ready().await?;
            Ok(SessionLink { link, process: std::process::id() })
        };
        let failed = |error: io::Error| NoProxy { reason: error.to_string() };
        Box::pin(async move { connect.await.map_err(failed) })
    }

    fn distrust(&self, _process: u32) -> BoxFuture<'_, ()> {
        Box::pin(self.end())
    }
}

/// Answers a DNS message as if its name were allowed and the system's resolver had found these
/// addresses.
pub fn answer_found(message: &[u8], found: Vec<IpAddr>, exempt: &[IpNet]) -> Vec<u8> {
    match dns::read(message) {
        Ok((answer, question)) => {
            let passing = resolve::passing(found, exempt).map_err(|_| NoName::Denied);
            dns::conclude(answer, &question, passing)
        }
        Err(answer) => answer,
    }
}

/// Returns whether a connection may go to `address`, if it is not one of this host.
pub fn passes(address: IpAddr, exempt: &[IpNet]) -> bool {
    addresses::check(address, exempt, &[]).is_ok()
}
