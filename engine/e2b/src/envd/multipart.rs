//! Forms of several files, of any length, whose file names are paths.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use futures::Stream;
use http_body_util::BodyDataStream;
use multer::Multipart;

/// Bytes between the contents of two files at most, of the head of a part and the like.
const MOST_BETWEEN: usize = 64 << 10;
/// Longest piece of a body that is looked at once, in bytes.
const PIECE: usize = 64 << 10;
/// Bytes that a form holds at most: what is between contents, and pieces on their way.
pub const HELD: usize = 2 * (MOST_BETWEEN + PIECE);
/// The field that holds a file.
const FIELD: &str = "file";
/// Longest file name, in bytes.
const LONGEST_NAME: usize = 4096;

/// A form on its way.
#[derive(Debug)]
pub struct Form {
    parts: Multipart<'static>,
    /// Bytes that were read and not handed out.
    between: Arc<AtomicUsize>,
}

/// One file of a form.
#[derive(Debug)]
pub struct File {
    part: multer::Field<'static>,
    between: Arc<AtomicUsize>,
}

/// Reason why a form cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// It is none, or it breaks off.
    #[error("the form cannot be read: {0}")]
    Form(#[from] multer::Error),
    /// The name of a file is too long.
    #[error("the name of a file in the form has more than {LONGEST_NAME} bytes")]
    LongName,
}

impl Form {
    /// Reads a form from the body of a request, by its type of content.
    ///
    /// # Errors
    /// [`FormError`] for another type of content.
    pub fn new(content_type: &str, body: Body) -> Result<Self, FormError> {
        let boundary = multer::parse_boundary(content_type)?;
        let between = Arc::new(AtomicUsize::new(0));
        let pieces = Pieces {
            body: BodyDataStream::new(body),
            rest: Bytes::new(),
            waited: false,
            between: between.clone(),
        };
        Ok(Self { parts: Multipart::new(pieces, boundary), between })
    }

    /// Waits for the next file, whatever else comes before it; `None` at the end.
    ///
    /// # Errors
    /// [`FormError`]; nothing follows.
    pub async fn next(&mut self) -> Result<Option<File>, FormError> {
        while let Some(part) = self.parts.next_field().await? {
            self.between.store(0, Ordering::Relaxed);
            let file = File { part, between: self.between.clone() };
            if file.part.name() != Some(FIELD) {
                file.pass_over().await?;
                continue;
            }
            if file.path().is_some_and(|path| path.len() > LONGEST_NAME) {
                return Err(FormError::LongName);
            }
            return Ok(Some(file));
        }
        Ok(None)
    }
}

impl File {
    /// Returns the path that the file is to have: its name, with all that is in it.
    pub fn path(&self) -> Option<&str> {
        self.part.file_name()
    }

    /// Waits for more of its content; `None` at the end.
    ///
    /// # Errors
    /// [`FormError`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, FormError> {
        let chunk = self.part.chunk().await?;
        self.between.store(0, Ordering::Relaxed);
        Ok(chunk)
    }

    async fn pass_over(mut self) -> Result<(), FormError> {
        while self.chunk().await?.is_some() {}
        Ok(())
    }
}

/// The pieces of a body, of which there is one at a time. The parser takes all that it can get, so it
/// has to wait after each; and what it keeps for itself has a bound.
struct Pieces {
    body: BodyDataStream<Body>,
    rest: Bytes,
    waited: bool,
    between: Arc<AtomicUsize>,
}

impl Stream for Pieces {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.waited {
            self.waited = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_next(context)) {
                Some(Ok(bytes)) => self.rest = bytes,
                Some(Err(error)) => return Poll::Ready(Some(Err(io::Error::other(error)))),
                None => return Poll::Ready(None),
            }
        }
        self.waited = false;
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        let between = self.between.fetch_add(length, Ordering::Relaxed) + length;
        if between > MOST_BETWEEN + PIECE {
            let message = format!("more than {MOST_BETWEEN} bytes between the contents of files");
            return Poll::Ready(Some(Err(io::Error::other(message))));
        }
        Poll::Ready(Some(Ok(piece)))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=b";

    /// Path and content of files.
    type Files = Vec<(Option<String>, Vec<u8>)>;

    /// The files of a form that comes in pieces of `length` bytes.
    fn read(form: &[u8], length: usize) -> Result<Files, FormError> {
        let pieces: Vec<_> = form.chunks(length).map(Bytes::copy_from_slice).collect();
        let body = Body::from_stream(stream::iter(pieces.into_iter().map(Ok::<_, Infallible>)));
        let work = async {
            let mut form = Form::new(TYPE, body)?;
            let mut files = Vec::new();
            while let Some(mut file) = form.next().await? {
                let (path, mut content) = (file.path().map(ToOwned::to_owned), Vec::new());
                while let Some(chunk) = file.chunk().await? {
                    content.extend_from_slice(&chunk);
                }
                files.push((path, content));
            }
            Ok(files)
        };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    fn part(head: &str, content: &[u8]) -> Vec<u8> {
        let head = format!("--b\r\nContent-Disposition: form-data; {head}\r\n\r\n");
        [head.as_bytes(), content, b"\r\n"].concat()
    }

    #[test]
    fn names_are_paths_as_they_are() {
        let form = [
            part("name=\"other\"; filename=\"x\"", b"passed over"),
            part("name=\"file\"; filename=\"/home/user/a b.txt\"", b"\r\n--c\r\n"),
            part("name=\"file\"; filename=\"../~/%22ü\"", &[0xff; 300_000]),
            part("name=\"file\"", b""),
            b"--b--\r\n".to_vec(),
        ]
        .concat();
        for length in [7, 1000, 1 << 20] {
            let files = read(&form, length).unwrap();
            assert_eq!(files.len(), 3);
            assert_eq!(files[0].0.as_deref(), Some("/home/user/a b.txt"));
            assert_eq!(files[0].1, b"\r\n--c\r\n");
            assert!(files[1].1 == [0xff; 300_000]);
            assert_eq!(files[2], (None, Vec::new()));
        }
    }

    #[test]
    fn what_never_ends_is_not_held() {
        let head = [b"--b\r\nContent-Disposition: ".to_vec(), vec![b'x'; 1 << 20]].concat();
        for form in [head, vec![b'-'; 1 << 20], part("name=\"file\"", b"cut")] {
            read(&form, 8 << 10).unwrap_err();
        }
        let name = "x".repeat(LONGEST_NAME + 1);
        let long = part(&format!("name=\"file\"; filename=\"{name}\""), b"");
        assert!(matches!(read(&long, 1 << 20), Err(FormError::LongName)));
        Form::new("application/json", Body::empty()).unwrap_err();
    }

    proptest! {
        #[test]
        fn contents_come_back_whatever_they_are(
            content in prop::collection::vec(
                prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'b'), any::<u8>()], 0..200
            ),
            length in 1_usize..50,
        ) {
            prop_assume!(!content.windows(5).any(|window| window == b"\r\n--b"));
            let form = [part("name=\"file\"; filename=\"f\"", &content), b"--b--\r\n".to_vec()].concat();
            let files = read(&form, length).unwrap();
            prop_assert_eq!(&files[..], &[(Some("f".to_owned()), content)][..]);
        }
    }
}
