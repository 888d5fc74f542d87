//! The client against servers that keep, close and break connections.

mod pool;
