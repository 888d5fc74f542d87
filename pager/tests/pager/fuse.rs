//! A file system whose reads are answered when the test says so. With it a VMM keeps the lock of
//! its own address space (`mmap_lock`) for exactly as long as the test wants.
//!
//! A page of the file is locked while it is being read. mmap(2) of the same file, opened with
//! `FOPEN_DIRECT_IO`, waits for that page in `fuse_file_mmap`, with the lock held for writing.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::PermissionsExt,
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{child::Vmm, support::wait_until};

// `<linux/fuse.h>`.
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const FOPEN_DIRECT_IO: u32 = 1;
const FOPEN_KEEP_CACHE: u32 = 2;
const MODE: u32 = libc::S_IFREG | 0o444;

#[derive(Default)]
struct State {
    reading: AtomicBool,
    stop: AtomicBool,
}

/// The lock of a VMM's address space, kept until this is dropped.
pub struct HeldLock {
    state: Arc<State>,
    server: Option<JoinHandle<()>>,
    directory: tempfile::TempDir,
    /// The thread of the VMM that has the lock.
    holder: PathBuf,
}

impl HeldLock {
    /// Makes `vmm` take the lock. Drop the result before the VMM, which cannot die before.
    ///
    /// The VMM can start no thread from now on, and do nothing else that changes its mappings.
    pub fn take(vmm: &mut Vmm) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
        let path = directory.path().join("file");
        File::create(&path).unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options =
            format!("fd={},rootmode={MODE:o},user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("mayfly-test"), &path, Some("fuse"), flags, Some(options.as_str())).unwrap();
        let state = Arc::new(State::default());
        let served = Arc::clone(&state);
        let server = Some(std::thread::spawn(move || serve(device, &served)));
        let mut lock = Self { state, server, directory, holder: PathBuf::new() };
        vmm.tell(&format!("read-file {}", path.display()));
        wait_until("the read", || lock.state.reading.load(Ordering::SeqCst));
        let thread = vmm.ask("map-file");
        lock.holder = PathBuf::from(format!("/proc/{}/task/{thread}", vmm.id()));
        wait_until("the lock", || lock.is_held());
        lock
    }

    /// Whether the thread is in mmap(2), and waits in the kernel for what comes with no signal.
    pub fn is_held(&self) -> bool {
        let read = |name| std::fs::read_to_string(self.holder.join(name)).unwrap();
        let call = format!("{} ", libc::SYS_mmap);
        read("syscall").starts_with(&call) && read("status").contains("State:\tD")
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        // Its end closes the device, and with that the kernel gives up all requests.
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
        let _ = umount2(&self.directory.path().join("file"), MntFlags::MNT_DETACH);
    }
}

fn serve(mut device: File, state: &State) {
    let mut request = vec![0; 1 << 17];
    while !state.stop.load(Ordering::SeqCst) {
        let wait = PollTimeout::from(10_u8);
        if poll(&mut [PollFd::new(device.as_fd(), PollFlags::POLLIN)], wait) != Ok(1) {
            continue;
        }
        let Ok(len) = device.read(&mut request) else { continue };
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        assert_eq!(word(0) as usize, len);
        let body = match word(4) {
            INIT => words(&[7, 31, 0, 0, 0, 4096, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            GETATTR => attributes(),
            // The page cache of the first one is what the second one waits for.
            OPEN if state.reading.load(Ordering::SeqCst) => {
                words(&[0, 0, FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE, 0])
            }
            OPEN => words(&[0, 0, FOPEN_KEEP_CACHE, 0]),
            // Never answered.
            READ => {
                state.reading.store(true, Ordering::SeqCst);
                continue;
            }
            FORGET | INTERRUPT => continue,
            RELEASE | FLUSH => Vec::new(),
            _ => {
                let _ = device.write(&reply(&request, -libc::ENOSYS, &[]));
                continue;
            }
        };
        let _ = device.write(&reply(&request, 0, &body));
    }
}

fn reply(request: &[u8], error: i32, body: &[u8]) -> Vec<u8> {
    let mut reply = words(&[u32::try_from(16 + body.len()).unwrap(), error.cast_unsigned()]);
    reply.extend_from_slice(&request[8..16]);
    reply.extend_from_slice(body);
    reply
}

/// A `struct fuse_attr_out`, valid for an hour.
fn attributes() -> Vec<u8> {
    let mut attributes = words(&[3600, 0, 0, 0]);
    // Inode, size, blocks, and three times, of 64 bits.
    attributes.extend(words(&[1, 0, 4096, 0, 8, 0, 0, 0, 0, 0, 0, 0]));
    attributes.extend(words(&[0, 0, 0, MODE, 1, 0, 0, 0, 4096, 0]));
    attributes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
