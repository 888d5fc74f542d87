//! Results of the demo, as `--json` prints them.

use mayfly_distribution::{Distribution, Summary};
use mayfly_vmm::Accel;
use serde::Serialize;

use super::systems::{Sample, System};

/// A whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the golden.
    pub golden: String,
    /// Accelerator that executes its instructions.
    pub accel: Accel,
    /// Version of QEMU.
    pub vmm: String,
    /// Whether its sessions have a Docker daemon.
    pub docker: bool,
    /// Number of starts of each system but the cold boot.
    pub rounds: u32,
    /// The systems, in the order in which each round starts them.
    pub systems: Vec<Row>,
    /// Systems that could not be started here.
    pub missing: Vec<Missing>,
    /// A standby beside a cold boot; `None` without one.
    pub standby_sooner: Option<Ratio>,
    /// A container in a session; `None` where the golden has no image for it.
    pub docker_run: Option<DockerRun>,
}

/// The starts of one system, in milliseconds from the request.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Name of the system.
    pub system: System,
    /// Description of the system.
    pub what: &'static str,
    /// Time until the agent has taken its identity and answered.
    pub agent_ms: Option<Summary>,
    /// Time until the last byte of the first command's output.
    pub command_ms: Summary,
    /// Time until Docker has answered.
    pub docker_ms: Option<Summary>,
    /// Each start, in the order of the rounds.
    pub samples: Vec<Milliseconds>,
}

/// Times of one start.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Milliseconds {
    /// Round of the start, from 1.
    pub round: u32,
    /// Time until the agent has answered, as in [`Row`].
    pub agent_ms: Option<f64>,
    /// Time until the end of the first command's output, as in [`Row`].
    pub command_ms: f64,
    /// Time until Docker has answered, as in [`Row`].
    pub docker_ms: Option<f64>,
}

/// A system that could not be started.
#[derive(Debug, Clone, Serialize)]
pub struct Missing {
    /// Name of the system.
    pub system: System,
    /// Reason why, and what to do about it.
    pub reason: String,
}

/// Ratio of the medians: how many times sooner.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Ratio {
    /// Ratio for the agent's answer.
    pub agent: f64,
    /// Ratio for Docker's answer.
    pub docker: Option<f64>,
}

/// A container that was run in a session.
#[derive(Debug, Clone, Serialize)]
pub struct DockerRun {
    /// The command in the session.
    pub command: Vec<String>,
    /// Output of the command.
    pub output: String,
    /// Time from the request for a session, which was a standby, until the command's end.
    pub ms: f64,
}

impl Row {
    /// Computes the figures of `samples`, each with its round.
    pub fn new(system: System, samples: &[(u32, Sample)]) -> Self {
        let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
        let samples: Vec<Milliseconds> = samples
            .iter()
            .map(|(round, sample)| Milliseconds {
                round: *round,
                agent_ms: sample.agent.map(ms),
                command_ms: ms(sample.command),
                docker_ms: sample.docker.map(ms),
            })
            .collect();
        let summary = |value: fn(&Milliseconds) -> Option<f64>| {
            let mut distribution = Distribution::default();
            samples.iter().filter_map(value).for_each(|value| distribution.push(value));
            distribution.summary()
        };
        let some = |summary: Summary| (summary.n > 0).then_some(summary);
        Self {
            system,
            what: system.what(),
            agent_ms: some(summary(|s| s.agent_ms)),
            command_ms: summary(|s| Some(s.command_ms)),
            docker_ms: some(summary(|s| s.docker_ms)),
            samples,
        }
    }
}

impl Report {
    /// Returns the row of `system`, if it was started.
    pub fn row(&self, system: System) -> Option<&Row> {
        self.systems.iter().find(|row| row.system == system)
    }

    /// Puts a standby and a cold boot in relation.
    pub fn compare(&mut self) {
        let ratio = |of: fn(&Row) -> Option<Summary>| {
            let (standby, boot) =
                (of(self.row(System::Standby)?)?, of(self.row(System::ColdBoot)?)?);
            (standby.p50 > 0.0).then(|| boot.p50 / standby.p50)
        };
        self.standby_sooner = ratio(|row| row.agent_ms)
            .map(|agent| Ratio { agent, docker: ratio(|row| row.docker_ms) });
    }
}
