//! The watched directories, and what the kernel's events mean in them.

use crate::files::{Place, kind_of};
use mayfly_protocol::{ByteString, FileKind, WatchEvent, WatchKind};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directories under one watch. Each costs the guest's kernel about a kilobyte.
const MAX_DIRECTORIES: usize = 8192;

/// Paths told of at once because they came with a new directory.
const MAX_FOUND: usize = 4096;

/// A watched path and, if asked for, all directories below it.
pub struct Tree {
    inotify: Arc<Inotify>,
    place: Place,
    root: PathBuf,
    recursive: bool,
    /// Paths relative to the root.
    directories: HashMap<WatchDescriptor, PathBuf>,
    over: bool,
}

/// The kernel's queue of a [`Tree`], to wait for.
pub struct Queue(Arc<Inotify>);

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// The first half of a rename.
struct Moved {
    cookie: u32,
    path: PathBuf,
    directory: bool,
}

impl Tree {
    /// Places the watches.
    pub fn watch(place: &Place, recursive: bool) -> io::Result<Self> {
        let root = place.as_path();
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let mut tree = Self {
            inotify: Arc::new(inotify),
            place: place.clone(),
            root: root.to_owned(),
            recursive,
            directories: HashMap::new(),
            over: false,
        };
        let descriptor = tree.inotify.add_watch(root, flags())?;
        tree.directories.insert(descriptor, PathBuf::new());
        if recursive && root.is_dir() {
            let mut stack = vec![PathBuf::new()];
            while let Some(directory) = stack.pop() {
                for entry in std::fs::read_dir(root.join(&directory)).into_iter().flatten() {
                    let entry = entry?;
                    if !entry.file_type()?.is_dir() {
                        continue;
                    }
                    let path = directory.join(entry.file_name());
                    match tree.add(&path) {
                        Ok(()) => stack.push(path),
                        Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                        Err(error) => {
                            return Err(io::Error::new(
                                io::Error::from(error).kind(),
                                refusal(error),
                            ));
                        }
                    }
                }
            }
        }
        Ok(tree)
    }

    /// Returns the watched path, and for whom it is watched.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Returns the kernel's queue, which says whether there is something in it.
    pub fn queue(&self) -> Queue {
        Queue(Arc::clone(&self.inotify))
    }

    /// Returns whether the watched path is gone.
    pub fn is_over(&self) -> bool {
        self.over
    }

    fn add(&mut self, path: &Path) -> Result<(), Errno> {
        if self.directories.len() >= MAX_DIRECTORIES {
            return Err(Errno::ENOSPC);
        }
        let flags = flags() | AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_DONT_FOLLOW;
        let descriptor = self.inotify.add_watch(&self.root.join(path), flags)?;
        self.directories.insert(descriptor, path.to_owned());
        Ok(())
    }

