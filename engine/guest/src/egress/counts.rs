//! Bytes of a connection as the kernel counts them.

use std::mem::{MaybeUninit, size_of};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use linux_raw_sys::net::tcp_info;

/// Returns the bytes that the other end has acknowledged, and those that came from it, read or not
/// (tcp(7), `TCP_INFO`; RFC 4898, tcpEStatsAppHCThruOctetsAcked and -Received). Zeros when the
/// kernel does not tell.
pub(super) fn transferred(socket: &TcpStream) -> (u64, u64) {
    let mut info = MaybeUninit::<tcp_info>::zeroed();
    let Ok(mut length) = libc::socklen_t::try_from(size_of::<tcp_info>()) else { return (0, 0) };
    // SAFETY: the kernel writes at most `length` bytes to a struct of that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return (0, 0);
    }
    // SAFETY: all of it was zeroed, and zeros are a value of it.
    let info = unsafe { info.assume_init() };
    // The first acknowledgement is for the connection itself.
    (info.tcpi_bytes_acked.saturating_sub(1), info.tcpi_bytes_received)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn both_directions_are_counted_also_after_the_end() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (mut other, _) = server.accept().unwrap();
        client.write_all(&[1; 700]).unwrap();
        other.read_exact(&mut [0; 700]).unwrap();
        other.write_all(&[2; 5000]).unwrap();
        client.read_exact(&mut [0; 5000]).unwrap();
        assert_eq!(transferred(&client), (700, 5000));
        client.shutdown(std::net::Shutdown::Both).unwrap();
        let (up, down) = transferred(&client);
        assert!((700..=701).contains(&up) && down == 5000, "{up} {down}");
    }
}
