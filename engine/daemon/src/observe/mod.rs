//! Observability: metrics, traces and logs.

mod collector;
mod labels;
pub mod logging;
mod metrics;
mod process;
mod recent;
pub mod tenant_lines;
mod traces;

pub use metrics::{CONTENT_TYPE, Metrics};
pub use traces::TracesError;
