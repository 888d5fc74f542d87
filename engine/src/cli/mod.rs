//! The `mayfly` command: a thin layer over the library.
//!
//! `run` and `shell` work in a [`place`], a session of the daemon where one answers and of an engine in this process where
//! none does; [`command`] is what runs there. The commands in [`remote`] need a daemon.

mod args;
mod audit;
mod bars;
mod command;
mod demo;
mod doctor;
mod failure;
mod golden;
mod interrupt;
mod lines;
mod pager;
mod pairs;
mod place;
mod remote;
mod run;
mod serve;
mod shell;
mod terminal;

pub use args::Cli;
pub use failure::main;
