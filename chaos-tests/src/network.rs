//! A network of a test's own: one address that is not loopback, names for it, and servers behind
//! it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// TEST-NET-2 (RFC 5737): no host on the Internet has it.
pub const ADDRESS: &str = "198.51.100.7";
/// The network of [`ADDRESS`], as a daemon's configuration exempts it.
pub const NETWORK: &str = "198.51.100.0/24";

/// Runs `work` on a thread in new network and mount namespaces, where [`ADDRESS`] is this host's
/// and `/etc/hosts` holds `hosts`. Threads and processes that it starts are there, too.
///
/// # Panics
/// When it is not root, or `work` panics.
pub fn isolated<T: Send>(hosts: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .expect("namespaces: root is needed");
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )
            .expect("mounts");
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), hosts).expect("names");
            mount(Some(file.path()), "/etc/hosts", None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .expect("names in place");
            ip(&["link", "set", "lo", "up"]);
            ip(&["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn ip(arguments: &[&str]) {
    let status =
        Command::new("ip").args(arguments).status().expect("ip(8), of the package iproute2");
    assert!(status.success(), "ip {arguments:?}: {status}");
}

/// An answer of a [`Site`].
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Status and reason.
    pub status: String,
    /// More header lines.
    pub headers: Vec<String>,
    /// Body of the answer.
    pub body: Vec<u8>,
}

impl Page {
    /// Makes a `200 OK` with this body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: "200 OK".into(), headers: Vec::new(), body: body.into() }
    }

    /// Adds a header line.
    #[must_use]
    pub fn header(mut self, line: impl Into<String>) -> Self {
        self.headers.push(line.into());
        self
    }
}

/// Content of a server, by path. Everything else is 404.
pub type Site = BTreeMap<String, Page>;

/// Serves `site` over plain HTTP until the process ends.
///
/// # Panics
/// When it cannot listen there.
pub fn serve(address: &str, port: u16, site: Site) {
    let address: IpAddr = address.parse().expect("an address");
    let listener = TcpListener::bind((address, port)).expect("a place to listen");
    let site = Arc::new(site);
    std::thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let site = Arc::clone(&site);
            // A client that goes away is none of our business.
            std::thread::spawn(move || answer(client, &site).unwrap_or_default());
        }
    });
}

/// Sends a plain HTTP request from this thread's namespaces; returns the whole answer.
///
/// # Panics
/// When nobody answers.
pub fn get(place: (&str, u16), path: &str) -> String {
    let mut stream = TcpStream::connect(place).expect("a connection");
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn answer(mut client: TcpStream, site: &Site) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let missing = Page { status: "404 Not Found".into(), ..Page::default() };
    let page = site.get(path).unwrap_or(&missing);
    let headers: String = page.headers.iter().map(|line| format!("{line}\r\n")).collect();
    let length = page.body.len();
    let head = format!(
        "HTTP/1.1 {}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n",
        page.status
    );
    client.write_all(head.as_bytes())?;
    if method != "HEAD" {
        client.write_all(&page.body)?;
    }
    Ok(())
}
