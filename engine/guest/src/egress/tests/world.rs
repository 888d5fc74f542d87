//! A network and a mount namespace with one server at a documentation address, and an agent whose
//! egress is on.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::channel::Channel;
use crate::channel::tests::Agent;
use crate::egress::fuzzing::InThisProcess;
use crate::egress::{Egress, EgressAccount, EgressRecord, Observer, Policy};

/// Address of the server: TEST-NET-2 (RFC 5737), which no host on the Internet has.
pub const SERVER: &str = "198.51.100.7";
/// Names of the namespace. `inside` leads to where nobody may go, `both` there and to the server.
const HOSTS: &str = "127.0.0.1 localhost\n198.51.100.7 server.test other.test a.sub.test\n127.0.0.1 inside.test both.test\n\
                     198.51.100.7 both.test\n169.254.169.254 metadata.test\n10.0.0.1 private.test\n198.51.100.9 dead.test\n";

/// How long lines may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Log of the egress, as the observer was told it.
#[derive(Debug, Default)]
pub struct Log(Mutex<Vec<EgressRecord>>);

impl Observer for Log {
    fn record(&self, record: &EgressRecord) {
        self.0.lock().push(record.clone());
    }
}

impl Log {
    /// Returns the lines, once there are at least `count`.
    pub async fn lines(&self, count: usize) -> Vec<EgressRecord> {
        let begun = Instant::now();
        loop {
            let lines = self.0.lock().clone();
            if lines.len() >= count {
                return lines;
            }
            assert!(begun.elapsed() < LIMIT, "no {count} lines: {lines:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Network with one guest that has egress.
pub struct World {
    pub agent: Agent,
    pub channel: Channel,
    pub egress: Egress,
    pub account: EgressAccount,
    pub proxies: Arc<InThisProcess>,
    pub log: Arc<Log>,
}

impl World {
    /// Runs `work` in the network, see [`alone`].
    pub fn run(policy: Policy, work: impl AsyncFnOnce(World) + Send) {
        alone(async || {
            tokio::spawn(serve(TcpListener::bind((SERVER, 80)).await.unwrap()));
            tokio::spawn(serve(TcpListener::bind((SERVER, 8080)).await.unwrap()));
            // The traps: who gets there has found a way around.
            tokio::spawn(serve(TcpListener::bind("127.0.0.1:80").await.unwrap()));
            let (agent, channel) = Agent::open().await;
            let log = Arc::new(Log::default());
            let policy = policy.with_observer(log.clone()).with_tenant("red");
            let proxies = Arc::new(InThisProcess::default());
            let account = EgressAccount::default();
            let started =
                Egress::start(&channel, "s1", policy, account.clone(), proxies.clone()).await;
            work(World { agent, channel, egress: started.unwrap(), account, proxies, log }).await;
        });
    }

    /// Sends `request` to the proxy port of the guest, closes that half, and reads all there is.
    pub async fn ask(&self, request: &str) -> String {
        let mut client = self.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A connection that is cut is a truncated answer.
        let _ = client.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Sends a plain HTTP request through the proxy.
    pub async fn get(&self, url: &str) -> String {
        let host = url.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap();
        self.ask(&format!("GET {url} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.egress.ports().proxy)))
            .await
            .unwrap()
    }
}

/// Runs `work` in namespaces with [`SERVER`] and [`HOSTS`]. Namespaces belong to threads: those of
/// its thread are new, and so are those of the threads and processes that it starts.
pub fn alone(work: impl AsyncFnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            isolate();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work());
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Puts `text` in place of a file, for the mount namespace of this thread.
pub fn bind_mount(text: &str, path: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    mount(Some(file.path()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

/// Returns the policy of the tests, which exempts the server's network, one of those that are
/// denied.
pub fn policy(entries: &[&str]) -> Policy {
    Policy::allow(entries).unwrap().with_exempt(["198.51.100.0/24".parse().unwrap()]).unwrap()
}

/// Returns the status of an answer.
pub fn status(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

fn isolate() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .expect("namespaces of our own: these tests need root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .unwrap();
    bind_mount(HOSTS, "/etc/hosts");
    for arguments in
        [&["link", "set", "lo", "up"][..], &["address", "add", "198.51.100.7/32", "dev", "lo"]]
    {
        assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
    }
}

/// Answers every request with its head, except for some paths: `/bytes/N`, `/redirect`, `/hang`.
async fn serve(listener: TcpListener) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(answer(client));
    }
}

async fn answer(mut client: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match client.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let path = text.split(' ').nth(1).unwrap_or_default();
    let (extra, body) = match path {
        "/redirect" => {
            ("302 Found\r\nlocation: http://169.254.169.254/latest/meta-data/", Vec::new())
        }
        "/hang" => return std::future::pending().await,
        "/hop" => ("200 OK\r\nconnection: x-hop\r\nx-hop: 1\r\nx-end: 2", Vec::new()),
        _ => match path.strip_prefix("/bytes/") {
            Some(count) => ("200 OK", vec![b'x'; count.parse().unwrap()]),
            None => ("200 OK", head),
        },
    };
    let answer = format!("HTTP/1.1 {extra}\r\ncontent-length: {}\r\n\r\n", body.len());
    let _ = client.write_all(&[answer.as_bytes(), &body].concat()).await;
}
