//! Tests of the store through its public API, on real files, with real processes where processes
//! matter.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod common;
mod concurrent;
mod crash;
mod damage;
mod database;
mod disk_full;
mod goldens;
mod readers;
mod round_trip;
mod seal;
