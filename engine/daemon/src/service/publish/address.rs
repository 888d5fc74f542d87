//! Loopback addresses, one for each session that wants one of its own.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};

use mayfly_api::Publish;

/// Addresses of sessions are in 127.64.0.0/10: away from 127.0.0.1, 127.0.1.1 (Debian's own name)
/// and 127.0.0.53 (systemd-resolved).
const NETWORK: u32 = 0x7f40_0000;
const HOST_BITS: u32 = 0x003f_ffff;
/// Port of the socket by which an address is taken: it keeps out other daemons of this host as well.
/// It takes nothing from anybody, and is no port that a session can publish.
const CLAIM: u16 = 1023;
/// Addresses that are tried; of four million few are taken.
const TRIES: usize = 64;

/// An address of this host on which a session may listen. One of its own is free again when this is
/// dropped.
#[derive(Debug)]
pub(in super::super) struct Place {
    address: Ipv4Addr,
    _claim: Option<UdpSocket>,
}

impl Place {
    /// Takes the address that is asked for.
    ///
    /// # Errors
    /// When none of its own can be had.
    pub fn take(asked: Publish) -> io::Result<Self> {
        match asked {
            Publish::Localhost => Ok(Self { address: Ipv4Addr::LOCALHOST, _claim: None }),
            Publish::Own => Self::own(),
        }
    }

    fn own() -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..TRIES {
            let address = Ipv4Addr::from_bits(NETWORK | (rand::random::<u32>() & HOST_BITS));
            match UdpSocket::bind((address, CLAIM)) {
                Ok(claim) => return Ok(Self { address, _claim: Some(claim) }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    pub fn address(&self) -> Ipv4Addr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root"]
    fn no_two_have_the_same_address_and_none_that_others_use() {
        let places: Vec<_> = (0..200).map(|_| Place::take(Publish::Own).unwrap()).collect();
        let mut addresses: Vec<_> = places.iter().map(Place::address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 200);
        assert!(addresses.iter().all(|address| (64..128).contains(&address.octets()[1])));
        let taken = places[0].address();
        UdpSocket::bind((taken, CLAIM)).unwrap_err();
        drop(places);
        UdpSocket::bind((taken, CLAIM)).unwrap();
        assert_eq!(Place::take(Publish::Localhost).unwrap().address(), Ipv4Addr::LOCALHOST);
    }
}
