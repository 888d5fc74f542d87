//! Fault injection, clean-up and leak tests against real sessions.
