//! Events of a userfaultfd: faults, and changes of the address space it belongs to.

use std::{
    io::IoSliceMut,
    mem::offset_of,
    ops::Range,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use linux_raw_sys::general::{
    UFFD_EVENT_FORK, UFFD_EVENT_PAGEFAULT, UFFD_EVENT_REMAP, UFFD_EVENT_REMOVE, UFFD_EVENT_UNMAP,
    uffd_msg,
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
};
use rustix::io::ReadWriteFlags;

use super::Uffd;

const MESSAGE: usize = size_of::<uffd_msg>();
/// Where the words begin whose meaning depends on the event.
const ARG: usize = offset_of!(uffd_msg, arg);

/// Room for the events that one read takes.
pub(crate) struct EventBuffer(Box<[u8]>);

impl EventBuffer {
    /// Creates a buffer for at most `events` at a time.
    pub fn new(events: usize) -> Self {
        Self(vec![0; events * MESSAGE].into())
    }
}

/// One event.
#[derive(Debug)]
pub(crate) enum Event {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// These addresses were given back (`MADV_DONTNEED`, `MADV_REMOVE`) or unmapped.
    Removed(Range<u64>),
    /// Memory was moved to other addresses (`mremap`).
    Moved,
    /// The process forked: this is the userfaultfd of the child.
    Forked(OwnedFd),
    /// An event of a later kernel, by its number.
    Unknown(u8),
}

/// Events could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Errno(#[from] Errno),
    #[error("read {0} bytes, which is not a number of whole messages")]
    Length(usize),
    #[error("somebody made the userfaultfd blocking")]
    Blocking,
}

impl Uffd {
    /// Reads the events that wait; none where nothing waits. Does not sleep, whatever status flags
    /// another holder of the open file description has set, where the kernel can tell a single read
    /// not to (Linux 6.10, preadv2(2), `RWF_NOWAIT`). Before, a descriptor that blocks is refused,
    /// unless it is made blocking at this very moment.
    pub(crate) fn read_events<'a>(
        &self,
        buffer: &'a mut EventBuffer,
    ) -> Result<impl Iterator<Item = Event> + use<'a>, ReadError> {
        let outcome = match self.read_without_waiting(&mut buffer.0) {
            Err(Errno::EOPNOTSUPP) => self.read_if_nonblocking(&mut buffer.0)?,
            outcome => outcome,
        };
        let read = match outcome {
            Ok(read) if read > 0 && read.is_multiple_of(MESSAGE) => read,
            Ok(read) => return Err(ReadError::Length(read)),
            // Interrupted: who watches the descriptor finds it ready again.
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let (messages, _) = buffer.0[..read].as_chunks();
        // SAFETY: the kernel has just written these messages, and the iterator gives each out once.
        Ok(messages.iter().map(|message| unsafe { decode(message) }))
    }

    fn read_without_waiting(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        // The largest offset stands for the file's own position, of which there is none.
        let buffers = &mut [IoSliceMut::new(buffer)];
        rustix::io::preadv2(self, buffers, u64::MAX, ReadWriteFlags::NOWAIT)
            .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
    }

    fn read_if_nonblocking(&self, buffer: &mut [u8]) -> Result<nix::Result<usize>, ReadError> {
        let flags = OFlag::from_bits_retain(fcntl(self, FcntlArg::F_GETFL)?);
        if !flags.contains(OFlag::O_NONBLOCK) {
            return Err(ReadError::Blocking);
        }
        Ok(nix::unistd::read(self, buffer))
    }
}

