//! Serves page faults of restored microVMs from a chunk source through userfaultfd.
//!
//! One pager process serves every session of a host. A VMM hands over its guest memory with
//! Firecracker's documented handshake (a userfaultfd and a list of regions, see [`handshake`]);
//! from then on every first touch of a guest page arrives here as a fault, the chunk that holds the
//! page is read from a [`ChunkSource`], verified by it, and made resident, and the faulting thread
//! is woken. The crate knows no VMM beyond that handshake and no storage beyond the [`ChunkSource`]
//! trait.
//!
//! # The two modes
//! - **Shared page cache** ([`Mode::Shared`], the default): one sparse memfd per image and host.
//!   The VMM maps it `MAP_PRIVATE` and registers the mapping for MISSING faults; the pager writes a
//!   chunk into the file once and wakes every VMM waiting for it. Later VMMs map the resident page
//!   with no fault at all, clean pages are shared, and the kernel copies a page when a guest writes
//!   it.
//! - **Private copy** ([`Mode::Copy`]): the VMM registers anonymous memory and gets every chunk
//!   copied (`UFFDIO_COPY`). The chunk still comes from the same page cache, so it is read and
//!   verified once per host.
//!
//! # Death of the pager
//! When the last descriptor of a userfaultfd is closed, the kernel lets the faulting threads go on,
//! and they would read zeros from the holes of the file: silent corruption. Therefore somebody else
//! holds a descriptor as well (the engine that owns the VMM; Firecracker itself), so that a fault
//! without a pager *blocks*; and the owner of a session kills its VMM when the connection to the
//! pager ends ([`SessionEvent::PagerGone`]). A session does not survive its pager: it fails,
//! clearly, and the next session starts a new pager. A pager that cannot go on, because a thread
//! has panicked or is stuck in its own work, ends as a process.
//!
//! # A chunk that fails its check
//! reaches no guest. The session gets [`SessionEvent::Failed`], its faulting thread stays blocked,
//! and its owner kills the VMM.
//!
//! # What a hostile VMM can do to its siblings
//! It gets the RAM file read-only, and the file belongs to another uid, so it can write no byte of
//! it. The kernel does however allocate a *zero* page when a hole of the file is touched through a
//! mapping that is not registered, so a VMM that keeps the file or its userfaultfd could plant zero
//! pages in absent chunks once it is taken over by its guest. Its owner sees to it that it keeps
//! neither. As a second line the pager counts the pages it placed and compares with the pages the
//! file holds: at every fault of a sibling, on every `stats` request and ten times a second. A
//! surplus condemns the image: every session on it fails, and the next attach starts with an empty
//! file. A page that the fill of its chunk overwrites in between is not seen.
//!
//! It can hold up no sibling. Each session has a thread of its own, which alone does what may wait
//! for the VMM: reading its userfaultfd, the calls that map pages in it, closing what it has sent.
//! When that thread waits for long, its session fails.

mod answers;
mod cache;
pub mod client;
mod config;
mod control;
mod fatal;
mod faults;
mod fill;
mod futile;
mod guest_memory;
pub mod handshake;
mod image;
mod listen;
mod mailbox;
mod pages;
pub mod protocol;
mod ram_file;
mod recorder;
pub mod server;
mod session;
mod source;
mod stats;
mod table;
mod threads;
mod turns;
mod uffd;
mod vmm;
mod watchdog;
mod wire;

pub use client::{Attachment, ClientError, PagerClient, SessionEvent};
pub use config::{MIN_BUDGET_CHUNKS, PagerConfig};
pub use protocol::{AttachRequest, FailureKind, ListenRequest, Mode};
pub use server::{ServeError, serve};
pub use source::{ChunkSource, OpenedSource, ReadReport, SourceError, SourceResolver};
pub use stats::{CounterSnapshot, HostStats, ImageStats, SessionStats, WaitSummary};
pub use uffd::Uffd;
