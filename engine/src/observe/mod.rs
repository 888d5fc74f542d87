//! What an operator sees: metrics, traces and logs.

mod labels;
mod metrics;
mod recent;

pub use metrics::{CONTENT_TYPE, Metrics};
