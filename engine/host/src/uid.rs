//! User ids for VMM processes: each session its own, from a configured range, and no two engines of
//! a host the same.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open, openat};
use nix::sys::stat::Mode;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Claims of all engines of a host, whatever their own folders are. Not below `/run/lock`, where
/// everybody may make a folder first, and hold or remove what is in it.
const CLAIMS: &str = "/run/mayfly-uids";
/// Ids claimed at a time.
const BLOCK: u32 = 0x1000;
/// Lower ids belong to the system and to people (useradd(8), `systemd.io/UIDS-GIDS`).
const LOWEST: u32 = 0x1_0000;

/// Range of user ids that VMM processes may have.
///
/// ```
/// use mayfly_host::uid::UidRange;
///
/// let range: UidRange = "1879048192:65536".parse().unwrap();
/// assert_eq!((range.first(), range.count()), (0x7000_0000, 65536));
/// assert!("0:10".parse::<UidRange>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UidRange {
    first: u32,
    count: u32,
}

/// Error of a text that is not a range of user ids.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is no range of user ids: write FIRST:COUNT, with FIRST at least {LOWEST} and the end below 4294967294"
)]
pub struct BadRange(String);

impl Default for UidRange {
    /// Above what useradd(8), systemd and container runtimes hand out.
    fn default() -> Self {
        Self { first: 0x7000_0000, count: 0x100_0000 }
    }
}

impl UidRange {
    /// Reads the range from `MAYFLY_UIDS`, or returns the default.
    ///
    /// # Errors
    /// [`BadRange`].
    pub fn from_env() -> Result<Self, BadRange> {
        std::env::var("MAYFLY_UIDS").map_or_else(|_| Ok(Self::default()), |text| text.parse())
    }

    /// Returns the lowest id.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// Returns the number of ids.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether some id of `first..first + count` is in it.
    pub fn meets(&self, first: u32, count: u32) -> bool {
        let end = |first: u32, count: u32| u64::from(first) + u64::from(count);
        u64::from(self.first) < end(first, count) && u64::from(first) < end(self.first, self.count)
    }
}

impl FromStr for UidRange {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let bad = || BadRange(text.escape_debug().to_string());
        let (first, count) = text.split_once(':').ok_or_else(bad)?;
        let (first, count): (u32, u32) =
            (first.parse().map_err(|_| bad())?, count.parse().map_err(|_| bad())?);
        // The two highest ids mean "none" and "no change" (chown(2), setresuid(2)).
        let end = first.checked_add(count).filter(|end| *end < u32::MAX - 1).ok_or_else(bad)?;
        if first < LOWEST || end == first { Err(bad()) } else { Ok(Self { first, count }) }
    }
}

impl TryFrom<String> for UidRange {
    type Error = BadRange;

    fn try_from(text: String) -> Result<Self, BadRange> {
        text.parse()
    }
}

impl From<UidRange> for String {
    fn from(range: UidRange) -> Self {
        format!("{}:{}", range.first, range.count)
    }
}

/// No user id for a VMM.
#[derive(Debug, thiserror::Error)]
pub enum NoUid {
    /// The range is used up.
    #[error(
        "all {0} user ids for VMMs are in use, by this or another engine: discard sessions, or give a larger range in MAYFLY_UIDS or `uids`"
    )]
    UsedUp(u32),
    /// Claims cannot be made.
    #[error("cannot claim user ids in {path}: {cause}")]
    Claim {
        /// Folder in which claims are made.
        path: PathBuf,
        /// Cause of the failure.
        cause: io::Error,
    },
    /// Somebody else may change the folder of claims, and so who has which ids.
    #[error(
        "cannot claim user ids in {path}: {found}, not a folder that only its owner, this user, may write to; remove it"
    )]
    Untrusted {
        /// The folder.
        path: PathBuf,
        /// What it is.
        found: String,
    },
}

/// Hands out user ids; the lowest free one of its blocks first. A block is claimed by a lock that
/// the kernel gives up when this process ends.
#[derive(Debug)]
pub struct UidPool {
    range: UidRange,
    claims: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    blocks: Vec<(u32, Flock<File>)>,
    used: BTreeSet<u32>,
}

