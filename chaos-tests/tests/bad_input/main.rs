//! Tests of what bad input and bad luck get: one clear line, a non-zero exit, nothing left behind,
//! earlier golden images intact.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod arguments;
mod build;
mod damage;
mod host;
mod interrupt;
mod kvm;
mod support;
mod tamper;
