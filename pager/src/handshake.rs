//! The handshake in which a VMM hands its guest memory to the pager.
//!
//! One message on a Unix stream socket: a JSON array of regions, and the userfaultfd as one
//! `SCM_RIGHTS` descriptor. This is what Firecracker sends for a snapshot whose memory backend is
//! of type `Uffd` (`docs/snapshotting/handling-page-faults-on-snapshot-resume.md` there):
//! `[{"base_host_virt_addr": u64, "size": u64, "offset": u64, "page_size": u64}]`. The older field
//! `page_size_kib` is accepted too; Firecracker put *bytes* into it, despite its name, so both
//! readings of 4 KiB pass.
//!
//! Everything a VMM sends is checked before it is used: a VMM may be under the control of its
//! guest.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::{errno::Errno, sys::socket::MsgFlags};
use serde::{Deserialize, Serialize};

use crate::{
    uffd::{PAGE, Uffd},
    wire,
};

/// Most bytes of JSON accepted.
pub const MAX_JSON: usize = 64 << 10;
/// Most pieces in which a handshake may arrive, which is sent as one: each is parsed together with
/// those before it.
const MAX_PIECES: usize = 64;
/// Most regions accepted. Firecracker has one to three, QEMU one.
pub const MAX_REGIONS: usize = 256;
/// First address that cannot be user memory (57-bit virtual addresses, the largest user half on
/// x86-64 and arm64).
const ADDRESS_LIMIT: u64 = 1 << 56;

/// A part of guest memory that is mapped in the VMM and registered with its userfaultfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Address in the VMM, page-aligned.
    pub base: u64,
    /// Bytes, a non-zero multiple of the page size.
    pub size: u64,
    /// Offset in the RAM image at which the region starts, page-aligned.
    pub offset: u64,
}

impl Region {
    /// Returns the address in the VMM just after the region.
    pub fn end(&self) -> u64 {
        self.base + self.size
    }
}

#[derive(Serialize, Deserialize)]
struct WireRegion {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    page_size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    page_size_kib: Option<u64>,
}

/// Reason why a handshake was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The message is longer than [`MAX_JSON`], or in more pieces than anyone sends.
    #[error("handshake is longer than {MAX_JSON} bytes, or comes in more than {MAX_PIECES} pieces")]
    TooLong,
    /// The connection ended before a whole message had arrived.
    #[error("the VMM closed the handshake socket after {0} bytes, before a whole region list")]
    Ended(usize),
    /// The message is not the JSON expected.
    #[error("handshake is not a JSON region list: {0}")]
    Json(String),
    /// No region, or more than [`MAX_REGIONS`].
    #[error("handshake names {0} regions, 1 to {MAX_REGIONS} are accepted")]
    Count(usize),
    /// A region is not aligned to pages, empty, or outside the address space.
    #[error("region {0} is empty, not aligned to 4096 bytes, or beyond the address space")]
    Alignment(usize),
    /// The page size is not 4 KiB, the only one that is served.
    #[error(
        "region {index} has page size {size:?}, only 4096 is served: start the VMM without huge pages"
    )]
    PageSize {
        /// Index of the region in the list.
        index: usize,
        /// Size that it said.
        size: Option<u64>,
    },
    /// A region reaches beyond the RAM image.
    #[error(
        "region {index} ends at byte {end} of an image of {image} bytes: VMM and golden differ in memory size"
    )]
    Bounds {
        /// Index of the region in the list.
        index: usize,
        /// Offset in the image at which it would end.
        end: u64,
        /// Bytes of the image.
        image: u64,
    },
    /// Two regions share an address or a byte of the image.
    #[error("regions overlap in {0}")]
    Overlap(&'static str),
    /// The message did not come with exactly one descriptor.
    #[error("handshake carries {0} descriptors, exactly one userfaultfd is expected")]
    Descriptors(usize),
    /// The descriptor is something else.
    #[error("the descriptor in the handshake is {0}, not a userfaultfd")]
    NotUffd(String),
    /// The message could not be received.
    #[error("cannot receive the handshake: {0}")]
    Receive(Errno),
}

