//! Answers that a tenant can make large, whose bytes count for it until its client has read them.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mayfly_api::ExecOutcome;
use serde::Serialize;
use tokio::task::coop::consume_budget;

use super::ndjson::{self, Lines};
use crate::service::held::{Full, Held};
use crate::service::kept::Kept;
use crate::service::shares::Account;

/// Answers with `value` as JSON, which counts for `account` as what passes through.
///
/// # Errors
/// [`Full`].
pub fn json(account: &Account, value: &impl Serialize) -> Result<Response, Full> {
    let mut body = Held::new(&account.passing())?;
    write(&mut body, value)?;
    Ok(answer(body))
}

/// Bytes that are written at a time; a few of these, and others have their turn.
const STRETCH: usize = 4 << 10;

/// Answers as [`json`] does with an object whose only field, `name`, is a list. Each item is made
/// when those before it are written, so that there is one at a time, and none after the first for
/// which there is no room. However many there are, the thread is not kept for long.
///
/// # Errors
/// [`Full`].
pub async fn list<T: Serialize>(
    account: &Account,
    name: &str,
    items: impl IntoIterator<Item = T, IntoIter: Send>,
) -> Result<Response, Full> {
    let mut body = Held::new(&account.passing())?;
    body.extend(format!("{{\"{name}\":").as_bytes())?;
    let mut before = "[";
    for item in items {
        let from = body.len();
        body.extend(before.as_bytes())?;
        write(&mut body, &item)?;
        drop(item);
        before = ",";
        for _ in 0..=(body.len() - from) / STRETCH {
            consume_budget().await;
        }
    }
    body.extend(if before == "[" { b"[]}" } else { b"]}" })?;
    Ok(answer(body))
}

/// Answers as [`json`] does with an [`ExecResult`](mayfly_api::ExecResult), whose JSON may have six
/// times the bytes that a command has written. However many these are, the thread is not kept for
/// long, and no copy of them is made beside the answer.
///
/// # Errors
/// [`Full`].
pub async fn exec_result(
    account: &Account,
    outcome: &ExecOutcome,
    stdout: &mut Kept,
    stderr: &mut Kept,
) -> Result<Response, Full> {
    let mut body = Held::new(&account.passing())?;
    body.extend(b"{\"outcome\":")?;
    write(&mut body, outcome)?;
    let truncated = stdout.is_cut() || stderr.is_cut();
    let (stdout_bytes, stderr_bytes) = (stdout.all(), stderr.all());
    for (name, kept) in [("stdout", stdout), ("stderr", stderr)] {
        body.extend(format!(",\"{name}\":").as_bytes())?;
        write_blob(&mut body, kept.bytes()).await?;
    }
    let counts = format!(
        ",\"truncated\":{truncated},\"stdout_bytes\":{stdout_bytes},\"stderr_bytes\":{stderr_bytes}}}"
    );
    body.extend(counts.as_bytes())?;
    Ok(answer(body))
}

/// Writes what a [`Blob`](mayfly_api::Blob) of these bytes is in JSON.
async fn write_blob(body: &mut Held, bytes: &[u8]) -> Result<(), Full> {
    let Ok(mut text) = std::str::from_utf8(bytes) else {
        body.extend(b"{\"base64\":\"")?;
        // Three bytes are four characters.
        for piece in bytes.chunks(STRETCH / 3 * 3) {
            body.extend(STANDARD.encode(piece).as_bytes())?;
            consume_budget().await;
        }
        return body.extend(b"\"}");
    };
    body.extend(b"\"")?;
    while !text.is_empty() {
        let (piece, rest) = text.split_at(text.floor_char_boundary(STRETCH));
        let quoted = serde_json::to_vec(piece).map_err(|_| Full)?;
        body.extend(&quoted[1..quoted.len() - 1])?;
        text = rest;
        consume_budget().await;
    }
    body.extend(b"\"")
}

fn write(body: &mut Held, value: &impl Serialize) -> Result<(), Full> {
    // Plain data always has a text; what fails is the room for it.
    serde_json::to_writer(body, value).map_err(|_| Full)
}

fn answer(body: Held) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body.into_bytes()).into_response()
}

