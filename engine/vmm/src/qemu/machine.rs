//! Control of one running QEMU process.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use mayfly_host::time_scale::scaled;
use mayfly_protocol::Printable;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::command_line::fd;
use super::fork::ForkSocket;
use super::keeper::Keeper;
use super::watch::Watch;
use crate::qmp::schema::{
    self, Capability, CapabilityStatus, MigrateSetCapabilities, Migration, MigrationStatus,
    QueryMigrate,
};
use crate::qmp::{QmpClient, QmpError, within};
use crate::{Exit, ForkSpec, Launched, ProcessError, Vmm, VmmError, VmmProcess};

/// Name under which QEMU knows the descriptor it saves to.
const SAVE_FD: &str = "mayfly-save";
/// Largest device state accepted, in bytes; real ones have about 75 KiB.
const MAX_DEVICE_STATE: u64 = 64 << 20;

/// A QEMU process with its control streams.
pub struct QemuVmm {
    process: VmmProcess,
    qmp: QmpClient,
    device_state: UnixStream,
    /// Of a VMM whose memory is paged. Dropped after the process, which is killed by then.
    keeper: Option<Keeper>,
    zygote: Option<Arc<ForkSocket>>,
    watch: Watch,
}

impl QemuVmm {
    pub(super) fn new(
        process: VmmProcess,
        qmp: QmpClient,
        device_state: UnixStream,
        keeper: Option<Keeper>,
        zygote: Option<ForkSocket>,
    ) -> Self {
        let (zygote, watch) = (zygote.map(Arc::new), Watch::default());
        Self { process, qmp, device_state, keeper, zygote, watch }
    }

    /// Takes the userfaultfd of a VMM that has answered, and has therefore sent it.
    fn keep(&mut self) -> Result<(), VmmError> {
        let kept = self.keeper.as_mut().map_or(Ok(()), Keeper::receive);
        kept.map_err(|cause| VmmError::Io { action: "the VMM handed over no userfaultfd", cause })
    }

    /// A closed QMP connection means that QEMU is gone: then say how it ended instead.
    async fn explain(&mut self, error: QmpError) -> VmmError {
        if !matches!(error, QmpError::Closed { .. } | QmpError::Io { .. }) {
            return error.into();
        }
        match within_reason(self.process.exited()).await {
            Some(Ok(exit)) => self.died(exit),
            _ => error.into(),
        }
    }

    fn died(&mut self, exit: Exit) -> VmmError {
        VmmError::Died { exit, stderr: self.process.last_words() }
    }

    async fn migration_outcome(qmp: &mut QmpClient, action: &'static str) -> Result<(), VmmError> {
        loop {
            match qmp.wait_event::<Migration>().await?.status {
                MigrationStatus::Completed => return Ok(()),
                MigrationStatus::Failed | MigrationStatus::Cancelled => {
                    let info = qmp.execute(QueryMigrate {}).await?;
                    let reason = info.error_desc.map(|words| Printable(&words).to_string());
                    let reason = reason.unwrap_or_else(|| "QEMU gives no reason".into());
                    return Err(VmmError::DeviceState { action, reason });
                }
                MigrationStatus::Other => {}
            }
        }
    }

    async fn negotiate(&mut self) -> Result<(), QmpError> {
        let hello = self.qmp.send(schema::Negotiate {}).await?;
        // Guest memory is a file that both sides map, so only device state is moved.
        let capabilities = [Capability::XIgnoreShared, Capability::Events]
            .map(|capability| CapabilityStatus { capability, state: true });
        let capabilities =
            self.qmp.send(MigrateSetCapabilities { capabilities: &capabilities }).await?;
        self.qmp.reply(hello).await?;
        self.qmp.reply(capabilities).await?;
        Ok(())
    }
}

/// Waits for the end of a process that seems to be on its way there.
async fn within_reason<T>(end: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(scaled(Duration::from_secs(2)), end).await.ok()
}

#[async_trait::async_trait]
impl Vmm for QemuVmm {
    fn pid(&self) -> u32 {
        self.process.pid()
    }

    async fn wait_ready(&mut self, limit: Duration) -> Result<(), VmmError> {
        match within(limit, "QMP negotiation", self.negotiate()).await {
            Ok(()) => self.keep(),
            Err(error) => Err(self.explain(error).await),
        }
    }

