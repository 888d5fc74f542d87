//! The one way out: decides about a request by policy, limits and addresses, and connects.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use hyper::StatusCode;
use nix::sys::socket::{SockaddrStorage, connect};
use parking_lot::RwLock;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::decision::{NoName, Refusal, Target};
use super::host::Host;
use super::limits::{BURST, Budget, EgressAccount, Limits, PER_SECOND};
use super::line_rate::LineRate;
use super::log::Line;
use super::policy::Policy;
use super::record::Kind;
use super::resolve::{NoAddress, Resolver};
use super::room::{Full, Place, Room};
use super::shared::Shared;

/// For one address; a host with several gets as many tries within [`CONNECT_LIMIT`].
const ADDRESS_LIMIT: Duration = Duration::from_secs(8);
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// A connection to the outside, with its line in the egress log and its place among those of this
/// process.
#[derive(Debug)]
pub(super) struct Opened {
    pub stream: TcpStream,
    pub target: Target,
    pub address: IpAddr,
    pub line: Line,
    pub place: Place,
}

/// The way out of one session.
#[derive(Debug)]
pub(super) struct Gate {
    session: String,
    policy: RwLock<Arc<Policy>>,
    tenant: Option<String>,
    account: EgressAccount,
    /// Counts the policies that there were.
    policies: watch::Sender<u64>,
    resolver: Resolver,
    clients: Arc<Room>,
    connections: Arc<Room>,
    line_rate: LineRate,
    rate: DefaultDirectRateLimiter,
}

impl Gate {
    pub fn new(session: &str, policy: Policy, account: EgressAccount) -> Self {
        Self::within(session, policy, account, &Shared::of_process())
    }

    /// Makes one within `shared`, which is that of the process but for tests.
    pub fn within(session: &str, policy: Policy, account: EgressAccount, shared: &Shared) -> Self {
        account.budget.set_limits(*policy.limits());
        Self {
            session: session.to_owned(),
            account,
            resolver: Resolver::new(shared, policy.tenant()),
            clients: Arc::clone(&shared.rooms.clients),
            connections: Arc::clone(&shared.rooms.connections),
            line_rate: shared.line_rate.clone(),
            rate: RateLimiter::direct(Quota::per_second(PER_SECOND).allow_burst(BURST)),
            tenant: policy.tenant().map(str::to_owned),
            policy: RwLock::new(Arc::new(policy)),
            policies: watch::Sender::new(0),
        }
    }

    pub fn budget(&self) -> &Budget {
        &self.account.budget
    }

    /// Decides by another policy from now on, for the same tenant.
    pub fn replace(&self, policy: Policy) {
        self.budget().set_limits(*policy.limits());
        *self.policy.write() = Arc::new(policy);
        self.policies.send_modify(|count| *count += 1);
    }

    /// Returns how many policies there were before this one.
    pub fn policy_number(&self) -> u64 {
        *self.policies.borrow()
    }

    /// Tells of other policies, by their numbers.
    pub fn policies(&self) -> watch::Receiver<u64> {
        self.policies.subscribe()
    }