impl UidPool {
    /// Creates a pool of ids of `range`. Nothing is claimed before the first is taken.
    pub fn new(range: UidRange) -> Self {
        Self::with_claims(range, Path::new(CLAIMS))
    }

    fn with_claims(range: UidRange, claims: &Path) -> Self {
        Self { range, claims: claims.to_owned(), state: Mutex::default() }
    }

    /// The range that ids are taken from.
    pub fn range(&self) -> UidRange {
        self.range
    }

    /// Takes a free id; it returns to the pool when dropped.
    ///
    /// # Errors
    /// [`NoUid`] when all are in use.
    pub fn take(self: &Arc<Self>) -> Result<Uid, NoUid> {
        let mut state = self.state.lock();
        let found = state.blocks.iter().find_map(|(first, _)| self.free_in(*first, &state.used));
        let id = if let Some(id) = found {
            id
        } else {
            let block = self.claim(&state)?;
            let first = block.0;
            state.blocks.push(block);
            first
        };
        state.used.insert(id);
        Ok(Uid { id, pool: self.clone() })
    }

    fn free_in(&self, first: u32, used: &BTreeSet<u32>) -> Option<u32> {
        let end = (first + BLOCK.min(u32::MAX - first)).min(self.range.first + self.range.count);
        (first..end).find(|id| !used.contains(id))
    }

