//! The user of the guest for whom a call is.

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mayfly_daemon::http::guest::with_guest;
use mayfly_daemon::service::LiveSession;
use mayfly_daemon::service::held::Full;

use super::call::In;
use super::passwd;
use crate::connect::ConnectError;

/// User of a call that names none, where the guest has it; otherwise it is root.
const DEFAULT: &str = "user";
const ROOT: &str = "root";
/// Longest name, in bytes.
const LONGEST: usize = 256;
/// Bytes of the guest's passwd(5) that are looked at.
const PASSWD: u64 = 64 << 10;

/// Reads the user of a call: `Authorization: Basic` with its name before a colon.
///
/// # Errors
/// [`ConnectError`].
pub(super) fn of_headers(headers: &HeaderMap) -> Result<Option<String>, ConnectError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let read = || {
        let (scheme, credentials) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("basic").then_some(())?;
        let text = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
        Some(text.split(':').next().unwrap_or_default().to_owned())
    };
    let user = read().ok_or_else(|| {
        ConnectError::invalid("the header Authorization must be `Basic` with USER: in base64")
    })?;
    checked(user)
}

/// Checks a name; an empty one is none.
///
/// # Errors
/// [`ConnectError`].
pub(super) fn checked(user: String) -> Result<Option<String>, ConnectError> {
    if user.len() > LONGEST || user.contains(['\0', '\n', ':']) {
        return Err(ConnectError::invalid(format!(
            "a user has at most {LONGEST} bytes, and neither a colon nor a line's end"
        )));
    }
    Ok(Some(user).filter(|user| !user.is_empty()))
}

/// Returns the user that is asked for, or the session's default: the one it was created with, `user`
/// where the guest has one, or root.
///
/// # Errors
/// [`ConnectError`].
pub(super) async fn resolve(call: &In, asked: Option<String>) -> Result<String, ConnectError> {
    let (session, known) = (call.session(), &call.sandbox.default_user);
    if let Some(user) = asked.or_else(|| session.user().map(ToOwned::to_owned)) {
        return Ok(user);
    }
    if let Some(user) = known.get() {
        return Ok(user.clone());
    }
    let has = home(session, DEFAULT).await?.is_some();
    let user = if has { DEFAULT } else { ROOT };
    Ok(known.get_or_init(|| user.to_owned()).clone())
}

/// Returns the home of a user, if the guest has it.
///
/// # Errors
/// [`ConnectError`].
pub(super) async fn home(
    session: &LiveSession,
    user: &str,
) -> Result<Option<String>, ConnectError> {
    let limit = usize::try_from(PASSWD).unwrap_or(usize::MAX);
    let _held = session.account().take(limit).ok_or(Full)?;
    let mut text = Vec::with_capacity(limit);
    let guest = session.session().guest();
    match with_guest(session, guest.read_file_to("/etc/passwd", PASSWD, &mut text)).await {
        Ok(_) => Ok(passwd::home_of(&text, user)),
        // A guest without users has root.
        Err(error) if error.code() == "not_found" => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_user_is_before_the_colon() {
        let of = |value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            of_headers(&[(header::AUTHORIZATION, value)].into_iter().collect())
        };
        assert_eq!(of("Basic cm9vdDo=").unwrap().as_deref(), Some("root"));
        assert_eq!(of("basic Og==").unwrap(), None);
        assert_eq!(of_headers(&HeaderMap::new()).unwrap(), None);
        for bad in ["Bearer x", "Basic", "Basic !", "Basic /w=="] {
            of(bad).unwrap_err();
        }
        checked("x".repeat(LONGEST + 1)).unwrap_err();
    }
}
