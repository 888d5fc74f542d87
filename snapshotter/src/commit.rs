//! Committing a snapshot.

use crate::chunk::{CHUNK_SIZE_U32, ChunkId};
use crate::db::table_key;
use crate::extents::data_extents;
use crate::fsutil::io_error;
use crate::ingest::{Ingest, Input};
use crate::pack::Location;
use crate::reserve;
use crate::schema::Table;
use crate::table::MAX_STREAM_LEN;
use crate::transaction::{Transaction, distinct_ids};
use crate::{
    ChunkTable, Digest, Error, FileRef, GoldenName, HostPins, Manifest, Progress, Result, Store,
    StreamKind, StreamRef, Streams, VmShape,
};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Source of the bytes of a stream. Sparse files are read without their holes.
#[derive(Clone, Copy, Debug)]
pub enum StreamSource<'a> {
    /// A file by path.
    Path(&'a Path),
    /// An open file, a memfd for example. It is read from its beginning; its offset is moved.
    File(&'a File),
}

impl<'a> From<&'a Path> for StreamSource<'a> {
    fn from(path: &'a Path) -> Self {
        Self::Path(path)
    }
}

impl<'a> From<&'a PathBuf> for StreamSource<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Self::Path(path)
    }
}

impl<'a> From<&'a File> for StreamSource<'a> {
    fn from(file: &'a File) -> Self {
        Self::File(file)
    }
}

/// A stopped VM to be stored as a golden image. Its files must not change until [`Store::commit`]
/// returns.
#[derive(Clone, Debug)]
pub struct NewSnapshot<'a> {
    /// Name of the golden image, see [`GoldenName`]; one of that name is replaced.
    pub name: &'a str,
    /// Hex digest of all build inputs.
    pub build_key: String,
    /// Properties that a host must have to restore it.
    pub pins: HostPins,
    /// The shape of the VM.
    pub vm: VmShape,
    /// The base disk.
    pub base_disk: FileRef,
    /// Guest memory.
    pub ram: StreamSource<'a>,
    /// Device state.
    pub device: StreamSource<'a>,
    /// Disk delta.
    pub disk: StreamSource<'a>,
    /// Free key-value pairs.
    pub labels: BTreeMap<String, String>,
}

impl Store {
    /// Stores a golden image, or replaces the one of the same name, atomically, sealed when the
    /// store has a key. `progress` is called on this thread about every MiB of data. Two more
    /// threads hash and compress.
    ///
    /// Chunks that are already stored are read and checked; a damaged one is stored again.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::ReadOnly`], [`Error::Cancelled`] once `cancel` is true,
    /// [`Error::DiskFull`], [`Error::TooLong`], [`Error::Io`], [`Error::Database`]. The store then
    /// is as before and no file is left over; only when the database itself failed to write, the
    /// new packs stay until the next [`Store::open`], which can tell whether they are needed.
    pub fn commit(
        &self,
        new: NewSnapshot<'_>,
        progress: &mut dyn FnMut(Progress),
        cancel: &AtomicBool,
    ) -> Result<Manifest> {
        let name = GoldenName::new(new.name)?;
        let _writer = self.writer()?;
        let opened = [
            Opened::new(new.ram, StreamKind::Ram)?,
            Opened::new(new.device, StreamKind::Device)?,
            Opened::new(new.disk, StreamKind::Disk)?,
        ];
        let mut inputs = Vec::new();
        for source in &opened {
            inputs.push(source.input()?);
        }

        let total = inputs.iter().map(Input::data_bytes).sum();
        let mut ingest = Ingest::new(&self.db, &self.packs, &self.next_pack, cancel, total);
        let mut tables = Vec::new();
        for input in &inputs {
            tables.push(ingest.stream(input, progress)?);
        }
        let (pending, written) = ingest.finish()?;
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }

        let encoded: Vec<Vec<u8>> = tables.iter().map(ChunkTable::encode).collect();
        let stream = |i: usize| {
            Ok::<_, Error>(StreamRef {
                len: tables[i].len,
                chunks: tables[i].chunks.len() as u64,
                zero_chunks: tables[i].zero_chunks(),
                stored_bytes: self.stored_bytes(&tables[i], &written)?,
                table_blake3: Digest::of(&encoded[i]),
            })
        };
        let manifest = Manifest {
            format_version: Manifest::FORMAT_VERSION,
            name: name.clone(),
            build_key: new.build_key,
            // A clock before 1970 is not worth failing a build for.
            created_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            pins: new.pins,
            vm: new.vm,
            base_disk: new.base_disk,
            chunk_size: CHUNK_SIZE_U32,
            streams: Streams { ram: stream(0)?, device: stream(1)?, disk: stream(2)? },
            working_set_chunks: 0,
            labels: new.labels,
        };

        let mut transaction = Transaction::new(&self.db);
        transaction.add_packs(&pending.packs, self.next_pack.load(Ordering::Relaxed));
        for (id, location) in written {
            transaction.locate(id, location)?;
        }
        for id in distinct_ids(&tables) {
            transaction.reference(id)?;
        }
        if self.db.get(Table::Manifests, &*name)?.is_some() {
            transaction.drop_golden(&name)?;
        }
        for (kind, bytes) in StreamKind::ALL.into_iter().zip(&encoded) {
            transaction.put(Table::ChunkTables, table_key(&name, kind), bytes);
        }
        let encoded_manifest = manifest.encode();
        transaction.put(Table::Manifests, &*name, &encoded_manifest);
        self.put_seal(&mut transaction, &name, &encoded_manifest, &[]);
        pending.keep();
        self.commit_and_collect(transaction)?;
        // The database may have grown.
        reserve::ensure(&self.dir);
        Ok(manifest)
    }

    fn stored_bytes(
        &self,
        table: &ChunkTable,
        written: &HashMap<ChunkId, Location>,
    ) -> Result<u64> {
        let mut bytes = 0;
        for id in distinct_ids(slice::from_ref(table)) {
            bytes += match written.get(&id) {
                Some(location) => location.record_len(),
                None => self.db.chunk(&id)?.map_or(0, |c| c.location.record_len()),
            };
        }
        Ok(bytes)
    }
}

/// A stream source, opened.
struct Opened<'a> {
    own: Option<File>,
    given: Option<&'a File>,
    path: PathBuf,
}

impl<'a> Opened<'a> {
    fn new(source: StreamSource<'a>, kind: StreamKind) -> Result<Self> {
        Ok(match source {
            StreamSource::Path(path) => {
                let file = File::open(path).map_err(|e| io_error("open", path, e))?;
                Self { own: Some(file), given: None, path: path.to_owned() }
            }
            StreamSource::File(file) => Self {
                own: None,
                given: Some(file),
                path: PathBuf::from(format!("the {kind} file")),
            },
        })
    }

    fn input(&self) -> Result<Input<'_>> {
        let file = self.own.as_ref().or(self.given).expect("one of the two is set on construction");
        let io = |e| io_error("read", &self.path, e);
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(io(std::io::Error::other("it is not a regular file")));
        }
        let len = meta.len();
        if len > MAX_STREAM_LEN {
            return Err(Error::TooLong {
                input: self.path.display().to_string(),
                len,
                max: MAX_STREAM_LEN,
            });
        }
        let extents = data_extents(file, len).map_err(io)?;
        Ok(Input { file, path: &self.path, len, extents })
    }
}