    /// Whether a connection to this address, as the one of `target`, may be there.
    pub fn allows(&self, target: &Target, address: IpAddr) -> bool {
        let policy = self.policy();
        policy.allows(&target.host, target.port)
            && policy.allows_address(&target.host, Some(target.port), address)
    }

    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read())
    }

    /// Takes a place for a client among those of all sessions.
    pub fn client(&self) -> Result<Place, Full> {
        self.clients.take(self.tenant.as_deref())
    }

    /// Limits of the session, with as many bytes as are left.
    pub fn limits_left(&self) -> Limits {
        Limits { max_bytes: self.budget().bytes_left(), ..self.budget().limits() }
    }

    /// Waits for the session's turn, and returns a line of the egress log.
    pub async fn line(&self, kind: Kind, host: &str, port: u16) -> Line {
        while let Err(early) = self.rate.check() {
            tokio::time::sleep(early.wait_time_from(DefaultClock::default().now())).await;
        }
        Line::new(&self.session, &self.policy(), &self.line_rate, kind, host, port)
    }

    /// Connects to `target` if the session may.
    pub async fn open(&self, kind: Kind, target: &Target) -> Result<Opened, Refusal> {
        let mut line = self.line(kind, &target.host.to_string(), target.port).await;
        let policy = self.policy();
        if !policy.allows(&target.host, target.port) {
            line.denied("no entry of the policy allows it");
            let message = format!(
                "egress to {target} is denied: no entry of this session's policy allows it"
            );
            return Err(Refusal::new(StatusCode::FORBIDDEN, message));
        }
        let limits = self.budget().limits();
        if self.budget().bytes_left() == 0 {
            line.denied("the session has used up its egress bytes");
            let message = format!(
                "egress is denied: this session has used up its {} bytes",
                limits.max_bytes
            );
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, message));
        }
        if !self.budget().connection() {
            line.denied("the session has used up its connections");
            let message = format!(
                "egress is denied: this session has used up its {} connections",
                limits.total_connections
            );
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, message));
        }
        let mut addresses = match self.resolver.resolve(&target.host, policy.exempt()).await {
            Ok(addresses) => addresses,
            Err(NoAddress::Denied(address, why)) => {
                line.denied_address(address, why);
                // What a name leads to inside is not for the guest.
                let verb = if matches!(target.host, Host::Name(_)) { "leads to" } else { "is" };
                let message = format!("egress to {target} is denied: it {verb} {why}");
                return Err(Refusal::new(StatusCode::FORBIDDEN, message));
            }
            Err(error @ NoAddress::Full(_)) => {
                line.denied(&error);
                let message = format!("egress to {target} is denied for now: {error}");
                return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message));
            }
            Err(error) => {
                line.failed(&error);
                let status = match error {
                    NoAddress::TimedOut => StatusCode::GATEWAY_TIMEOUT,
                    _ => StatusCode::BAD_GATEWAY,
                };
                return Err(Refusal::new(status, format!("{target} cannot be reached: {error}")));
            }
        };
        let (host, first) = (&target.host, addresses[0]);
        addresses.retain(|address| policy.allows_address(host, Some(target.port), *address));
        if addresses.is_empty() {
            line.denied_by_policy(first);
            let message = format!("egress to {target} is denied: this session's policy denies it");
            return Err(Refusal::new(StatusCode::FORBIDDEN, message));
        }
        let place = match self.connections.take(self.tenant.as_deref()) {
            Ok(place) => place,
            Err(full) => {
                line.denied(format_args!("no connection to the outside is left: {full}"));
                let message = format!(
                    "egress to {target} is denied for now: no connection to the outside is left: \
                     {full}"
                );
                return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message));
            }
        };
        match try_all(&addresses, target.port).await {
            Ok((stream, address)) => {
                line.allowed(Some(address));
                Ok(Opened { stream, target: target.clone(), address, line, place })
            }
            Err(NoConnection { status, address, reason }) => {
                line.failed_at(address, &reason);
                Err(Refusal::new(status, format!("{target} cannot be reached: {reason}")))
            }
        }
    }

    /// Looks up the addresses of a name for the guest's own use, if the session may connect to it.
    pub async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, NoName> {
        let mut line = self.line(Kind::Dns, name, 0).await;
        let policy = self.policy();
        let host = match Host::parse(name) {
            Ok(host @ Host::Name(_)) if policy.allows_host(&host) => host,
            _ => {
                line.denied("no entry of the policy allows it");
                return Err(NoName::Denied);
            }
        };
        match self.resolver.resolve(&host, policy.exempt()).await {
            Ok(mut addresses) => {
                let first = addresses[0];
                addresses.retain(|address| policy.allows_address(&host, None, *address));
                if addresses.is_empty() {
                    line.denied_by_policy(first);
                    return Err(NoName::Denied);
                }
                line.allowed(addresses.first().copied());
                Ok(addresses)
            }
            Err(NoAddress::Denied(address, why)) => {
                line.denied_address(address, why);
                Err(NoName::Denied)
            }
            Err(error @ NoAddress::Full(_)) => {
                line.denied(error);
                Err(NoName::Failed)
            }
            Err(error) => {
                line.failed(error);
                Err(NoName::Failed)
            }
        }
    }
}

struct NoConnection {
    status: StatusCode,
    /// The last address that was tried.
    address: Option<IpAddr>,
    /// Without an address, since the guest is told.
    reason: String,
}

/// Calls connect(2) once more on a socket that is connected. The kernel takes a socket that was
/// connected without waiting for one that is still about to be until then, and such a one can be
/// connected to somewhere else when its first connection has been reset.
fn settle(stream: &TcpStream, address: SocketAddr) {
    // It answers that it is connected, or why it is no more; both are what was wanted.
    let _ = connect(stream.as_raw_fd(), &SockaddrStorage::from(address));
}

/// Tries one address after the other.
async fn try_all(addresses: &[IpAddr], port: u16) -> Result<(TcpStream, IpAddr), NoConnection> {
    let work = async {
        let mut last = NoConnection {
            status: StatusCode::BAD_GATEWAY,
            address: None,
            reason: "it has no address".to_owned(),
        };
        for address in addresses {
            match tokio::time::timeout(
                ADDRESS_LIMIT,
                TcpStream::connect(SocketAddr::new(*address, port)),
            )
            .await
            {
                Ok(Ok(stream)) => {
                    // Without it, small messages of a tunnel wait for acknowledgements.
                    let _ = stream.set_nodelay(true);
                    settle(&stream, SocketAddr::new(*address, port));
                    return Ok((stream, *address));
                }
                Ok(Err(error)) => {
                    last = NoConnection {
                        status: StatusCode::BAD_GATEWAY,
                        address: Some(*address),
                        reason: error.to_string(),
                    };
                }
                Err(_) => {
                    last = NoConnection {
                        status: StatusCode::GATEWAY_TIMEOUT,
                        address: Some(*address),
                        reason: format!("no answer within {ADDRESS_LIMIT:?}"),
                    };
                }
            }
        }
        Err(last)
    };
    tokio::time::timeout(CONNECT_LIMIT, work).await.unwrap_or_else(|_| {
        let reason = format!("none of its addresses answered within {CONNECT_LIMIT:?}");
        Err(NoConnection { status: StatusCode::GATEWAY_TIMEOUT, address: None, reason })
    })
}
