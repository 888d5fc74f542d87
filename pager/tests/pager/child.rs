//! The test VMM: this binary run again, as a process with guest memory that does what it is told on
//! stdin.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    num::NonZero,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    ptr::NonNull,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::Duration,
};

use mayfly_pager::{Attachment, Uffd, handshake};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, mprotect};

/// Where the child finds the RAM file and the handshake socket.
const RAM_FD: i32 = 200;
const SOCK_FD: i32 = 201;

/// Guest memory that is registered and handed over.
pub struct GuestMemory {
    pub base: NonNull<u8>,
    /// Kept open, for nobody else does: see the crate's documentation.
    uffd: Uffd,
}

/// Maps guest memory (the RAM file, or anonymous memory), registers it, and sends the handshake.
pub fn map_guest(ram: Option<&File>, len: u64, socket: impl AsFd) -> GuestMemory {
    let size = NonZero::new(usize::try_from(len).unwrap()).unwrap();
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let base = match ram {
        // SAFETY: a new mapping at an address of the kernel's choice.
        Some(file) => unsafe { mmap(None, size, prot, MapFlags::MAP_PRIVATE, file, 0) },
        // SAFETY: as above.
        None => unsafe { mmap_anonymous(None, size, prot, MapFlags::MAP_PRIVATE) },
    }
    .unwrap();
    let uffd = Uffd::new().unwrap();
    uffd.register(base.as_ptr() as u64, len).unwrap();
    let region = handshake::Region { base: base.as_ptr() as u64, size: len, offset: 0 };
    handshake::send(socket, &[region], &uffd).unwrap();
    GuestMemory { base: base.cast(), uffd }
}

/// A running test VMM.
pub struct Vmm {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Vmm {
    /// Starts one for an attached session, as user `nobody`.
    pub fn start(attachment: &mut Attachment) -> Self {
        let ram = attachment.take_ram_file();
        let socket = attachment.take_handshake().unwrap();
        Self::launch(ram.as_ref(), Some(&socket), attachment.ram_bytes(), None)
    }

    /// Starts one that connects to a path, as Firecracker does, with anonymous memory.
    pub fn start_at(path: &Path, len: u64) -> Self {
        Self::launch(None, None, len, Some(path))
    }

    /// Starts a VMM as [`Vmm::start`] does, but stays root, who may open `/dev/kvm`.
    pub fn start_with_kvm(attachment: &mut Attachment) -> Self {
        let ram = attachment.take_ram_file();
        let socket = attachment.take_handshake().unwrap();
        Self::launch_as("root", ram.as_ref(), Some(&socket), attachment.ram_bytes(), None)
    }

    fn launch(
        ram: Option<&OwnedFd>,
        socket: Option<&OwnedFd>,
        len: u64,
        path: Option<&Path>,
    ) -> Self {
        Self::launch_as("nobody", ram, socket, len, path)
    }

