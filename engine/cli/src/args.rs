//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use mayfly_api::{EgressPolicy, Publish, SessionLimits};
use mayfly_client::Endpoint;

use crate::remote::forward::Forwarded;

/// Ephemeral microVM sessions with a warm Docker inside, restored from snapshots.
#[derive(Debug, Parser)]
#[command(name = "mayfly", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print results as JSON on standard output, and no progress.
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress; only results and errors.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Log more (twice for traces). MAYFLY_LOG takes a tracing filter instead.
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what this host can do, and what to do about what it cannot.
    Doctor,
    /// Build, list, inspect, verify and remove golden images.
    #[command(subcommand)]
    Golden(Golden),
    /// Run one command in a fresh session, then discard the session.
    Run(RunArgs),
    /// Open an interactive shell in a fresh session, then discard the session.
    Shell(ShellArgs),
    /// Serve sessions to other programs: a pool of warm ones, an HTTP API on a Unix socket and,
    /// with tokens, on TCP.
    Serve(ServeArgs),
    /// Make a token for a client of the daemon over TCP, and the line with its hash for the
    /// configuration.
    Token(TokenArgs),
    /// Start a session of the daemon that stays, and print its id.
    Start(StartArgs),
    /// List the daemon's sessions.
    Ps,
    /// Run one command in a session of the daemon.
    Exec(ExecArgs),
    /// Follow a background command of a session of the daemon, as several may.
    Attach(AttachArgs),
    /// Run this host's docker client against the Docker daemon of a session.
    Docker(DockerArgs),
    /// Listen on this host for TCP ports of a session.
    Forward(ForwardArgs),
    /// Show or replace what a session of the daemon may reach outside.
    Egress(EgressArgs),
    /// Copy files into or out of a session of the daemon.
    Cp(CpArgs),
    /// Print the end of a session's console.
    Logs {
        /// Session id.
        id: String,
    },
    /// Discard sessions of the daemon.
    Kill {
        /// Session ids.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Show the daemon's sessions, pools and latencies as figures.
    Status,
    /// Build a golden, and show how soon its sessions answer, beside a boot and a container.
    Demo(DemoArgs),
    /// Try to get out of sessions, and report what held: the escape suite.
    Audit(AuditArgs),
    /// Serve, show or stop this host's pager process.
    #[command(subcommand)]
    Pager(Pager),
    /// Read what sessions and servers say to each other; started by an engine.
    #[command(hide = true)]
    EgressProxy,
}

/// `mayfly golden ...`
#[derive(Debug, Subcommand)]
pub enum Golden {
    /// Build a golden image: root file system, boot, warm-up, snapshot.
    Build(BuildArgs),
    /// List golden images.
    Ls,
    /// Show the manifest of a golden image.
    Inspect {
        /// Name of the golden.
        golden: String,
    },
    /// Read and hash everything a golden image consists of.
    Verify {
        /// Name of the golden; all goldens when omitted.
        golden: Option<String>,
    },
    /// Remove golden images.
    Rm {
        /// Names of the goldens.
        #[arg(required = true)]
        goldens: Vec<String>,
    },
}

/// `mayfly golden build`
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Recipe files, or names of built-in recipes: default, docker, e2b-base. They are built one
    /// after the other [default: default].
    #[arg(value_name = "RECIPE")]
    pub recipes: Vec<PathBuf>,
    /// Boot, warm up and snapshot again even when nothing has changed.
    #[arg(long)]
    pub rebuild: bool,
    /// Accelerator instead of the one this host is found to have.
    #[arg(long, value_name = "kvm|tcg")]
    pub accel: Option<mayfly_vmm::Accel>,
    /// Seconds the guest may take to boot, and again for Docker to answer [default: 120, times
    /// MAYFLY_TIME_SCALE].
    #[arg(long, value_name = "SECONDS")]
    pub boot_timeout: Option<u64>,
}

/// What a session may use and reach.
#[derive(Debug, Args)]
pub struct Bounds {
    /// Most memory of the session, in MiB, guest and emulator.
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// Most processors' worth of CPU time, such as 0.5.
    #[arg(long)]
    pub cpus: Option<f64>,
    /// Most disk space of what the session writes, in MiB.
    #[arg(long, value_name = "MIB")]
    pub disk: Option<u64>,
    /// Let the session reach this host: a name, *.NAME, an IP address or a network, on ports 80 and
    /// 443 unless one is given; or * for every public address. May be repeated.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub egress: Vec<String>,
    /// Most MiB read, and most MiB written, per second on the host's disk.
    #[arg(long, value_name = "MIB")]
    pub io: Option<u64>,
}

