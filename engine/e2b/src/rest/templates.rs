//! Templates: names for golden images.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;

use super::RestError;
use super::create::golden_of;
use crate::sandboxes::Sandboxes;

#[derive(Serialize)]
pub(crate) struct Alias {
    #[serde(rename = "templateID")]
    template_id: String,
    public: bool,
}

/// `GET /templates/aliases/NAME`.
pub(crate) async fn alias(
    State(sandboxes): State<Arc<Sandboxes>>,
    Path(name): Path<String>,
) -> Result<Json<Alias>, RestError> {
    // The name itself, so that a client that creates by the id gets what the table says.
    golden_of(&sandboxes, &name)?;
    let template_id = name.split(':').next().unwrap_or_default().to_owned();
    Ok(Json(Alias { template_id, public: false }))
}
