//! Descriptions that many routes share, for the OpenAPI document.

use mayfly_api::ErrorBody;
use utoipa::{IntoParams, IntoResponses};

/// Path of everything about one session.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfSession {
    /// Session id
    #[expect(dead_code, reason = "describes what the extractor takes")]
    id: String,
}

/// Path of everything about one command in the background.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfCommand {
    /// Session id
    #[expect(dead_code, reason = "describes what the extractor takes")]
    id: String,
    /// Its number
    #[expect(dead_code, reason = "describes what the extractor takes")]
    n: u64,
}

/// Query of everything about one path in a guest.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfPath {
    /// Path; percent-encode bytes that are not UTF-8. It is absolute, unless there is a user: then a
    /// relative path, `~` and `~/x` start from that user's home
    #[expect(dead_code, reason = "describes what the extractor takes")]
    path: String,
}

/// Query that says for whom something is done in a guest.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfUser {
    /// `user`, `uid`, `user:group` or `uid:gid`: it is done with that user's rights, and what is
    /// made is theirs; root when absent
    #[expect(dead_code, reason = "describes what the extractor takes")]
    user: Option<String>,
    /// With a user: done with the rights of root, and what is made is the user's
    #[expect(dead_code, reason = "describes what the extractor takes")]
    as_root: Option<bool>,
}

/// Query that sets extended attributes.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfXattrs {
    /// An extended attribute to set, `NAME=VALUE`, where the name begins with the prefix; may be
    /// given up to 64 times, 64 KiB together
    #[expect(dead_code, reason = "describes what the extractor takes")]
    xattr: Option<String>,
    /// Begins with `user.`: all extended attributes that begin so are replaced by those given
    #[expect(dead_code, reason = "describes what the extractor takes")]
    xattr_prefix: Option<String>,
}

/// The answer when there is no such session.
#[derive(Debug, IntoResponses)]
#[response(status = 404, description = "No such session")]
pub struct NoSession(#[expect(dead_code, reason = "describes the body")] ErrorBody);

/// The answer when there is no such session, or no such command in it.
#[derive(Debug, IntoResponses)]
#[response(status = 404, description = "No such session or command")]
pub struct NoCommand(#[expect(dead_code, reason = "describes the body")] ErrorBody);

/// The answer when there is no such session, or no such path in its guest.
#[derive(Debug, IntoResponses)]
#[response(status = 404, description = "No such session or path")]
pub struct NoPath(#[expect(dead_code, reason = "describes the body")] ErrorBody);
