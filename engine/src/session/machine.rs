//! The machine of one session on the host: its VMM, and what feeds, bounds and names it.

use std::sync::Arc;

use mayfly_host::cgroup::{Limits, SessionCgroup};
use mayfly_host::instance::Instance;
use mayfly_host::uid::Uid;
use mayfly_vmm::{ConsoleTail, Vmm};

use super::SessionError;
use super::paging::Paging;
use super::state::{SessionState, StateCell};
use crate::disk_space::OverlayBound;
use crate::egress_proxy::EgressProxy;
use crate::golden::LoadedGolden;

/// A VMM with all that belongs to it, whichever state its session is in.
pub(super) struct Machine {
    pub golden: Arc<LoadedGolden>,
    pub state: StateCell,
    pub vmm: Box<dyn Vmm>,
    pub paging: Paging,
    pub cgroup: SessionCgroup,
    /// Dropped before the user, whose number its project has.
    pub overlay: OverlayBound,
    pub uid: Arc<Uid>,
    /// User of the zygote that it was forked from; see [`super::Zygote`].
    pub zygote_uid: Option<Arc<Uid>>,
    pub console: ConsoleTail,
    pub egress: Arc<EgressProxy>,
    /// Instance of the engine, kept and dropped last: an engine that ends removes what its sessions
    /// have on the host.
    pub _instance: Arc<Instance>,
}

impl Machine {
    /// Replaces the bounds it was spawned with. Another bound on its disk takes CAP_SYS_RESOURCE.
    ///
    /// # Errors
    /// [`SessionError`] when the kernel refuses.
    pub fn limit(&self, limits: &Limits) -> Result<(), SessionError> {
        let file_bytes = limits.file_bytes(self.golden.overlay().virtual_size());
        if file_bytes != self.overlay.most() {
            self.vmm.bound_files(file_bytes)?;
            self.overlay
                .set(file_bytes)
                .map_err(|cause| SessionError::Io { action: "bound its disk", cause })?;
        }
        Ok(self.cgroup.set(limits)?)
    }

    /// Lifts the bounds on memory and processor time of a VMM that is about to be killed: one that
    /// has used up its share of a processor would die late, perhaps with a lock for which others
    /// wait.
    pub fn unbind(&self) {
        if let Err(error) = self.cgroup.set(&Limits::default()) {
            tracing::debug!(%error, "cannot lift the bounds of a session that ends");
        }
    }

    /// Takes it down; nothing of it is left afterwards.
    ///
    /// # Errors
    /// [`SessionError`] when something could not be removed.
    pub async fn discard(mut self) -> Result<(), SessionError> {
        // A failed start arrives here too; both may be discarded.
        let _ = self.state.advance(SessionState::Discarding);
        self.unbind();
        self.vmm.kill().await?;
        drop(self.paging);
        let (overlay, uids, cgroup) = (self.overlay, (self.uid, self.zygote_uid), self.cgroup);
        // The kernel may take a moment for each.
        let removed = tokio::task::spawn_blocking(move || {
            drop(overlay);
            drop(uids);
            cgroup.remove()
        })
        .await;
        removed.map_err(|e| SessionError::Io { action: "remove a cgroup", cause: e.into() })??;
        let _ = self.state.advance(SessionState::Discarded);
        Ok(())
    }
}
