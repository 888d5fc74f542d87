//! Sparse files in tar archives: where their data is, and the old format of GNU tar for it.
//!
//! An entry of type `S` has the extents of data in its header and in blocks that follow it, then
//! the data alone (GNU tar manual, "Old GNU Format"). GNU tar, bsdtar and Python read it.

mod map;
mod scan;

pub use map::{Extent, MAX_EXTENTS, Map};
