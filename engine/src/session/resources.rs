//! Resources of an engine that its sessions are made from.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use mayfly_host::cgroup::{Limits, SessionCgroup, Subject};
use mayfly_host::instance::Instance;
use mayfly_host::uid::{Uid, UidPool};
use mayfly_pager::client::PagerClient;
use mayfly_vmm::{Confinement, Driver};

use super::{OverlayError, SessionError};
use crate::disk_space::{DiskSpace, OverlayBound};
use crate::egress_proxy::EgressProxy;
use crate::golden::LoadedGolden;

/// An engine's driver, pager, user ids and places for files. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Resources {
    pub driver: Arc<dyn Driver>,
    pub pager: PagerClient,
    pub instance: Arc<Instance>,
    pub uids: Arc<UidPool>,
    pub overlay_dir: PathBuf,
    pub disks: Arc<DiskSpace>,
    pub egress: Arc<EgressProxy>,
}

impl Resources {
    /// Returns what the bounds of a session of `golden` depend on.
    pub fn subject(&self, golden: &LoadedGolden) -> Subject {
        Subject { guest_memory: golden.shape().memory_bytes, disk_dir: self.overlay_dir.clone() }
    }

    /// Creates the cgroup of session `id` of `golden`, and a file for its disk.
    pub async fn cgroup(
        &self,
        id: &str,
        golden: &LoadedGolden,
        limits: &Limits,
    ) -> Result<(SessionCgroup, std::fs::File), SessionError> {
        let (name, limits, subject) =
            (self.instance.cgroup_name(id), limits.clone(), self.subject(golden));
        let making = move || SessionCgroup::create_with_file(&name, &limits, subject);
        let made = tokio::task::spawn_blocking(making).await;
        let (cgroup, file) =
            made.map_err(|e| SessionError::Io { action: "make a cgroup", cause: e.into() })??;
        let file =
            file.map_err(|cause| OverlayError::Write { dir: self.overlay_dir.clone(), cause })?;
        Ok((cgroup, file))
    }

    /// Bounds the space of a VMM's overlay, beside what its process is confined to.
    pub fn bound_disk(
        &self,
        overlay: BorrowedFd<'_>,
        uid: &Uid,
        most: u64,
    ) -> Result<OverlayBound, OverlayError> {
        let bound = self.disks.bound(overlay, uid.get(), most);
        bound.map_err(|cause| OverlayError::Quota { dir: self.overlay_dir.clone(), cause })
    }

    /// Returns how the VMM of a session of `golden` is confined.
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
            ..Confinement::default()
        })
    }
}
