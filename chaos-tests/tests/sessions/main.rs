//! Real sessions of the host's golden image: through the program, and through the engine's library.

mod demo;
mod discard;
mod docker;
mod faults;
mod isolation;
mod many;
mod probe;
mod program;
mod support;
mod zygote;