/// Creates an answer of lines, as [`ndjson::answer`] does, whose lines a guest can make long: as
/// many bytes count for `account` as it can ever hold, as long as it does.
///
/// All of it is taken before anything is started. So an answer that goes on never waits for room
/// that others hold, and loses nothing for want of it: it waits for its client alone.
///
/// # Errors
/// [`Full`].
pub fn lines(account: &Account) -> Result<(Lines, Response), Full> {
    // No matter for what only passes through: a client may take as long as it likes.
    Ok(ndjson::counted_answer(account.take(ndjson::HELD).ok_or(Full)?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::BodyExt;
    use mayfly_api::{Blob, ExecResult, Keep, TenantName};

    use super::*;
    use crate::service::shares::Shares;

    fn account(bytes: usize) -> Account {
        Shares::new(bytes, []).account(&TenantName::local(), None)
    }

    fn kept(bytes: &[u8], most: usize, account: &Account) -> Kept {
        let mut kept = Kept::new(Keep::Tail, most, account).unwrap();
        kept.push(bytes);
        kept
    }

    #[tokio::test]
    async fn a_list_is_what_it_would_be_as_a_whole() {
        let account = account(1 << 20);
        for (items, text) in [
            (vec![], r#"{"sessions":[]}"#),
            (vec!["a"], r#"{"sessions":["a"]}"#),
            (vec!["a", "\"", "c"], r#"{"sessions":["a","\"","c"]}"#),
        ] {
            let answer = list(&account, "sessions", items).await.unwrap();
            assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), text);
        }
        assert_eq!(account.held(), 0);
    }

    #[tokio::test]
    async fn no_item_is_made_for_which_there_is_no_room() {
        let (account, mut made) = (account(100 << 10), 0);
        let items = (0..1000).map(|_| {
            made += 1;
            "x".repeat(10 << 10)
        });
        assert_eq!(list(&account, "sessions", items).await.unwrap_err(), Full);
        assert_eq!((made, account.held()), (10, 0));
    }

    #[tokio::test]
    async fn a_long_list_lets_others_have_their_turn() {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = made.clone();
        let items = (0..1000).map(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            "x".repeat(10 << 10)
        });
        let (account, seen) = (account(64 << 20), made.clone());
        let whole = tokio::spawn(async move { list(&account, "sessions", items).await });
        // Whose turn it is next.
        let other = tokio::spawn(async move { seen.load(Ordering::Relaxed) });
        let first = other.await.unwrap();
        assert!((1..100).contains(&first), "{first}");
        whole.await.unwrap().unwrap();
        assert_eq!(made.load(Ordering::Relaxed), 1000);
    }

    #[tokio::test]
    async fn output_is_what_it_would_be_as_a_whole() {
        let account = account(8 << 20);
        let text = |character: &str, bytes: usize| {
            [b"x", &*character.repeat(bytes / character.len()).into_bytes()].concat()
        };
        let around = [STRETCH - 2, STRETCH - 1, STRETCH, 3 * STRETCH + 1];
        let mut outputs = vec![vec![], b"\"\\\n\x01\x7f".to_vec()];
        for bytes in around {
            outputs.extend([text("\u{1f600}", bytes), text("\u{1}", bytes), vec![0xff; bytes]]);
        }
        for (at, stdout) in outputs.iter().enumerate() {
            let stderr = outputs[outputs.len() - 1 - at].clone();
            let outcome = ExecOutcome::ExitCode(3);
            let [mut out, mut err] =
                [stdout, &stderr].map(|bytes| kept(bytes, usize::MAX >> 1, &account));
            let answer = exec_result(&account, &outcome, &mut out, &mut err).await.unwrap();
            let bytes = answer.into_body().collect().await.unwrap().to_bytes();
            let (stdout_bytes, stderr_bytes) = (stdout.len() as u64, stderr.len() as u64);
            let (stdout, stderr) = (Blob(stdout.clone()), Blob(stderr));
            let truncated = false;
            let result =
                ExecResult { outcome, stdout, stderr, truncated, stdout_bytes, stderr_bytes };
            let whole = serde_json::to_vec(&result).unwrap();
            assert!(bytes == whole, "{at}");
        }
        assert_eq!(account.held(), 0);
    }

    #[tokio::test]
    async fn much_output_lets_others_have_their_turn() {
        for byte in [1, 0xff] {
            let account = account(64 << 20);
            let (of_answer, seen) = (account.clone(), account.clone());
            let mut out = kept(&vec![byte; 8 << 20], 8 << 20, &account);
            let mut err = kept(&[], 0, &account);
            let before = account.held();
            let whole = tokio::spawn(async move {
                let outcome = ExecOutcome::ExitCode(0);
                exec_result(&of_answer, &outcome, &mut out, &mut err).await
            });
            // Whose turn it is next.
            let other = tokio::spawn(async move { seen.held() - before });
            let first = other.await.unwrap();
            let answer = whole.await.unwrap().unwrap();
            let whole = answer.into_body().collect().await.unwrap().to_bytes().len();
            assert!((1..whole / 4).contains(&first), "{first} of {whole}");
        }
    }
}
