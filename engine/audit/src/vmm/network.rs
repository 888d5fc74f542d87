//! Sockets and connections.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use nix::errno::Errno;

use super::super::check::Findings;
use super::super::inject::{Call, Outcome};
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::attack::{Attack, closing, run as attack};

/// Makes a socket, which alone is a success.
fn socket(what: &str, family: i32, kind: i32) -> Attack {
    Attack::steps(format!("make a socket: {what}"), move |tracee| {
        let made = tracee.call(&Call::new(libc::SYS_socket).arg(family).arg(kind).arg(0))?;
        closing(tracee, made)
    })
}

/// Makes a socket and connects it. Of a VMM that may not make one, the outcome is of the making.
fn connect(what: String, family: i32, kind: i32, address: Vec<u8>) -> Attack {
    Attack::steps(what, move |tracee| {
        let made = tracee.call(
            &Call::new(libc::SYS_socket).arg(family).arg(kind | libc::SOCK_NONBLOCK).arg(0),
        )?;
        let Outcome::Returned(socket) = made else { return Ok(made) };
        let outcome = tracee.call(
            &Call::new(libc::SYS_connect).arg(socket).arg(address.clone()).arg(address.len()),
        )?;
        if outcome == Outcome::Killed {
            return Ok(outcome);
        }
        tracee.call(&Call::new(libc::SYS_close).arg(socket))?;
        // It is under way: nothing has refused it.
        Ok(if outcome == Outcome::Failed(Errno::EINPROGRESS) {
            Outcome::Returned(0)
        } else {
            outcome
        })
    })
}

/// Of an address (sockaddr(3type)).
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "families are small numbers"
)]
fn family(number: i32) -> [u8; 2] {
    (number as libc::sa_family_t).to_ne_bytes()
}

/// `struct sockaddr_in` (ip(7)).
fn inet(address: Ipv4Addr, port: u16) -> Vec<u8> {
    [&family(libc::AF_INET)[..], &port.to_be_bytes(), &address.octets(), &[0; 8]].concat()
}

/// `struct sockaddr_un` (unix(7)).
fn unix(name: &[u8]) -> Vec<u8> {
    [&family(libc::AF_UNIX)[..], name].concat()
}

fn unix_path(path: &Path) -> Vec<u8> {
    unix(&[path.as_os_str().as_encoded_bytes(), &[0]].concat())
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let (_, docker) = lab.neighbour_with_socket().await?;
    let failed = || AuditError::host("listen for connections of a VMM");
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
    let port = tcp.local_addr().map_err(failed())?.port();
    let name = format!("{}{}", lab.marks.prefix, lab.marks.host);
    let address = SocketAddr::from_abstract_name(&name).map_err(failed())?;
    let _listener = UnixListener::bind_addr(&address).map_err(failed())?;
    let layout = lab.engine.layout();
    let attacks = [
        socket("Internet, TCP", libc::AF_INET, libc::SOCK_STREAM),
        socket("Internet version 6, UDP", libc::AF_INET6, libc::SOCK_DGRAM)
            .absent([Errno::EAFNOSUPPORT]),
        socket("Unix", libc::AF_UNIX, libc::SOCK_STREAM),
        socket("netlink", libc::AF_NETLINK, libc::SOCK_RAW),
        socket("packets", libc::AF_PACKET, libc::SOCK_RAW).absent([Errno::EAFNOSUPPORT]),
        socket("vsock", libc::AF_VSOCK, libc::SOCK_STREAM).absent([Errno::EAFNOSUPPORT]),
        socket("kernel crypto", libc::AF_ALG, libc::SOCK_SEQPACKET).absent([Errno::EAFNOSUPPORT]),
        connect(
            format!("connect to a listener on the host's loopback interface (port {port})"),
            libc::AF_INET,
            libc::SOCK_STREAM,
            inet(Ipv4Addr::LOCALHOST, port),
        ),
        connect(
            "connect to an abstract socket of the host".into(),
            libc::AF_UNIX,
            libc::SOCK_STREAM,
            unix(&[&[0], name.as_bytes()].concat()),
        ),
        connect(
            "connect to the pager's socket".into(),
            libc::AF_UNIX,
            libc::SOCK_SEQPACKET,
            unix_path(&layout.pager_socket()),
        ),
        connect(
            "connect to the engine's API".into(),
            libc::AF_UNIX,
            libc::SOCK_STREAM,
            unix_path(&layout.api_socket()),
        )
        .absent([Errno::ENOENT, Errno::ECONNREFUSED]),
        connect(
            "connect to a neighbour's Docker socket".into(),
            libc::AF_UNIX,
            libc::SOCK_STREAM,
            unix_path(docker.path()),
        ),
    ];
    attack(lab, &attacks).await
}
