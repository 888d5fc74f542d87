//! A golden's guest that is booted instead of restored, to see what restoring saves.

use std::sync::Arc;

use mayfly_guest::channel::{Channel, ChannelError};
use mayfly_guest::docker;

use super::boot::{Boot, Booted, Confines};
use super::error::GoldenError;
use super::load::LoadedGolden;
use super::template::TemplateLimits;
use crate::engine::Engine;
use crate::session::identity;

/// A booted guest with an identity and a disk of its own. Dropping it discards it.
pub struct ColdBoot {
    // The VMM goes before its cgroup.
    booted: Booted,
    confines: Confines,
    limits: TemplateLimits,
    golden: Arc<LoadedGolden>,
}

impl std::fmt::Debug for ColdBoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ColdBoot").field("golden", &self.golden.name()).finish_non_exhaustive()
    }
}

impl ColdBoot {
    pub(crate) async fn start(
        engine: &Engine,
        golden: Arc<LoadedGolden>,
    ) -> Result<Self, GoldenError> {
        let artifacts = golden.boot_artifacts()?;
        let limits = TemplateLimits::default();
        let confines =
            Confines::take(engine, &format!("boot-{}", identity::new_id()?), golden.shape())?;
        let boot = Boot {
            name: golden.name(),
            artifacts,
            seal: golden.artifact_seal(),
            shape: golden.shape(),
            confines: &confines,
        };
        let booted = boot.run(&**engine.driver(), limits.boot).await?;
        if let Some(error) = booted.ack.errors.first() {
            return Err(booted.watch.failed("boot", error.to_string()));
        }
        Ok(Self { booted, confines, limits, golden })
    }

    /// Returns the process id of the VMM on this host.
    pub fn vmm_pid(&self) -> u32 {
        self.booted.vmm.pid()
    }

    /// Runs `work` with the guest, and says what the matter is when the guest ends meanwhile.
    ///
    /// # Errors
    /// [`GoldenError`] when `work` fails or takes longer than a warm-up command may (5 minutes).
    pub async fn with_guest<T>(
        &mut self,
        work: impl AsyncFnOnce(&Channel) -> Result<T, ChannelError>,
    ) -> Result<T, GoldenError> {
        let Booted { vmm, channel, watch, .. } = &mut self.booted;
        watch.step("a command", self.limits.command, work(channel), &mut **vmm).await
    }

    /// Waits until the guest's Docker daemon has started and answered.
    ///
    /// # Errors
    /// [`GoldenError`] when it does not within 2 minutes, or the guest ends.
    pub async fn docker_ping(&mut self) -> Result<(), GoldenError> {
        self.booted.docker_started(self.limits.docker).await?;
        self.with_guest(docker::ping).await
    }

    /// Ends the guest; nothing of it is left when this returns.
    ///
    /// # Errors
    /// [`GoldenError`] when something could not be removed.
    pub async fn discard(self) -> Result<(), GoldenError> {
        let Self { mut booted, confines, .. } = self;
        booted.vmm.kill().await?;
        drop(booted);
        confines.leave()
    }
}
