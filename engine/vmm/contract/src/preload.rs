//! Environment variables of the preload library, and what they hold.

use std::ffi::CStr;
use std::fmt;
use std::os::fd::RawFd;

/// Variable that tells the library which memory is paged; its value is a [`PagedMemory`]. Without
/// it the library passes everything through.
pub const PAGED_MEMORY: &CStr = c"MAYFLY_PRELOAD";
/// Variable with which the process denies itself what a VMM does not need; its value is a
/// [`Hardening`](crate::hardening::Hardening).
pub const CONFINE: &CStr = c"MAYFLY_CONFINE";

/// The guest memory that a pager fills, as entries `key=value` separated by commas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagedMemory<'a> {
    /// `ram`: path under which the VMM opens its memory. Nothing needs to be there. No comma.
    pub path: &'a [u8],
    /// Source of its content.
    pub source: Source,
    /// `uffd`: inherited descriptor of an open `/dev/userfaultfd`.
    pub userfaultfd_device: RawFd,
    /// `sock`: inherited, connected stream socket to the pager.
    pub socket: RawFd,
    /// `keep`: inherited, connected stream socket on which the process sends its userfaultfd to its
    /// owner, who holds it as long as the process lives. The process itself keeps none.
    pub keeper: RawFd,
    /// `zygote`: inherited socket on which forks of the process are asked for.
    pub zygote: Option<RawFd>,
}

/// Source of the content of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `ramfd`: inherited read-only descriptor of the page cache, which is mapped privately.
    PageCache(RawFd),
    /// `mode=copy,size=BYTES`: memory is anonymous, of so many bytes, and the pager copies pages
    /// in.
    Copies(u64),
}

impl fmt::Display for PagedMemory<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ram={},", String::from_utf8_lossy(self.path))?;
        match self.source {
            Source::PageCache(fd) => write!(f, "ramfd={fd}")?,
            Source::Copies(size) => write!(f, "mode=copy,size={size}")?,
        }
        let Self { userfaultfd_device, socket, keeper, .. } = self;
        write!(f, ",uffd={userfaultfd_device},sock={socket},keep={keeper}")?;
        self.zygote.map_or(Ok(()), |fd| write!(f, ",zygote={fd}"))
    }
}

impl<'a> PagedMemory<'a> {
    /// Reads the variable's value.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence that begins with the variable's name.
    pub fn parse(value: &'a [u8]) -> Result<Self, &'static str> {
        let (mut path, mut page_cache, mut device, mut socket, mut keeper, mut zygote) =
            (None, None, None, None, None, None);
        let (mut size, mut copies) = (None, false);
        for entry in value.split(|&byte| byte == b',') {
            let at = entry.iter().position(|&byte| byte == b'=').ok_or(": an entry has no `=`")?;
            let (key, value) = (&entry[..at], &entry[at + 1..]);
            match key {
                b"ram" => path = Some(value),
                b"ramfd" => page_cache = Some(descriptor(value)?),
                b"uffd" => device = Some(descriptor(value)?),
                b"sock" => socket = Some(descriptor(value)?),
                b"keep" => keeper = Some(descriptor(value)?),
                b"zygote" => zygote = Some(descriptor(value)?),
                b"size" => size = Some(number(value).ok_or(": size is not a number")?),
                b"mode" => match value {
                    b"copy" => copies = true,
                    b"shared" => copies = false,
                    _ => return Err(": mode is neither shared nor copy"),
                },
                _ => {
                    return Err(
                        ": a key is none of ram, ramfd, uffd, sock, keep, zygote, mode, size",
                    );
                }
            }
        }
        let path = path.ok_or(" names no ram path")?;
        let source = match (copies, page_cache, size) {
            (false, Some(fd), _) => Source::PageCache(fd),
            (true, None, Some(size)) => Source::Copies(size),
            (true, None, None) => return Err(": mode=copy needs size=BYTES"),
            (true, Some(_), _) => return Err(": mode=copy takes no ramfd"),
            (false, None, _) => {
                return Err(" must name ramfd (or mode=copy and size), uffd, sock and keep");
            }
        };
        let (Some(userfaultfd_device), Some(socket), Some(keeper)) = (device, socket, keeper)
        else {
            return Err(" must name ramfd (or mode=copy and size), uffd, sock and keep");
        };
        Ok(Self { path, source, userfaultfd_device, socket, keeper, zygote })
    }
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn descriptor(value: &[u8]) -> Result<RawFd, &'static str> {
    let fd = number(value).and_then(|number| RawFd::try_from(number).ok());
    fd.ok_or(": a descriptor is not a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_the_same() {
        for source in [Source::PageCache(7), Source::Copies(64 << 20)] {
            for zygote in [None, Some(10)] {
                let memory = PagedMemory {
                    path: b"/mayfly/ram",
                    source,
                    userfaultfd_device: 8,
                    socket: 9,
                    keeper: 11,
                    zygote,
                };
                assert_eq!(PagedMemory::parse(memory.to_string().as_bytes()), Ok(memory));
            }
        }
    }

    #[test]
    fn what_is_incomplete_or_unknown_is_refused() {
        for (bad, why) in [
            ("ramfd=200", "names no ram path"),
            ("ram=/r,nonsense", "has no `=`"),
            ("ram=/r,ramfd=x,uffd=1,sock=2", "a descriptor is not a number"),
            ("ram=/r,ramfd=-1,uffd=1,sock=2", "a descriptor is not a number"),
            ("ram=/r,ramfd=3,uffd=1", "must name"),
            ("ram=/r,uffd=1,sock=2", "must name"),
            ("ram=/r,ramfd=3,uffd=1,sock=2", "and keep"),
            ("ram=/r,mode=copy,uffd=1,sock=2,keep=3", "needs size"),
            ("ram=/r,mode=swap", "neither shared nor copy"),
            ("ram=/r,color=1", "a key is none of"),
        ] {
            assert!(PagedMemory::parse(bad.as_bytes()).unwrap_err().contains(why), "{bad}");
        }
    }
}
