//! A form of files: it ends, and gives no more than came.
#![no_main]

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use libfuzzer_sys::fuzz_target;
use mayfly_e2b::envd::multipart::Form;

fuzz_target!(|bytes: &[u8]| {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let pieces: Vec<_> =
        bytes.chunks(usize::from(*piece).max(1)).map(Bytes::copy_from_slice).collect();
    let body = Body::from_stream(stream::iter(pieces.into_iter().map(Ok::<_, Infallible>)));
    let work = async {
        let Ok(mut form) = Form::new("multipart/form-data; boundary=b", body) else { return };
        let mut given = 0;
        while let Ok(Some(mut file)) = form.next().await {
            given += file.path().map_or(0, str::len);
            while let Ok(Some(chunk)) = file.chunk().await {
                given += chunk.len();
            }
        }
        assert!(given <= bytes.len());
    };
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work);
});
