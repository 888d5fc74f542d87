//! A session's tie to the pager: its memory comes through it, and it ends when the tie breaks.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use mayfly_pager::SessionStats;
use mayfly_pager::client::{Attachment, ClientError, PagerClient, SessionEvent};
use mayfly_pager::protocol::{AttachRequest, Mode};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::SessionError;
use crate::golden::LoadedGolden;
use crate::pager_host;

/// The descriptors a VMM needs to get its memory from the pager.
#[derive(Debug)]
pub(super) struct SessionMemory {
    /// The golden's page-cache file, read-only.
    pub page_cache: OwnedFd,
    /// The VMM's end of the handshake.
    pub handshake: OwnedFd,
}

/// An attached session; dropping it detaches.
#[derive(Debug)]
pub(super) struct Paging {
    attachment: Arc<AsyncFd<Attachment>>,
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
        // The first attach of a golden opens its image, which takes longer than the exchange itself.
        let mut attachment = blocking(move || pager.attach(&request)).await?;
        let missing = |what: &'static str| SessionError::Paging { reason: format!("the pager sent no {what}") };
        let memory = SessionMemory {
            page_cache: attachment.take_ram_file().ok_or_else(|| missing("memory file"))?,
            handshake: attachment.take_handshake().ok_or_else(|| missing("handshake socket"))?,
        };
        // SAFETY: an attachment owns its connection and returns the same open descriptor for all its life.
        let attachment = unsafe { AsyncFd::register_with_interest(attachment, Interest::READABLE) }
            .map_err(|e| SessionError::Io { action: "watch the pager", source: e.into() })?;
        Ok((Self { attachment: Arc::new(attachment) }, memory))
    }

    /// Resolves with the reason when the pager cannot serve this session any more.
    pub async fn failed(&self) -> String {
        loop {
            match self.attachment.get_ref().try_event() {
                Some(SessionEvent::Failed { reason, .. }) => return reason,
                Some(SessionEvent::PagerGone) => return "the pager process has ended".into(),
                None => {}
            }
            match self.attachment.readable().await {
                Ok(mut ready) => {
                    // Cleared first and looked at again above, so that nothing that arrives in between is missed.
                    ready.clear_ready();
                    if let Some(SessionEvent::Failed { reason, .. }) = self.attachment.get_ref().try_event() {
                        return reason;
                    }
                }
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

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, SessionError> {
    let joined = tokio::task::spawn_blocking(call).await;
    Ok(joined.map_err(|e| SessionError::Io { action: "ask the pager", source: e.into() })??)
}
