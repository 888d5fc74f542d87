//! What the owner of a zygote asks of it, and its answers.
//!
//! Both are one message of a `SOCK_SEQPACKET` socket (unix(7)). The request is the text of a
//! [`Request`], for a fork with descriptors beside it (`SCM_RIGHTS`). The answer is an [`Answer`],
//! with a descriptor of the new process when there is one. It carries the number of its request, so
//! that a late one is not taken for another's.

use std::fmt;
use std::os::fd::RawFd;

/// Most bytes of a request's text.
pub const MAX_TEXT: usize = 512;
/// Most descriptors beside a request.
pub const MAX_DESCRIPTORS: usize = 32;
/// Most bytes of an answer's text.
pub const MAX_ANSWER: usize = 256;

/// First word of the answer when there is a fork.
const FORKED: &str = "forked";
/// First word of the answer when clean memory is unmapped.
const UNMAPPED: &str = "unmapped";
/// First word of the answer when what was asked for was not done.
const REFUSED: &str = "error";
/// Begin of the request to unmap clean memory.
const UNMAP: &str = "unmap=";

/// What a zygote is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A fork.
    Fork(ForkRequest),
    /// To unmap the pages of guest memory that it has only read. They are in the page cache as they
    /// were, and fork(2) copies an entry of the page tables for each that is mapped.
    Unmap {
        /// Number of the request, which its answer repeats; from 1 on.
        number: u64,
    },
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fork(request) => request.fmt(f),
            Self::Unmap { number } => write!(f, "{UNMAP}{number}"),
        }
    }
}

impl Request {
    /// Reads a request's text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(text).map_err(|_| "a request that is no text")?;
        match text.strip_prefix(UNMAP) {
            Some(number) => {
                let number = number.parse().map_err(|_| "a request with a bad number")?;
                Ok(Self::Unmap { number })
            }
            None => ForkRequest::parse(text).map(Self::Fork),
        }
    }

    /// Returns its number.
    pub fn number(&self) -> u64 {
        match self {
            Self::Fork(request) => request.number,
            Self::Unmap { number } => *number,
        }
    }
}

/// What a zygote has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It has made a fork, of which a descriptor is beside the answer.
    Forked,
    /// It has unmapped its clean memory.
    Unmapped {
        /// Number of pages that were mapped.
        pages: u64,
    },
}

/// Answer to the request `number`; 0 when that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Number of the request.
    pub number: u64,
    /// What was done, or the reason why nothing was.
    pub outcome: Result<Done, String>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.number;
        match &self.outcome {
            Ok(Done::Forked) => write!(f, "{FORKED} {number}"),
            Ok(Done::Unmapped { pages }) => write!(f, "{UNMAPPED} {number} {pages}"),
            Err(reason) => write!(f, "{REFUSED} {number} {reason}"),
        }
    }
}

impl Answer {
    /// Reads an answer's text; `None` when it is none.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text);
        let mut words = text.splitn(3, ' ');
        let (kind, number) = (words.next()?, words.next()?.parse().ok()?);
        let outcome = match (kind, words.next()) {
            (FORKED, None) => Ok(Done::Forked),
            (UNMAPPED, Some(pages)) => Ok(Done::Unmapped { pages: pages.parse().ok()? }),
            (REFUSED, Some(reason)) => Err(reason.to_owned()),
            _ => return None,
        };
        Some(Self { number, outcome })
    }
}

/// Request for one fork, without its descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkRequest {
    /// Number of the request, which its answer repeats; from 1 on.
    pub number: u64,
    /// User and group id of the fork; below 2^31.
    pub uid: u32,
    /// Largest file that it may write, in bytes.
    pub file_bytes: u64,
    /// Most threads of its user.
    pub threads: u64,
    /// Number of files through which it enters its cgroups.
    pub cgroups: usize,
    /// Numbers of descriptors in the zygote for which the fork has others.
    pub replace: Vec<RawFd>,
}

/// The descriptors beside a request, in their order.
#[derive(Debug, PartialEq, Eq)]
pub struct ForkDescriptors<T> {
    /// Descriptor of `/dev/userfaultfd`.
    pub userfaultfd_device: T,
    /// The fork's end of the handshake with the pager.
    pub handshake: T,
    /// The owner's process (pidfd_open(2)), whose death ends the fork.
    pub owner: T,
    /// Stream socket on which the fork sends its userfaultfd (see
    /// [`PagedMemory::keeper`](crate::preload::PagedMemory::keeper)), and gets a byte when the
    /// owner has said who the fork is in its user namespace, or the end when it never will.
    pub gate: T,
    /// Files through which the fork enters its cgroups: `cgroups` of the request.
    pub cgroups: Vec<T>,
    /// Descriptors that the fork has in place of each number of `replace` of the request.
    pub replace: Vec<T>,
}

impl fmt::Display for ForkRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, uid, file_bytes, threads, cgroups, replace } = self;
        write!(
            f,
            "id={number},uid={uid},files={file_bytes},threads={threads},cgroups={cgroups},replace="
        )?;
        replace.iter().enumerate().try_for_each(|(at, number)| {
            let colon = if at > 0 { ":" } else { "" };
            write!(f, "{colon}{number}")
        })
    }
}

