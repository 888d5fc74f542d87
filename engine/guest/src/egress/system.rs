//! Files that say how this host finds names: hosts(5) and resolv.conf(5). They are read again when
//! they have changed. Neither nsswitch.conf(5) nor the search domains of resolv.conf count.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

/// Longest of these files in bytes; lists of hosts to block reach a few MiB.
const MAX_FILE: u64 = 16 << 20;
/// Name servers that count, the port of each, and how long to wait for one (resolv.conf(5)).
const MAX_SERVERS: usize = 3;
const PORT: u16 = 53;
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_TIMEOUT: u64 = 30;
/// The second attempt goes without extensions, which old name servers do not understand.
const ATTEMPTS: usize = 2;
const MAX_ATTEMPTS: usize = 5;

/// Addresses of names in lower case.
pub(super) type Hosts = HashMap<String, Vec<IpAddr>>;

/// Name servers of a host, and how to ask them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NameServers {
    /// At least one, in the order in which they are asked.
    pub addresses: Vec<SocketAddr>,
    /// How long one may take to answer.
    pub timeout: Duration,
    /// How often all of them are asked.
    pub attempts: usize,
    /// Whether they are asked over TCP alone.
    pub only_tcp: bool,
}

/// What this host knows about names.
#[derive(Debug)]
pub(super) struct System {
    hosts: Cached<Hosts>,
    servers: Cached<NameServers>,
}

impl System {
    /// What /etc says.
    pub fn of_host() -> Self {
        Self::new("/etc/hosts".into(), "/etc/resolv.conf".into(), PORT)
    }

    /// Reads other files; name servers are at another `port`.
    pub fn new(hosts: PathBuf, resolv_conf: PathBuf, port: u16) -> Self {
        Self {
            hosts: Cached::new(hosts, Box::new(parse_hosts)),
            servers: Cached::new(resolv_conf, Box::new(move |text| parse_resolv_conf(text, port))),
        }
    }

    /// Returns what hosts(5) says; nothing when it does not exist.
    pub fn hosts(&self) -> io::Result<Arc<Hosts>> {
        self.hosts.get()
    }

    /// Returns the name servers, that of this host when none is named.
    pub fn name_servers(&self) -> io::Result<Arc<NameServers>> {
        self.servers.get()
    }
}

/// Tells one content of a file from another: device, inode, length, and time of the last change in
/// seconds and nanoseconds.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// A file and what it was when it was last read.
struct Cached<T> {
    path: PathBuf,
    parse: Box<dyn Fn(&str) -> T + Send + Sync>,
    last: Mutex<Option<(Stamp, Arc<T>)>>,
}

impl<T> std::fmt::Debug for Cached<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cached").field("path", &self.path).finish_non_exhaustive()
    }
}

impl<T> Cached<T> {
    fn new(path: PathBuf, parse: Box<dyn Fn(&str) -> T + Send + Sync>) -> Self {
        Self { path, parse, last: Mutex::default() }
    }