impl Bounds {
    /// Of a request for a session.
    pub fn limits(&self) -> SessionLimits {
        SessionLimits {
            memory_mib: self.memory,
            cpus: self.cpus,
            disk_mib: self.disk,
            io_mib_per_second: self.io,
        }
    }

    /// Of a request for a session.
    pub fn egress(&self) -> EgressPolicy {
        EgressPolicy { allow: self.egress.clone(), ..EgressPolicy::default() }
    }
}

/// `mayfly run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name of the golden.
    pub golden: String,
    /// Run the command on this host instead, with DOCKER_HOST set to the session's own daemon.
    #[arg(long)]
    pub docker: bool,
    /// Set a variable in the command's environment.
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Working directory of the command in the guest.
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User in the guest.
    #[arg(long, short)]
    pub user: Option<String>,
    /// What the session may use and reach.
    #[command(flatten)]
    pub bounds: Bounds,
    /// Use an engine in this process although a daemon runs.
    #[arg(long)]
    pub no_daemon: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// `mayfly shell`
#[derive(Debug, Args)]
pub struct ShellArgs {
    /// Name of the golden.
    pub golden: String,
    /// Let the session reach this host: a name, *.NAME, an IP address or a network, on ports 80 and
    /// 443 unless one is given; or * for every public address. May be repeated.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub egress: Vec<String>,
    /// Use an engine in this process although a daemon runs.
    #[arg(long)]
    pub no_daemon: bool,
    /// Command instead of a login shell.
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// `mayfly serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Configuration, a TOML file; defaults when omitted.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Also listen on TCP; every request needs a bearer token of the configuration then.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<std::net::SocketAddr>,
    /// Unix socket to listen on; mayfly.sock in the folder of running state when omitted.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Also answer clients of E2B, and print what to set for them: on 127.0.0.1:7070 unless --listen
    /// says otherwise, with a key for this run where the configuration has no tenants.
    #[arg(long)]
    pub e2b: bool,
}

/// `mayfly token`
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// Make it in the form of E2B's API keys, which some clients check.
    #[arg(long, conflicts_with = "hash")]
    pub e2b: bool,
    /// Read a token from standard input instead, and print the line with its hash alone.
    #[arg(long)]
    pub hash: bool,
}

/// `mayfly start`
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Name of the golden.
    pub golden: String,
    /// Discard the session after this time, such as 10min; the daemon's default when omitted.
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<humantime::Duration>,
    /// Discard it when nobody has used it for this time; the daemon's default when omitted.
    #[arg(long, value_name = "DURATION")]
    pub idle: Option<humantime::Duration>,
    /// Set a variable in the environment of all its commands.
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Listen on a loopback address of the daemon's host for the TCP ports that its containers
    /// publish: `own`, which no other session has, or `127.0.0.1`. `mayfly ps --json` shows it.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "own", require_equals = true, value_parser = publish)]
    pub publish: Option<Publish>,
    /// User in the guest of commands that name none.
    #[arg(long)]
    pub user: Option<String>,
    /// Label it.
    #[arg(long, value_name = "NAME=VALUE")]
    pub metadata: Vec<String>,
    /// What the session may use and reach.
    #[command(flatten)]
    pub bounds: Bounds,
}

fn publish(text: &str) -> Result<Publish, &'static str> {
    match text {
        "own" => Ok(Publish::Own),
        "127.0.0.1" => Ok(Publish::Localhost),
        _ => Err("write `own` or `127.0.0.1`"),
    }
}

/// `mayfly attach`
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Session id.
    pub id: String,
    /// Number of the command, which `exec -d` has printed.
    pub number: u64,
    /// Pass standard input on.
    #[arg(long, short)]
    pub interactive: bool,
}

/// `mayfly exec`
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Session id.
    pub id: String,
    /// Leave the command in the background, and print its number.
    #[arg(long, short)]
    pub detach: bool,
    /// Pass standard input on; with -d, leave it open for `attach -i`.
    #[arg(long, short)]
    pub interactive: bool,
    /// Run the command on a terminal.
    #[arg(long, short)]
    pub tty: bool,
    /// Set a variable in the command's environment.
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Working directory of the command.
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User in the guest.
    #[arg(long, short)]
    pub user: Option<String>,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// The daemon that has the session.
