//! Zygotes: a restored guest that has done once what sessions do first, and whose VMM is forked
//! into standbys.
//!
//! Under software emulation a guest's code is translated when it first runs, which is nearly all of
//! a session's first second. A forked VMM has the translations, and shares them and the guest's
//! memory copy-on-write with its relatives. A zygote never runs anything but the golden and the
//! warm-up below, and is never handed out.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use futures::FutureExt;
use mayfly_host::cgroup::Limits;
use mayfly_host::uid::Uid;
use mayfly_vmm::{ForkSpec, Purpose, VmmError};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};
use tracing::Instrument;

use super::machine::Machine;
use super::paging::{PageCacheId, Paging};
use super::resources::Resources;
use super::running::Parked;
use super::shell::Shell;
use super::state::{SessionState, StateCell};
use super::supervisor::Supervisor;
use super::{OverlayError, Session, SessionError, Standby, StartTimes, identity};
use crate::golden::{Extent, LoadedGolden, StepLimits};

/// Rounds of the warm-up. The emulator joins blocks it has translated as they are first followed by
/// one another, so that the second round still changes something.
const ROUNDS: usize = 3;

/// A VMM to fork standbys from. Dropping it discards it; its forks live on.
pub struct Zygote {
    parked: Parked,
    golden: Arc<LoadedGolden>,
    overlay: Arc<File>,
    /// Its user. The kernel counts the threads of its forks for it, too (`RLIMIT_NPROC` in
    /// setrlimit(2); each is in a user namespace that this user made), so that nobody else may be
    /// it as long as there are any.
    uid: Arc<Uid>,
    /// The file that it maps, and its forks therefore map, too.
    page_cache: PageCacheId,
    /// What of the first steps it has taken.
    extent: Extent,
    /// Forks that it made, and those in a row that it did not make.
    forks: AtomicU64,
    failed: AtomicU32,
    /// Whether its pager is another one now.
    lost: AtomicBool,
    /// Largest file that its VMM may write, in bytes; no fork may write a larger one.
    file_bytes: u64,
    resources: Resources,
}

impl std::fmt::Debug for Zygote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Zygote").field("id", &self.parked.id).finish_non_exhaustive()
    }
}

impl Zygote {
    /// Restores `golden` and has it take the first steps of its sessions, in the background if
    /// `limits` say so. It serves forks with the weight of a session.
    pub(crate) async fn prepare(
        resources: Resources,
        golden: Arc<LoadedGolden>,
        limits: &Limits,
        extent: Extent,
    ) -> Result<Self, SessionError> {
        let mut shell =
            Shell::spawn(&resources, golden.clone(), limits, false, Purpose::Zygote).await?;
        let span = shell.span.clone();
        let uid = shell.machine.uid.clone();
        let page_cache = shell.machine.paging.page_cache();
        let file_bytes = shell.machine.overlay.most();
        let overlay = shell.overlay.take().ok_or(SessionError::Io {
            action: "keep the zygote's disk",
            cause: io::ErrorKind::NotFound.into(),
        })?;
        let work = async {
            let mut session = shell.start().await?;
            // Once for what is long: it runs each block many times by itself.
            if extent == Extent::All {
                take_first_steps(&session, &golden, extent).await?;
            }
            for _ in 0..ROUNDS {
                take_first_steps(&session, &golden, Extent::Quick).await?;
                session = session.park().await?.wake(None).await?;
            }
            take_first_steps(&session, &golden, Extent::Quick).await?;
            let parked = session.park().await?;
            // From here on it works for those who wait, and may not be kept from the processor by
            // whoever has work of their own.
            let served = Limits { background: false, ..limits.clone() };
            parked.supervisor.limit(served).await?;
            unmap_clean(&parked).await?;
            Ok::<_, SessionError>(parked)
        };
        let parked = work.instrument(span).await?;
        let overlay = Arc::new(overlay);
        Ok(Self {
            parked,
            golden,
            overlay,
            uid,
            page_cache,
            extent,
            forks: AtomicU64::new(0),
            failed: AtomicU32::new(0),
            lost: AtomicBool::new(false),
            file_bytes,
            resources,
        })
    }