    /// A file that does not exist is an empty one.
    fn get(&self) -> io::Result<Arc<T>> {
        let stamp = match std::fs::metadata(&self.path) {
            Ok(of) => Some((of.dev(), of.ino(), of.len(), of.ctime(), of.ctime_nsec())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(self.within(&error)),
        };
        let mut last = self.last.lock();
        if let Some((of, value)) = &*last
            && *of == stamp
        {
            return Ok(Arc::clone(value));
        }
        let text = if stamp.is_some() {
            self.read().map_err(|error| self.within(&error))?
        } else {
            String::new()
        };
        let value = Arc::new((self.parse)(&text));
        *last = Some((stamp, Arc::clone(&value)));
        Ok(value)
    }

    fn read(&self) -> io::Result<String> {
        let mut bytes = Vec::new();
        File::open(&self.path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::other(format!("it has more than {MAX_FILE} bytes")));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn within(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{} cannot be read: {error}", self.path.display()))
    }
}

fn parse_hosts(text: &str) -> Hosts {
    let mut hosts = Hosts::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else {
            continue;
        };
        for name in words {
            hosts.entry(name.to_ascii_lowercase()).or_default().push(address);
        }
    }
    hosts
}

/// Lines and options that mean nothing are passed over, as glibc does.
fn parse_resolv_conf(text: &str, port: u16) -> NameServers {
    let mut servers = NameServers {
        addresses: Vec::new(),
        timeout: TIMEOUT,
        attempts: ATTEMPTS,
        only_tcp: false,
    };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") if servers.addresses.len() < MAX_SERVERS => {
                let address = words.next().and_then(|word| server_address(word, port));
                servers.addresses.extend(address);
            }
            Some("options") => words.for_each(|option| set(&mut servers, option)),
            _ => {}
        }
    }
    if servers.addresses.is_empty() {
        servers.addresses.push((Ipv4Addr::LOCALHOST, port).into());
    }
    servers
}

fn set(servers: &mut NameServers, option: &str) {
    let number = |text: &str| text.parse::<u64>().ok();
    match option.split_once(':') {
        Some(("timeout", text)) => {
            if let Some(seconds) = number(text) {
                servers.timeout = Duration::from_secs(seconds.clamp(1, MAX_TIMEOUT));
            }
        }
        Some(("attempts", text)) => {
            if let Some(attempts) = number(text).and_then(|number| usize::try_from(number).ok()) {
                servers.attempts = attempts.clamp(ATTEMPTS, MAX_ATTEMPTS);
            }
        }
        None if option == "use-vc" => servers.only_tcp = true,
        _ => {}
    }
}

/// An address, of which a link-local one has its interface behind it: `fe80::1%eth0`.
fn server_address(text: &str, port: u16) -> Option<SocketAddr> {
    let Some((address, zone)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, port));
    };
    let index = zone.parse().ok().or_else(|| nix::net::if_::if_nametoindex(zone).ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, port, 0, index).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_resolv_conf_are_read_as_their_manual_pages_say() {
        let hosts = parse_hosts(
            "127.0.0.1 localhost # 1.2.3.4 no\n\n#5.6.7.8 no\n192.0.2.1\tA.test  b.test\n::1 a.test\nnonsense a.test\n",
        );
        let both: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap(), "::1".parse().unwrap()];
        assert_eq!((&hosts["a.test"], &hosts["b.test"][..], hosts.len()), (&both, &both[..1], 3));

        let servers = parse_resolv_conf(
            "# c\nsearch corp.internal\nnameserver 192.0.2.53\nnameserver x\nnameserver 2001:db8::1\n; d\n\
             options ndots:5 timeout:99 attempts:0 use-vc rotate\nnameserver fe80::1%1\nnameserver 192.0.2.54\n",
            53,
        );
        let expected = ["192.0.2.53:53", "[2001:db8::1]:53", "[fe80::1%1]:53"]
            .map(|text| text.parse().unwrap());
        assert_eq!(servers.addresses, expected);
        assert_eq!((servers.timeout.as_secs(), servers.attempts, servers.only_tcp), (30, 2, true));
        assert_eq!(parse_resolv_conf("", 53).addresses, ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_changed_file_is_read_again_and_an_endless_one_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        let system = System::new(path.clone(), dir.path().join("none"), 53);
        assert!(system.hosts().unwrap().is_empty());
        std::fs::write(&path, "192.0.2.1 a.test\n").unwrap();
        let first = system.hosts().unwrap();
        assert!(first.contains_key("a.test") && Arc::ptr_eq(&first, &system.hosts().unwrap()));
        std::fs::write(&path, "192.0.2.1 longer.test\n").unwrap();
        assert!(system.hosts().unwrap().contains_key("longer.test"));
        File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(system.hosts().unwrap_err().to_string().contains("more than"));
    }
}
