//! The engine as a daemon: a pool of standbys for each golden, admission, live sessions and their journal.

pub mod model;
