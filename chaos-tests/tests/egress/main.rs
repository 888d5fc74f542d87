//! What real guests reach outside: what their policy allows, through the daemon, and nothing else.

mod docker;
mod reach;
mod world;
