//! Request to a Docker daemon.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Path of Docker's socket in a guest.
pub const GUEST_SOCKET: &str = "/run/docker.sock";

/// Sends `GET /_ping` of the Docker Engine API over a connected stream.
///
/// # Errors
/// When the stream fails, or the daemon answers anything but 200.
pub async fn ping(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n").await?;
    let mut answer = Vec::new();
    let mut buffer = [0; 256];
    // The status line is all that is wanted.
    while answer.len() < 12 {
        match stream.read(&mut buffer).await? {
            0 => break,
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
    let status = String::from_utf8_lossy(&answer);
    if status.starts_with("HTTP/1.") && status.get(9..12) == Some("200") {
        return Ok(());
    }
    let line = status.lines().next().unwrap_or_default().escape_default().to_string();
    Err(std::io::Error::other(format!("Docker answered a ping with \"{line}\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(answer: &'static [u8]) -> std::io::Result<()> {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let daemon = async move {
            let mut request = [0; 1024];
            let n = theirs.read(&mut request).await.unwrap();
            assert!(request[..n].starts_with(b"GET /_ping HTTP/1.0\r\n"));
            // A byte at a time: a status line may come in pieces.
            for byte in answer {
                theirs.write_all(&[*byte]).await.unwrap();
            }
        };
        tokio::join!(ping(ours), daemon).0
    }

    #[tokio::test]
    async fn only_an_ok_is_an_answer() {
        answered(b"HTTP/1.0 200 OK\r").await.unwrap();
        let refused = answered(b"HTTP/1.1 503 Busy\r\n").await.unwrap_err().to_string();
        assert!(refused.contains("503"), "{refused}");
        assert!(answered(b"HTTP/1.1").await.is_err());
    }
}
