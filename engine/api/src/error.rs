//! Errors, as clients get them.

use serde::{Deserialize, Serialize};

/// Body of every error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// A word that programs may rely on, such as `no_such_session`.
    pub code: String,
    /// Message that says what was tried, why it failed and what to do next.
    pub message: String,
}
