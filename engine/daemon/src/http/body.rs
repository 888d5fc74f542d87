//! Bodies of requests that are held in memory, which count for their tenant as they come.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;

use super::error::ApiError;
use crate::service::held::{Full, Held};
use crate::service::shares::Account;

/// Bodies that are held in memory, in bytes. Uploads of files and proxied requests are not held.
pub const BODY_LIMIT: usize = 4 << 20;

/// Bounds on the time for which a body that does not come is waited for.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Without a byte.
    pause: Duration,
    whole: Duration,
}

/// What there is room for is held from the first byte on, so that nobody may take for ever.
const PATIENCE: Patience =
    Patience { pause: Duration::from_secs(30), whole: Duration::from_secs(300) };

/// Reads a whole body into memory that `account` has for what passes through: at once as much as the
/// body is said to have, and else as it comes.
///
/// # Errors
/// [`ApiError`], when it is too long, does not come, or there is no room for it.
pub async fn read(body: Body, account: &Account) -> Result<Held, ApiError> {
    read_with(body, account, PATIENCE).await
}

async fn read_with(
    mut body: Body,
    account: &Account,
    patience: Patience,
) -> Result<Held, ApiError> {
    let said = body.size_hint().lower();
    if said > BODY_LIMIT as u64 {
        return Err(too_large());
    }
    let mut held = Held::new(&account.passing())?;
    held.reserve(usize::try_from(said).map_err(|_| Full)?)?;
    let whole = async {
        loop {
            let frame = tokio::time::timeout(patience.pause, body.frame());
            let Some(frame) = frame.await.map_err(|_| too_slow(patience))? else { break };
            let frame = frame.map_err(|error| {
                ApiError::bad_request(format!("the body of the request has not come: {error}"))
            })?;
            // The frame may hold a whole buffer of its connection for one byte, and goes here.
            if let Ok(bytes) = frame.into_data() {
                if held.len() + bytes.len() > BODY_LIMIT {
                    return Err(too_large());
                }
                held.extend(&bytes)?;
            }
        }
        Ok(held)
    };
    tokio::time::timeout(patience.whole, whole).await.map_err(|_| too_slow(patience))?
}

fn too_large() -> ApiError {
    let message = format!("the body of the request has more than {BODY_LIMIT} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
}

fn too_slow(Patience { pause, whole }: Patience) -> ApiError {
    let message = format!(
        "the body of the request has not come: it may take {whole:?}, and may pause for {pause:?}"
    );
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message).closing()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use futures::stream::{self, StreamExt as _};
    use mayfly_api::TenantName;

    use super::*;
    use crate::service::shares::Shares;

    fn account(bytes: usize) -> Account {
        Shares::new(bytes, []).account(&TenantName::local(), None)
    }

    /// A body without a length, of these pieces.
    fn pieces(pieces: impl Iterator<Item: Into<Bytes>> + Send + 'static) -> Body {
        Body::from_stream(stream::iter(pieces.map(|piece| Ok::<_, Infallible>(piece.into()))))
    }

    /// A byte in a buffer that is counted for as long as anything of it is held.
    struct Buffer(Arc<AtomicUsize>);

    impl Buffer {
        fn with_a_byte(held: &Arc<AtomicUsize>, most: &AtomicUsize) -> Bytes {
            most.fetch_max(held.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            Bytes::from_owner(Self(held.clone()))
        }
    }

    impl AsRef<[u8]> for Buffer {
        fn as_ref(&self) -> &[u8] {
            b"x"
        }
    }

    impl Drop for Buffer {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_body_of_single_bytes_is_held_as_its_bytes() {
        let (held, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (of_body, most_of_body) = (held.clone(), most.clone());
        let body = (0..50_000).map(move |_| Buffer::with_a_byte(&of_body, &most_of_body));
        let account = account(1 << 20);
        let read = read(pieces(body), &account).await.unwrap();
        assert_eq!((read.len(), read.as_ref().iter().all(|byte| *byte == b'x')), (50_000, true));
        let most = most.load(Ordering::Relaxed);
        assert!((1..=2).contains(&most), "{most} buffers at a time");
        assert!((50_000..=100_000).contains(&account.held()), "{}", account.held());
        drop(read);
        assert_eq!((account.held(), held.load(Ordering::Relaxed)), (0, 0));
    }

    #[tokio::test]
    async fn a_body_takes_what_it_is_said_to_have_and_no_more_than_there_is() {
        let account = account(100 << 10);
        let known = |bytes: usize| Body::from(vec![7; bytes]);
        let held = read(known(5), &account).await.unwrap();
        assert_eq!((held.as_ref(), account.held()), (&[7; 5][..], 5));
        drop(held);
        for body in [known(101 << 10), pieces((0..101).map(|_| vec![7; 1 << 10]))] {
            assert_eq!(read(body, &account).await.unwrap_err().code(), "buffers_full");
        }
        assert_eq!(account.held(), 0);
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_refused_with_and_without_a_length() {
        let account = account(8 << 20);
        let whole = read(Body::from(vec![7; BODY_LIMIT]), &account).await.unwrap();
        assert_eq!(whole.len(), BODY_LIMIT);
        for body in [
            Body::from(vec![7; BODY_LIMIT + 1]),
            pieces((0..=BODY_LIMIT >> 10).map(|_| vec![7; 1 << 10])),
        ] {
            assert_eq!(read(body, &account).await.unwrap_err().code(), "too_large");
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_given_up_and_what_it_took_is_free() {
        let account = account(1 << 20);
        let long = Duration::from_secs(3600);
        let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"{")) });
        let stuck = Body::from_stream(first.chain(stream::pending()));
        let patience = Patience { pause: Duration::from_millis(1), whole: long };
        let error = read_with(stuck, &account, patience).await.unwrap_err();
        assert_eq!((error.code(), account.held()), ("body_too_slow", 0));
        // One that always has a little more does not take for ever, either.
        let drops = stream::repeat(()).then(|()| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok::<_, Infallible>(Bytes::from_static(b" "))
        });
        let patience = Patience { pause: long, whole: Duration::from_millis(20) };
        let error = read_with(Body::from_stream(drops), &account, patience).await.unwrap_err();
        assert_eq!((error.code(), account.held()), ("body_too_slow", 0));
    }
}
