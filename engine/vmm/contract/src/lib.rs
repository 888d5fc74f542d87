//! Contract between the VMM driver and the preload library in a VMM process.
//!
//! The driver starts QEMU with the library in it, and both are built from these definitions: the
//! environment variables with their content ([`preload`], [`hardening`]), the request for a fork of
//! a zygote ([`fork`]), and what a child does to itself so that it can do little else ([`confine`]).
//!
//! It depends on libc alone, since all of it is loaded into every VMM.

pub mod confine;
pub mod fork;
pub mod hardening;
pub mod preload;

use std::ffi::CStr;

/// An empty folder in the root of a zygote. A fork makes it its root.
pub const EMPTY_FOLDER: &CStr = c"/void";

/// Converts a name of ASCII letters to text.
///
/// # Panics
/// When it is not UTF-8.
pub const fn text(name: &'static CStr) -> &'static str {
    match name.to_str() {
        Ok(text) => text,
        Err(_) => panic!("names are ASCII"),
    }
}
