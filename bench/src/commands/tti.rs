//! `mayfly-bench tti`.

use std::path::PathBuf;
use std::time::Duration;

use mayfly_bench::error::BenchError;
use mayfly_bench::load::Daemon;
use mayfly_bench::tti::{self, Peers, Plan, Report, SEQUENTIAL, STAGGER, Scenario, Spacing};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Golden of all sessions.
    #[arg(long, default_value = "default")]
    golden: String,
    /// Only these scenarios, comma-separated: sequential, burst-N, staggered-N.
    #[arg(long, value_delimiter = ',', value_name = "SCENARIO")]
    #[arg(default_values_t = Scenario::DEFAULT)]
    only: Vec<Scenario>,
    /// Sessions of `sequential`.
    #[arg(long, default_value_t = SEQUENTIAL, value_parser = clap::value_parser!(u32).range(1..))]
    sessions: u32,
    /// Time between two requests of `staggered-N`.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(default_value_t = u64::try_from(STAGGER.as_millis()).unwrap_or(u64::MAX))]
    stagger_ms: u64,
    /// First command of each session: all that follows, or up to `;`.
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_terminator = ";")]
    #[arg(value_name = "WORD", default_values = ["bash", "-lc", "echo x"])]
    command: Vec<String>,
    /// Seconds that a request may wait for its turn.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
    deadline: u64,
    /// Let the sessions of a burst live until all of it is answered.
    #[arg(long)]
    hold: bool,
    /// Seconds of rest before each phase; then the pool may fill for up to a minute.
    #[arg(long, default_value_t = 10)]
    rest: u64,
    /// Also measure first steps in a session, in N sessions for each.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "5")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    first_steps: Option<u32>,
    /// Then keep N sessions alive that do nothing, look at what they take, and run the scenarios
    /// once more beside them.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "300")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    alive: Option<u32>,
    /// Start no containers beside the sessions.
    #[arg(long)]
    no_peers: bool,
    /// Containers by `docker run` in one session, one by one.
    #[arg(long, default_value_t = 20, value_name = "N", conflicts_with = "no_peers")]
    docker_runs: u32,
    /// Also N of these at once.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "100")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "no_peers")]
    docker_burst: Option<u32>,
    /// The daemon that listens here, instead of one of our own. It must be on this host.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Write the figures, all samples and a description of the machine as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Further arguments of `mayfly serve`, behind `--`.
    #[arg(last = true, conflicts_with = "socket")]
    serve: Vec<String>,
}

pub async fn run(args: Args) -> Result<(), BenchError> {
    let machine = super::machine(&args.golden).await?;
    let plan = args.plan();
    let daemon = Daemon::at(args.socket.as_deref(), &args.serve).await?;
    let mut outcome = tti::run(&daemon, &plan, &|phase| eprintln!("mayfly-bench: {phase}")).await?;
    drop(daemon);
    let cut_short = outcome.cut_short.take();
    let report = Report::new(&plan, machine, outcome);
    println!("{}", report.machine);
    super::show(report.tables());
    super::write(&report, || report.page(), args.json.as_deref(), args.html.as_deref())?;
    cut_short.map_or(Ok(()), Err)
}

impl Args {
    fn plan(&self) -> Plan {
        let stagger = Duration::from_millis(self.stagger_ms);
        let scenario = |scenario: &Scenario| match scenario.spacing {
            Spacing::OneByOne => Scenario { count: self.sessions, ..*scenario },
            Spacing::Every(_) => Scenario { spacing: Spacing::Every(stagger), ..*scenario },
            Spacing::AtOnce => *scenario,
        };
        let peers = Peers { docker_runs: self.docker_runs, docker_burst: self.docker_burst };
        Plan {
            golden: self.golden.clone(),
            scenarios: self.only.iter().map(scenario).collect(),
            command: self.command.clone(),
            deadline: Duration::from_secs(self.deadline),
            hold: self.hold,
            rest: Duration::from_secs(self.rest),
            first_steps: self.first_steps,
            alive: self.alive,
            peers: (!self.no_peers).then_some(peers),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        Cli::try_parse_from([&["tti"], words].concat()).unwrap().args
    }

    #[test]
    fn options_change_the_scenarios_they_are_about() {
        let names = |args: &Args| -> Vec<String> {
            args.plan().scenarios.iter().map(ToString::to_string).collect()
        };
        let all = args(&["--sessions", "7"]);
        assert_eq!(names(&all), ["sequential", "burst-100", "staggered-100", "burst-400"]);
        assert_eq!(all.plan().scenarios[0].count, 7);
        assert_eq!(all.plan().scenarios[1].count, 100);
        let some = args(&["--only", "burst-3,staggered-2", "--stagger-ms", "50"]);
        assert_eq!(names(&some), ["burst-3", "staggered-2"]);
        let gap = Spacing::Every(Duration::from_millis(50));
        assert_eq!(some.plan().scenarios[1].spacing, gap);
        Cli::try_parse_from(["tti", "--only", "burst"]).unwrap_err();
    }

    #[test]
    fn a_command_takes_the_words_behind_it() {
        assert_eq!(args(&[]).command, ["bash", "-lc", "echo x"]);
        assert_eq!(
            args(&["--hold", "--command", "ls", "-l", "--", "x"]).command[1..],
            ["-l", "--", "x"]
        );
        let more = args(&["--command", "ls", "--json", ";", "--hold"]);
        assert_eq!((more.command, more.hold), (vec!["ls".to_owned(), "--json".to_owned()], true));
    }

    #[test]
    fn numbers_of_extras_have_defaults() {
        let none = args(&[]);
        assert_eq!((none.first_steps, none.docker_burst, none.alive), (None, None, None));
        let some = args(&["--first-steps", "--docker-burst", "--", "--config", "x"]);
        assert_eq!((some.first_steps, some.docker_burst), (Some(5), Some(100)));
        assert_eq!(some.serve, ["--config", "x"]);
        assert_eq!(args(&["--first-steps", "3"]).first_steps, Some(3));
        assert_eq!(args(&["--alive", "--no-peers"]).alive, Some(300));
        assert!(args(&["--no-peers"]).plan().peers.is_none());
    }
}
