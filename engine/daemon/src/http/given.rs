//! A command as it is given in a request: as JSON, or as a form whose second part is its stdin, of any
//! length.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body as HttpBody, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use futures::Stream;
use mayfly_api::Exec;
use multer::{Constraints, Multipart, SizeLimit};

use super::body::BODY_LIMIT;
use super::error::ApiError;
use super::extract::{Body, Parsed as _, account_of};
use crate::service::Service;
use crate::service::held::{Full, Held};
use crate::service::shares::Share;

/// Bytes of a form that may come without an end of its part's headers, or of its boundary.
const UNREAD: usize = 64 << 10;
/// What is held of a form beside its command: what came and was not read, the longest frame of the
/// connection, and a piece on its way to the guest.
const FORM_HELD: usize = UNREAD + (256 << 10);
/// How long the command of a form may take to come.
const COMMAND_TIME: Duration = Duration::from_secs(60);
/// Most bytes read of the rest of a form whose command has ended, and the longest time for it: a
/// client that is still writing would see its connection break instead of the answer.
const REST: usize = 256 << 20;
const REST_TIME: Duration = Duration::from_secs(10);

/// A command of a request.
#[derive(Debug)]
pub struct Given {
    /// The command.
    pub command: Exec,
    /// Its stdin, where it comes after it.
    pub stdin: Option<FormStdin>,
    /// What counts it, to be kept as long as it is.
    pub held: Share,
}

/// Form with a command and its stdin.
#[derive(Debug, utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
pub struct ExecForm {
    /// The command; the first part.
    command: Exec,
    /// Its stdin; the second part, which may be left out.
    #[schema(value_type = String, format = Binary)]
    stdin: Vec<u8>,
}

impl FromRequest<Service> for Given {
    type Rejection = ApiError;

    async fn from_request(request: Request, service: &Service) -> Result<Self, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let Ok(boundary) = multer::parse_boundary(kind) else {
            let read = Body::<Exec>::from_request(request, service).await;
            let Body(command, held) = read.map_err(|error| match error.code() {
                "too_large" => too_large(),
                _ => error,
            })?;
            return Ok(Self { command, stdin: None, held });
        };
        let account = account_of(&request, service);
        let mut held = account.take(FORM_HELD).ok_or(Full)?;
        let mut form = Form::new(request.into_body(), boundary);
        let command = async {
            let mut text = Held::new(&account.passing())?;
            form.begin("command").await?;
            while let Some(piece) = form.next().await? {
                text.extend(&piece)?;
            }
            Ok::<_, ApiError>(text)
        };
        let late = || {
            let message = format!("the command of the form has not come within {COMMAND_TIME:?}");
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message).closing()
        };
        let text = tokio::time::timeout(COMMAND_TIME, command).await.map_err(|_| late())??;
        let command: Exec = serde_json::from_slice(text.as_ref())
            .map_err(|error| ApiError::bad_request(format!("the command of the form: {error}")))?;
        drop(text);
        if command.stdin.is_some() {
            let message = "give stdin in its part of the form, or in the command, not in both";
            return Err(ApiError::bad_request(message));
        }
        if !held.grow(command.held_bytes()) {
            return Err(Full.into());
        }
        Ok(Self { command, stdin: Some(FormStdin { form, begun: false }), held })
    }
}

fn too_large() -> ApiError {
    let message = format!(
        "the body of the request has more than {BODY_LIMIT} bytes: send a form (multipart/form-data) \
         whose part `command` is this JSON and whose part `stdin`, of any length, comes after it"
    );
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
}

/// The stdin of a form, read as it comes.
#[derive(Debug)]
pub struct FormStdin {
    form: Form,
    begun: bool,
}

impl FormStdin {
    /// Waits for the next bytes; `None` at the end, also of a form without this part.
    ///
    /// # Errors
    /// [`ApiError`] when the form is broken, or its client is gone.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        if !self.begun {
            self.begun = true;
            if !self.form.begin_if_there("stdin").await? {
                return Ok(None);
            }
        }
        self.form.next().await
    }

    /// Reads what is left, up to a bound.
    pub async fn skip(&mut self) {
        let all = async {
            let mut left = REST;
            while let Ok(Some(piece)) = self.next().await {
                match left.checked_sub(piece.len()) {
                    Some(less) => left = less,
                    None => return,
                }
            }
        };
        let _ = tokio::time::timeout(REST_TIME, all).await;
    }
}

/// The parts of a form, one after the other.
#[derive(Debug)]
struct Form {
    parts: Multipart<'static>,
    part: Option<multer::Field<'static>>,
    /// Bytes that came since something was made of them.
    unread: Arc<AtomicUsize>,
}

impl Form {
    fn new(body: HttpBody, boundary: String) -> Self {
        let unread = Arc::new(AtomicUsize::new(0));
        let pieces =
            Paced { body: Box::pin(body.into_data_stream()), gave: false, unread: unread.clone() };
        let limit = SizeLimit::new().for_field("command", BODY_LIMIT as u64);
        let constraints = Constraints::new().size_limit(limit);
        let parts = Multipart::with_constraints(pieces, boundary, constraints);
        Self { parts, part: None, unread }
    }

