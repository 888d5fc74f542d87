//! Fault injection, clean-up and leak tests against real sessions.
//!
//! What the tests in `tests/` share:
//!
//! - [`home`] gives a test the golden image of this host, or a throw-away copy of it to damage;
//! - [`program`] runs the `mayfly` program as a person would, with a bound on everything;
//! - [`daemon`] runs `mayfly serve` and asks it;
//! - [`host`] takes something away from the host for it;
//! - [`network`] gives a test a network of its own, with servers;
//! - [`browser`] looks at its page in Chromium;
//! - [`terminal`] runs it on a pseudoterminal;
//! - [`slots`] keeps the number of virtual machines at a time within what a small host can run;
//! - [`leaks`] looks for what should not be there any more.

#![expect(
    clippy::missing_panics_doc,
    reason = "what does not go as it should fails the test that asked for it"
)]

pub mod browser;
pub mod daemon;
pub mod home;
pub mod host;
pub mod leaks;
pub mod network;
pub mod program;
pub mod slots;
pub mod terminal;