    fn launch_as(
        user: &str,
        ram: Option<&OwnedFd>,
        socket: Option<&OwnedFd>,
        len: u64,
        path: Option<&Path>,
    ) -> Self {
        let mut command = Command::new(super::support::this_binary());
        command.args(["--exact", "child::vmm", "--nocapture", "--test-threads=1"]);
        command.env("MAYFLY_TEST_VMM", len.to_string()).env("MAYFLY_TEST_USER", user);
        if let Some(path) = path {
            command.env("MAYFLY_TEST_PATH", path);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let pairs: Vec<(i32, i32)> = [(ram, RAM_FD), (socket, SOCK_FD)]
            .into_iter()
            .filter_map(|(fd, to)| Some((fd?.as_raw_fd(), to)))
            .collect();
        // SAFETY: dup2 and prctl are async-signal-safe; the descriptors are open in the parent
        // until spawn returns.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                for &(from, to) in &pairs {
                    if libc::dup2(from, to) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(answer) = line.strip_prefix("> ")
                    && sender.send(answer.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        let vmm = Self { child, stdin, lines };
        assert_eq!(vmm.answer(), "ready");
        vmm
    }

    /// Gives a command without waiting for its answer.
    pub fn tell(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    /// Waits for the next answer.
    pub fn answer(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(30)).expect("the test VMM does not answer")
    }

    pub fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    /// Reads guest memory, and returns its hash.
    pub fn read(&mut self, offset: u64, len: u64) -> String {
        self.ask(&format!("read {offset} {len}"))
    }

    /// Returns whether the VMM has said nothing for a while: its thread is blocked in a fault. The
    /// pause cannot make a sound VMM fail the test, it only gives a broken one the time to show.
    pub fn is_silent(&self) -> bool {
        self.lines.recv_timeout(Duration::from_millis(300)) == Err(RecvTimeoutError::Timeout)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The other side: does nothing unless this binary was started by [`Vmm::launch`].
#[test]
fn vmm() {
    let Ok(len) = std::env::var("MAYFLY_TEST_VMM") else {
        return;
    };
    let len: u64 = len.parse().unwrap();
    // SAFETY: a query; a missing descriptor gives -1.
    let has_ram = unsafe { libc::fcntl(RAM_FD, libc::F_GETFD) } >= 0;
    // SAFETY: handed over by the parent for this process alone.
    let ram = has_ram.then(|| unsafe { File::from_raw_fd(RAM_FD) });
    let memory = if let Ok(path) = std::env::var("MAYFLY_TEST_PATH") {
        // Closed after the handshake, as Firecracker does.
        map_guest(ram.as_ref(), len, UnixStream::connect(path).unwrap())
    } else {
        // SAFETY: as above. Never closed: its end tells the pager of the end of this process.
        let socket = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(SOCK_FD) });
        map_guest(ram.as_ref(), len, &*socket)
    };
    if std::env::var("MAYFLY_TEST_USER").as_deref() == Ok("nobody") {
        drop_to_nobody();
    }
    say("ready");
    let (mut direct, mut later) = (None, None);
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| words[i].parse::<usize>().unwrap();
        match words[0] {
            "read" => say(&hash_of(&memory, number(1), number(2))),
            "guest" => super::kvm::run_in_background(&memory, len),
            "bg-read" => read_in_background(&memory, number(1)),
            "wedge" => {
                wedge(&memory.uffd);
                read_in_background(&memory, number(1));
                say("wedged");
            }
            "later-read" => {
                let (go, thread) = read_later(&memory, number(1));
                later = Some(go);
                say(&thread.to_string());
            }
            "now" => later.take().unwrap().send(()).unwrap(),
            "read-file" => direct = Some(read_file(Path::new(words[1]))),
            "map-file" => direct.take().unwrap().send(()).unwrap(),
            // What stays open is the pager's.
            "close-uffd" => {
                // SAFETY: nothing of this process uses it from now on.
                unsafe { libc::close(memory.uffd.as_fd().as_raw_fd()) };
                say("closed");
            }
            "hang-up" => {
                // SAFETY: as above, of the handshake socket.
                unsafe { libc::close(SOCK_FD) };
                say("closed");
            }
            "write" => {
                // SAFETY: inside guest memory, which only this process writes.
                unsafe {
                    memory
                        .base
                        .as_ptr()
                        .add(number(1))
                        .write_volatile(u8::try_from(number(2)).unwrap());
                };
                say("written");
            }
            "remove" => {
                // SAFETY: a range inside guest memory.
                unsafe {
                    let start = NonNull::new(memory.base.as_ptr().add(number(1))).unwrap().cast();
                    madvise(start, number(2), MmapAdvise::MADV_DONTNEED).unwrap();
                }
                say("removed");
            }
            "escape" => say(&escape(ram.as_ref().unwrap(), len)),
            "plant" => {
                let size = NonZero::new(usize::try_from(len).unwrap()).unwrap();
                // SAFETY: a second mapping, which is not registered: touching a hole allocates a
                // zero page.
                let byte = unsafe {
                    let map = mmap(
                        None,
                        size,
                        ProtFlags::PROT_READ,
                        MapFlags::MAP_PRIVATE,
                        ram.as_ref().unwrap(),
                        0,
                    );
                    map.unwrap().cast::<u8>().as_ptr().add(number(1)).read_volatile()
                };
                say(&format!("planted {byte}"));
            }
            other => panic!("unknown command {other}"),
        }
    }
}

pub fn say(answer: &str) {
    println!("\n> {answer}");
}

fn read_in_background(memory: &GuestMemory, offset: usize) {
    read_later(memory, offset).0.send(()).unwrap();
}

/// Starts a thread that reads when it is told to. Returns its number, too.
fn read_later(memory: &GuestMemory, offset: usize) -> (Sender<()>, i32) {
    let address = memory.base.as_ptr() as usize;
    let ((go, told), (number, started)) = (channel(), channel());
    std::thread::spawn(move || {
        // SAFETY: a query.
        number.send(unsafe { libc::gettid() }).unwrap();
        told.recv().unwrap();
        // SAFETY: inside guest memory.
        let byte = unsafe { ((address + offset) as *const u8).read_volatile() };
        say(&format!("byte {offset} {byte}"));
    });
    (go, started.recv().unwrap())
}

/// Reads a file in one thread, and when it is told to, maps it in another: see [`super::fuse`].
fn read_file(path: &Path) -> Sender<()> {
    let (go, told) = channel();
    let path = path.to_owned();
    let mapper = path.clone();
    std::thread::spawn(move || {
        let mut byte = [0];
        let _ = std::io::Read::read(&mut File::open(path).unwrap(), &mut byte);
    });
    std::thread::spawn(move || {
        told.recv().unwrap();
        let file = File::open(mapper).unwrap();
        let size = NonZero::new(4096).unwrap();
        // SAFETY: a query.
        say(&unsafe { libc::gettid() }.to_string());
        // SAFETY: a new mapping at an address of the kernel's choice, which is not touched.
        let _ = unsafe { mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, &file, 0) };
        say("mapped");
    });
    go
}

/// Makes reads of the userfaultfd wait, for the pager as well, and takes its events away, so that a
/// read of the pager finds none.
fn wedge(uffd: &Uffd) {
    let number = uffd.as_fd().as_raw_fd();
    // SAFETY: changes the flags of an open descriptor.
    assert_eq!(unsafe { libc::fcntl(number, libc::F_SETFL, 0) }, 0);
    for _ in 0..3 {
        std::thread::spawn(move || {
            let mut message = [0_u8; 32];
            // SAFETY: fills a buffer of that size; the descriptor stays open.
            while unsafe { libc::read(number, message.as_mut_ptr().cast(), message.len()) } > 0 {}
        });
    }
    // The threads should be waiting; a test that is early only tries less.
    std::thread::sleep(Duration::from_millis(100));
}

fn hash_of(memory: &GuestMemory, offset: usize, len: usize) -> String {
    // SAFETY: inside guest memory; nobody writes meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts(memory.base.as_ptr().add(offset), len) };
    blake3::hash(bytes).to_hex().to_string()
}

fn drop_to_nobody() {
    // SAFETY: plain system calls. Dumpable again, so that /proc/self/fd is this user's own: what
    // keeps it from reopening the RAM file must be the file's mode and nothing else.
    unsafe {
        assert_eq!(libc::setresgid(65534, 65534, 65534), 0);
        assert_eq!(libc::setresuid(65534, 65534, 65534), 0);
        libc::prctl(libc::PR_SET_DUMPABLE, 1);
    }
}

/// Tries every way to write the RAM file; says which worked.
fn escape(ram: &File, len: u64) -> String {
    let mut worked = Vec::new();
    let own = format!("/proc/self/fd/{}", ram.as_raw_fd());
    assert!(std::fs::metadata(&own).is_ok(), "the path itself must be reachable");
    if File::options().write(true).open(&own).is_ok() {
        worked.push("reopen for writing");
    }
    if File::options().read(true).write(true).open(&own).is_ok() {
        worked.push("reopen for reading and writing");
    }
    let size = NonZero::new(usize::try_from(len).unwrap()).unwrap();
    let (read, write) = (ProtFlags::PROT_READ, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
    // SAFETY: new mappings at addresses of the kernel's choice; none is touched.
    unsafe {
        if mmap(None, size, write, MapFlags::MAP_SHARED, ram, 0).is_ok() {
            worked.push("shared writable mapping");
        }
        let shared = mmap(None, size, read, MapFlags::MAP_SHARED, ram, 0).unwrap();
        if mprotect(shared, size.get(), write).is_ok() {
            worked.push("mprotect of a shared mapping");
        }
        if madvise(shared, size.get(), MmapAdvise::MADV_REMOVE).is_ok() {
            worked.push("MADV_REMOVE");
        }
        nix::sys::mman::munmap(shared, size.get()).unwrap();
    }
    if nix::sys::uio::pwrite(ram, b"x", 0).is_ok() {
        worked.push("pwrite");
    }
    if ram.set_len(0).is_ok() || ram.set_len(len * 2).is_ok() {
        worked.push("ftruncate");
    }
    let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
        | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if nix::fcntl::fallocate(ram, punch, 0, 4096).is_ok() {
        worked.push("fallocate");
    }
    if nix::sys::stat::fchmod(ram, nix::sys::stat::Mode::all()).is_ok() {
        worked.push("fchmod");
    }
    // SAFETY: an fcntl with an integer argument.
    if unsafe { libc::fcntl(ram.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) } == 0 {
        worked.push("add seals");
    }
    if worked.is_empty() { "nothing worked".to_owned() } else { worked.join(", ") }
}