/// Parses and checks a region list against an image of `image` bytes.
///
/// # Errors
/// Any [`HandshakeError`] about the list.
pub fn parse(json: &[u8], image: u64) -> Result<Vec<Region>, HandshakeError> {
    if json.len() > MAX_JSON {
        return Err(HandshakeError::TooLong);
    }
    let wire: Vec<WireRegion> =
        serde_json::from_slice(json).map_err(|e| HandshakeError::Json(e.to_string()))?;
    if wire.is_empty() || wire.len() > MAX_REGIONS {
        return Err(HandshakeError::Count(wire.len()));
    }
    let mut regions = Vec::with_capacity(wire.len());
    for (index, region) in wire.iter().enumerate() {
        regions.push(check(index, region, image)?);
    }
    let overlaps = |key: fn(&Region) -> u64| {
        let mut sorted: Vec<(u64, u64)> = regions.iter().map(|r| (key(r), r.size)).collect();
        sorted.sort_unstable();
        sorted.windows(2).any(|w| w[0].0 + w[0].1 > w[1].0)
    };
    if overlaps(|r| r.base) {
        return Err(HandshakeError::Overlap("the VMM's address space"));
    }
    if overlaps(|r| r.offset) {
        return Err(HandshakeError::Overlap("the RAM image"));
    }
    Ok(regions)
}

fn check(index: usize, wire: &WireRegion, image: u64) -> Result<Region, HandshakeError> {
    let page = |size| HandshakeError::PageSize { index, size };
    match (wire.page_size, wire.page_size_kib) {
        (Some(PAGE), None | Some(4 | PAGE)) | (None, Some(4 | PAGE)) => {}
        (Some(PAGE), kib) => return Err(page(kib)),
        (bytes, kib) => return Err(page(bytes.or(kib))),
    }
    let WireRegion { base_host_virt_addr: base, size, offset, .. } = *wire;
    let aligned =
        base.is_multiple_of(PAGE) && size.is_multiple_of(PAGE) && offset.is_multiple_of(PAGE);
    let in_memory = base != 0 && base.checked_add(size).is_some_and(|end| end <= ADDRESS_LIMIT);
    if !aligned || size == 0 || !in_memory {
        return Err(HandshakeError::Alignment(index));
    }
    match offset.checked_add(size) {
        Some(end) if end <= image => Ok(Region { base, size, offset }),
        end => Err(HandshakeError::Bounds { index, end: end.unwrap_or(u64::MAX), image }),
    }
}

/// Sends a handshake, as a VMM does.
///
/// # Errors
/// The errno of `sendmsg`; `EMSGSIZE` when the list did not fit into one message.
pub fn send(socket: impl AsFd, regions: &[Region], uffd: impl AsFd) -> Result<(), Errno> {
    let wire: Vec<WireRegion> = regions
        .iter()
        .map(|r| WireRegion {
            base_host_virt_addr: r.base,
            size: r.size,
            offset: r.offset,
            page_size: Some(PAGE),
            page_size_kib: None,
        })
        .collect();
    let json = serde_json::to_vec(&wire).map_err(|_| Errno::EINVAL)?;
    let sent = wire::send(socket.as_fd(), &json, &[uffd.as_fd()], MsgFlags::empty())?;
    if sent == json.len() { Ok(()) } else { Err(Errno::EMSGSIZE) }
}

/// A handshake being received on a non-blocking stream socket.
#[derive(Default)]
pub(crate) struct Receiver {
    pieces: usize,
    json: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// A handshake that passed every check.
pub(crate) struct Handshake {
    pub regions: Vec<Region>,
    pub uffd: Uffd,
}

impl Receiver {
    /// Reads what is there. `None`: more is to come.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        image: u64,
    ) -> Result<Option<Handshake>, HandshakeError> {
        let mut buf = vec![0; MAX_JSON + 1];
        let got = match wire::recv(socket, &mut buf, wire::RecvFlags::DONTWAIT) {
            Ok(got) => got,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(HandshakeError::Receive(errno)),
        };
        self.fds.extend(got.fds);
        if self.fds.len() > 1 {
            return Err(HandshakeError::Descriptors(self.fds.len()));
        }
        if got.len == 0 {
            return Err(HandshakeError::Ended(self.json.len()));
        }
        self.json.extend_from_slice(&buf[..got.len]);
        self.pieces += 1;
        if self.json.len() > MAX_JSON || self.pieces > MAX_PIECES {
            return Err(HandshakeError::TooLong);
        }
        // A stream may deliver the list in pieces; a list that merely stops early is one.
        if let Err(e) = serde_json::from_slice::<serde::de::IgnoredAny>(&self.json)
            && e.is_eof()
        {
            return Ok(None);
        }
        let regions = parse(&self.json, image)?;
        let uffd = checked(self.fds.pop().ok_or(HandshakeError::Descriptors(0))?)?;
        Ok(Some(Handshake { regions, uffd }))
    }
}

fn checked(fd: OwnedFd) -> Result<Uffd, HandshakeError> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map_err(|e| HandshakeError::NotUffd(e.to_string()))?;
    if link.as_os_str() == "anon_inode:[userfaultfd]" {
        Ok(Uffd::from_vmm(fd))
    } else {
        Err(HandshakeError::NotUffd(link.display().to_string()))
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
