//! Mayfly beside other ways to a started sandbox, in one run.
//!
//! Every round starts each system once, one after another, so that whatever else the machine does
//! hits all alike. What has an agent is asked through the engine's own channel and Docker through
//! the agent, for Mayfly and for stock QEMU.

mod mayfly;
mod report;
mod sample;
mod stock;
mod system;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use mayfly_crun::Containers;
use mayfly_engine::Engine;
use mayfly_engine::golden::LoadedGolden;
use mayfly_engine::session::{Zygote, identity};

pub use report::{Figures, Report};
pub use sample::Sample;
pub use system::System;

use stock::{Artifacts, Exported};

use crate::error::BenchError;

/// Rest between two starts, so that what the last one left to the kernel is done.
const REST: Duration = Duration::from_millis(50);

/// Number of starts to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Number of starts of each system.
    pub rounds: u32,
    /// Number of the rounds that also boot; a boot takes many times as long as all else.
    pub boots: u32,
    /// Rounds before those, which fill caches and do not count. Nothing boots in them.
    pub warm_up: u32,
    /// Systems to measure.
    pub systems: Vec<System>,
}

/// Samples in the order of the rounds.
pub type Samples = BTreeMap<System, Vec<Sample>>;

/// Everything that is started from.
struct Sources<'a> {
    engine: &'a Engine,
    golden: &'a Arc<LoadedGolden>,
    zygote: Option<Zygote>,
    stock: Option<(Artifacts, Exported)>,
    containers: Option<Containers>,
}

/// Measures `plan`.
///
/// # Errors
/// [`BenchError`] of the first start that fails; nothing is left running then.
pub async fn run(
    engine: &Engine,
    golden: &Arc<LoadedGolden>,
    plan: &Plan,
    progress: &ProgressBar,
) -> Result<Samples, BenchError> {
    let wants = |test: fn(&System) -> bool| plan.systems.iter().any(test);
    progress.set_message("turning the golden into what stock QEMU restores");
    let stock = if wants(System::is_stock) {
        let artifacts = Artifacts::take(engine, golden)?;
        let exported =
            stock::export(&artifacts, engine.driver().version(golden.shape().accel)).await?;
        Some((artifacts, exported))
    } else {
        None
    };
    let containers =
        if wants(|s| *s == System::Container) { Some(Containers::new().await?) } else { None };
    progress.set_message("warming up a VMM to fork from");
    let forks = |system: &System| matches!(system, System::Standby | System::Fork);
    let zygote = if wants(forks) { mayfly::zygote(engine, golden).await? } else { None };
    let sources = Sources { engine, golden, zygote, stock, containers };

    let mut samples = Samples::new();
    for round in 0..plan.warm_up + plan.rounds {
        let counted = round.checked_sub(plan.warm_up);
        for system in &plan.systems {
            if *system == System::ColdBoot && !counted.is_some_and(|round| boots_in(round, plan)) {
                continue;
            }
            progress.set_message(system.name());
            tokio::time::sleep(REST).await;
            let measured = sources.start(*system).await?;
            if counted.is_some() {
                measured
                    .into_iter()
                    .for_each(|(system, sample)| samples.entry(system).or_default().push(sample));
            }
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    if let Some(zygote) = sources.zygote {
        zygote.discard().await?;
    }
    Ok(samples)
}

/// Spreads the boots evenly over the rounds.
fn boots_in(round: u32, plan: &Plan) -> bool {
    let share =
        |rounds: u32| u64::from(rounds) * u64::from(plan.boots) / u64::from(plan.rounds.max(1));
    share(round + 1) > share(round)
}

impl Sources<'_> {
    /// Starts `system` once. One start may serve two rows.
    async fn start(&self, system: System) -> Result<Vec<(System, Sample)>, BenchError> {
        let stock = || {
            let missing =
                BenchError::Peer { system: "stock QEMU", reason: "was not prepared".to_owned() };
            self.stock.as_ref().ok_or(missing)
        };
        let sample = match system {
            System::Standby => {
                let standby =
                    mayfly::standby(self.engine, self.golden, self.zygote.as_ref()).await?;
                tokio::time::sleep(REST).await;
                mayfly::hand_over(standby).await?
            }
            System::Fork => match &self.zygote {
                Some(zygote) => mayfly::fork(zygote).await?,
                None => return Ok(Vec::new()),
            },
            // Both come of one start, which Cold makes.
            System::Shell => return Ok(Vec::new()),
            System::Cold => {
                let [cold, shell] = mayfly::from_nothing(self.engine, self.golden).await?;
                return Ok(vec![(System::Cold, cold), (System::Shell, shell)]);
            }
            System::LoadVm => {
                let (artifacts, exported) = stock()?;
                stock::load_vm(artifacts, exported).await?.measure().await?
            }
            System::Stream | System::MappedRam => {
                let (artifacts, exported) = stock()?;
                let mapped = system == System::MappedRam;
                if mapped && exported.mapped.is_none() {
                    return Ok(Vec::new());
                }
                stock::incoming(artifacts, exported, mapped).await?.measure().await?
            }
            System::ColdBoot => stock::boot(&stock()?.0).await?.measure().await?,
            System::Container => match &self.containers {
                Some(containers) => {
                    Sample::new(containers.start(&identity::new_id()?).await?, None)
                }
                None => return Ok(Vec::new()),
            },
        };
        Ok(vec![(system, sample)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boots_are_spread_and_as_many_as_asked_for() {
        let plan = Plan { rounds: 10, boots: 3, warm_up: 0, systems: Vec::new() };
        let rounds: Vec<u32> = (0..10).filter(|round| boots_in(*round, &plan)).collect();
        assert_eq!(rounds, [3, 6, 9]);
        let more = Plan { boots: 20, ..plan };
        assert_eq!((0..10).filter(|round| boots_in(*round, &more)).count(), 10);
    }
}
