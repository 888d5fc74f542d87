//! Deterministic chunks that hash, compress and expand at the price of a guest's memory.

use mayfly_snapshotter::CHUNK_SIZE;

const PAGE: usize = 4096;

/// What each page of a chunk holds. The weights are chosen so that zstd makes of a chunk what it
/// makes of the memory of a guest with dockerd warm, about a third; `store` prints the ratio it
/// finds.
const MIX: [fn(&mut [u8]); CHUNK_SIZE / PAGE] = [
    zero, pointers, text, code, zero, pointers, random, text, zero, code, pointers, zero, text,
    code, pointers, zero,
];

/// Makes chunk `seed`: the same bytes for the same seed, and other bytes on every page that is not
/// zero for another.
pub fn chunk(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK_SIZE];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    for (page, shape) in bytes.chunks_exact_mut(PAGE).zip(MIX) {
        shape(page);
    }
    bytes
}

/// A page the guest has freed (`init_on_free=1`).
fn zero(page: &mut [u8]) {
    page.fill(0);
}

/// Keys, compressed files, pages the guest has encrypted.
fn random(_: &mut [u8]) {}

/// A slab page: kernel addresses aligned to 64 bytes, near each other, and empty fields.
fn pointers(page: &mut [u8]) {
    for word in page.chunks_exact_mut(8) {
        let near = u64::from(u16::from_le_bytes([word[0], word[1]]));
        let value = if word[2] < 64 { 0 } else { 0xffff_8880_0000_0000 | near << 6 };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// Configuration, logs and scripts in the guest's page cache.
fn text(page: &mut [u8]) {
    const PIECE: usize = 8;
    const TEXT: &[u8; 32 * PIECE] = b"level=info msg=\"loading plugin\" type=io.containerd.snapshotter.v1 \
        error=/usr/lib/systemd/system/docker.service: [Unit] After=network-online.target export PATH; return 0 if \
        name = \"true\" time=2026-01-01T00:00:00Z std::runtime the image of sandbox 42 { id }\n";
    let choice = page.to_vec();
    let pieces = choice.iter().flat_map(|c| &TEXT[usize::from(c % 32) * PIECE..][..PIECE]);
    page.iter_mut().zip(pieces).for_each(|(to, from)| *to = *from);
}

/// Machine code: a skewed choice of bytes.
fn code(page: &mut [u8]) {
    const BYTES: [u8; 32] = [
        0x48, 0x89, 0x8b, 0x00, 0xff, 0x0f, 0xe8, 0x24, 0x4c, 0x83, 0x85, 0xc0, 0x74, 0x75, 0xc3,
        0x8d, 0x41, 0x44, 0x01, 0x08, 0x10, 0x5d, 0x55, 0x31, 0xeb, 0x90, 0xf6, 0x20, 0x49, 0x50,
        0xb8, 0xcc,
    ];
    page.iter_mut().for_each(|byte| *byte = BYTES[usize::from(*byte % 32)]);
}
