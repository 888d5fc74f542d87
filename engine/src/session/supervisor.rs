//! Watches over a running session: owns its VMM, notices its death and the pager's, and takes it
//! down.

use std::sync::Arc;
use std::time::Duration;

use mayfly_host::cgroup::Limits;
use mayfly_host::time_scale::scaled;
use mayfly_vmm::{ConsoleTail, ForkSpec, Launched, VmmError};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use super::SessionError;
use super::machine::Machine;
use super::state::{SessionState, StateCell};
use crate::egress_proxy::EgressProxy;
use crate::golden::LoadedGolden;

/// Bound on a QMP exchange with a running VM.
const CONTROL_LIMIT: Duration = Duration::from_secs(10);

enum Command {
    Pause(oneshot::Sender<Result<(), SessionError>>),
    Resume(oneshot::Sender<Result<(), SessionError>>),
    Fork(Box<ForkSpec>, oneshot::Sender<Result<Launched, SessionError>>),
    UnmapClean(oneshot::Sender<Result<u64, SessionError>>),
    Limit(Limits, oneshot::Sender<Result<(), SessionError>>),
    Recording(oneshot::Sender<Result<Vec<u32>, SessionError>>),
    PagerStats(oneshot::Sender<Result<mayfly_pager::SessionStats, SessionError>>),
    Discard(oneshot::Sender<Result<(), SessionError>>),
}

/// Handle to the task that owns a session's VMM. Dropping it discards the session.
#[derive(Debug)]
pub(super) struct Supervisor {
    commands: mpsc::Sender<Command>,
    state: StateCell,
    console: ConsoleTail,
    egress: Arc<EgressProxy>,
    golden: Arc<LoadedGolden>,
    pid: u32,
}

impl Supervisor {
    pub fn start(machine: Machine) -> Self {
        let (commands, receiver) = mpsc::channel(4);
        let (state, console, egress, golden, pid) = (
            machine.state.clone(),
            machine.console.clone(),
            machine.egress.clone(),
            machine.golden.clone(),
            machine.vmm.pid(),
        );
        let supervisor = Self { commands, state, console, egress, golden, pid };
        tokio::spawn(watch(machine, receiver).in_current_span());
        supervisor
    }

    pub fn state(&self) -> &StateCell {
        &self.state
    }

    pub fn console(&self) -> &ConsoleTail {
        &self.console
    }

    pub fn egress(&self) -> Arc<EgressProxy> {
        self.egress.clone()
    }

    pub fn golden(&self) -> &LoadedGolden {
        &self.golden
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the memory of the VMM process that no other process shares, in bytes.
    pub fn private_memory(&self) -> Result<u64, SessionError> {
        mayfly_host::memory::private_bytes(self.pid)
            .map_err(|cause| SessionError::Io { action: "read the memory of the VMM", cause })
    }

    async fn call<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, SessionError>>) -> Command,
    ) -> Result<T, SessionError> {
        let (reply, answer) = oneshot::channel();
        let gone = || SessionError::Gone { state: self.state.get() };
        self.commands.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    pub async fn pause(&self) -> Result<(), SessionError> {
        self.call(Command::Pause).await
    }

    pub async fn resume(&self) -> Result<(), SessionError> {
        self.call(Command::Resume).await
    }

    pub async fn recording(&self) -> Result<Vec<u32>, SessionError> {
        self.call(Command::Recording).await
    }

    pub async fn pager_stats(&self) -> Result<mayfly_pager::SessionStats, SessionError> {
        self.call(Command::PagerStats).await
    }

    pub async fn fork(&self, spec: ForkSpec) -> Result<Launched, SessionError> {
        self.call(|reply| Command::Fork(Box::new(spec), reply)).await
    }

    pub async fn unmap_clean(&self) -> Result<u64, SessionError> {
        self.call(Command::UnmapClean).await
    }

    pub async fn limit(&self, limits: Limits) -> Result<(), SessionError> {
        self.call(|reply| Command::Limit(limits, reply)).await
    }

    pub async fn discard(&self) -> Result<(), SessionError> {
        self.call(Command::Discard).await
    }
}

