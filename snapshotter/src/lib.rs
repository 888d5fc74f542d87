//! Stores stopped virtual machines as content-addressed chunks and a manifest, and reads them back
//! verified.
//!
//! The input is three plain files of a stopped VM: RAM, device state and the disk delta (the
//! *streams*). A [`Store`] cuts them into [`CHUNK_SIZE`] chunks, names each by the blake3 hash of
//! its bytes, keeps equal chunks once across all golden images and elides chunks of zeros. A
//! [`Manifest`] describes the result; a [`StreamReader`] gives the bytes back and never returns a
//! byte it has not verified.
//!
//! On disk a store is
//!
//! ```text
//! DIR/db/               SQLite: manifests, chunk tables, working sets, chunk locations + reference counts, packs
//! DIR/packs/<id>.pack   append-only files of chunk records, never changed once they have their name
//! DIR/reserve           space set aside, so that removing works on a full disk
//! ```
//!
//! The chunks that a session touches first, the *working set*, lie in packs of their own, in the
//! order of those touches: see [`Store::set_working_set`].
//!
//! A snapshot appears, is replaced or disappears in one synced SQLite transaction, made after the
//! packs it needs are on stable storage. A crash leaves the old state or the new one, and at most
//! pack files nobody refers to, which the next [`Store::open`] deletes.
//!
//! A store that was given a [`SealKey`] seals what it commits; [`Store::sealed`] refuses what was
//! altered since by anyone without that key.
//!
//! This crate knows no VMM.

mod changes;
mod chunk;
mod commit;
mod db;
mod digest;
mod envelope;
mod error;
mod extents;
mod file_ref;
mod fsutil;
mod gc;
mod ingest;
mod manifest;
mod name;
pub mod pack;
mod pins;
mod read_ahead;
mod reader;
mod reserve;
mod schema;
mod seal;
pub mod sqlite;
mod store;
mod table;
mod transaction;
mod verify;
mod view;
mod working_set;
#[cfg(test)]
mod working_set_tests;

pub use changes::{Changes, Version};
pub use chunk::{CHUNK_SIZE, ChunkId, Progress, ReadTimes};
pub use commit::{NewSnapshot, StreamSource};
pub use digest::{Digest, InvalidDigest};
pub use envelope::FormatError;
pub use error::{BadChunk, Damage, Error, Result};
pub use file_ref::{FileError, FileRef};
pub use gc::Removed;
pub use manifest::{Manifest, StreamKind, StreamRef, Streams};
pub use name::{GoldenName, InvalidName};
pub use pins::{HostPins, Mismatch, VmShape};
pub use reader::StreamReader;
pub use seal::SealKey;
pub use store::{Store, Usage};
pub use table::{ChunkTable, WorkingSet};
pub use verify::VerifyReport;
