//! Unpacking what a guest packed.

#[path = "../../../src/cli/remote/archive.rs"]
pub mod archive;
#[path = "../../../src/cli/remote/screen.rs"]
pub mod screen;
