//! Egress against the real agent and real servers, in a network namespace of the test's own.

mod limits;
mod name_server;
mod names;
mod proxy;
mod replace;
mod resolving;
mod shares;
mod world;
