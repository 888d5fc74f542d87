//! Front ends: other APIs on the daemon's listeners.

use axum::Router;
use axum::http::request::Parts;

/// Another API on the same listeners, for clients that speak one which is not ours. It has requests
/// of its own, and the daemon knows no more of it.
///
/// What it takes does not pass through the daemon's router: the front end finds out itself who asks
/// ([`auth::identify`](super::auth::identify)), and keeps its answers harmless for browsers
/// ([`origin::guard`](super::origin::guard), [`foreign`](super::foreign)).
#[derive(Debug, Clone)]
pub struct FrontEnd {
    takes: fn(&Parts) -> bool,
    router: Router,
}

impl FrontEnd {
    /// Creates a front end that answers with `router` each request whose head `takes` says is its
    /// own: by its path, its headers, or the name of the host that it asks for.
    pub fn new(takes: fn(&Parts) -> bool, router: Router) -> Self {
        Self { takes, router }
    }

    /// Returns the router of the first of `front_ends` that takes a request, or else `own`.
    pub(super) fn route<'a>(front_ends: &'a [Self], own: &'a Router, head: &Parts) -> &'a Router {
        let taker = front_ends.iter().find(|front_end| (front_end.takes)(head));
        taker.map_or(own, |front_end| &front_end.router)
    }
}
