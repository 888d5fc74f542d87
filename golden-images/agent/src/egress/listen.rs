//! The listening sockets.

use crate::wire::reply;
use futures::future::select_all;
use mayfly_protocol::{EgressPorts, PROXY_PORT, Reply};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

/// Address of dockerd's bridge, through which containers reach the guest; `bip` in its
/// configuration.
const BRIDGE: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
const DNS_PORT: u16 = 53;
/// Clients that wait for the engine to take them; the kernel refuses further ones.
const BACKLOG: u32 = 128;

/// Sockets to which clients of the guest connect while there is egress.
pub struct Listeners {
    /// TCP, at 127.0.0.1 and the bridge.
    proxy: Vec<TcpListener>,
    /// UDP, at the same addresses.
    pub dns: Vec<UdpSocket>,
    /// Ports at 127.0.0.1.
    pub ports: EgressPorts,
    /// Address of the bridge, where there is one.
    pub bridge: Option<Ipv4Addr>,
    /// Cancelled when egress ends, with all connections.
    pub ended: CancellationToken,
}

impl Listeners {
    /// Listens on the usual ports of a guest, or anywhere on a test's host.
    pub async fn open(guest: bool) -> Reply<Self> {
        let (proxy_port, dns_port) = if guest { (PROXY_PORT, DNS_PORT) } else { (0, 0) };
        let addresses: &[Ipv4Addr] =
            if guest { &[Ipv4Addr::LOCALHOST, BRIDGE] } else { &[Ipv4Addr::LOCALHOST] };
        let (mut proxy, mut dns, mut bridge) = (Vec::new(), Vec::new(), None);
        for address in addresses {
            let place = SocketAddr::new(IpAddr::V4(*address), proxy_port);
            match listen(place) {
                // A guest without dockerd.
                Err(error)
                    if *address == BRIDGE && error.kind() == io::ErrorKind::AddrNotAvailable =>
                {
                    continue;
                }
                listener => proxy
                    .push(reply(format_args!("listen for proxy clients on {place}"), listener)?),
            }
            let place = SocketAddr::new(IpAddr::V4(*address), dns_port);
            dns.push(reply(
                format_args!("listen for DNS queries on {place}"),
                UdpSocket::bind(place).await,
            )?);
            bridge = bridge.or((*address == BRIDGE).then_some(BRIDGE));
        }
        let port = |address: io::Result<SocketAddr>| {
            reply("look up our own port", address).map(|address| address.port())
        };
        let ports =
            EgressPorts { proxy: port(proxy[0].local_addr())?, dns: port(dns[0].local_addr())? };
        Ok(Self { proxy, dns, ports, bridge, ended: CancellationToken::new() })
    }

    /// Waits for the next client, of whichever listener. Several may wait at a time.
    pub async fn next_client(&self) -> io::Result<TcpStream> {
        let (accepted, _, _) =
            select_all(self.proxy.iter().map(|listener| Box::pin(listener.accept()))).await;
        let (client, _) = accepted?;
        // The bytes come in pieces of the channel's making; the next one must not wait for an
        // acknowledgement.
        client.set_nodelay(true)?;
        Ok(client)
    }
}

fn listen(place: SocketAddr) -> io::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    // Connections of an earlier egress may still be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(place)?;
    socket.listen(BACKLOG)
}
