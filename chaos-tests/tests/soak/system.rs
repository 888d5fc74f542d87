//! The system that is soaked: a daemon with a home, a store, disks and a runtime root of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mayfly_api::{Exec, PoolStatus, ServiceStatus, Tier};
use mayfly_chaos_tests::daemon::{Daemon, TOKEN};
use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_client::Client;
use mayfly_host::time_scale::scaled;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::errand::{self, World};
use crate::faults::Injector;
use crate::outcome::Outcome;
use crate::plan::{Dice, Errand, Fault, Round};

/// Space for the disks of sessions, and of the runtime root, in bytes; files of that.
const DISKS: u64 = 512 << 20;
const RUN: u64 = 16 << 20;
const FILES: u64 = 2000;
/// Clients at a time.
const AT_A_TIME: usize = 8;
/// Longest wait until everything is as it was. It only ends what hangs.
const LIMIT: Duration = Duration::from_secs(180);
/// The token of a second tenant.
const BLUE: &str = "blue-token";
const CONFIG: &str = "[[tenants]]\nname = \"blue\"\ntoken_blake3 = \"BLAKE3\"\n\
                      [goldens.default]\nfloor = 1\nmax_standbys = 2\nshells = 0\n";
/// Files that are compared: of what the golden has used before it was stored, and of what it has
/// not.
const CONTENT: [&str; 8] = [
    "/usr/bin/docker",
    "/usr/bin/perl",
    "/usr/bin/bash",
    "/bin/busybox",
    "/usr/bin/sha256sum",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/bin/find",
    "/usr/bin/sort",
];

pub struct System {
    world: Arc<World>,
    /// `None` only while it is at work.
    injector: Option<Injector>,
    operator: Client,
    emulated: bool,
    journal: PathBuf,
}

impl System {
    /// Starts it, and finds out what files of the golden should be.
    ///
    /// # Errors
    /// What this host lacks for it.
    pub async fn start() -> Result<Self, String> {
        let home = Home::with_small_roots(DISKS, RUN, FILES)?;
        let config = CONFIG.replace("BLAKE3", blake3::hash(BLUE.as_bytes()).to_hex().as_str());
        let daemon = Daemon::with_home(home, &config);
        let over_tcp = |token| Client::tcp(daemon.address().to_string(), token).unwrap();
        let operator = Client::unix(daemon.socket());
        let clients = vec![operator.clone(), over_tcp(TOKEN), over_tcp(BLUE)];

        let session = operator.create(&errand::request(), None).await.unwrap();
        let script = format!("sha256sum $(ls {} 2>/dev/null)", CONTENT.join(" "));
        let sums = operator.exec(&session.id, &Exec::new(["sh", "-c", &script])).await.unwrap();
        assert!(sums.outcome.success(), "{}", sums.stderr.to_text());
        let of_line = |line: &str| {
            let (sum, name) = line.split_once("  ").unwrap();
            (name.to_owned(), format!("{sum}  -"))
        };
        let content: BTreeMap<_, _> = sums.stdout.to_text().lines().map(of_line).collect();
        assert!(content.len() > CONTENT.len() / 2, "{content:?}");
        operator.kill(&session.id).await.unwrap();

        let emulated = operator.status().await.unwrap().host.starts_with("tcg");
        let (socket, journal) = (daemon.socket().to_owned(), daemon.journal());
        let world = World { clients, socket, content, answered: AtomicUsize::new(0) };
        let injector = Some(Injector::new(daemon));
        let system = Self { world: Arc::new(world), injector, operator, emulated, journal };
        system.recovered().await;
        Ok(system)
    }

    /// Whether VMMs can be forked here.
    pub fn emulated(&self) -> bool {
        self.emulated
    }

    fn injector(&self) -> &Injector {
        self.injector.as_ref().expect("it is not at work")
    }

    /// How many of each fault there were.
    pub fn done(&self) -> &BTreeMap<Fault, usize> {
        &self.injector().done
    }

    /// What the daemon that runs now has logged.
    pub fn log(&self) -> String {
        self.injector().daemon().log()
    }

