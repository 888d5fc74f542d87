//! The `mayfly` command: a thin layer over the library.

mod args;
mod bars;
mod demo;
mod doctor;
mod failure;
mod golden;
mod interrupt;
mod pager;
mod run;
mod serve;
mod shell;
mod terminal;

pub use args::Cli;
pub use failure::main;
