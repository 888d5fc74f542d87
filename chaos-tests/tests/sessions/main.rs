//! Real sessions of the host's golden image: through the program, and through the engine's library.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod clock;
mod demo;
mod discard;
mod distribution;
mod docker;
mod faults;
mod full_disk;
mod isolation;
mod many;
mod probe;
mod program;
mod support;
mod zygote;
