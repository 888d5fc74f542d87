//! The engine as a daemon: pools, admission, sessions of many clients, served over HTTP.
//!
//! - [`service`] turns requests into sessions, each with an owner, a bound and an end;
//! - [`http`] serves it: JSON, streams, WebSockets;
//! - [`observe`] has its metrics, logs and traces.

pub mod http;
pub mod observe;
pub mod service;
