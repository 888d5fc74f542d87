//! Addresses that no session may reach, whatever name leads to them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::error::PolicyError;

/// Reason why an address is not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Unspecified addresses: 0.0.0.0/8, ::.
    Unspecified,
    /// Loopback addresses: 127.0.0.0/8, ::1.
    Loopback,
    /// Link-local addresses: 169.254.0.0/16, fe80::/10.
    LinkLocal,
    /// Multicast addresses: 224.0.0.0/4, ff00::/8.
    Multicast,
    /// Broadcast address: 255.255.255.255.
    Broadcast,
    /// Addresses at which clouds keep the credentials of the machine.
    Metadata,
    /// RFC 1918, RFC 6598 (carrier-grade NAT), unique local and site-local addresses.
    Private,
    /// Documentation, benchmarking, translation and other special purposes, or not assigned to
    /// anybody.
    Reserved,
    /// An address of this host, or one through which a translator leads to it.
    Host,
}

impl Denied {
    /// Whether an operator may allow it.
    fn can_be_exempt(self) -> bool {
        matches!(self, Self::Private | Self::Reserved | Self::Host)
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "an unspecified address",
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "a broadcast address",
            Self::Metadata => "a metadata service of a cloud",
            Self::Private => "a private address",
            Self::Reserved => "a reserved address",
            Self::Host => "an address of this host",
        })
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// Metadata services whose addresses are not link-local: Alibaba Cloud, Oracle Cloud, and Azure's
/// WireServer, which is a public address.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(168, 63, 129, 16),
];
/// Those of Amazon (a network of services, one of which hands out credentials), Google Cloud, Oracle
/// Cloud and Scaleway: unique local addresses.
const METADATA_V6: [Ipv6Net; 4] = [
    v6(0xfd00, 0xec2, 0, 32),
    one(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    one(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    one(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
];

const fn one(address: Ipv6Addr) -> Ipv6Net {
    Ipv6Net::new_assert(address, 128)
}

/// IANA IPv4 Special-Purpose Address Registry (RFC 6890 and its updates), the first match counts.
const SPECIAL_V4: [(Ipv4Net, Denied); 19] = [
    (v4(0, 0, 0, 0, 8), Denied::Unspecified),
    (v4(127, 0, 0, 0, 8), Denied::Loopback),
    (v4(169, 254, 0, 0, 16), Denied::LinkLocal),
    (v4(224, 0, 0, 0, 4), Denied::Multicast),
    (v4(255, 255, 255, 255, 32), Denied::Broadcast),
    (v4(10, 0, 0, 0, 8), Denied::Private),
    (v4(172, 16, 0, 0, 12), Denied::Private),
    (v4(192, 168, 0, 0, 16), Denied::Private),
    (v4(100, 64, 0, 0, 10), Denied::Private),
    (v4(192, 0, 0, 0, 24), Denied::Reserved),
    (v4(192, 0, 2, 0, 24), Denied::Reserved),
    (v4(198, 51, 100, 0, 24), Denied::Reserved),
    (v4(203, 0, 113, 0, 24), Denied::Reserved),
    (v4(198, 18, 0, 0, 15), Denied::Reserved),
    (v4(192, 88, 99, 0, 24), Denied::Reserved),
    (v4(192, 31, 196, 0, 24), Denied::Reserved),
    (v4(192, 52, 193, 0, 24), Denied::Reserved),
    (v4(192, 175, 48, 0, 24), Denied::Reserved),
    (v4(240, 0, 0, 0, 4), Denied::Reserved),
];

/// IANA IPv6 Special-Purpose Address Registry. What is outside of 2000::/3 is reserved, too.
const SPECIAL_V6: [(Ipv6Net, Denied); 10] = [
    (v6(0xfe80, 0, 0, 10), Denied::LinkLocal),
    (v6(0xff00, 0, 0, 8), Denied::Multicast),
    (v6(0xfc00, 0, 0, 7), Denied::Private),
    (v6(0xfec0, 0, 0, 10), Denied::Private),
    // Protocol assignments, with Teredo, benchmarking and ORCHID.
    (v6(0x2001, 0, 0, 23), Denied::Reserved),
    (v6(0x2001, 0xdb8, 0, 32), Denied::Reserved),
    (v6(0x3fff, 0, 0, 20), Denied::Reserved),
    // 6to4 has no use any more (RFC 7526).
    (v6(0x2002, 0, 0, 16), Denied::Reserved),
    (v6(0x2620, 0x4f, 0x8000, 48), Denied::Reserved),
    (v6(0x5f00, 0, 0, 16), Denied::Reserved),
];
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 0, 3);
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 96);

/// What kind of address this is, other than one of somebody else on the Internet. Addresses with an
/// IPv4 address inside are at least as bad as that.
pub(super) fn kind(address: IpAddr) -> Option<Denied> {
    match address.to_canonical() {
        IpAddr::V4(address) if METADATA_V4.contains(&address) => Some(Denied::Metadata),
        IpAddr::V4(address) => {
            SPECIAL_V4.iter().find(|(net, _)| net.contains(&address)).map(|(_, kind)| *kind)
        }
        IpAddr::V6(address) => kind_v6(address),
    }
}

fn kind_v6(address: Ipv6Addr) -> Option<Denied> {
    if METADATA_V6.iter().any(|net| net.contains(&address)) {
        return Some(Denied::Metadata);
    }
    if address.is_unspecified() {
        return Some(Denied::Unspecified);
    }
    if address.is_loopback() {
        return Some(Denied::Loopback);
    }
    let inner = embedded(address).into_iter().flatten().filter_map(|inner| kind(IpAddr::V4(inner)));
    // One that no exemption helps comes first.
    let inner = inner.min_by_key(|kind| kind.can_be_exempt());
    if inner.is_some() {
        return inner;
    }
    if NAT64.contains(&address) {
        // Its inner address is public: the way to the IPv4 Internet of a host that has only IPv6
        // (RFC 6052).
        return None;
    }
    let special = SPECIAL_V6.iter().find(|(net, _)| net.contains(&address)).map(|(_, kind)| *kind);
    special.or((!GLOBAL_V6.contains(&address)).then_some(Denied::Reserved))
}

/// IPv4 addresses to which an IPv6 address may lead: compatible and translated ones, NAT64, 6to4,
/// Teredo, ISATAP.
fn embedded(address: Ipv6Addr) -> [Option<Ipv4Addr>; 3] {
    let octets = address.octets();
    let at = |index: usize| {
        Ipv4Addr::new(octets[index], octets[index + 1], octets[index + 2], octets[index + 3])
    };
    match address.segments() {
        // RFC 4291 (::a.b.c.d), RFC 2765 (::ffff:0:a.b.c.d), RFC 6052, RFC 8215.
        [0, 0, 0, 0, 0 | 0xffff, 0, ..] | [0x64, 0xff9b, ..] => [Some(at(12)), None, None],
        [0x2002, ..] => [Some(at(2)), None, None],
        // RFC 4380: the server as it is, the client with all bits turned.
        [0x2001, 0, ..] => [Some(at(4)), Some(Ipv4Addr::from_bits(!at(12).to_bits())), None],
        // RFC 5214.
        [.., 0 | 0x200, 0x5efe, _, _] => [Some(at(12)), None, None],
        _ => [None; 3],
    }
}

/// Returns an address in its usual form, and the IPv4 addresses to which it may lead.
pub(super) fn forms(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    let address = address.to_canonical();
    let inner = match address {
        IpAddr::V4(_) => [None; 3],
        IpAddr::V6(address) => embedded(address),
    };
    std::iter::once(address).chain(inner.into_iter().flatten().map(IpAddr::V4))
}

/// Whether `address` is one of this host, or leads to one.
fn is_own(address: IpAddr, own: &[IpAddr]) -> bool {
    forms(address).any(|form| own.contains(&form))
}

/// Whether a connection may go to `address`. `own` are the addresses of this host's interfaces.
pub(super) fn check(address: IpAddr, exempt: &[IpNet], own: &[IpAddr]) -> Result<(), Denied> {
    let address = address.to_canonical();
    let kind = match kind(address) {
        None | Some(Denied::Private | Denied::Reserved) if is_own(address, own) => {
            Some(Denied::Host)
        }
        kind => kind,
    };
    match kind {
        None => Ok(()),
        Some(kind)
            if kind.can_be_exempt() && exempt.iter().any(|network| network.contains(&address)) =>
        {
            Ok(())
        }
        Some(kind) => Err(kind),
    }
}

/// Checks whether a network may be exempt. One that only contains addresses that are never reached
/// is a mistake; in a wider one, they are still not reached.
///
/// # Errors
/// [`PolicyError::Exempt`].
pub fn check_exempt(network: &IpNet) -> Result<(), PolicyError> {
    let never = match network {
        IpNet::V4(network) => {
            SPECIAL_V4.iter().any(|(net, kind)| !kind.can_be_exempt() && net.contains(network))
        }
        IpNet::V6(network) => {
            SPECIAL_V6.iter().any(|(net, kind)| !kind.can_be_exempt() && net.contains(network))
        }
    };
    let alone = network.prefix_len() == network.max_prefix_len();
    if never || alone && kind(network.addr()).is_some_and(|kind| !kind.can_be_exempt()) {
        return Err(PolicyError::Exempt(*network));
    }
    Ok(())
}

/// The addresses of this host's interfaces.
pub(super) fn of_host() -> std::io::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    Ok(addresses.map(|address| address.to_canonical()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kind_of(text: &str) -> Option<Denied> {
        kind(text.parse().unwrap())
    }

    #[test]
    fn every_kind_is_known() {
        for (denied, addresses) in [
            (Denied::Unspecified, "0.0.0.0 0.1.2.3 :: ::ffff:0.0.0.0"),
            (
                Denied::Loopback,
                "127.0.0.1 127.255.255.254 ::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::127.0.0.1 2002:7f00:1::1 ::127.0.0.1 ::ffff:0:127.0.0.1",
            ),
            (
                Denied::LinkLocal,
                "169.254.169.254 169.254.0.1 fe80::1 febf::1 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe::",
            ),
            (Denied::Multicast, "224.0.0.1 239.255.255.255 ff02::1 ::ffff:224.0.0.1"),
            (Denied::Broadcast, "255.255.255.255 ::ffff:255.255.255.255"),
            (
                Denied::Metadata,
                "fd00:ec2::254 fd20:ce::254 fd00:c1::a9fe:a9fe 100.100.100.200 192.0.0.192 168.63.129.16 64:ff9b::a83f:8110",
            ),
            (
                Denied::Private,
                "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255 fc00::1 fd12::1 fec0::1 ::ffff:10.0.0.1 64:ff9b::a00:1 2002:a00:1:: 2a00::200:5efe:a00:1",
            ),
            (
                Denied::Reserved,
                "192.0.0.1 192.0.2.1 198.51.100.7 203.0.113.9 198.18.0.1 198.19.255.255 240.0.0.1 192.88.99.1 2001:db8::1 2001:2::1 100::1 3fff::1 2002:808:808::1 2001:10::1 4000::1 5f00::1 ::8.8.8.8 64:ff9b:1::8.8.8.8",
            ),
        ] {
            for address in addresses.split(' ') {
                assert_eq!(kind_of(address), Some(denied), "{address}");
            }
        }
        // Teredo: server 8.8.8.8, client 127.0.0.1 with its bits turned; and the other way round.
        assert_eq!(kind_of("2001:0:808:808:0:0:80ff:fffe"), Some(Denied::Loopback));
        assert_eq!(kind_of("2001:0:7f00:1:0:0:f7f7:f7f7"), Some(Denied::Loopback));
        for public in
            "1.1.1.1 8.8.8.8 172.15.0.1 172.32.0.1 100.63.0.1 100.128.0.1 169.253.0.1 198.20.0.1 223.255.255.255 \
             2606:4700::1111 2a00:1450::1 64:ff9b::808:808 ::ffff:8.8.8.8"
                .split_whitespace()
        {
            assert_eq!(kind_of(public), None, "{public}");
        }
    }

    #[test]
    fn an_exemption_never_opens_what_must_stay_closed() {
        let all: Vec<IpNet> = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        let own = [
            "198.51.100.7".parse().unwrap(),
            "8.8.4.4".parse().unwrap(),
            "127.0.0.1".parse().unwrap(),
        ];
        for address in [
            "127.0.0.1",
            "169.254.169.254",
            "::1",
            "fe80::1",
            "224.0.0.1",
            "0.0.0.0",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "64:ff9b::7f00:1",
        ] {
            assert!(check(address.parse().unwrap(), &all, &own).is_err(), "{address}");
        }
        for address in ["10.0.0.1", "198.51.100.7", "8.8.4.4", "fd12::1"] {
            assert!(check(address.parse().unwrap(), &all, &own).is_ok(), "{address}");
            assert!(check(address.parse().unwrap(), &[], &own).is_err(), "{address}");
        }
        assert_eq!(check(own[1], &[], &own), Err(Denied::Host));
        assert_eq!(check(own[1], &[], &[]), Ok(()));
        // A unique local network with metadata services in it.
        let local = ["fd00::/8".parse().unwrap()];
        for address in ["fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe"] {
            let denied = check(address.parse().unwrap(), &local, &[]);
            assert_eq!(denied, Err(Denied::Metadata), "{address}");
        }
        // The host's own 8.8.4.4, by way of a translator.
        for address in [
            "64:ff9b::808:404",
            "64:ff9b:1::808:404",
            "2002:808:404::1",
            "::ffff:0:808:404",
            "::8.8.4.4",
            "2001:0:808:808::f7f7:fbfb",
            "2001:0:808:404::1",
            "2a00::200:5efe:808:404",
        ] {
            let address = address.parse().unwrap();
            assert_eq!(check(address, &[], &own), Err(Denied::Host), "{address}");
        }
        assert_eq!(check("64:ff9b::808:404".parse().unwrap(), &[], &[]), Ok(()));
        for bad in [
            "127.0.0.0/8",
            "127.0.0.1/32",
            "169.254.0.0/16",
            "169.254.169.254/32",
            "fe80::/10",
            "::1/128",
            "ff00::/8",
            "fd20:ce::254/128",
            "fd00:c1::a9fe:a9fe/128",
        ] {
            assert!(check_exempt(&bad.parse().unwrap()).is_err(), "{bad}");
        }
        for good in ["10.0.0.0/8", "198.51.100.7/32", "0.0.0.0/0", "fd00::/8"] {
            assert!(check_exempt(&good.parse().unwrap()).is_ok(), "{good}");
        }
    }

    #[test]
    fn this_host_knows_its_loopback_address() {
        assert!(of_host().unwrap().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }

    proptest! {
        #[test]
        fn an_embedded_address_is_no_way_around(bits in any::<u32>()) {
            let inner = Ipv4Addr::from_bits(bits);
            let [a, b, c, d] = inner.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            if let Some(denied) = kind(IpAddr::V4(inner)) {
                for outer in [
                    Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
                    Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                    Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                    Ipv6Addr::new(0x2001, 0, 0x808, 0x808, 0, 0, !high, !low),
                    Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0xf7f7, 0xf7f7),
                ] {
                    prop_assert_eq!(kind(IpAddr::V6(outer)), Some(denied), "{}", outer);
                }
            }
        }

        #[test]
        fn std_never_knows_better(bits in any::<u128>()) {
            let address = Ipv6Addr::from_bits(bits);
            if address.is_multicast() || address.is_unique_local() || address.is_unicast_link_local() {
                prop_assert!(kind(IpAddr::V6(address)).is_some());
            }
            let address = Ipv4Addr::from_bits(u32::try_from(bits & u128::from(u32::MAX)).unwrap());
            if address.is_private() || address.is_loopback() || address.is_link_local() || address.is_multicast()
                || address.is_documentation() || address.is_broadcast() || address.is_unspecified()
            {
                prop_assert!(kind(IpAddr::V4(address)).is_some());
            }
        }
    }
}
