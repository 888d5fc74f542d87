//! TLS of the TCP port: a certificate and its key, which are read again when their files change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::service::config::TlsConfig;

/// How often to look whether the files have changed.
const INTERVAL: Duration = Duration::from_secs(60);
/// Most bytes of a file: a certificate with all above it has a few KiB.
const FILE_LIMIT: u64 = 1 << 20;

/// Reason why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read the {what} {path}: {cause}")]
    Read {
        /// `certificate` or `key`.
        what: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Cause of the failure.
        cause: io::Error,
    },
    /// A file has not what it should have.
    #[error("the {what} {path} has no {what} in PEM: {cause}")]
    Pem {
        /// `certificate` or `key`.
        what: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Cause of the failure.
        cause: pem::Error,
    },
    /// The two do not belong together, or cannot be used.
    #[error("the certificate {certificate} and the key {key} cannot be used: {cause}")]
    Unusable {
        /// Path of the certificate.
        certificate: PathBuf,
        /// Path of the key.
        key: PathBuf,
        /// Cause of the failure.
        cause: rustls::Error,
    },
}

/// A certificate in use.
#[derive(Debug)]
pub(super) struct Tls {
    files: TlsConfig,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads certificate and key.
    pub fn load(files: &TlsConfig) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new(read(files)?);
        Ok(Arc::new(Self { files: files.clone(), current }))
    }

    /// Makes the handshake of a connection.
    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.current.read().clone();
        TlsAcceptor::from(config).accept(stream).await
    }

    /// Takes up what has changed in the files, for ever.
    pub async fn follow(self: Arc<Self>) {
        let mut seen = self.marks().await;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = self.marks().await;
            if now != seen {
                seen = now;
                self.read_again().await;
            }
        }
    }

    /// Reads the files again. What cannot be used is told, and the certificate from before stays.
    async fn read_again(&self) {
        let files = self.files.clone();
        match tokio::task::spawn_blocking(move || read(&files)).await {
            Ok(Ok(config)) => {
                *self.current.write() = config;
                let certificate = self.files.certificate.display();
                tracing::info!(%certificate, "certificate read again");
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the certificate from before stays in use");
            }
            Err(error) => tracing::error!(%error, "cannot read the certificate"),
        }
    }

    async fn marks(&self) -> [Option<(u64, SystemTime)>; 2] {
        let mark = async |path: &Path| {
            let metadata = tokio::fs::metadata(path).await.ok()?;
            Some((metadata.len(), metadata.modified().ok()?))
        };
        [mark(&self.files.certificate).await, mark(&self.files.key).await]
    }
}

fn read(files: &TlsConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let text = |what, path: &Path| {
        let read = || {
            let file = std::fs::File::open(path)?;
            let mut text = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(file, FILE_LIMIT), &mut text)?;
            Ok(text)
        };
        read().map_err(|cause| TlsError::Read { what, path: path.to_owned(), cause })
    };
    let wrong = |what, path: &Path, cause| TlsError::Pem { what, path: path.to_owned(), cause };
    let certificate = text("certificate", &files.certificate)?;
    let chain = CertificateDer::pem_slice_iter(&certificate)
        .collect::<Result<Vec<_>, _>>()
        .and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
        .map_err(|cause| wrong("certificate", &files.certificate, cause))?;
    let key = PrivateKeyDer::from_pem_slice(&text("key", &files.key)?)
        .map_err(|cause| wrong("key", &files.key, cause))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map(|mut config| {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Arc::new(config)
        });
    config.map_err(|cause| TlsError::Unusable {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    use super::*;

    /// Certificates of `daemon.test` and `*.sandbox.test` until 2126, each with its key.
    const FIRST: (&str, &str) =
        (include_str!("tests/tls/first.pem"), include_str!("tests/tls/first.key"));
    const SECOND: (&str, &str) =
        (include_str!("tests/tls/second.pem"), include_str!("tests/tls/second.key"));

    struct Files {
        dir: tempfile::TempDir,
        config: TlsConfig,
    }

    impl Files {
        fn of(pair: (&str, &str)) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let config = TlsConfig {
                certificate: dir.path().join("chain.pem"),
                key: dir.path().join("key.pem"),
            };
            let files = Self { dir, config };
            files.write(pair);
            files
        }

        fn write(&self, (certificate, key): (&str, &str)) {
            std::fs::write(self.dir.path().join("chain.pem"), certificate).unwrap();
            std::fs::write(self.dir.path().join("key.pem"), key).unwrap();
        }
    }

    /// Whether a client that trusts `certificate` alone can talk to the server by this name.
    async fn talks(tls: &Tls, certificate: &str, name: &'static str) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (ours, theirs) = tokio::io::duplex(16 << 10);
        let connector = TlsConnector::from(Arc::new(client));
        let client = async {
            let mut stream = connector.connect(name.try_into().unwrap(), ours).await?;
            stream.write_all(b"hello").await?;
            stream.flush().await?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).await?;
            io::Result::Ok(answer)
        };
        let server = async {
            let mut stream = tls.accept(theirs).await?;
            let mut said = [0; 5];
            stream.read_exact(&mut said).await?;
            stream.write_all(&said).await?;
            stream.flush().await
        };
        let (client, server) = tokio::join!(client, server);
        matches!(client, Ok(answer) if &answer == b"hello") && server.is_ok()
    }

    #[tokio::test]
    async fn a_client_that_trusts_the_certificate_is_talked_to_and_no_other() {
        let files = Files::of(FIRST);
        let tls = Tls::load(&files.config).unwrap();
        assert!(talks(&tls, FIRST.0, "daemon.test").await);
        assert!(talks(&tls, FIRST.0, "8000-0123456789abcdef.sandbox.test").await);
        assert!(!talks(&tls, FIRST.0, "other.test").await);
        assert!(!talks(&tls, SECOND.0, "daemon.test").await);
    }

    #[tokio::test]
    async fn a_new_certificate_takes_the_place_of_the_old_unless_it_cannot_be_used() {
        let files = Files::of(FIRST);
        let tls = Tls::load(&files.config).unwrap();
        files.write(SECOND);
        tls.read_again().await;
        assert!(talks(&tls, SECOND.0, "daemon.test").await);
        for wrong in [(FIRST.0, SECOND.1), ("", FIRST.1), (FIRST.0, FIRST.0)] {
            files.write(wrong);
            tls.read_again().await;
            assert!(talks(&tls, SECOND.0, "daemon.test").await);
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (pair, word) in [
            (("", FIRST.1), "no certificate in PEM"),
            ((FIRST.0, ""), "no key in PEM"),
            ((FIRST.0, SECOND.1), "cannot be used"),
        ] {
            let error = Tls::load(&Files::of(pair).config).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let missing = TlsConfig { certificate: "/no/such".into(), key: "/no/such".into() };
        let error = Tls::load(&missing).unwrap_err().to_string();
        assert!(error.contains("cannot read the certificate /no/such"), "{error}");
    }
}