impl ForkRequest {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (mut id, mut uid, mut files, mut threads, mut cgroups, mut replace) =
            (None, None, None, None, 0, Vec::new());
        for entry in text.split(',') {
            let (key, value) =
                entry.split_once('=').ok_or("a request with an entry without `=`")?;
            match key {
                "id" => id = value.parse().ok(),
                "uid" => uid = Some(number(value)?),
                "files" => files = value.parse().ok(),
                "threads" => threads = value.parse().ok(),
                "cgroups" => cgroups = number(value)?,
                "replace" => replace = value.split(':').map(number).collect::<Result<_, _>>()?,
                _ => return Err("a request with an unknown entry"),
            }
        }
        let id = id.ok_or("a request without a number")?;
        let uid = uid.ok_or("a request without uid")?.cast_unsigned();
        let (file_bytes, threads) = files.zip(threads).ok_or("a request without bounds")?;
        let cgroups = usize::try_from(cgroups).map_err(|_| "a request with a bad number")?;
        if replace.is_empty() || cgroups > MAX_DESCRIPTORS || replace.len() > MAX_DESCRIPTORS {
            return Err("a request with too few or too many descriptors");
        }
        Ok(Self { number: id, uid, file_bytes, threads, cgroups, replace })
    }

    /// Tells apart the descriptors that came beside this request.
    ///
    /// # Errors
    /// When there are more or fewer than it names.
    pub fn tell_apart<T>(&self, descriptors: Vec<T>) -> Result<ForkDescriptors<T>, &'static str> {
        if descriptors.len() != 4 + self.cgroups + self.replace.len() {
            return Err("a request with more or fewer descriptors than it names");
        }
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or("a request with too few descriptors");
        Ok(ForkDescriptors {
            userfaultfd_device: next()?,
            handshake: next()?,
            owner: next()?,
            gate: next()?,
            cgroups: (0..self.cgroups).map(|_| next()).collect::<Result<_, _>>()?,
            replace: (0..self.replace.len()).map(|_| next()).collect::<Result<_, _>>()?,
        })
    }
}

impl<T> ForkDescriptors<T> {
    /// Returns all descriptors, in the order in which they go beside a request.
    pub fn into_vec(self) -> Vec<T> {
        let mut all = vec![self.userfaultfd_device, self.handshake, self.owner, self.gate];
        all.extend(self.cgroups);
        all.extend(self.replace);
        all
    }
}

/// A number that fits a descriptor.
fn number(text: &str) -> Result<RawFd, &'static str> {
    text.parse().ok().filter(|number| *number >= 0).ok_or("a request with a bad number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_the_same() {
        for (cgroups, replace) in [(0, vec![2]), (1, vec![2, 3, 4, 5, 21]), (5, vec![7])] {
            let request = ForkRequest {
                number: u64::MAX,
                uid: 0x7000_0001,
                file_bytes: u64::MAX,
                threads: 128,
                cgroups,
                replace,
            };
            let text = request.to_string();
            assert!(text.len() <= MAX_TEXT);
            let read = Request::parse(text.as_bytes());
            assert_eq!(read, Ok(Request::Fork(request.clone())));
            let descriptors = ForkDescriptors {
                userfaultfd_device: 'u',
                handshake: 'h',
                owner: 'o',
                gate: 'g',
                cgroups: vec!['c'; cgroups],
                replace: vec!['r'; request.replace.len()],
            };
            let mut all = descriptors.into_vec();
            let told = request.tell_apart(all.clone()).unwrap();
            assert_eq!(
                (told.userfaultfd_device, told.handshake, told.owner, told.gate),
                ('u', 'h', 'o', 'g')
            );
            assert!(
                told.cgroups.iter().all(|c| *c == 'c') && told.replace.iter().all(|c| *c == 'r')
            );
            all.push('x');
            request.tell_apart(all).unwrap_err();
        }
        let unmap = Request::Unmap { number: 9 };
        assert_eq!(Request::parse(unmap.to_string().as_bytes()), Ok(unmap));
    }

    #[test]
    fn bad_requests_are_refused() {
        for bad in [
            "",
            "id=1,uid=7",
            "id=1,uid=7,cgroups=1,replace=3:4",
            "id=1,uid=-1,files=1,threads=1,cgroups=1,replace=3",
            "id=1,uid=7,files=1,threads=1,cgroups=-1,replace=3",
            "id=1,uid=7,files=1,threads=1,cgroups=33,replace=3",
            "id=1,uid=7,files=1,threads=1,cgroups=1,replace=",
            "id=-1,uid=7,files=1,threads=1,cgroups=1,replace=3",
            "uid=7,files=1,threads=1,cgroups=1,replace=3",
            "x=1",
            "cgroups=1,replace=3",
            "unmap=",
            "unmap=-1",
            "unmap=1,uid=7",
        ] {
            assert!(Request::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        Request::parse(b"id=1,uid=7,files=1,threads=1,cgroups=1,replace=3").unwrap();
    }

    #[test]
    fn answers_are_read_with_their_number_or_not_at_all() {
        for answer in [
            Answer { number: 7, outcome: Ok(Done::Forked) },
            Answer { number: 8, outcome: Ok(Done::Unmapped { pages: u64::MAX }) },
            Answer { number: u64::MAX, outcome: Err("too many threads of it".into()) },
            Answer { number: 0, outcome: Err(String::new()) },
        ] {
            assert_eq!(Answer::parse(answer.to_string().as_bytes()), Some(answer));
        }
        for bad in [
            "",
            "forked",
            "forked x",
            "forked 1 more",
            "error 1",
            "error x y",
            "done 1",
            "unmapped 1",
            "unmapped 1 x",
            "unmapped 1 2 3",
        ] {
            assert_eq!(Answer::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