    async fn begin(&mut self, name: &str) -> Result<(), ApiError> {
        if self.begin_if_there(name).await? {
            return Ok(());
        }
        Err(ApiError::bad_request(format!("the form has no part `{name}`")))
    }

    /// Goes on to the next part, which is to have this name; false when there is none.
    async fn begin_if_there(&mut self, name: &str) -> Result<bool, ApiError> {
        self.part = None;
        self.part = self.parts.next_field().await.map_err(broken)?;
        self.unread.store(0, Ordering::Relaxed);
        match &self.part {
            None => Ok(false),
            Some(part) if part.name() == Some(name) => Ok(true),
            Some(_) => Err(ApiError::bad_request(
                "the form must have the part `command` first, then `stdin`, and no others",
            )),
        }
    }

    /// Waits for more of the part; `None` at its end.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let Some(part) = &mut self.part else { return Ok(None) };
        let piece = part.chunk().await.map_err(broken)?;
        self.unread.store(0, Ordering::Relaxed);
        Ok(piece)
    }
}

fn broken(error: multer::Error) -> ApiError {
    match error {
        multer::Error::FieldSizeExceeded { .. } => {
            let message = format!("the command of the form has more than {BODY_LIMIT} bytes");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
        }
        error => ApiError::bad_request(format!("the form of the request: {error}")),
    }
}

/// A body that gives one piece at a time. Its reader would otherwise take all that has come, and hold
/// it.
struct Paced {
    body: Pin<Box<axum::body::BodyDataStream>>,
    gave: bool,
    unread: Arc<AtomicUsize>,
}

impl Stream for Paced {
    type Item = io::Result<Bytes>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Bytes>>> {
        if std::mem::take(&mut self.gave) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(piece) = ready!(self.body.as_mut().poll_next(cx)) else {
            return Poll::Ready(None);
        };
        let piece = piece.map_err(io::Error::other)?;
        self.gave = true;
        if self.unread.fetch_add(piece.len(), Ordering::Relaxed) > UNREAD {
            return Poll::Ready(Some(Err(io::Error::other("a part has no end of its headers"))));
        }
        Poll::Ready(Some(Ok(piece)))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;

    use super::*;

    fn form(text: &[u8], piece: usize) -> Form {
        let pieces: Vec<_> = text
            .chunks(piece)
            .map(|bytes| Ok::<_, Infallible>(Bytes::copy_from_slice(bytes)))
            .collect();
        Form::new(HttpBody::from_stream(stream::iter(pieces)), "line".to_owned())
    }

    fn part(name: &str, content: &[u8]) -> Vec<u8> {
        let head = format!("--line\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
        [head.as_bytes(), content, b"\r\n"].concat()
    }

    fn whole(parts: &[(&str, &[u8])]) -> Vec<u8> {
        let mut text: Vec<u8> =
            parts.iter().flat_map(|(name, content)| part(name, content)).collect();
        text.extend(b"--line--\r\n");
        text
    }

    async fn all(form: &mut FormStdin) -> Result<Vec<u8>, ApiError> {
        let mut all = Vec::new();
        while let Some(piece) = form.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_form_is_its_command_and_then_its_stdin_however_it_comes() {
        let stdin: Vec<u8> =
            (0..300_000u32).flat_map(|n| [n.to_le_bytes()[0], b'\r', b'\n', b'-']).collect();
        for (parts, expected) in [
            (vec![("command", &b"{}"[..]), ("stdin", &stdin[..])], &stdin[..]),
            (vec![("command", &b"{}"[..]), ("stdin", &b""[..])], &b""[..]),
            (vec![("command", &b"{}"[..])], &b""[..]),
        ] {
            for piece in [7, 1000, 64 << 10] {
                let mut form = form(&whole(&parts), piece);
                form.begin("command").await.unwrap();
                assert_eq!(form.next().await.unwrap().unwrap(), "{}");
                assert!(form.next().await.unwrap().is_none());
                let mut stdin = FormStdin { form, begun: false };
                assert!(all(&mut stdin).await.unwrap() == expected, "{piece}");
                assert!(stdin.next().await.unwrap().is_none());
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_such_form_is_refused_and_not_held() {
        let cut = |mut text: Vec<u8>| {
            text.truncate(text.len() - 20);
            text
        };
        for (text, code) in [
            (whole(&[("stdin", b"x"), ("command", b"{}")]), "bad_request"),
            (whole(&[]), "bad_request"),
            (cut(whole(&[("command", b"{}")])), "bad_request"),
            (b"nothing of a form".to_vec(), "bad_request"),
            (whole(&[("command", &vec![b' '; BODY_LIMIT + 1])]), "too_large"),
        ] {
            let mut form = form(&text, 1000);
            let read = async {
                form.begin("command").await?;
                while form.next().await?.is_some() {}
                Ok::<_, ApiError>(())
            };
            assert_eq!(read.await.unwrap_err().code(), code);
        }
        // Headers without an end are given up.
        let head = b"--line\r\nContent-Disposition: form-data; name=\"".to_vec();
        let mut form = form(&[head, vec![b'x'; 4 * UNREAD]].concat(), 1000);
        assert_eq!(form.begin("command").await.unwrap_err().code(), "bad_request");
        assert!(form.unread.load(Ordering::Relaxed) <= UNREAD + 2000);
    }
}