#[derive(Debug, Args)]
pub struct Elsewhere {
    /// The daemon that has the session, unix:///PATH or http://HOST:PORT; this host's when omitted.
    /// Over TCP the token is the content of MAYFLY_TOKEN, unless --token-file names a file.
    #[arg(long, value_name = "URL")]
    pub daemon: Option<Endpoint>,
    /// File that holds the token for a daemon over TCP.
    #[arg(long, value_name = "FILE", requires = "daemon")]
    pub token_file: Option<PathBuf>,
}

/// `mayfly forward`
#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// The daemon that has the session.
    #[command(flatten)]
    pub elsewhere: Elsewhere,
    /// Session id.
    pub id: String,
    /// TCP port of the session, at 127.0.0.1 of this host unless another address is named, and at
    /// the same port unless LOCAL is; 0 is a free one.
    #[arg(value_name = "[ADDR:][LOCAL:]PORT", required = true)]
    pub ports: Vec<Forwarded>,
}

/// `mayfly egress`
#[derive(Debug, Args)]
pub struct EgressArgs {
    /// Session id.
    pub id: String,
    /// What it may reach from now on, in place of all that it may reach now: NAME, *.NAME, an IP
    /// address, a network or *, on ports 80 and 443 unless one is given. Without any, shows what it
    /// may reach.
    #[arg(value_name = "HOST[:PORT]")]
    pub allow: Vec<String>,
    /// Take this host back from what * allows. May be repeated.
    #[arg(long, value_name = "HOST[:PORT]", requires = "allow")]
    pub deny: Vec<String>,
    /// It may reach nothing from now on.
    #[arg(long, conflicts_with_all = ["allow", "deny"])]
    pub none: bool,
}

/// `mayfly docker`
#[derive(Debug, Args)]
pub struct DockerArgs {
    /// The daemon that has the session.
    #[command(flatten)]
    pub elsewhere: Elsewhere,
    /// Session id.
    pub id: String,
    /// Arguments of docker, such as `run --rm busybox echo hello`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub arguments: Vec<String>,
}

/// `mayfly cp`
#[derive(Debug, Args)]
pub struct CpArgs {
    /// What to copy: a path of this host, or ID:PATH of a session.
    pub from: String,
    /// Where to: the other kind. A folder that is there gets the copy below it; otherwise this is
    /// the copy's name.
    pub to: String,
    /// Copies as this user of the session, with the rights of that user: `user`, `uid`, `user:group`
    /// or `uid:gid`. A path of the session may then be relative to the user's home.
    #[arg(long)]
    pub user: Option<String>,
}

/// `mayfly demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Recipe file of the golden; the built-in default recipe when omitted.
    pub recipe: Option<PathBuf>,
    /// Starts of each system.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Of these rounds, how many also boot; a boot takes many times as long as all else.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub boots: u32,
}

/// `mayfly audit`
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Name of the golden.
    #[arg(default_value = "default")]
    pub golden: String,
    /// Only these checks or groups of checks.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub only: Vec<String>,
    /// List the checks instead.
    #[arg(long)]
    pub list: bool,
    /// Write the report to this file; .md, .html and .json say in which form. May be given several
    /// times.
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,
    /// Starts of a neighbour to measure alone, and again beside each abuser.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub starts: u32,
    /// Plant a breach, to see that it is reported: unconfined-vmm, leaked-secrets or
    /// changed-golden.
    #[arg(long, value_name = "BREACH")]
    pub plant: Vec<mayfly_audit::Planted>,
}

/// `mayfly pager ...`
#[derive(Debug, Subcommand)]
pub enum Pager {
    /// Serve sessions of this host until idle; started by itself when needed.
    Serve {
        /// Most memory for page caches, in MiB; a quarter of the host's memory when omitted.
        #[arg(long, value_name = "MIB")]
        budget: Option<u64>,
        /// Seconds without a session after which it ends; 0 for never.
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        idle: u64,
    },
    /// Show its counters.
    Status,
    /// End it; sessions that still run fail.
    Stop,
}
