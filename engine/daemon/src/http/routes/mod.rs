//! The handlers, by what they are about. [`super::router`] has them all.

#![expect(
    clippy::missing_errors_doc,
    unused_qualifications,
    reason = "the documentation of a handler is that of its route in OpenAPI, where `responses` has the failures; \
              `utoipa::path` qualifies what it is given"
)]

pub mod attach;
pub mod background;
pub mod daemon;
pub mod docker;
pub mod egress;
pub mod exec;
pub mod exec_socket;
pub mod files;
pub mod ports;
pub mod sessions;
pub mod stats;
pub mod tar;
pub mod tcp;
pub mod watch;