    /// Claims the first free block, looking from a place that depends on the process id: engines
    /// rarely meet.
    fn claim(&self, state: &State) -> Result<(u32, Flock<File>), NoUid> {
        let failed = |cause| NoUid::Claim { path: self.claims.clone(), cause };
        let claims = self.open_claims()?;
        let blocks = self.range.count.div_ceil(BLOCK);
        let begin = std::process::id() % blocks;
        for block in (0..blocks).map(|at| (begin + at) % blocks) {
            let first = self.range.first + block * BLOCK;
            if state.blocks.iter().any(|(own, _)| *own == first) {
                continue;
            }
            let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            let file = openat(&claims, first.to_string().as_str(), flags, mode)
                .map_err(|errno| failed(errno.into()))?;
            let file = File::from(file);
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok((first, lock)),
                Err((_, Errno::EWOULDBLOCK)) => {}
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
        Err(NoUid::UsedUp(self.range.count))
    }

    /// Opens the folder of claims, and makes it when there is none. The one that is opened is the
    /// one that was looked at.
    fn open_claims(&self) -> Result<File, NoUid> {
        let failed = |cause| NoUid::Claim { path: self.claims.clone(), cause };
        let untrusted = |found| NoUid::Untrusted { path: self.claims.clone(), found };
        match std::fs::DirBuilder::new().mode(0o700).create(&self.claims) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let folder = match open(&self.claims, flags, Mode::empty()) {
            Ok(folder) => File::from(folder),
            // Of a symbolic link that may be followed nowhere (open(2), `O_NOFOLLOW`).
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                return Err(untrusted("it is a file or a symbolic link".to_owned()));
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        let metadata = folder.metadata().map_err(failed)?;
        let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        if owner != nix::unistd::geteuid().as_raw() || mode & 0o022 != 0 {
            return Err(untrusted(format!("it belongs to user {owner} and has mode {mode:04o}")));
        }
        Ok(folder)
    }
}

/// A user id in use.
#[derive(Debug)]
pub struct Uid {
    id: u32,
    pool: Arc<UidPool>,
}

impl Uid {
    /// Returns the number of the user id.
    pub fn get(&self) -> u32 {
        self.id
    }
}

impl Drop for Uid {
    fn drop(&mut self) {
        self.pool.state.lock().used.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn pool(range: &str, claims: &Path) -> Arc<UidPool> {
        Arc::new(UidPool::with_claims(range.parse().unwrap(), claims))
    }

    #[test]
    fn ids_are_exclusive_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool("100000:2", dir.path());
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert_eq!((a.get(), b.get()), (100_000, 100_001));
        assert!(matches!(pool.take(), Err(NoUid::UsedUp(2))));
        drop(a);
        assert_eq!(pool.take().unwrap().get(), 100_000);
    }

    #[test]
    fn no_two_pools_have_the_same_ids() {
        let dir = tempfile::tempdir().unwrap();
        // Two blocks, and each pool looks from the same place.
        let range = format!("100000:{}", 2 * BLOCK);
        let (a, b, c) =
            (pool(&range, dir.path()), pool(&range, dir.path()), pool(&range, dir.path()));
        let (of_a, of_b) = (a.take().unwrap(), b.take().unwrap());
        assert_eq!(of_a.get().abs_diff(of_b.get()), BLOCK);
        assert!(matches!(c.take(), Err(NoUid::UsedUp(_))));
        drop((of_a, a));
        c.take().unwrap();
    }

    #[test]
    fn a_pool_goes_on_in_another_block() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(&format!("100000:{}", BLOCK + 1), dir.path());
        let all: Vec<_> = (0..=BLOCK).map(|_| pool.take().unwrap()).collect();
        let different: BTreeSet<_> = all.iter().map(Uid::get).collect();
        assert_eq!(different.len(), BLOCK as usize + 1);
        pool.take().unwrap_err();
    }

    /// What a pool says whose claims are to be in a folder that `prepare` has made.
    fn refusal(prepare: impl FnOnce(&Path)) -> NoUid {
        let dir = tempfile::tempdir().unwrap();
        let claims = dir.path().join("claims");
        prepare(&claims);
        pool("100000:1", &claims).take().unwrap_err()
    }

    #[test]
    fn nothing_is_claimed_in_a_folder_that_others_could_have_made_or_may_change() {
        let make = |path: &Path, mode: u32| {
            std::fs::create_dir(path).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for mode in [0o1777, 0o770, 0o702] {
            let error = refusal(|path| make(path, mode));
            assert!(matches!(error, NoUid::Untrusted { .. }), "{error}");
            assert!(error.to_string().contains(&format!("mode {mode:04o}")), "{error}");
        }
        let elsewhere = tempfile::tempdir().unwrap();
        let error = refusal(|path| std::os::unix::fs::symlink(elsewhere.path(), path).unwrap());
        assert!(matches!(error, NoUid::Untrusted { .. }), "{error}");
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        let error = refusal(|path| std::fs::write(path, "").unwrap());
        assert!(matches!(error, NoUid::Untrusted { .. }), "{error}");
    }

    #[test]
    #[ignore = "needs root"]
    fn nothing_is_claimed_in_a_folder_of_another_user() {
        let error = refusal(|path| {
            std::fs::create_dir(path).unwrap();
            std::os::unix::fs::chown(path, Some(1234), None).unwrap();
        });
        assert!(error.to_string().contains("belongs to user 1234"), "{error}");
    }

    #[test]
    fn a_claim_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        let error = refusal(|path| {
            std::fs::create_dir(path).unwrap();
            std::os::unix::fs::symlink(&target, path.join("100000")).unwrap();
        });
        assert!(matches!(error, NoUid::Claim { .. }), "{error}");
        assert!(!target.exists());
    }

    #[test]
    fn ranges_that_touch_do_not_meet() {
        let range: UidRange = "100000:10".parse().unwrap();
        assert!(range.meets(100_009, 5) && range.meets(99_999, 2) && range.meets(100_004, 1));
        assert!(!range.meets(100_010, 5) && !range.meets(99_999, 1));
    }

    #[test]
    fn ranges_that_are_none_are_refused() {
        for bad in ["", "1", "65535:1", "100000:0", "4294967290:10", "a:b", "100000:-1"] {
            assert!(bad.parse::<UidRange>().is_err(), "{bad}");
        }
        let json = serde_json::to_string(&UidRange::default()).unwrap();
        assert_eq!(serde_json::from_str::<UidRange>(&json).unwrap(), UidRange::default());
    }
}