/// # Safety
/// The descriptor in the message of a fork belongs to this process and has no other owner.
unsafe fn decode(message: &[u8; MESSAGE]) -> Event {
    let word = |index: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&message[ARG + index * 8..][..8]);
        u64::from_ne_bytes(bytes)
    };
    let kind = message[0];
    match kind.into() {
        // Word 0 has the flags: only missing pages are asked for.
        UFFD_EVENT_PAGEFAULT => Event::Fault(word(1)),
        UFFD_EVENT_REMOVE | UFFD_EVENT_UNMAP => Event::Removed(word(0)..word(1)),
        UFFD_EVENT_REMAP => Event::Moved,
        UFFD_EVENT_FORK => {
            // The descriptor is a `__u32`.
            let number = RawFd::from_ne_bytes([
                message[ARG],
                message[ARG + 1],
                message[ARG + 2],
                message[ARG + 3],
            ]);
            // SAFETY: by the contract of this function.
            Event::Forked(unsafe { OwnedFd::from_raw_fd(number) })
        }
        _ => Event::Unknown(kind),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsRawFd, time::Duration};

    use nix::{
        poll::{PollFd, PollFlags, PollTimeout, poll},
        sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap},
    };

    use super::{
        super::{PAGE, Step, zero},
        *,
    };

    const PAGES: u64 = 3;

    fn next(uffd: &Uffd, buffer: &mut EventBuffer) -> Event {
        let wait = PollTimeout::try_from(Duration::from_secs(60)).unwrap();
        poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(uffd), PollFlags::POLLIN)], wait).unwrap();
        uffd.read_events(buffer).unwrap().next().expect("an event within a minute")
    }

    #[test]
    #[ignore = "needs root"]
    fn the_kernel_reports_faults_and_removals() {
        let len = usize::try_from(PAGES * PAGE).unwrap();
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let map =
            unsafe { mmap_anonymous(None, len.try_into().unwrap(), prot, MapFlags::MAP_PRIVATE) }
                .unwrap();
        let start = map.as_ptr() as u64;
        let uffd = Uffd::new().unwrap();
        uffd.set_nonblocking().unwrap();
        uffd.register(start, PAGES * PAGE).unwrap();
        let mut buffer = EventBuffer::new(8);
        assert_eq!(uffd.read_events(&mut buffer).unwrap().count(), 0, "nothing has happened yet");

        let last = start + (PAGES - 1) * PAGE;
        let guest = std::thread::spawn(move || {
            // SAFETY: inside the mapping, which outlives this thread.
            let byte = unsafe { ((last + 77) as *const u8).read_volatile() };
            let (page, len) =
                (std::ptr::NonNull::new(last as *mut _).unwrap(), usize::try_from(PAGE).unwrap());
            // SAFETY: a range of the mapping.
            unsafe { madvise(page, len, MmapAdvise::MADV_DONTNEED) }.unwrap();
            byte
        });
        assert!(matches!(next(&uffd, &mut buffer), Event::Fault(address) if address == last));
        assert_eq!(zero(&uffd, last, PAGE), Step::Filled(PAGE));
        uffd.wake(last, PAGE).unwrap();
        assert!(
            matches!(next(&uffd, &mut buffer), Event::Removed(range) if range == (last..last + PAGE))
        );
        assert_eq!(guest.join().unwrap(), 0);
        // SAFETY: nothing refers to the mapping any more.
        unsafe { munmap(map, len) }.unwrap();
    }

    #[test]
    #[ignore = "needs root"]
    fn no_read_waits_on_a_descriptor_that_somebody_made_blocking() {
        let uffd = Uffd::new().unwrap();
        let mut buffer = EventBuffer::new(1);
        assert!(matches!(uffd.read_if_nonblocking(&mut buffer.0), Err(ReadError::Blocking)));
        match uffd.read_without_waiting(&mut buffer.0) {
            Err(Errno::EOPNOTSUPP) => {
                assert!(matches!(
                    uffd.read_events(&mut buffer).map(drop),
                    Err(ReadError::Blocking)
                ));
            }
            _ => assert_eq!(uffd.read_events(&mut buffer).unwrap().count(), 0),
        }
        uffd.set_nonblocking().unwrap();
        assert_eq!(uffd.read_if_nonblocking(&mut buffer.0).unwrap(), Err(Errno::EAGAIN));
        assert_eq!(uffd.read_events(&mut buffer).unwrap().count(), 0);
    }

    #[test]
    fn a_message_is_read_as_the_header_has_it() {
        let of = |event: u32, words: [u64; 3]| {
            let mut message = [0; MESSAGE];
            message[0] = u8::try_from(event).unwrap();
            for (place, word) in message[ARG..].chunks_exact_mut(8).zip(words) {
                place.copy_from_slice(&word.to_ne_bytes());
            }
            // SAFETY: the only message of a fork below has a descriptor that was just made for it.
            unsafe { decode(&message) }
        };
        assert!(matches!(of(UFFD_EVENT_PAGEFAULT, [1, 0x7000, 9]), Event::Fault(0x7000)));
        for event in [UFFD_EVENT_REMOVE, UFFD_EVENT_UNMAP] {
            assert!(
                matches!(of(event, [0x1000, 0x3000, 9]), Event::Removed(range) if range == (0x1000..0x3000))
            );
        }
        assert!(matches!(of(UFFD_EVENT_REMAP, [1, 2, 3]), Event::Moved));
        assert!(matches!(of(0x42, [1, 2, 3]), Event::Unknown(0x42)));

        let (ours, theirs) = nix::unistd::pipe().unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(theirs);
        // What is above the 32 bits of the descriptor's number is not part of it.
        let Event::Forked(fd) =
            of(UFFD_EVENT_FORK, [0xdead_0000_0000 | u64::from(number.cast_unsigned()), 2, 3])
        else {
            panic!()
        };
        assert_eq!(fd.as_raw_fd(), number);
        drop(fd);
        assert_eq!(
            nix::unistd::read(&ours, &mut [0; 1]),
            Ok(0),
            "the child's descriptor is closed"
        );
    }
}