    /// Returns the golden it was restored from.
    pub fn golden(&self) -> &Arc<LoadedGolden> {
        &self.golden
    }

    /// Returns how much of the first steps it has taken.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Whether a session with `limits` can be forked from it: no fork may write a larger file than it
    /// may itself.
    pub fn fits(&self, limits: &Limits) -> bool {
        limits.file_bytes(self.golden.overlay().virtual_size()) <= self.file_bytes
    }

    /// Whether it is of no use any more; see [`Zygote::failed`].
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed) || self.failed().now_or_never().is_some()
    }

    /// Returns the number of forks that it made.
    pub fn forks(&self) -> u64 {
        self.forks.load(Ordering::Relaxed)
    }

    /// Returns how many forks in a row it did not make although everything for them was there.
    pub fn failed_forks(&self) -> u32 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Returns the process id of its VMM on this host.
    pub fn vmm_pid(&self) -> u32 {
        self.parked.supervisor.pid()
    }

    /// Returns the memory of the VMM process that no other process shares, in bytes.
    ///
    /// # Errors
    /// [`SessionError::Io`] when the process is gone.
    pub fn private_memory(&self) -> Result<u64, SessionError> {
        self.parked.supervisor.private_memory()
    }

    /// Resolves with the reason when it is of no use any more: its VMM or the pager is gone.
    pub async fn failed(&self) -> Arc<str> {
        self.parked.supervisor.state().failed().await
    }

    /// Forks a VMM with its own user, cgroup, disk, memory and tie to the pager; for somebody who
    /// waits for it.
    ///
    /// # Errors
    /// [`SessionError`]; nothing is left behind then.
    pub async fn fork(&self, limits: &Limits) -> Result<Standby, SessionError> {
        self.standby(limits, false).await
    }

    /// Forks as [`Zygote::fork`] does, and has the guest take the steps of [`Extent::Start`] once
    /// more, so that the pages which every session writes are its own already. For a
    /// pool: it costs some processor time now and saves it at hand-over.
    ///
    /// # Errors
    /// [`SessionError`]; nothing is left behind then.
    pub async fn prepare_standby(&self, limits: &Limits) -> Result<Standby, SessionError> {
        self.standby(limits, true).await
    }

    async fn standby(&self, limits: &Limits, rehearse: bool) -> Result<Standby, SessionError> {
        let id = identity::new_id()?;
        let span = tracing::info_span!("session", id = %id, golden = %self.golden.name());
        let work = async {
            let parked = self.fork_inner(id, limits).await?;
            if !rehearse {
                return Ok(parked);
            }
            let session = parked.wake(None).await?;
            take_first_steps(&session, &self.golden, Extent::Start).await?;
            session.park().await
        };
        let parked = work.instrument(span.clone()).await?;
        Ok(Standby { parked, extent: Some(self.extent), span })
    }

    async fn fork_inner(&self, id: String, limits: &Limits) -> Result<Parked, SessionError> {
        let begun = Instant::now();
        let (paging, memory) =
            Paging::attach(&self.resources.pager, &self.golden, &id, false).await?;
        if paging.page_cache() != self.page_cache {
            // A pager that has just taken the place of the zygote's own: what it filled would not be
            // what the fork maps. Its supervisor may have forks to make before it sees that.
            self.lost.store(true, Ordering::Relaxed);
            let reason = "its memory is that of another page cache".to_owned();
            return Err(VmmError::ZygoteLost { reason }.into());
        }
        let (cgroup, file) = self.resources.cgroup(&id, &self.golden, limits).await?;
        let uid = self.resources.uids.take()?;
        let (source, dir) = (self.overlay.clone(), self.resources.overlay_dir.clone());
        let copied = tokio::task::spawn_blocking(move || copy_overlay(&source, file, &dir)).await;
        let overlay = copied
            .map_err(|e| SessionError::Io { action: "copy a disk overlay", cause: e.into() })??;
        let confinement = self.resources.confine(&uid, &cgroup, &self.golden, limits)?;
        let file_bytes = confinement.file_bytes;
        if file_bytes > self.file_bytes {
            // The kernel would keep the zygote's bound, which a fork inherits and cannot raise.
            let most = self.file_bytes;
            let reason = format!("its disk may have {file_bytes} bytes, its zygote's {most}");
            return Err(VmmError::Fork { reason }.into());
        }
        let bound = self.resources.bound_disk(overlay.as_fd(), &uid, file_bytes)?;
        let layers = self.golden.disk_layers()?.into_iter().map(|layer| layer.file);
        let spec = ForkSpec {
            userfaultfd_device: mayfly_host::userfaultfd::open()?,
            handshake: memory.handshake,
            disk: layers.chain([overlay]).collect(),
            confinement,
        };
        tracing::debug!(at = ?begun.elapsed(), "ready to fork");
        let launched = self.parked.supervisor.fork(spec).await.inspect_err(|_| {
            self.failed.fetch_add(1, Ordering::Relaxed);
        })?;
        self.failed.store(0, Ordering::Relaxed);
        self.forks.fetch_add(1, Ordering::Relaxed);
        let spawned = begun.elapsed();
        tracing::debug!(pid = launched.vmm.pid(), ?spawned, "forked");
        // It begins where its zygote stands: at the end of a life's first half.
        let state = StateCell::default();
        for next in [SessionState::Restoring, SessionState::Running, SessionState::Paused] {
            state.advance(next)?;
        }
        let times = StartTimes { spawn: spawned, shell: spawned, ..StartTimes::default() };
        let socket_dir = self.resources.instance.dir().to_owned();
        let machine = Machine {
            golden: self.golden.clone(),
            state,
            vmm: launched.vmm,
            paging,
            cgroup,
            overlay: bound,
            uid: Arc::new(uid),
            zygote_uid: Some(self.uid.clone()),
            console: launched.console,
            egress: self.resources.egress.clone(),
            _instance: self.resources.instance.clone(),
        };
        Ok(Parked {
            id,
            stream: launched.channel,
            times,
            socket_dir,
            supervisor: Supervisor::start(machine),
        })
    }

    /// Takes the zygote down; its forks live on.
    ///
    /// # Errors
    /// [`SessionError`] when something could not be removed.
    pub async fn discard(&self) -> Result<(), SessionError> {
        self.parked.supervisor.discard().await
    }
}