async fn watch(mut machine: Machine, mut commands: mpsc::Receiver<Command>) {
    let mut dead = false;
    loop {
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(Command::Pause(reply)) => {
                    let _ = reply.send(pause(&mut machine).await);
                }
                Some(Command::Resume(reply)) => {
                    let _ = reply.send(resume(&mut machine).await);
                }
                Some(Command::UnmapClean(reply)) => {
                    let unmapped = machine.vmm.unmap_clean(scaled(CONTROL_LIMIT)).await;
                    dead |= give_up_lost(&mut machine, unmapped.as_ref().err(), dead).await;
                    let _ = reply.send(unmapped.map_err(Into::into));
                }
                Some(Command::Fork(spec, reply)) => {
                    let forked = machine.vmm.fork(*spec, scaled(CONTROL_LIMIT)).await;
                    // Before the answer: whoever gets it finds no zygote that can be taken.
                    dead |= give_up_lost(&mut machine, forked.as_ref().err(), dead).await;
                    if let Err(unwanted) = reply.send(forked.map_err(Into::into)) {
                        // It is killed and waited for.
                        drop(tokio::task::spawn_blocking(move || drop(unwanted)));
                    }
                }
                Some(Command::Limit(limits, reply)) => {
                    let _ = reply.send(machine.limit(&limits));
                }
                Some(Command::Recording(reply)) => {
                    let _ = reply.send(machine.paging.recording().await);
                }
                Some(Command::PagerStats(reply)) => {
                    let _ = reply.send(machine.paging.stats().await);
                }
                Some(Command::Discard(reply)) => {
                    let _ = reply.send(machine.discard().await);
                    return;
                }
                // The handle was dropped without a word: its owner is gone.
                None => {
                    if let Err(error) = machine.discard().await {
                        tracing::warn!(%error, "left behind");
                    }
                    return;
                }
            },
            died = machine.vmm.exited(), if !dead => {
                dead = true;
                fail(&machine.state, &died.to_string());
                // A guest that was stopped and kept does not run on.
                kill(&mut machine).await;
            }
            reason = machine.paging.failed(), if !dead => {
                dead = true;
                fail(&machine.state, &SessionError::Paging { reason }.to_string());
                machine.unbind();
                // A page that cannot be had must not be waited for: nothing in the guest runs on.
                kill(&mut machine).await;
            }
        }
    }
}

/// Ends a zygote that was lost by `error`, unless it is dead already. Returns whether it did.
async fn give_up_lost(machine: &mut Machine, error: Option<&VmmError>, dead: bool) -> bool {
    let Some(error @ VmmError::ZygoteLost { .. }) = error.filter(|_| !dead) else { return false };
    fail(&machine.state, &error.to_string());
    kill(machine).await;
    true
}

fn fail(state: &StateCell, reason: &str) {
    tracing::warn!(reason, "session failed");
    let _ = state.advance(SessionState::Failed(reason.into()));
}

async fn kill(machine: &mut Machine) {
    if let Err(error) = machine.vmm.kill().await {
        tracing::warn!(%error, "cannot kill the VMM of a failed session");
    }
}

async fn pause(machine: &mut Machine) -> Result<(), SessionError> {
    if !machine.state.get().allows(&SessionState::Paused) {
        machine.state.advance(SessionState::Paused)?;
    }
    machine.vmm.pause(scaled(CONTROL_LIMIT)).await?;
    Ok(machine.state.advance(SessionState::Paused)?)
}

async fn resume(machine: &mut Machine) -> Result<(), SessionError> {
    if !machine.state.get().allows(&SessionState::Running) {
        machine.state.advance(SessionState::Running)?;
    }
    machine.vmm.resume(scaled(CONTROL_LIMIT)).await?;
    Ok(machine.state.advance(SessionState::Running)?)
}
