//! From nothing to a shell, from a shell to a running session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_guest::channel::Channel;
use mayfly_host::cgroup::{Limits, SessionCgroup, Subject};
use mayfly_host::time_scale::scaled;
use mayfly_host::uid::{Uid, UidPool};
use mayfly_pager::client::PagerClient;
use mayfly_vmm::{
    Confinement, ConsoleTail, Descriptors, DiskFormat, DiskLayer, Driver, LaunchSpec, Purpose, RamDescriptors, Vmm,
};
use tokio::net::UnixStream;
use tracing::Instrument;

use super::identity;
use super::paging::Paging;
use super::state::{State, StateCell};
use super::supervisor::Supervisor;
use super::{OverlayError, Session, SessionError, StartTimes};
use crate::golden::LoadedGolden;

/// Bounds on the steps of a start. Generous: they catch what hangs, not what is slow.
const SHELL_LIMIT: Duration = Duration::from_secs(20);
const RESTORE_LIMIT: Duration = Duration::from_secs(30);

/// What every session of an engine needs.
#[derive(Clone)]
pub(crate) struct Resources {
    pub driver: Arc<dyn Driver>,
    pub pager: PagerClient,
    pub instance: Arc<mayfly_host::instance::Instance>,
    pub uids: Arc<UidPool>,
    pub overlay_dir: std::path::PathBuf,
}

impl Resources {
    /// What the bounds of a session of `golden` depend on.
    pub fn subject(&self, golden: &LoadedGolden) -> Subject {
        Subject { guest_memory: golden.shape().memory_bytes, disk_dir: self.overlay_dir.clone() }
    }

    /// The cgroup of session `id` of `golden`, and a file for its disk.
    pub async fn cgroup(
        &self,
        id: &str,
        golden: &LoadedGolden,
        limits: &Limits,
    ) -> Result<(SessionCgroup, std::fs::File), SessionError> {
        let (name, limits, subject) = (self.instance.cgroup_name(id), limits.clone(), self.subject(golden));
        let making = move || SessionCgroup::create_with_file(&name, &limits, subject);
        let made = tokio::task::spawn_blocking(making).await;
        let (cgroup, file) = made.map_err(|e| SessionError::Io { action: "make a cgroup", source: e.into() })??;
        let file = file.map_err(|source| OverlayError::Write { dir: self.overlay_dir.clone(), source })?;
        Ok((cgroup, file))
    }

    /// How the VMM of a session of `golden` is confined.
    pub fn confine(
        &self,
        uid: &Uid,
        cgroup: &SessionCgroup,
        golden: &LoadedGolden,
        limits: &Limits,
    ) -> Result<Confinement, SessionError> {
        Ok(Confinement {
            uid: Some(uid.get()),
            cgroup: cgroup.entrance()?,
            file_bytes: limits.file_bytes(golden.overlay().virtual_size()),
            threads: limits.threads,
        })
    }
}

