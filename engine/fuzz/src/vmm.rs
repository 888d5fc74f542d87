//! What a guest prints.

#[path = "../../src/vmm/console.rs"]
mod console;

pub use console::ConsoleTail;
