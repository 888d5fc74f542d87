//! The escape suite: attempts to get out of a session, made for real, each beside a control that
//! proves that it could succeed.
//!
//! [`run()`] starts sessions of a golden image, attacks from three places, and gives a [`Report`]
//! that a security reviewer can read. From the outside in:
//!
//! - [`report`] is what was found, as types, Markdown and HTML;
//! - `check` says what a check is, and [`checks()`] lists them;
//! - `lab` holds the sessions that are attacked and those that must not notice;
//! - `guest` attacks as root of a guest, `vmm` as code that has taken a VMM over, `host` looks at
//!   VMMs from outside;
//! - `quota` lets sessions use up what they can get, `destruction` deletes one from within;
//! - `egress` is about the network a session may be given;
//! - [`inject`] has another process make system calls.

mod check;
mod checks;
mod destruction;
mod egress;
mod guest;
mod host;
pub mod inject;
mod lab;
mod options;
mod quota;
pub mod report;
mod run;
mod unconfined;
mod vmm;

pub use check::Check;
pub use checks::checks;
pub use options::{AuditError, AuditOptions, Planted};
pub use report::{Attempt, CheckReport, HostFacts, Report, Threat, Vantage, Verdict};
pub use run::run;
