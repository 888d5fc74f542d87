//! Turns a distribution's `vmlinuz` (bzImage) into a `vmlinux` ELF that a VMM boots without any
//! decompression in the guest.
//!
//! Sources: the kernel's `Documentation/arch/x86/boot.rst` (setup header, `payload_offset`,
//! `payload_length`) and `include/xen/interface/elfnote.h` (note 18, the PVH entry point).

use std::io::Read;

use object::Endianness;
use object::elf::{FileHeader64, PT_NOTE};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

/// Offset of `setup_sects` in the boot sector.
const SETUP_SECTS: usize = 0x1f1;
/// Offset of the header magic "HdrS".
const HEADER_MAGIC: usize = 0x202;
/// Offset of the boot protocol version (u16).
const PROTOCOL_VERSION: usize = 0x206;
/// Offset of `payload_offset` (u32, from the start of the protected-mode code).
const PAYLOAD_OFFSET: usize = 0x248;
/// Offset of `payload_length` (u32).
const PAYLOAD_LENGTH: usize = 0x24c;
/// First protocol version that has the payload fields.
const PROTOCOL_2_08: u16 = 0x0208;
/// Largest kernel that is decompressed, so that a damaged file cannot fill the memory.
const MAX_VMLINUX: u64 = 1 << 30;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the 32-bit physical entry point of the PVH boot protocol.
const PHYS32_ENTRY: object::elf::NoteType = object::elf::NoteType(18);

/// Format of a kernel image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// An uncompressed ELF with a PVH entry point.
    Vmlinux,
    /// The distribution's compressed image.
    BzImage,
}

/// Reason why a kernel image could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The kernel package has no kernel image.
    #[error(
        "kernel package \"{package}\" has no /boot/vmlinuz-*: name another one in [debian] kernel"
    )]
    NoImage {
        /// Package name.
        package: String,
    },
    /// The file is not a bzImage.
    #[error("the kernel image is no bzImage: {0}")]
    NotBzImage(&'static str),
    /// The payload's compression is not one that can be undone here.
    #[error("the kernel image's payload uses an unknown compression (first bytes {0:02x?})")]
    UnknownCompression([u8; 4]),
    /// The payload is damaged.
    #[error("the kernel image's payload cannot be decompressed: {0}")]
    Decompress(std::io::Error),
    /// The decompressed payload is larger than any kernel.
    #[error("the kernel image's payload is larger than {} MiB", MAX_VMLINUX >> 20)]
    TooLarge,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(u32::from_le_bytes(field.try_into().ok()?)).ok()
}

/// Decompresses the kernel proper out of a bzImage (gzip, xz or zstd).
///
/// # Errors
/// [`KernelError`] when `bzimage` is no bzImage of protocol 2.08 or later, or its payload is
/// damaged.
pub fn extract_vmlinux(bzimage: &[u8]) -> Result<Vec<u8>, KernelError> {
    if bzimage.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Err(KernelError::NotBzImage("the setup header's magic is missing"));
    }
    let version = match bzimage.get(PROTOCOL_VERSION..PROTOCOL_VERSION + 2) {
        Some(&[low, high]) => u16::from_le_bytes([low, high]),
        _ => 0,
    };
    if version < PROTOCOL_2_08 {
        return Err(KernelError::NotBzImage("its boot protocol is older than 2.08"));
    }
    // boot.rst: "if setup_sects is 0, the real value is 4".
    let sectors = match bzimage[SETUP_SECTS] {
        0 => 4,
        n => usize::from(n),
    };
    let payload = (|| {
        let start = ((sectors + 1) * 512).checked_add(u32_at(bzimage, PAYLOAD_OFFSET)?)?;
        bzimage.get(start..start.checked_add(u32_at(bzimage, PAYLOAD_LENGTH)?)?)
    })()
    .ok_or(KernelError::NotBzImage("its payload lies outside the file"))?;
    decompress(payload)
}

/// Decompresses a payload by its magic. The kernel's build appends the uncompressed length (4
/// bytes) to most formats, so decoding stops at the end of the first stream.
fn decompress(payload: &[u8]) -> Result<Vec<u8>, KernelError> {
    match payload {
        [0x1f, 0x8b, ..] => read_bounded(flate2::read::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            read_bounded(liblzma::read::XzDecoder::new(payload))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::stream::read::Decoder::with_buffer(payload)
                .map_err(KernelError::Decompress)?;
            read_bounded(decoder.single_frame())
        }
        other => {
            let mut magic = [0; 4];
            magic.iter_mut().zip(other).for_each(|(to, from)| *to = *from);
            Err(KernelError::UnknownCompression(magic))
        }
    }
}

fn read_bounded(reader: impl Read) -> Result<Vec<u8>, KernelError> {
    let mut out = Vec::new();
    reader.take(MAX_VMLINUX + 1).read_to_end(&mut out).map_err(KernelError::Decompress)?;
    if out.len() as u64 > MAX_VMLINUX {
        return Err(KernelError::TooLarge);
    }
    Ok(out)
}

/// Returns whether `vmlinux` is an ELF with a PVH entry point, so that a VMM can jump straight into
/// it.
pub fn has_pvh_entry(vmlinux: &[u8]) -> bool {
    let find = || -> object::Result<bool> {
        let header = FileHeader64::<Endianness>::parse(vmlinux)?;
        let endian = header.endian()?;
        for segment in header.program_headers(endian, vmlinux)? {
            if segment.p_type(endian) != PT_NOTE {
                continue;
            }
            let Some(mut notes) = segment.notes(endian, vmlinux)? else {
                continue;
            };
            while let Some(note) = notes.next()? {
                if note.name() == b"Xen" && note.n_type(endian) == PHYS32_ENTRY {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    };
    find().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// A minimal bzImage around `payload`.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 5 * 512];
        image[SETUP_SECTS] = 0;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PROTOCOL_VERSION..PROTOCOL_VERSION + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        let len = u32::try_from(payload.len()).expect("small payload");
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&len.to_le_bytes());
        image.extend_from_slice(&[0; 16]);
        image.extend_from_slice(payload);
        image
    }

    fn kernel() -> Vec<u8> {
        (0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect()
    }

    #[test]
    fn every_compression_round_trips_with_the_appended_length() {
        let kernel = kernel();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&kernel).expect("in memory");
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&kernel).expect("in memory");
        let zstd = zstd::encode_all(&kernel[..], 3).expect("in memory");
        for mut payload in
            [gzip.finish().expect("in memory"), xz.finish().expect("in memory"), zstd]
        {
            payload.extend_from_slice(&u32::try_from(kernel.len()).expect("small").to_le_bytes());
            assert_eq!(extract_vmlinux(&bzimage(&payload)).expect("extracts"), kernel);
        }
    }

    #[test]
    fn an_unknown_compression_names_its_first_bytes() {
        let error =
            extract_vmlinux(&bzimage(b"\x02\x21\x4c\x18rest")).expect_err("lz4 is not supported");
        assert!(error.to_string().contains("[02, 21, 4c, 18]"), "{error}");
    }

    #[test]
    fn a_payload_outside_the_file_is_refused() {
        let mut image = bzimage(&[0; 8]);
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(extract_vmlinux(&image), Err(KernelError::NotBzImage(_))));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..4096), header: bool) {
            if header && bytes.len() > 0x250 {
                bytes[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
            }
            let _ = extract_vmlinux(&bytes);
            let _ = has_pvh_entry(&bytes);
        }
    }
}