/// A VMM that is spawned and waits for its snapshot; the warmest form that has no identity yet.
pub struct Shell {
    pub(super) id: String,
    pub(super) golden: Arc<LoadedGolden>,
    pub(super) state: StateCell,
    pub(super) vmm: Box<dyn Vmm>,
    pub(super) paging: Paging,
    pub(super) cgroup: SessionCgroup,
    pub(super) uid: Uid,
    /// Largest file its VMM may write, in bytes.
    pub(super) file_bytes: u64,
    pub(super) console: ConsoleTail,
    pub(super) instance: Arc<mayfly_host::instance::Instance>,
    /// The writable disk layer of a zygote, to copy it for each fork.
    pub(super) overlay: Option<std::fs::File>,
    pub(super) stream: UnixStream,
    pub(super) span: tracing::Span,
    pub(super) times: StartTimes,
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
                Purpose::Zygote => Some(file.try_clone().map(std::fs::File::from).map_err(descriptor)?),
                _ => None,
            };
            disk.push(DiskLayer { file, format: DiskFormat::Qcow2 });
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
            let file_bytes = confinement.file_bytes;
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
            let times = StartTimes { spawn: spawned, shell: begun.elapsed(), ..StartTimes::default() };
            tracing::debug!(pid = launched.vmm.pid(), ?times.shell, "shell ready");
            Ok(Self {
                id: id.clone(),
                golden: golden.clone(),
                state: StateCell::default(),
                vmm: launched.vmm,
                paging,
                cgroup,
                uid,
                file_bytes,
                console: launched.console,
                instance: resources.instance.clone(),
                overlay,
                stream: launched.channel,
                span: span.clone(),
                times,
            })
        };
        work.instrument(span.clone()).await
    }

    /// Session id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Process id of the VMM on this host.
    pub fn vmm_pid(&self) -> u32 {
        self.vmm.pid()
    }

    /// Replaces the bounds it was spawned with. Another bound on its disk takes CAP_SYS_RESOURCE.
    ///
    /// # Errors
    /// [`SessionError`] when the kernel refuses.
    pub fn limit(&self, limits: &Limits) -> Result<(), SessionError> {
        let file_bytes = limits.file_bytes(self.golden.overlay().virtual_size());
        if file_bytes != self.file_bytes {
            self.vmm.bound_files(file_bytes)?;
        }
        Ok(self.cgroup.set(limits)?)
    }

    /// Restores the golden into this shell, gives it its identity and waits for the agent.
    ///
    /// # Errors
    /// [`SessionError`]; nothing of the session is left then.
    pub async fn start(self) -> Result<Session, SessionError> {
        let span = self.span.clone();
        self.start_inner().instrument(span).await
    }

    async fn start_inner(mut self) -> Result<Session, SessionError> {
        let begun = Instant::now();
        self.state.advance(State::Restoring)?;
        let hello = identity::hello(&self.id)?;
        let stream = std::mem::replace(&mut self.stream, unconnected()?);
        let device_state = self.golden.device_state().clone();
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
                self.vmm.restore(&device_state, limit).await?;
                Ok(begun.elapsed())
            };
            let both = async { tokio::try_join!(restored, opened) };
            tokio::select! {
                outcome = both => outcome,
                reason = self.paging.failed() => Err(SessionError::Paging { reason }),
                () = tokio::time::sleep(limit) => Err(SessionError::NoAnswer {
                    limit,
                    console: self.console.last_lines(5),
                }),
            }
        };
        let (restore, (channel, agent)) = match outcome {
            Ok(opened) => opened,
            Err(error) => {
                let error = self.explain(error).await;
                self.discard().await?;
                return Err(error);
            }
        };
        self.state.advance(State::Running)?;
        let times = StartTimes { restore, agent, ..self.times };
        tracing::debug!(agent_us = agent.as_micros(), "agent answered");
        let socket_dir = self.instance.dir().to_owned();
        Ok(Session::new(self.id.clone(), socket_dir, channel, times, Supervisor::start(self)))
    }

    /// A failed restore shows first as a closed channel; the cause is how the VMM ended or what the pager says.
    async fn explain(&mut self, error: SessionError) -> SessionError {
        if !matches!(error, SessionError::Channel(_)) {
            return error;
        }
        tokio::select! {
            biased;
            reason = self.paging.failed() => SessionError::Paging { reason },
            died = self.vmm.exited() => died.into(),
            () = tokio::time::sleep(scaled(Duration::from_millis(500))) => error,
        }
    }

    /// Takes the shell down; nothing of it is left afterwards.
    ///
    /// # Errors
    /// [`SessionError`] when something could not be removed.
    pub async fn discard(mut self) -> Result<(), SessionError> {
        // A failed start arrives here too; both may be discarded.
        let _ = self.state.advance(State::Discarding);
        self.vmm.kill().await?;
        drop((self.paging, self.uid));
        let cgroup = self.cgroup;
        // The kernel may take a moment for it.
        let removed = tokio::task::spawn_blocking(move || cgroup.remove()).await;
        removed.map_err(|e| SessionError::Io { action: "remove a cgroup", source: e.into() })??;
        let _ = self.state.advance(State::Discarded);
        Ok(())
    }
}

fn descriptor(source: std::io::Error) -> SessionError {
    SessionError::Io { action: "duplicate a descriptor", source }
}

pub(super) fn unconnected() -> Result<UnixStream, SessionError> {
    UnixStream::pair().map(|(end, _)| end).map_err(|source| SessionError::Io { action: "make a socket", source })
}
