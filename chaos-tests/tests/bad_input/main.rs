//! What bad input and bad luck get: one clear line, a non-zero exit, nothing left behind, earlier golden images intact.

mod arguments;
mod build;
mod damage;
mod host;
mod interrupt;
mod kvm;
mod support;
mod tamper;
