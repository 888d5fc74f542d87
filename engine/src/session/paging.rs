//! A session's tie to the pager: its memory comes through it, and it ends when the tie breaks.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mayfly_host::time_scale::scaled;
use mayfly_pager::SessionStats;
use mayfly_pager::client::{Attachment, ClientError, PagerClient, SessionEvent};
use mayfly_pager::protocol::{AttachRequest, FailureKind, Mode};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::SessionError;
use crate::golden::LoadedGolden;
use crate::pager_host;

/// A VMM that dies closes its end of the handshake, and the pager may notice that before we see how
/// it died: the time in which its own end may still show as the cause.
const LAST_WORD: Duration = Duration::from_millis(200);

/// The descriptors a VMM needs to get its memory from the pager.
#[derive(Debug)]
pub(super) struct SessionMemory {
    /// The golden's page-cache file, read-only.
    pub page_cache: OwnedFd,
    /// The VMM's end of the handshake.
    pub handshake: OwnedFd,
}

/// Which page-cache file a session has. A golden has another one when its pager was replaced, or
/// had to give the one before up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageCacheId {
    device: u64,
    inode: u64,
}

/// An attached session; dropping it detaches.
#[derive(Debug)]
pub(super) struct Paging {
    attachment: Arc<AsyncFd<Attachment>>,
    /// When the pager was seen to have lost the VMM, and its words.
    vmm_gone: OnceLock<(Instant, String)>,
    page_cache: PageCacheId,
}

impl Paging {
    pub async fn attach(
        pager: &PagerClient,
        golden: &LoadedGolden,
        session: &str,
        record: bool,
    ) -> Result<(Self, SessionMemory), SessionError> {
        let request = AttachRequest {
            golden: pager_host::image_name(golden.name(), golden.ram_key()),
            mode: Mode::Shared,
            record,
            session: session.to_owned(),
        };
        let pager = pager.clone();
        // The first attach of a golden opens its image, which takes longer than the exchange
        // itself.
        let mut attachment = blocking(move || pager.attach(&request)).await?;
        let missing = |what: &'static str| SessionError::Paging {
            reason: format!("the pager sent no {what}"),
        };
        let memory = SessionMemory {
            page_cache: attachment.take_ram_file().ok_or_else(|| missing("memory file"))?,
            handshake: attachment.take_handshake().ok_or_else(|| missing("handshake socket"))?,
        };
        // SAFETY: an attachment owns its connection and returns the same open descriptor for all
        // its life.
        let attachment = unsafe { AsyncFd::register_with_interest(attachment, Interest::READABLE) }
            .map_err(|e| SessionError::Io { action: "watch the pager", cause: e.into() })?;
        let found = File::from(memory.page_cache.try_clone().map_err(looked_at)?).metadata();
        let found = found.map_err(looked_at)?;
        let page_cache = PageCacheId { device: found.dev(), inode: found.ino() };
        let attachment = Arc::new(attachment);
        Ok((Self { attachment, vmm_gone: OnceLock::new(), page_cache }, memory))
    }

    /// Which file its memory comes from.
    pub fn page_cache(&self) -> PageCacheId {
        self.page_cache
    }

    /// Resolves with the reason when the pager cannot serve this session any more. Cancel-safe.
    pub async fn failed(&self) -> String {
        loop {
            if let Some((noticed, reason)) = self.vmm_gone.get() {
                tokio::time::sleep_until(*noticed + scaled(LAST_WORD)).await;
                return reason.clone();
            }
            match self.attachment.get_ref().try_event() {
                Some(SessionEvent::Failed { kind: FailureKind::VmmGone, reason }) => {
                    let _ = self.vmm_gone.set((Instant::now(), reason));
                    continue;
                }
                Some(SessionEvent::Failed { reason, .. }) => return reason,
                Some(SessionEvent::PagerGone) => return "the pager process has ended".into(),
                None => {}
            }
            match self.attachment.readable().await {
                // Cleared before the next look, so that nothing that arrives in between is missed.
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => return format!("the tie to the pager cannot be watched: {error}"),
            }
        }
    }

    pub async fn stats(&self) -> Result<SessionStats, SessionError> {
        let attachment = self.attachment.clone();
        blocking(move || attachment.get_ref().stats()).await
    }

    pub async fn recording(&self) -> Result<Vec<u32>, SessionError> {
        let attachment = self.attachment.clone();
        blocking(move || attachment.get_ref().recording()).await
    }
}

fn looked_at(cause: std::io::Error) -> SessionError {
    SessionError::Io { action: "look at the page-cache file", cause }
}

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, SessionError> {
    let joined = tokio::task::spawn_blocking(call).await;
    Ok(joined.map_err(|e| SessionError::Io { action: "ask the pager", cause: e.into() })??)
}
