//! A real `mayfly serve` for tests, and plain HTTP requests to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mayfly_host::time_scale::scaled;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::home::{self, Home};
use crate::host;
use crate::program::{Program, Running};

/// The bearer token of the one tenant, `red`.
pub const TOKEN: &str = "abc";
/// BLAKE3 of [`TOKEN`].
const TOKEN_BLAKE3: &str = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
/// Bounds on a life and on an answer. They only end what hangs.
const LIFE_LIMIT: Duration = Duration::from_secs(900);
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// A running daemon that listens on TCP and a socket of its own, with the host's golden image and a
/// journal of its own.
#[derive(Debug)]
pub struct Daemon {
    running: Running,
    files: Files,
}

/// Files that a daemon leaves for the next one: its address, socket path and journal.
#[derive(Debug)]
pub struct Files {
    roots: Roots,
    dir: TempDir,
    socket: PathBuf,
    address: SocketAddr,
    env: Vec<(String, String)>,
    /// The kernel refuses it user namespaces.
    no_user_namespaces: bool,
}

#[derive(Debug)]
enum Roots {
    Shared,
    Own(Home),
}

impl Daemon {
    /// Starts one with `config`, more settings of the tenant or TOML tables, and `env`. The command
    /// line does not find it.
    pub fn start(config: &str, env: &[(&str, &str)]) -> Self {
        let dir = home::temporary();
        let socket = dir.path().join("api.sock");
        let env =
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self::again(Files::new(Roots::Shared, dir, socket, env, config))
    }

    /// Starts one that the kernel refuses user namespaces.
    pub fn without_user_namespaces(config: &str) -> Self {
        let dir = home::temporary();
        let socket = dir.path().join("api.sock");
        let files = Files::new(Roots::Shared, dir, socket, Vec::new(), config);
        Self::again(Files { no_user_namespaces: true, ..files })
    }

    /// Starts one as [`Daemon::start`] with the roots of [`Home::aside`], whose command line finds
    /// it.
    pub fn aside(config: &str) -> Self {
        Self::with_home(Home::aside(), config)
    }

    /// Starts a daemon as [`Daemon::aside`] does, with these roots.
    pub fn with_home(home: Home, config: &str) -> Self {
        let socket = home.layout().api_socket();
        Self::again(Files::new(Roots::Own(home), home::temporary(), socket, Vec::new(), config))
    }

    /// Starts one in the place of another.
    pub fn again(mut files: Files) -> Self {
        let mut running = files.program(&files.socket, files.address).start();
        files.address = running.until("its address", |running| {
            let said: Value = serde_json::from_str(running.stdout().lines().next()?).ok()?;
            said["address"].as_str()?.parse().ok()
        });
        Self { running, files }
    }

    /// Creates a run of a second daemon with the same configuration and other addresses, which
    /// cannot work.
    pub fn rival(&self) -> Program {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        self.files.program(&self.files.dir.path().join("rival.sock"), any)
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Returns what it has logged so far.
    pub fn log(&self) -> String {
        self.running.stderr()
    }

    /// Returns the address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.files.address
    }

    /// Returns the path of its Unix socket.
    pub fn socket(&self) -> &Path {
        &self.files.socket
    }

    /// Returns the folder of its journal.
    pub fn journal(&self) -> PathBuf {
        self.files.dir.path().join("journal")
    }

    /// Returns the state roots of the daemon.
    pub fn home(&self) -> &Home {
        self.files.home()
    }

    /// Kills it without a warning.
    pub fn kill(self) -> Files {
        self.running.signal(Signal::SIGKILL);
        self.running.wait();
        self.files
    }

    /// Ends it in order.
    ///
    /// # Panics
    /// When it fails, or anything is left of its sessions.
    pub fn stop(self) -> Files {
        let pid = self.pid();
        self.running.signal(Signal::SIGTERM);
        let finished = self.running.wait();
        assert!(finished.success(), "{finished}");
        let leaks = self.files.home().leaks_of(pid);
        assert!(leaks.is_empty(), "left behind: {leaks:?}: {finished}");
        self.files
    }

