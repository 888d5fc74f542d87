//! Admission, who may start a session and when: rate limits, bounds on what lives, and a queue that
//! is fair between tenants.

mod drain;
mod gate;
mod limiters;
pub mod pressure;
mod queue;
mod refusal;

pub(super) use gate::{Bounds, Early, Gate, Grant, SessionSlot, host_memory};
pub(super) use limiters::Limiters;
pub(super) use refusal::Refusal;
