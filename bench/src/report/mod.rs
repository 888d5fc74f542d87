//! Reports: one self-contained HTML file with tables and plots.

mod page;
mod plot;

pub use page::{Block, Page};
pub use plot::{Axis, Series, bars, dots, ecdf, lines};