    /// Creates a session and returns its id.
    ///
    /// # Panics
    /// When it is refused.
    pub fn create(&self, request: &Value) -> String {
        let response = self.ask("POST", "/v1/sessions", Some(TOKEN), Some(request));
        assert_eq!(response.status, 201, "{}", response.body);
        let session: Value = serde_json::from_str(&response.body).expect("a session");
        session["id"].as_str().expect("an id").to_owned()
    }

    /// Asks for `GET /v1/status`.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.ask("GET", "/v1/status", Some(TOKEN), None).body)
            .expect("a status")
    }

    /// Returns the pool of `golden` in the status; null when it keeps none.
    pub fn pool(&self, golden: &str) -> Value {
        let status = self.status();
        let goldens = status["goldens"].as_array().expect("goldens");
        goldens.iter().find(|entry| entry["name"] == golden).expect("the golden in the status")["pool"].clone()
    }

    /// Waits until the pool of `golden` holds `standbys`.
    ///
    /// # Panics
    /// When it never does.
    pub fn until_standbys(&self, golden: &str, standbys: u64) {
        let begun = Instant::now();
        while self.pool(golden)["standbys"] != standbys {
            assert!(
                begun.elapsed() < scaled(ANSWER_LIMIT),
                "the pool does not fill: {}",
                self.pool(golden)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until it has logged `text`.
    ///
    /// # Panics
    /// When it never does.
    pub fn until_logged(&self, text: &str) {
        let begun = Instant::now();
        while !self.log().contains(text) {
            assert!(
                begun.elapsed() < scaled(ANSWER_LIMIT),
                "{text:?} is not logged: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends one request over a connection of its own.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Response {
        request(self.address(), method, path, token, body)
    }
}

/// Sends one HTTP request over a connection of its own.
///
/// # Panics
/// When there is no answer.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Option<&Value>,
) -> Response {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(scaled(ANSWER_LIMIT))).expect("a bound");
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let body = body.map(Value::to_string).unwrap_or_default();
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{token}");
    let typed = format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &typed + &body).as_bytes()).expect("a request");
    let mut answer = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(
            answer.read_line(&mut head).expect("a line of the head"),
            0,
            "the head ends early: {head:?}"
        );
    }
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let mut response = Response { status, head, body: String::new() };
    // ChromeDriver leaves the connection open, whatever it is asked for.
    let length = response.header("content-length").parse().unwrap_or(u64::MAX);
    answer.take(length).read_to_string(&mut response.body).expect("a body");
    response
}

impl Files {
    fn new(
        roots: Roots,
        dir: TempDir,
        socket: PathBuf,
        env: Vec<(String, String)>,
        config: &str,
    ) -> Self {
        let journal = dir.path().join("journal");
        let tenant = format!("[[tenants]]\nname = \"red\"\ntoken_blake3 = \"{TOKEN_BLAKE3}\"\n");
        std::fs::write(
            dir.path().join("serve.toml"),
            format!("journal = {journal:?}\n{tenant}{config}"),
        )
        .expect("a configuration");
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { roots, dir, socket, address, env, no_user_namespaces: false }
    }

    /// Returns the state roots.
    pub fn home(&self) -> &Home {
        match &self.roots {
            Roots::Shared => Home::shared(),
            Roots::Own(home) => home,
        }
    }

    fn program(&self, socket: &Path, address: SocketAddr) -> Program {
        let (config, socket) = (self.dir.path().join("serve.toml"), socket.display().to_string());
        let (config, address) = (config.display().to_string(), address.to_string());
        let args =
            ["--json", "serve", "--config", &config, "--socket", &socket, "--listen", &address];
        let mut program = self.home().mayfly(args).limit(LIFE_LIMIT);
        if self.no_user_namespaces {
            program = program.prepared(host::refuse_user_namespaces);
        }
        self.env.iter().fold(program, |program, (name, value)| program.env(name, value))
    }
}

/// Answer to a request over HTTP.
#[derive(Debug)]
pub struct Response {
    /// Status of the answer.
    pub status: u16,
    head: String,
    /// Body of the answer.
    pub body: String,
}

impl Response {
    /// Returns a header's value; empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .next()
            .unwrap_or_default()
    }
}
