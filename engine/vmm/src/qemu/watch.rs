//! Watches what QEMU says of itself while a guest runs.
//!
//! Failed reads and writes of the guest's disk are reported to the guest, which gets an I/O error
//! (`werror=report`). A guest that leaves, by its own will or by a triple fault, ends the process.
//! What is left is a guest that QEMU stops and keeps, as it does when KVM cannot go on
//! (`internal-error`): a session that would be silent until its time is over.

use std::time::Duration;

use mayfly_host::time_scale::scaled;
use mayfly_protocol::Printable;

use crate::VmmError;
use crate::qmp::schema::{BlockIoError, QueryStatus, Stopped};
use crate::qmp::{QmpClient, QmpError, within};

/// Bound on QEMU's answer why it stopped the guest.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// What was heard so far; outlives a wait that is given up.
#[derive(Debug, Default)]
pub(super) struct Watch {
    stopped: bool,
    /// Errors of the disk were told in the log.
    told: bool,
}

impl Watch {
    /// Resolves when QEMU has stopped the guest, or says what it cannot mean. Cancel-safe: an
    /// answer that is not waited for any more is read, and kept, by the next command.
    pub async fn stopped(&mut self, qmp: &mut QmpClient) -> VmmError {
        loop {
            match self.next(qmp).await {
                Ok(Some(stopped)) => return stopped,
                // The connection itself rests where a VMM sends without end.
                Ok(None) => {}
                // It ends, which somebody else notices.
                Err(QmpError::Closed { .. } | QmpError::Io { .. }) => std::future::pending().await,
                Err(error) => return error.into(),
            }
        }
    }

    async fn next(&mut self, qmp: &mut QmpClient) -> Result<Option<VmmError>, QmpError> {
        if let Some(error) = qmp.take_event::<BlockIoError>()?
            && !std::mem::replace(&mut self.told, true)
        {
            let (full, reason) = (error.nospace, Printable(&error.reason));
            tracing::warn!(full, %reason, "the guest gets errors from its disk");
        }
        self.stopped |= qmp.take_event::<Stopped>()?.is_some();
        if self.stopped {
            let limit = scaled(ANSWER_LIMIT);
            let status = within(limit, "query-status", qmp.execute(QueryStatus {})).await;
            let status = match status {
                Ok(answer) => Printable(&answer.status).to_string(),
                Err(error @ (QmpError::Closed { .. } | QmpError::Io { .. })) => return Err(error),
                Err(_) => "it does not say why".to_owned(),
            };
            return Ok(Some(VmmError::Stopped { status }));
        }
        // Nobody waits for anything else once the guest runs.
        qmp.forget_events();
        qmp.listen().await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::qemu::driver::stream;
    use crate::{Confinement, VmmProcess};

    /// Stock QEMU with one monitor for us and one for whoever stops its guest.
    async fn qemu() -> Option<(VmmProcess, QmpClient, QmpClient)> {
        let program = "/usr/bin/qemu-system-x86_64";
        if !std::path::Path::new(program).exists() {
            mayfly_skip::skip(format!("there is no {program}"));
            return None;
        }
        let (ours, ours_end) = stream().unwrap();
        let (other, other_end) = stream().unwrap();
        let args = "-nodefaults -display none -M none -chardev socket,id=a,fd=3 -mon chardev=a,mode=control \
                    -chardev socket,id=b,fd=4 -mon chardev=b,mode=control";
        let args = args.split_whitespace().map(str::to_owned).collect();
        let inherit: Vec<(OwnedFd, i32)> = vec![(ours_end, 3), (other_end, 4)];
        let process = VmmProcess::start(program, args, vec![], inherit, Confinement::default())
            .await
            .unwrap();
        let (mut ours, mut other) = (QmpClient::new(ours), QmpClient::new(other));
        for client in [&mut ours, &mut other] {
            client.execute(crate::qmp::schema::Negotiate {}).await.unwrap();
        }
        Some((process, ours, other))
    }

    #[tokio::test]
    async fn a_vmm_that_sends_without_end_is_watched_at_a_bounded_rate() {
        let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
        let data = "0,".repeat(30 << 10);
        let line = format!("{{\"event\":\"X\",\"data\":[{data}0]}}\n").into_bytes();
        let begun = std::time::Instant::now();
        let flood = async {
            for sent in 0.. {
                let stop = begun.elapsed() > Duration::from_millis(600);
                let write = theirs.write_all(&line);
                if stop || tokio::time::timeout(Duration::from_millis(300), write).await.is_err() {
                    return sent * line.len();
                }
            }
            unreachable!()
        };
        let (mut watch, mut qmp) = (Watch::default(), QmpClient::new(ours));
        let sent = tokio::select! {
            sent = flood => sent,
            stopped = watch.stopped(&mut qmp) => panic!("{stopped}"),
        };
        let (a_second, in_sockets) = (1 << 20, 512 << 10);
        let seconds = 1 + usize::try_from(begun.elapsed().as_secs()).unwrap();
        assert!(sent <= seconds * (a_second + line.len()) + in_sockets, "{sent} bytes");
    }

    #[tokio::test]
    async fn a_vmm_that_sends_no_text_is_noticed() {
        let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
        theirs.write_all(b"\xff\n").await.unwrap();
        let (mut watch, mut qmp) = (Watch::default(), QmpClient::new(ours));
        let noticed = watch.stopped(&mut qmp);
        let error = tokio::time::timeout(scaled(Duration::from_secs(60)), noticed).await.unwrap();
        assert!(error.to_string().contains("a line that is not UTF-8"), "{error}");
    }

    #[tokio::test]
    async fn a_guest_that_is_stopped_by_somebody_else_is_noticed() {
        let Some((mut process, mut qmp, mut other)) = qemu().await else { return };
        let mut watch = Watch::default();
        // While it runs nothing is heard, and a wait that is given up loses nothing.
        let short = Duration::from_millis(50);
        tokio::time::timeout(short, watch.stopped(&mut qmp)).await.unwrap_err();
        other.execute(crate::qmp::schema::Stop {}).await.unwrap();
        let heard = tokio::time::timeout(scaled(Duration::from_secs(60)), async {
            while !watch.stopped {
                let _ = tokio::time::timeout(Duration::ZERO, watch.stopped(&mut qmp)).await;
                tokio::task::yield_now().await;
            }
            watch.stopped(&mut qmp).await
        });
        let error = heard.await.unwrap();
        assert_eq!(error.to_string(), "the VMM stopped its guest by itself (paused)");
        process.kill().await.unwrap();
    }
}