    /// Sends the clients of a round, some at a time, and does its faults amid them.
    pub async fn round(&mut self, round: &Round) -> Vec<(Errand, Outcome)> {
        self.world.answered.store(0, Ordering::Relaxed);
        let mut clients = JoinSet::new();
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        for (errand, dice) in round.errands.clone() {
            let (world, places) = (self.world.clone(), places.clone());
            clients.spawn(async move {
                let _place = places.acquire().await;
                (errand, errand::run(world, errand, dice).await)
            });
        }
        let (world, injections) = (self.world.clone(), round.injections.clone());
        let mut injector = self.injector.take().expect("it is not at work");
        let faults = tokio::task::spawn_blocking(move || {
            injector.run(injections, || world.answered.load(Ordering::Relaxed));
            injector
        });
        let outcomes = clients.join_all().await;
        let injector = faults.await.unwrap();
        if let Some(pid) = injector.killed.last() {
            let reaped = self.operator.status().await.unwrap().reaped;
            let told = reaped.iter().any(|line| line.contains(&format!("engine {pid}-")));
            assert!(told, "nothing of the daemon {pid} was found: {reaped:?}");
        }
        self.injector = Some(injector);
        outcomes
    }

    /// One session that does nothing but say which it is.
    pub async fn one(&self) -> Outcome {
        errand::run(self.world.clone(), Errand::Compute, Dice::new(0)).await
    }

    /// Whether a session was served, and at the price of a warm start. Where VMMs cannot be forked,
    /// there may be no standby any more.
    pub fn is_warm(&self, outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Served(tier) if *tier != Tier::Cold || !self.emulated)
    }

    /// Waits until nothing is left of a round, what makes starts cheap is there again, and a session
    /// is served warm. Returns how many sessions that took: a zygote that was lost a moment ago may
    /// still be told of, and who finds it lost is served cold.
    ///
    /// # Panics
    /// When one of them is not served, or it takes too long.
    pub async fn recovered(&self) -> usize {
        let begun = Instant::now();
        for tries in 1.. {
            loop {
                let status = self.operator.status().await.unwrap();
                if self.is_idle(&status) {
                    break;
                }
                assert!(begun.elapsed() < scaled(LIMIT), "{status:?}: {}", self.log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let outcome = self.one().await;
            if self.is_warm(&outcome) {
                return tries;
            }
            let served = matches!(outcome, Outcome::Served(_)) && begun.elapsed() < scaled(LIMIT);
            assert!(served, "session {tries} after a round: {outcome}: {}", self.log());
        }
        unreachable!("it returns or fails")
    }

    fn is_idle(&self, status: &ServiceStatus) -> bool {
        let pool = status.goldens.iter().find(|g| g.name == GOLDEN).and_then(|g| g.pool.as_ref());
        let nobody = status.sessions == 0 && status.queued == 0 && status.pressure.is_none();
        // Standbys come after a zygote with all first steps, which a busy host makes for long.
        let cheap = |pool: &PoolStatus| if self.emulated { pool.zygote } else { pool.standbys > 0 };
        nobody && pool.is_some_and(cheap)
    }

    /// Ends it in order; nothing is left, and the golden image is what it was.
    pub fn end(self) {
        let injector = self.injector.expect("it is not at work");
        let killed = injector.killed.clone();
        let home_of = |daemon: &Daemon| daemon.home().layout().clone();
        let daemon = injector.end();
        let layout = home_of(&daemon);
        let verify = ["--json", "golden", "verify", GOLDEN];
        let verified = daemon.home().mayfly(verify).limit(Duration::from_secs(300)).run();
        assert!(verified.success(), "{verified}");
        let report: Value = serde_json::from_str(verified.stdout.trim()).unwrap();
        assert_eq!(report["bad"], json!([]));

        // Also looks for what is left of it.
        let files = daemon.stop();
        for pid in killed {
            assert_eq!(files.home().leaks_of(pid), [], "of the daemon {pid}");
        }
        let engines: Vec<_> = std::fs::read_dir(layout.engines()).unwrap().flatten().collect();
        assert!(engines.is_empty(), "{engines:?}");
        let journal = rusqlite::Connection::open(self.journal.join("journal.sqlite")).unwrap();
        let count = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        let left = journal.query_row("SELECT count(*) FROM sessions", [], count).unwrap();
        assert_eq!(left, 0, "entries in the journal");
        let pager = files.home().pager().ping().unwrap();
        assert_eq!(pager.sessions, 0, "sessions at the pager");
    }
}
