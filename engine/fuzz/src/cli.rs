//! Unpacking what a guest packed.

pub mod remote;
