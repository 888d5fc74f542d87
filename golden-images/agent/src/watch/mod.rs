//! Changes below a path, from inotify(7).

mod serve;
mod tree;

pub use serve::run;
