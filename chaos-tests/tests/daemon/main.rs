//! The daemon as its clients have it: real `mayfly serve` processes with real sessions.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod api;
mod command_line;
mod commands;
mod containers;
mod crash;
mod disk_space;
mod files;
mod limits;
mod origin;
mod overload;
mod ports;
mod rebuilt;
mod single_use;
mod support;
mod tenants;
mod user_namespaces;
mod vanished_clients;