/// Has the VMM of a zygote, which is not to run any more, unmap the pages that it has only read. One
/// that cannot makes dearer forks.
async fn unmap_clean(parked: &Parked) -> Result<(), SessionError> {
    match parked.supervisor.unmap_clean().await {
        Ok(pages) => tracing::debug!(pages, "clean guest memory is unmapped"),
        Err(SessionError::Vmm(VmmError::Fork { reason })) => {
            tracing::warn!(reason, "forks copy the page tables of clean guest memory");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn take_first_steps(
    session: &Session,
    golden: &LoadedGolden,
    extent: Extent,
) -> Result<(), SessionError> {
    let steps = golden.first_steps().take(session.guest(), extent, StepLimits::usual());
    session.guarded(steps).await
}

/// Makes `file`, which is in `dir`, a copy of a sparse one.
fn copy_overlay(source: &File, file: File, dir: &Path) -> Result<OwnedFd, OverlayError> {
    let copy = || {
        file.set_len(source.metadata()?.len())?;
        let mut at = 0;
        // ENXIO: no data after this offset (lseek(2)).
        let mut buffer = vec![0; 256 << 10];
        loop {
            let begin = match lseek64(source, at, Whence::SeekData) {
                Ok(begin) => begin,
                Err(Errno::ENXIO) => return Ok(OwnedFd::from(file)),
                // Less than all of it would be a disk with holes that nobody made.
                Err(errno) => return Err(errno.into()),
            };
            let end = lseek64(source, begin, Whence::SeekHole)?;
            at = begin;
            while at < end {
                let count = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                source.read_exact_at(&mut buffer[..count], at.cast_unsigned())?;
                file.write_all_at(&buffer[..count], at.cast_unsigned())?;
                at += i64::try_from(count).expect("no more than the buffer holds");
            }
        }
    };
    copy().map_err(|cause| OverlayError::Write { dir: dir.to_owned(), cause })
}
