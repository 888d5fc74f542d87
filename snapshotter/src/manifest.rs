//! The manifest: everything about a golden image except its bytes.

use crate::chunk::chunk_count;
use crate::envelope::{Envelope, FormatError};
use crate::{CHUNK_SIZE, Digest, FileRef, GoldenName, HostPins, VmShape};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

const ENVELOPE: Envelope =
    Envelope { what: "the manifest", magic: *b"MFMA", version: Manifest::FORMAT_VERSION };

/// The three inputs of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamKind {
    /// Guest memory.
    Ram,
    /// Device and CPU state as the VMM saved it.
    Device,
    /// Disk delta: what the guest wrote on top of the base disk.
    Disk,
}

impl StreamKind {
    /// All streams, in the order of [`Streams`].
    pub const ALL: [Self; 3] = [Self::Ram, Self::Device, Self::Disk];

    /// Returns `ram`, `device` or `disk`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Device => "device",
            Self::Disk => "disk",
        }
    }
}

impl fmt::Display for StreamKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reference to a stream of a golden image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRef {
    /// Length in bytes.
    pub len: u64,
    /// Number of chunks, zero chunks included.
    pub chunks: u64,
    /// Number of chunks of zeros, which are not stored.
    pub zero_chunks: u64,
    /// Bytes its distinct chunks take in packs, record headers included. Chunks shared with other
    /// streams or golden images count in each of them.
    pub stored_bytes: u64,
    /// Hash of the encoded chunk table, so that manifest and table can only be read as the pair
    /// that was committed.
    pub table_blake3: Digest,
}

/// The streams of a golden image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// Guest memory.
    pub ram: StreamRef,
    /// Device and CPU state.
    pub device: StreamRef,
    /// Disk delta.
    pub disk: StreamRef,
}

/// Describes one golden image: what it was made from, what a host must be to restore it, where its
/// bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`Manifest::FORMAT_VERSION`] at the time of writing.
    pub format_version: u32,
    /// Name of the golden image.
    pub name: GoldenName,
    /// Hex digest of all build inputs: equal key, equal image.
    pub build_key: String,
    /// Time at which it was committed, in seconds since 1970-01-01 UTC.
    pub created_unix_s: u64,
    /// Properties that a host must have.
    pub pins: HostPins,
    /// Virtual machine to start.
    pub vm: VmShape,
    /// The disk the delta is based on; kept outside the store.
    pub base_disk: FileRef,
    /// Bytes of a chunk, [`CHUNK_SIZE`].
    pub chunk_size: u32,
    /// The bytes.
    pub streams: Streams,
    /// Number of chunks in the recorded working set; 0 until one is recorded.
    pub working_set_chunks: u64,
    /// Free key-value pairs of the builder.
    pub labels: BTreeMap<String, String>,
}

impl Manifest {
    /// Version of the format this code reads and writes.
    pub const FORMAT_VERSION: u32 = 1;

    /// Returns the description of one stream.
    pub fn stream(&self, kind: StreamKind) -> &StreamRef {
        match kind {
            StreamKind::Ram => &self.streams.ram,
            StreamKind::Device => &self.streams.device,
            StreamKind::Disk => &self.streams.disk,
        }
    }

    /// Returns the number of stored bytes of all streams, see [`StreamRef::stored_bytes`].
    pub fn stored_bytes(&self) -> u64 {
        StreamKind::ALL.iter().map(|k| self.stream(*k).stored_bytes).fold(0, u64::saturating_add)
    }

    /// Encodes as JSON in a checksummed envelope.
    #[expect(clippy::missing_panics_doc, reason = "plain data can be encoded")]
    pub fn encode(&self) -> Vec<u8> {
        // Strings, integers and string-keyed maps only: serde_json has no way to fail on these.
        ENVELOPE.seal(&serde_json::to_vec(self).expect("a manifest is plain data"))
    }

    /// Reads what [`Manifest::encode`] wrote.
    ///
    /// # Errors
    /// [`FormatError`] for bytes that are truncated, altered, of another format version, or not
    /// consistent.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let manifest: Self =
            serde_json::from_slice(ENVELOPE.open(bytes)?).map_err(|e| ENVELOPE.malformed(&e))?;
        if manifest.format_version != Self::FORMAT_VERSION {
            return Err(ENVELOPE.malformed("its two version fields differ"));
        }
        if manifest.chunk_size as usize != CHUNK_SIZE {
            return Err(ENVELOPE
                .malformed(&format!("chunks of {} bytes, not {CHUNK_SIZE}", manifest.chunk_size)));
        }
        for kind in StreamKind::ALL {
            let stream = manifest.stream(kind);
            if stream.chunks != chunk_count(stream.len) || stream.zero_chunks > stream.chunks {
                return Err(ENVELOPE.malformed(&format!(
                    "the chunk counts of the {kind} stream are not consistent"
                )));
            }
        }
        Ok(manifest)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::chunk::CHUNK_SIZE_U32;
    use proptest::prelude::*;

    pub(crate) fn sample() -> Manifest {
        let stream = |len: u64| StreamRef {
            len,
            chunks: chunk_count(len),
            zero_chunks: 0,
            stored_bytes: len,
            table_blake3: Digest::of(b"table"),
        };
        Manifest {
            format_version: Manifest::FORMAT_VERSION,
            name: GoldenName::new("default").unwrap(),
            build_key: "00ff".into(),
            created_unix_s: 1,
            pins: HostPins {
                arch: "x86_64".into(),
                vmm: "qemu".into(),
                vmm_version: "10.0.2".into(),
                machine: "microvm".into(),
                accel: "tcg".into(),
                cpu_model: "max".into(),
                kernel_blake3: Digest::of(b"kernel"),
            },
            vm: VmShape { vcpus: 1, memory_bytes: 1 << 30, kernel_cmdline: "quiet".into() },
            base_disk: FileRef {
                file_name: "base.img".into(),
                blake3: Digest::of(b"disk"),
                len: 4,
            },
            chunk_size: CHUNK_SIZE_U32,
            streams: Streams { ram: stream(1 << 30), device: stream(70_001), disk: stream(0) },
            working_set_chunks: 0,
            labels: BTreeMap::from([("suite".to_owned(), "trixie".to_owned())]),
        }
    }

    #[test]
    fn round_trip_and_inconsistent_counts() {
        let manifest = sample();
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
        for change in [
            (|m| m.streams.ram.chunks += 1) as fn(&mut Manifest),
            |m| m.streams.device.zero_chunks = 3,
            |m| m.chunk_size = 4096,
            |m| m.format_version = 2,
        ] {
            let mut manifest = sample();
            change(&mut manifest);
            assert!(matches!(
                Manifest::decode(&manifest.encode()),
                Err(FormatError::Content { .. })
            ));
        }
    }

    proptest! {
        #[test]
        fn decode_never_panics(bytes: Vec<u8>) {
            prop_assert!(Manifest::decode(&bytes).is_err());
            // Past the checksum too.
            let _ = Manifest::decode(&ENVELOPE.seal(&bytes));
        }

        #[test]
        fn every_alteration_is_seen(at: prop::sample::Index, bit in 0..8u8) {
            let mut bytes = sample().encode();
            let at = at.index(bytes.len());
            prop_assert!(Manifest::decode(&bytes[..at]).is_err());
            bytes[at] ^= 1 << bit;
            prop_assert!(Manifest::decode(&bytes).is_err());
        }
    }
}
