//! Admission, who may start a session and when: rate limits, bounds on what lives, and a queue that
//! is fair between tenants.

mod drain;
mod gate;
mod limiters;
pub mod pressure;
mod queue;

pub(super) use gate::{Bounds, Gate, Grant, Refusal, SessionSlot, host_memory};
pub(super) use limiters::Limiters;
