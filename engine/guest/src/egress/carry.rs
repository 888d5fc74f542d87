//! Carries the bytes of one client between the guest and the proxy process.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;

/// How often a stream of which the proxy sends no more is looked at, whether the proxy has closed
/// it.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of the guest's that are passed on at a time.
const BUFFER: usize = 16 << 10;

/// Carries bytes both ways, with half-close, until both directions have ended or the proxy has
/// closed its end. Errors end it too: both ends then see a stream that is over.
pub(super) async fn carry(guest: impl AsyncRead + AsyncWrite, proxy: UnixStream) {
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    let (mut from_proxy, mut to_proxy) = proxy.into_split();
    let no_more = Notify::new();
    let up = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            match from_guest.read(&mut buffer).await {
                Ok(0) => break drop(to_proxy.shutdown().await),
                // The proxy takes no more. What it has said before is still to come.
                Ok(count) if to_proxy.write_all(&buffer[..count]).await.is_err() => break,
                Ok(_) => {}
                // The guest has gone.
                Err(_) => return,
            }
        }
        no_more.notified().await;
    };
    let down = async {
        let copied = tokio::io::copy(&mut from_proxy, &mut to_guest).await;
        let _ = to_guest.shutdown().await;
        if copied.is_ok() {
            no_more.notify_one();
            // It may still take what the guest sends.
            closed(from_proxy.as_ref()).await;
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Resolves when the other end of a stream is closed, and not only for one direction (poll(2),
/// `POLLHUP`).
async fn closed(stream: &UnixStream) {
    loop {
        let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
        let ready = poll(&mut polled, PollTimeout::ZERO);
        let flags = polled[0].revents().unwrap_or(PollFlags::empty());
        if ready.is_err() || flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_comes_before_all_was_said_is_heard() {
        let (guest, mut client) = tokio::io::duplex(64);
        let (ours, mut proxy) = UnixStream::pair().unwrap();
        let carried = tokio::spawn(carry(guest, ours));
        client.write_all(&[1; 64]).await.unwrap();
        proxy.read_exact(&mut [0; 1]).await.unwrap();
        proxy.write_all(b"refused").await.unwrap();
        // With bytes in it that were not read.
        drop(proxy);
        let (mut reader, mut writer) = tokio::io::split(client);
        let say_more = async { while writer.write_all(&[1; 64]).await.is_ok() {} };
        let mut heard = String::new();
        let (_, heard) = tokio::join!(say_more, async {
            reader.read_to_string(&mut heard).await.unwrap();
            heard
        });
        assert_eq!(heard, "refused");
        carried.await.unwrap();
    }

    #[tokio::test]
    async fn half_a_stream_ends_alone_and_a_closed_one_ends_both_halves() {
        for closes in [false, true] {
            let (guest, mut client) = tokio::io::duplex(64);
            let (ours, mut proxy) = UnixStream::pair().unwrap();
            let carried = tokio::spawn(carry(guest, ours));
            proxy.write_all(b"answer").await.unwrap();
            proxy.shutdown().await.unwrap();
            let mut heard = String::new();
            client.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "answer");
            client.write_all(b"more").await.unwrap();
            let mut more = [0; 4];
            proxy.read_exact(&mut more).await.unwrap();
            assert!(!carried.is_finished());
            if closes {
                drop(proxy);
            } else {
                client.shutdown().await.unwrap();
            }
            carried.await.unwrap();
        }
    }
}
