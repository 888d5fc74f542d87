//! Tests of what real guests reach outside: what their policy allows, through the daemon, and
//! nothing else.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod docker;
mod reach;
mod replace;
mod world;
