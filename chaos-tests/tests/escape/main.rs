//! The escape suite: attempts to get out of real sessions, by `mayfly_audit` and by the
//! `mayfly audit` program. Each attempt has a control that proves that it could succeed; planted
//! breaches prove that the suite reports one.

mod attacks;
mod listed;
mod planted;
mod program;
mod support;
