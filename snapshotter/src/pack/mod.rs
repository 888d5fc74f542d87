//! Pack files: append-only files of chunk records. The byte layout, writing, and verified reading.

mod file;
mod format;
mod walk;
mod writer;

pub(crate) use file::PackFile;
pub use format::{Codec, Location, PACK_HEADER_LEN, PackHeader, RECORD_HEADER_LEN, RecordHeader};
pub(crate) use format::{ZSTD_LEVEL, pack_file_name, parse_pack_file_name};
pub use walk::{PackRecord, Walk};
pub(crate) use writer::{PackSummary, PackWriter, PendingPacks, TEMP_PREFIX};