    async fn restore(&mut self, device_state: &[u8], limit: Duration) -> Result<(), VmmError> {
        let incoming = schema::MigrateIncoming { uri: format!("fd:{}", fd::DEVICE_STATE) };
        let (qmp, stream) = (&mut self.qmp, &mut self.device_state);
        let result = tokio::time::timeout(limit, async {
            let feed = async {
                let handed = async {
                    stream.write_all(device_state).await?;
                    stream.shutdown().await
                };
                handed.await.map_err(|cause| VmmError::Io {
                    action: "cannot hand over the device state",
                    cause,
                })
            };
            let load = async {
                qmp.execute(incoming).await?;
                Self::migration_outcome(qmp, "restoring").await
            };
            tokio::try_join!(feed, load).map(drop)
        })
        .await;
        match result {
            Ok(Err(VmmError::Qmp(error))) => Err(self.explain(error).await),
            Ok(result) => result,
            Err(_) => Err(QmpError::TimedOut { during: "migrate-incoming", limit }.into()),
        }
    }

    async fn save(&mut self, limit: Duration) -> Result<Vec<u8>, VmmError> {
        // `migrate` takes descriptors by a name given with `getfd`, unlike `migrate-incoming`,
        // which takes inherited ones.
        let outgoing = schema::Migrate { uri: format!("fd:{SAVE_FD}") };
        let (mut state_out, state_in) = UnixStream::pair()
            .map_err(|cause| VmmError::Io { action: "cannot make a stream to the VMM", cause })?;
        let qmp = &mut self.qmp;
        let result = tokio::time::timeout(limit, async {
            let name = schema::GetFd { fdname: SAVE_FD };
            qmp.execute_with_fd(name, state_in.as_fd()).await?;
            drop(state_in);
            let receive = async {
                let mut state = Vec::new();
                let read =
                    (&mut state_out).take(MAX_DEVICE_STATE + 1).read_to_end(&mut state).await;
                read.map_err(|cause| VmmError::Io {
                    action: "cannot receive the device state",
                    cause,
                })?;
                if state.len() as u64 > MAX_DEVICE_STATE {
                    let reason = format!("it has more than {MAX_DEVICE_STATE} bytes");
                    return Err(VmmError::DeviceState { action: "saving", reason });
                }
                Ok(state)
            };
            let store = async {
                qmp.execute(outgoing).await?;
                Self::migration_outcome(qmp, "saving").await
            };
            tokio::try_join!(receive, store).map(|(state, ())| state)
        })
        .await;
        match result {
            Ok(Err(VmmError::Qmp(error))) => Err(self.explain(error).await),
            Ok(result) => result,
            Err(_) => Err(QmpError::TimedOut { during: "migrate", limit }.into()),
        }
    }

    fn bound_files(&self, most: u64) -> Result<(), VmmError> {
        Ok(self.process.bound_files(most)?)
    }

    async fn pause(&mut self, limit: Duration) -> Result<(), VmmError> {
        match within(limit, "stop", self.qmp.execute(schema::Stop {})).await {
            Ok(_) => {
                // It comes before the reply, and was asked for.
                while self.qmp.take_event::<schema::Stopped>()?.is_some() {}
                Ok(())
            }
            Err(error) => Err(self.explain(error).await),
        }
    }

    async fn resume(&mut self, limit: Duration) -> Result<(), VmmError> {
        match within(limit, "cont", self.qmp.execute(schema::Cont {})).await {
            // The first order to one that was forked.
            Ok(_) => self.keep(),
            Err(error) => Err(self.explain(error).await),
        }
    }

    async fn fork(&mut self, spec: ForkSpec, limit: Duration) -> Result<Launched, VmmError> {
        let Some(socket) = self.zygote.clone() else {
            return Err(VmmError::Fork { reason: "it was not started as a zygote".into() });
        };
        let zygote = (self.process.pid(), self.process.namespace());
        let forked = tokio::task::spawn_blocking(move || socket.fork(zygote, &spec, limit)).await;
        forked.map_err(|e| VmmError::Io { action: "cannot ask the zygote", cause: e.into() })?
    }

    async fn unmap_clean(&mut self, limit: Duration) -> Result<u64, VmmError> {
        let Some(socket) = self.zygote.clone() else {
            return Err(VmmError::Fork { reason: "it was not started as a zygote".into() });
        };
        let unmapped = tokio::task::spawn_blocking(move || socket.unmap_clean(limit)).await;
        unmapped.map_err(|e| VmmError::Io { action: "cannot ask the zygote", cause: e.into() })?
    }

    async fn exited(&mut self) -> VmmError {
        let ended = tokio::select! {
            biased;
            ended = self.process.exited() => ended,
            stopped = self.watch.stopped(&mut self.qmp) => {
                // What a dying process has not finished to say is no message either.
                return match stopped {
                    VmmError::Qmp(error) => match within_reason(self.process.exited()).await {
                        Some(Ok(exit)) => self.died(exit),
                        _ => error.into(),
                    },
                    stopped => stopped,
                };
            }
        };
        match ended {
            Ok(exit) => self.died(exit),
            Err(error) => error.into(),
        }
    }

    async fn kill(&mut self) -> Result<(), VmmError> {
        self.process.kill().await.map(|_| ()).map_err(|e: ProcessError| e.into())
    }
}