    /// Reads what the kernel has, `EAGAIN` when that is nothing.
    pub fn read(&mut self) -> Result<Vec<WatchEvent>, Errno> {
        let mut events = Vec::new();
        let mut moved: Option<Moved> = None;
        let mut batch = self.inotify.read_events()?;
        loop {
            for event in batch {
                self.translate(&event, &mut moved, &mut events);
            }
            if moved.is_none() {
                break;
            }
            // The second half is the next event, unless the path was moved outside.
            batch = match self.inotify.read_events() {
                Ok(batch) => batch,
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error),
            };
        }
        self.moved_outside(moved, &mut events);
        Ok(events)
    }

    fn translate(
        &mut self,
        event: &InotifyEvent,
        moved: &mut Option<Moved>,
        events: &mut Vec<WatchEvent>,
    ) {
        let has = |flag| event.mask.contains(flag);
        if has(AddWatchFlags::IN_MOVED_TO)
            && let Some(from) = moved.take_if(|moved| moved.cookie == event.cookie)
        {
            match self.path_of(event) {
                Some(path) => self.renamed(from, path, events),
                None => self.moved_outside(Some(from), events),
            }
            return;
        }
        self.moved_outside(moved.take(), events);
        if has(AddWatchFlags::IN_Q_OVERFLOW) {
            return push(events, WatchKind::Overflow, Path::new(""), None);
        }
        if event.name.is_none() {
            self.about_itself(event, events);
            return;
        }
        let Some(path) = self.path_of(event) else { return };
        let directory = has(AddWatchFlags::IN_ISDIR);
        if has(AddWatchFlags::IN_MOVED_FROM) {
            *moved = Some(Moved { cookie: event.cookie, path, directory });
        } else if has(AddWatchFlags::IN_CREATE) || has(AddWatchFlags::IN_MOVED_TO) {
            let entry = self.kind(&path, directory);
            push(events, WatchKind::Created, &path, entry);
            if directory && self.recursive {
                self.appeared(path, events);
            }
        } else if has(AddWatchFlags::IN_DELETE) {
            push(events, WatchKind::Removed, &path, known(directory));
        } else {
            let entry = self.kind(&path, directory);
            push(events, change(event.mask), &path, entry);
        }
    }

    /// The type of a path: the kernel only says whether it is a directory.
    fn kind(&self, path: &Path, directory: bool) -> Option<FileKind> {
        known(directory).or_else(|| {
            let found = std::fs::symlink_metadata(self.root.join(path)).ok()?;
            // A directory that has taken the place of what the event is about is another one.
            Some(kind_of(found.file_type())).filter(|kind| *kind != FileKind::Directory)
        })
    }

    /// An event of a watched path rather than of a name in it. Directories below the root also have
    /// one from their parent.
    fn about_itself(&mut self, event: &InotifyEvent, events: &mut Vec<WatchEvent>) {
        let is_root =
            self.directories.get(&event.wd).is_some_and(|path| path.as_os_str().is_empty());
        let gone = AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_UNMOUNT
            | AddWatchFlags::IN_IGNORED;
        if is_root && event.mask.intersects(gone) {
            if !self.over {
                self.over = true;
                push(events, WatchKind::Removed, Path::new(""), None);
            }
        } else if is_root {
            let found = std::fs::symlink_metadata(&self.root).ok();
            let entry = found.map(|found| kind_of(found.file_type()));
            push(events, change(event.mask), Path::new(""), entry);
        } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.directories.remove(&event.wd);
        }
    }

    fn path_of(&self, event: &InotifyEvent) -> Option<PathBuf> {
        Some(self.directories.get(&event.wd)?.join(event.name.as_ref()?))
    }

    fn renamed(&mut self, from: Moved, to: PathBuf, events: &mut Vec<WatchEvent>) {
        if from.directory {
            for path in self.directories.values_mut() {
                if let Ok(rest) = path.strip_prefix(&from.path) {
                    *path = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                }
            }
        }
        let entry = self.kind(&to, from.directory);
        let from = Some(ByteString::from(from.path));
        events.push(WatchEvent { kind: WatchKind::Renamed, path: to.into(), from, entry });
    }

    fn moved_outside(&mut self, moved: Option<Moved>, events: &mut Vec<WatchEvent>) {
        let Some(moved) = moved else { return };
        if moved.directory {
            let inotify = &self.inotify;
            self.directories.retain(|descriptor, path| {
                let keep = !path.starts_with(&moved.path);
                if !keep {
                    let _ = inotify.rm_watch(*descriptor);
                }
                keep
            });
        }
        push(events, WatchKind::Removed, &moved.path, known(moved.directory));
    }

    /// Watches a new directory and all in it, and tells of what was made there before the watch was
    /// in place.
    fn appeared(&mut self, directory: PathBuf, events: &mut Vec<WatchEvent>) {
        let mut stack = vec![directory];
        let mut found = 0;
        while let Some(directory) = stack.pop() {
            match self.add(&directory) {
                Ok(()) => {}
                Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
                Err(_) => return push(events, WatchKind::Overflow, Path::new(""), None),
            }
            for entry in
                std::fs::read_dir(self.root.join(&directory)).into_iter().flatten().flatten()
            {
                if found == MAX_FOUND {
                    return push(events, WatchKind::Overflow, Path::new(""), None);
                }
                found += 1;
                let path = directory.join(entry.file_name());
                let kind = entry.file_type().ok().map(kind_of);
                push(events, WatchKind::Created, &path, kind);
                if kind == Some(FileKind::Directory) {
                    stack.push(path);
                }
            }
        }
    }
}

fn flags() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
}

fn refusal(error: Errno) -> String {
    match error {
        Errno::ENOSPC => {
            format!(
                "more than {MAX_DIRECTORIES} directories, or than fs.inotify.max_user_watches; watch less of them"
            )
        }
        other => other.to_string(),
    }
}

/// The kind of a change to what stays where it is.
fn change(mask: AddWatchFlags) -> WatchKind {
    if mask.contains(AddWatchFlags::IN_ATTRIB) {
        WatchKind::Attributes
    } else if mask.contains(AddWatchFlags::IN_CLOSE_WRITE) {
        WatchKind::Closed
    } else {
        WatchKind::Modified
    }
}

fn known(directory: bool) -> Option<FileKind> {
    directory.then_some(FileKind::Directory)
}

/// Adds an event unless it says what the one before it said.
fn push(events: &mut Vec<WatchEvent>, kind: WatchKind, path: &Path, entry: Option<FileKind>) {
    let event = WatchEvent { kind, path: path.into(), from: None, entry };
    if events.last() != Some(&event) {
        events.push(event);
    }
}
