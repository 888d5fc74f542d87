//! Start of a session: spawns a VMM (a shell), and restores the golden into it.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_guest::channel::Channel;
use mayfly_host::cgroup::Limits;
use mayfly_host::time_scale::scaled;
use mayfly_vmm::{Descriptors, DiskFormat, DiskLayer, LaunchSpec, Purpose, RamDescriptors};
use tokio::net::UnixStream;
use tracing::Instrument;

use super::identity;
use super::machine::Machine;
use super::paging::Paging;
use super::resources::Resources;
use super::state::{SessionState, StateCell};
use super::supervisor::Supervisor;
use super::{Session, SessionError, StartTimes};
use crate::golden::LoadedGolden;

/// Bounds on the steps of a start. Generous: they catch what hangs, not what is slow.
const SHELL_LIMIT: Duration = Duration::from_secs(20);
const RESTORE_LIMIT: Duration = Duration::from_secs(30);

/// A VMM that is spawned and waits for its snapshot; the warmest form that has no identity yet.
pub struct Shell {
    pub(super) id: String,
    pub(super) machine: Machine,
    /// Where sockets to the session are made.
    socket_dir: PathBuf,
    /// The writable disk layer of a zygote, to copy it for each fork.
    pub(super) overlay: Option<std::fs::File>,
    stream: UnixStream,
    pub(super) span: tracing::Span,
    times: StartTimes,
}

impl std::fmt::Debug for Shell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shell").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Shell {
    pub(crate) async fn spawn(
        resources: &Resources,
        golden: Arc<LoadedGolden>,
        limits: &Limits,
        record: bool,
        purpose: Purpose,
    ) -> Result<Self, SessionError> {
        let begun = Instant::now();
        let id = identity::new_id()?;
        let span = tracing::info_span!("session", id = %id, golden = %golden.name());
        let work = async {
            let (paging, memory) = Paging::attach(&resources.pager, &golden, &id, record).await?;
            tracing::debug!(at = ?begun.elapsed(), "attached to the pager");
            let (cgroup, file) = resources.cgroup(&id, &golden, limits).await?;
            tracing::debug!(at = ?begun.elapsed(), "cgroup made");
            let uid = resources.uids.take()?;
            let mut disk = golden.disk_layers()?;
            let file = golden.overlay().fill(file, &resources.overlay_dir)?;
            let overlay = match purpose {
                Purpose::Zygote => {
                    Some(mayfly_host::descriptors::open_again(&file).map_err(descriptor)?)
                }
                _ => None,
            };
            let ram = RamDescriptors::Session {
                page_cache: memory.page_cache,
                userfaultfd_device: mayfly_host::userfaultfd::open()?,
                handshake: memory.handshake,
            };
            let mut confinement = resources.confine(&uid, &cgroup, &golden, limits)?;
            if matches!(purpose, Purpose::Zygote) {
                // The kernel counts its forks as well; its cgroup bounds its own threads.
                confinement.threads = u32::MAX;
            }
            let bound = resources.bound_disk(file.as_fd(), &uid, confinement.file_bytes)?;
            disk.push(DiskLayer { file, format: DiskFormat::Qcow2 });
            let spec = LaunchSpec {
                shape: golden.shape().clone(),
                purpose,
                descriptors: Descriptors { ram, disk },
                confinement,
            };
            tracing::debug!(at = ?begun.elapsed(), "descriptors ready");
            let mut launched = resources.driver.launch(spec).await?;
            let spawned = begun.elapsed();
            launched.vmm.wait_ready(scaled(SHELL_LIMIT)).await?;
            let times =
                StartTimes { spawn: spawned, shell: begun.elapsed(), ..StartTimes::default() };
            tracing::debug!(pid = launched.vmm.pid(), ?times.shell, "shell ready");
            Ok(Self {
                id: id.clone(),
                machine: Machine {
                    golden: golden.clone(),
                    state: StateCell::default(),
                    vmm: launched.vmm,
                    paging,
                    cgroup,
                    overlay: bound,
                    uid: Arc::new(uid),
                    zygote_uid: None,
                    console: launched.console,
                    egress: resources.egress.clone(),
                    _instance: resources.instance.clone(),
                },
                socket_dir: resources.instance.dir().to_owned(),
                overlay,
                stream: launched.channel,
                span: span.clone(),
                times,
            })
        };
        work.instrument(span.clone()).await
    }

    /// Returns the session id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the process id of the VMM on this host.
    pub fn vmm_pid(&self) -> u32 {
        self.machine.vmm.pid()
    }

    /// Replaces the bounds it was spawned with. Another bound on its disk takes CAP_SYS_RESOURCE.
    ///
    /// # Errors
    /// [`SessionError`] when the kernel refuses.
    pub fn limit(&self, limits: &Limits) -> Result<(), SessionError> {
        self.machine.limit(limits)
    }

    /// Restores the golden into this shell, gives it its identity and waits for the agent.
    ///
    /// # Errors
    /// [`SessionError`]; nothing of the session is left then.
    pub async fn start(self) -> Result<Session, SessionError> {
        let span = self.span.clone();
        self.start_inner().instrument(span).await
    }

    async fn start_inner(self) -> Result<Session, SessionError> {
        let begun = Instant::now();
        let Self { id, mut machine, socket_dir, stream, times, .. } = self;
        machine.state.advance(SessionState::Restoring)?;
        let hello = identity::hello(&id)?;
        let device_state = machine.golden.device_state().clone();
        let limit = scaled(RESTORE_LIMIT);
        let outcome = {
            let opened = async {
                let (channel, ack) = Channel::open(stream, &hello).await?;
                let answered = begun.elapsed();
                if let Some(error) = ack.errors.first() {
                    return Err(SessionError::NotUnique { reason: error.to_string() });
                }
                Ok((channel, answered))
            };
            let restored = async {
                machine.vmm.restore(&device_state, limit).await?;
                Ok(begun.elapsed())
            };
            let both = async { tokio::try_join!(restored, opened) };
            tokio::select! {
                outcome = both => outcome,
                reason = machine.paging.failed() => Err(SessionError::Paging { reason }),
                () = tokio::time::sleep(limit) => Err(SessionError::NoAnswer {
                    limit,
                    console: machine.console.last_lines(5),
                }),
            }
        };
        let (restore, (channel, agent)) = match outcome {
            Ok(opened) => opened,
            Err(error) => {
                let error = explain(&mut machine, error).await;
                machine.discard().await?;
                return Err(error);
            }
        };
        machine.state.advance(SessionState::Running)?;
        let times = StartTimes { restore, agent, ..times };
        tracing::debug!(agent_us = agent.as_micros(), "agent answered");
        Ok(Session::new(id, socket_dir, channel, times, Supervisor::start(machine)))
    }

    /// Takes the shell down; nothing of it is left afterwards.
    ///
    /// # Errors
    /// [`SessionError`] when something could not be removed.
    pub async fn discard(self) -> Result<(), SessionError> {
        self.machine.discard().await
    }
}

/// A failed restore shows first as a closed channel; the cause is how the VMM ended or what the
/// pager says.
async fn explain(machine: &mut Machine, error: SessionError) -> SessionError {
    if !matches!(error, SessionError::Channel(_)) {
        return error;
    }
    tokio::select! {
        biased;
        reason = machine.paging.failed() => SessionError::Paging { reason },
        died = machine.vmm.exited() => died.into(),
        () = tokio::time::sleep(scaled(Duration::from_millis(500))) => error,
    }
}

fn descriptor(cause: std::io::Error) -> SessionError {
    SessionError::Io { action: "open a disk overlay again", cause }
}
