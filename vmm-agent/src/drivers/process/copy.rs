//! Copies a sprite's disk, which may hold anything and may be in use.
//!
//! ```text
//!  live pass: everything ──▶ live passes: what has changed since ──▶ (time stands still) last pass ──▶ finish
//! ```
//!
//! Each live pass takes a stamp of the file system's clock and walks the tree. What was changed before the stamp
//! of the last pass has been copied as it is: whoever changes an inode, its names included, moves its change
//! time, which nobody can set. Only writes through a mapping to a page that is dirty already don't move it; so
//! what was mapped at the time of the stamp counts as changed.
//! So the last pass, under which nothing changes, reads one entry of a directory for each file, and copies
//! only those that changed a moment ago. A directory is known by its inode: one that was moved takes along
//! what did not change, and is copied anew with all that is in it.
//!
//! Nothing leads out of the tree: directories are opened by their whole path below its root, following no
//! link, and files as files. So a hostile sprite can spoil its own copy while it runs, and nothing else; what
//! it spoiled is put right by the last pass.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{CStr, CString, OsStr},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt as _,
            fs::{FileExt as _, MetadataExt as _},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat, futimens,
            mkdirat, mknodat, utimensat,
        },
        statvfs::fstatvfs,
        time::TimeSpec,
    },
    unistd::{
        Gid, Uid, UnlinkatFlags, Whence, fchown, fchownat, ftruncate, linkat, lseek, symlinkat, unlinkat,
    },
};

use super::{removal::remove_tree, sys};
use crate::drivers::files::remove_if_there;

/// Longer paths than programs use, and short enough to stand behind that of the state directory.
const LONGEST_PATH: usize = 3_500;
/// What a copy keeps in memory is bounded by these.
const MOST_DIRECTORIES: usize = 1_000_000;
const MOST_ENTRIES: u64 = 10_000_000;
const MOST_ATTRIBUTE_BYTES: usize = 64 << 20;
/// Data that is copied at once; in between, it is seen whether somebody still wants it.
const PIECE: usize = 16 << 20;
/// Data that is copied before the room on the disk is looked at again.
const UNCHECKED: u64 = 64 << 20;
/// A host's disk is never filled further: the agent, and the sprites that run, need some of it. The smaller one
/// counts.
const KEPT_FREE_BYTES: u64 = 1 << 30;
const KEPT_FREE_SHARE: u64 = 20;
/// Live passes at the most. What a sprite rewrites faster than we copy is left to the last one.
const MOST_LIVE_PASSES: u32 = 5;
/// After a live pass as short as this, the last one is short, too.
const SHORT_PASS: Duration = Duration::from_millis(200);

/// Ends the work of whoever has the other half when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Wanted(Arc<AtomicBool>);

impl Wanted {
    pub(super) fn other_half(&self) -> Unwanted {
        Unwanted(Arc::clone(&self.0))
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// See [`Wanted`].
#[derive(Clone, Debug, Default)]
pub(super) struct Unwanted(Arc<AtomicBool>);

impl Unwanted {
    fn check(&self) -> io::Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(io::Error::new(io::ErrorKind::Interrupted, "nobody wants it any more")),
            false => Ok(()),
        }
    }
}

/// Why a disk was not copied.
#[derive(Debug)]
pub(super) enum CopyError {
    /// The host's disk would become too full.
    NoRoom { needed: u64, left: u64 },
    /// At this path inside the disk.
    At(PathBuf, io::Error),
}

trait At<T> {
    fn at(self, path: &Path) -> Result<T, CopyError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, path: &Path) -> Result<T, CopyError> {
        self.map_err(|error| CopyError::At(path.to_owned(), error.into()))
    }
}

/// Seconds and nanoseconds, as the file system has them.
type Time = (i64, i64);

/// What a directory was when it was seen last. Set when all else is done: its content is made by then.
#[derive(Debug)]
struct Directory {
    inode: u64,
    meta: FileStat,
    attributes: Vec<(CString, Vec<u8>)>,
}

/// Whose the copy is: ids of one range become those of another one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shift {
    from: u32,
    to: u32,
}

impl Shift {
    /// From the range that begins with one id to that which begins with another one.
    pub(super) const fn new(from: u32, to: u32) -> Self {
        Self { from, to }
    }

    const fn id(self, id: u32) -> u32 {
        match id.checked_sub(self.from) {
            Some(inside) if inside < super::identity::IDS_PER_SPRITE => self.to + inside,
            Some(_) | None => id,
        }
    }

    /// The ids in a POSIX access list: a header of four bytes, then tag, permissions and id of each entry.
    fn access_list(self, list: &mut [u8]) {
        const NAMED_USER: u16 = 0x02;
        const NAMED_GROUP: u16 = 0x08;
        for entry in list.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
            let (tag, rest) = entry.split_at_mut(2);
            if matches!(u16::from_le_bytes([tag[0], tag[1]]), NAMED_USER | NAMED_GROUP) {
                let id = u32::from_le_bytes([rest[2], rest[3], rest[4], rest[5]]);
                rest[2..].copy_from_slice(&self.id(id).to_le_bytes());
            }
        }
    }
}

/// A copy on its way. Blocks, wherever it does something.
#[derive(Debug)]
pub(super) struct Copying {
    from: OwnedFd,
    to: OwnedFd,
    to_path: PathBuf,
    shift: Shift,
    unwanted: Unwanted,
    room: Room,
    /// Whether the file system is thought to share content between files.
    clones: bool,
    /// Whether change times tell all changes.
    tells_changes: bool,
    /// Only root may give files away, and only files of root's sprites have several owners.
    gives_away: bool,
    /// Passes that were begun.
    pass: u32,
    /// What was changed before was copied by an earlier pass.
    since: Option<Time>,
    /// Files that were mapped then, whose times do not tell all.
    mapped: HashSet<u64>,
    directories: BTreeMap<PathBuf, Directory>,
    attribute_bytes: usize,
    /// First copies, in this pass, of files that have several names.
    links: HashMap<u64, PathBuf>,
    /// Files of which one name was copied anew, and so all have to be, to stay one file.
    split: HashSet<u64>,
}

impl Copying {
    /// Prepares to copy the tree at `from` to `to`, which becomes a directory; what is there is removed.
    ///
    /// # Errors
    /// The host's, and that the disk has no room for it.
    pub(super) fn begin(from: &Path, to: &Path, shift: Shift, unwanted: Unwanted) -> Result<Self, CopyError> {
        let top = Path::new("");
        remove_tree(to).at(top)?;
        fs::create_dir(to).at(top)?;
        let how = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = |path: &Path| nix::fcntl::open(path, how, Mode::empty()).at(top);
        let (source, target) = (open(from)?, open(to)?);
        let tells_changes = !sys::is_in_memory(source.as_fd()).at(top)?;
        let copy = Self {
            clones: can_clone(to).at(top)?,
            room: Room::of(&target).at(top)?,
            from: source,
            to: target,
            to_path: to.to_owned(),
            shift,
            unwanted,
            tells_changes,
            gives_away: Uid::effective().is_root(),
            pass: 0,
            since: None,
            mapped: HashSet::new(),
            directories: BTreeMap::new(),
            attribute_bytes: 0,
            links: HashMap::new(),
            split: HashSet::new(),
        };
        if !copy.clones {
            let (needed, left) = (copy.needed()?, copy.room.left(&copy.to).at(top)?);
            if needed > left {
                return Err(CopyError::NoRoom { needed, left });
            }
        }
        Ok(copy)
    }

    /// Copies while the tree may change, until little is left to do. `mapped` says which files somebody has
    /// mapped so that he can write to them.
    pub(super) fn live(&mut self, mapped: impl Fn() -> io::Result<HashSet<u64>>) -> Result<(), CopyError> {
        if !self.tells_changes {
            // All would have to be copied again.
            return Ok(());
        }
        let mut before = Duration::MAX;
        for pass in 1..=MOST_LIVE_PASSES {
            let (began, top) = (Instant::now(), Path::new(""));
            let (stamp, mapped) = (self.stamp().at(top)?, mapped().at(top)?);
            self.walk(true)?;
            (self.since, self.mapped) = (Some(stamp), mapped);
            let took = began.elapsed();
            // One pass more than seems needed: it finds little, and the last one less.
            if pass > 1 && (took < SHORT_PASS || took > before / 2) {
                break;
            }
            before = took;
        }
        Ok(())
    }

    /// Whoever wanted it then has it now: it is finished, whoever leaves.
    pub(super) fn be_wanted(&mut self) {
        self.unwanted = Unwanted::default();
    }

    /// Copies what has changed since, while nothing changes.
    pub(super) fn last(&mut self) -> Result<(), CopyError> {
        self.walk(false)?;
        while !self.split.is_empty() {
            self.walk(false)?;
        }
        Ok(())
    }

    /// Gives directories their owners, modes and times. When this returns the copy is on the disk, whole.
    pub(super) fn finish(self) -> Result<(), CopyError> {
        // The deepest first: the mode of one may forbid its owner to enter it.
        for (path, Directory { meta, attributes, .. }) in self.directories.iter().rev() {
            let directory = open_directory(&self.to, path).at(path)?;
            self.give(&directory, meta).at(path)?;
            for (name, value) in attributes {
                self.set_attribute(directory.as_fd(), name, value).at(path)?;
            }
            let (accessed, modified) = times(meta);
            futimens(&directory, &accessed, &modified).at(path)?;
        }
        sys::sync_file_system(&self.to_path).at(Path::new(""))
    }

    /// About how many bytes the files take.
    fn needed(&self) -> Result<u64, CopyError> {
        let (mut bytes, mut seen, mut waiting) = (0, HashSet::new(), vec![PathBuf::new()]);
        while let Some(path) = waiting.pop() {
            let Ok(directory) = open_directory(&self.from, &path) else { continue };
            self.unwanted.check().at(&path)?;
            let mut directory = Dir::from_fd(directory).at(&path)?;
            for name in names(&mut directory).at(&path)? {
                let Ok(meta) = fstatat(&directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else {
                    continue;
                };
                match kind(&meta) {
                    SFlag::S_IFDIR => waiting.push(path.join(OsStr::from_bytes(name.to_bytes()))),
                    SFlag::S_IFREG if meta.st_nlink < 2 || seen.insert(meta.st_ino) => {
                        bytes += on_disk(&meta);
                    }
                    _ => {}
                }
            }
        }
        Ok(bytes)
    }

    /// The time of the file system's clock. It is coarse: what happens in the same tick counts as later.
    fn stamp(&self) -> io::Result<Time> {
        let path = self.to_path.with_extension("stamp");
        let meta = File::create(&path)?.metadata()?;
        fs::remove_file(&path)?;
        Ok((meta.ctime(), meta.ctime_nsec()))
    }

    fn walk(&mut self, live: bool) -> Result<(), CopyError> {
        self.pass += 1;
        let split = std::mem::take(&mut self.split);
        self.links.clear();
        let before = std::mem::take(&mut self.directories);
        self.attribute_bytes = 0;
        let mut walk = Walk { live, split, before, waiting: vec![(PathBuf::new(), false)], entries: 0 };
        while let Some((path, moved)) = walk.waiting.pop() {
            self.directory(&path, moved, &mut walk)?;
        }
        Ok(())
    }

    /// `moved`: it lies in a directory that is copied anew.
    fn directory(&mut self, path: &Path, moved: bool, walk: &mut Walk) -> Result<(), CopyError> {
        self.unwanted.check().at(path)?;
        if path.as_os_str().len() > LONGEST_PATH || self.directories.len() == MOST_DIRECTORIES {
            let limit = format!(
                "a disk is copied with up to {MOST_DIRECTORIES} directories and paths of up to {LONGEST_PATH} bytes"
            );
            return Err(CopyError::At(path.to_owned(), io::Error::other(limit)));
        }
        let source = match open_directory(&self.from, path) {
            Err(error) if walk.tolerates(error) => return Ok(()),
            other => other.at(path)?,
        };
        let meta = fstat(&source).at(path)?;
        let known = walk.before.remove(path).filter(|known| !moved && known.inode == meta.st_ino);
        let (is_new, has_changed) = (known.is_none(), !self.is_settled(&meta));
        if is_new && !path.as_os_str().is_empty() {
            if self.pass > 1 {
                remove_tree(&self.to_path.join(path)).at(path)?;
            }
            mkdirat(&self.to, path, Mode::S_IRWXU).at(path)?;
        }
        let target = open_directory(&self.to, path).at(path)?;
        let mut source = Dir::from_fd(source).at(path)?;
        let found = names(&mut source).at(path)?;
        walk.entries += found.len() as u64;
        if walk.entries > MOST_ENTRIES {
            let limit = format!("a disk is copied with up to {MOST_ENTRIES} files");
            return Err(CopyError::At(path.to_owned(), io::Error::other(limit)));
        }
        if !is_new && has_changed {
            self.remove_others(path, &target, &found).at(path)?;
        }
        for name in found {
            let below = path.join(OsStr::from_bytes(name.to_bytes()));
            let meta = match fstatat(&source, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(error) if walk.tolerates(error) => continue,
                other => other.at(&below)?,
            };
            if kind(&meta) == SFlag::S_IFDIR {
                walk.waiting.push((below, is_new));
                continue;
            }
            let is_split = walk.split.contains(&meta.st_ino);
            if !is_new && !is_split && self.is_settled(&meta) {
                continue;
            }
            if self.pass > 1 {
                remove_tree(&self.to_path.join(&below)).at(&below)?;
            }
            let entry = Entry { source: source.as_fd(), target: &target, name: &name, path: &below };
            match self.entry(&entry, &meta, is_split) {
                Err(CopyError::At(_, error))
                    if error.raw_os_error().is_some_and(|code| walk.tolerates(Errno::from_raw(code))) => {}
                other => other?,
            }
        }
        let attributes = match known {
            Some(known) if !has_changed => known.attributes,
            Some(_) | None => attributes(source.as_fd()).at(path)?,
        };
        self.attribute_bytes += attributes.iter().map(|(_, value)| value.len()).sum::<usize>();
        if self.attribute_bytes > MOST_ATTRIBUTE_BYTES {
            let limit = "the extended attributes of the disk's directories are too many";
            return Err(CopyError::At(path.to_owned(), io::Error::other(limit)));
        }
        let directory = Directory { inode: meta.st_ino, meta, attributes };
        self.directories.insert(path.to_owned(), directory);
        Ok(())
    }

    /// Whether an earlier pass has copied it as it is now, if it was where it is now.
    fn is_settled(&self, meta: &FileStat) -> bool {
        let is_older = self.since.is_some_and(|since| (meta.st_ctime, meta.st_ctime_nsec) < since);
        is_older && !self.mapped.contains(&meta.st_ino)
    }

    /// Removes from the copy what the directory does not hold any more.
    fn remove_others(&self, path: &Path, target: &OwnedFd, found: &[CString]) -> io::Result<()> {
        let found: HashSet<&CString> = found.iter().collect();
        let mut target = Dir::from_fd(target.try_clone()?)?;
        for name in names(&mut target)? {
            if !found.contains(&name) {
                remove_tree(&self.to_path.join(path).join(OsStr::from_bytes(name.to_bytes())))?;
            }
        }
        Ok(())
    }

    /// Copies anything but a directory.
    fn entry(&mut self, entry: &Entry<'_>, meta: &FileStat, is_split: bool) -> Result<(), CopyError> {
        let Entry { source, target, name, path } = *entry;
        if meta.st_nlink > 1 {
            let first = self.links.get(&meta.st_ino);
            let is_linked =
                first.map(|first| linkat(&self.to, first, target, name, AtFlags::empty()).is_ok());
            match is_linked {
                Some(true) => return Ok(()),
                // It came with a directory that was moved. Other names of it, which are not looked at in this
                // pass, are to be the same file.
                None if !is_split && self.is_settled(meta) => {
                    self.split.insert(meta.st_ino);
                }
                // There are too many links to the first one already; or it is the first one.
                Some(false) | None => {}
            }
            self.links.insert(meta.st_ino, path.to_owned());
        }
        match kind(meta) {
            SFlag::S_IFREG => self.file(entry),
            SFlag::S_IFLNK => {
                let to = readlinkat(source, name).at(path)?;
                symlinkat(to.as_os_str(), target, name).at(path)?;
                self.dress(target, name, meta).at(path)
            }
            special @ (SFlag::S_IFIFO | SFlag::S_IFSOCK) => {
                mknodat(target, name, special, Mode::S_IRUSR, 0).at(path)?;
                let mode = Mode::from_bits_truncate(meta.st_mode);
                self.dress(target, name, meta).at(path)?;
                fchmodat(target, name, mode, FchmodatFlags::FollowSymlink).at(path)
            }
            // No sprite can make one.
            _ => Ok(()),
        }
    }

    fn file(&mut self, entry: &Entry<'_>) -> Result<(), CopyError> {
        let Entry { source, target, name, path } = *entry;
        // What was a file a moment ago may be a FIFO by now, which must not stop us.
        let reading =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOATIME | OFlag::O_CLOEXEC;
        let from = File::from(openat(source, name, reading, Mode::empty()).at(path)?);
        let meta = fstat(&from).at(path)?;
        if kind(&meta) != SFlag::S_IFREG {
            return Err(CopyError::At(path.to_owned(), Errno::ENOENT.into()));
        }
        let writing = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let to = File::from(openat(target, name, writing, Mode::S_IRUSR | Mode::S_IWUSR).at(path)?);
        self.content(&from, &to, &meta, path)?;
        self.give(&to, &meta).at(path)?;
        for (name, value) in attributes(from.as_fd()).at(path)? {
            self.set_attribute(to.as_fd(), &name, &value).at(path)?;
        }
        let (accessed, modified) = times(&meta);
        futimens(&to, &accessed, &modified).at(path)
    }

    fn content(&mut self, from: &File, to: &File, meta: &FileStat, path: &Path) -> Result<(), CopyError> {
        if self.clones {
            match sys::clone_file(from.as_fd(), to.as_fd()) {
                Err(error) if error.raw_os_error().is_some_and(can_not_clone) => self.clones = false,
                other => return other.at(path),
            }
        }
        self.room.claim(on_disk(meta), &self.to, path)?;
        ftruncate(to, meta.st_size).at(path)?;
        let mut at = 0;
        while at < meta.st_size {
            let (start, end) = match lseek(from, at, Whence::SeekData) {
                Err(Errno::ENXIO) => break, // only a hole is left
                Err(Errno::EINVAL) => (at, meta.st_size),
                other => {
                    let start = other.at(path)?;
                    (start, lseek(from, start, Whence::SeekHole).at(path)?.min(meta.st_size))
                }
            };
            if !self.range(from, to, start, end).at(path)? {
                break;
            }
            at = end.max(start + 1);
        }
        Ok(())
    }

    /// Copies from one offset to another; false if the file has become shorter.
    fn range(&self, from: &File, to: &File, mut start: i64, end: i64) -> io::Result<bool> {
        let mut buffer = Vec::new();
        while start < end {
            self.unwanted.check()?;
            let length = usize::try_from(end - start).map_or(PIECE, |left| left.min(PIECE));
            let copied = match sys::copy_range(from.as_fd(), to.as_fd(), start, length) {
                Err(error) if error.raw_os_error().is_some_and(can_not_copy_range) => {
                    buffer.resize(length.min(1 << 20), 0);
                    let read = from.read_at(&mut buffer, start.unsigned_abs())?;
                    to.write_all_at(&buffer[..read], start.unsigned_abs())?;
                    read
                }
                other => other?,
            };
            if copied == 0 {
                return Ok(false);
            }
            start += copied as i64;
        }
        Ok(true)
    }

    /// Owner, then mode: a change of the owner takes bits of the mode away.
    fn give(&self, file: &impl std::os::fd::AsFd, meta: &FileStat) -> io::Result<()> {
        if self.gives_away {
            fchown(file, Some(self.owner(meta)), Some(self.group(meta)))?;
        }
        Ok(fchmod(file, Mode::from_bits_truncate(meta.st_mode))?)
    }

    /// Owner and times of what can't be opened.
    fn dress(&self, at: &OwnedFd, name: &CStr, meta: &FileStat) -> io::Result<()> {
        if self.gives_away {
            let (owner, group) = (Some(self.owner(meta)), Some(self.group(meta)));
            fchownat(at, name, owner, group, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        let (accessed, modified) = times(meta);
        Ok(utimensat(at, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?)
    }

    fn owner(&self, meta: &FileStat) -> Uid {
        Uid::from_raw(self.shift.id(meta.st_uid))
    }

    fn group(&self, meta: &FileStat) -> Gid {
        Gid::from_raw(self.shift.id(meta.st_gid))
    }

    fn set_attribute(&self, file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
        let mut value = value.to_owned();
        if name.to_bytes().starts_with(ACCESS_LISTS) {
            self.shift.access_list(&mut value);
        }
        match sys::set_attribute(file, name, &value) {
            // Capabilities of programs, which an agent that is not root can't give. They have no effect: a
            // sprite's disk is mounted so.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && !self.gives_away => Ok(()),
            other => other,
        }
    }
}

/// One pass over the tree.
struct Walk {
    live: bool,
    /// Files whose every name is copied anew.
    split: HashSet<u64>,
    before: BTreeMap<PathBuf, Directory>,
    waiting: Vec<(PathBuf, bool)>,
    entries: u64,
}

impl Walk {
    /// Whether it is what happens when somebody moves things under our hands. A later pass sees them.
    fn tolerates(&self, error: Errno) -> bool {
        self.live
            && matches!(
                error,
                Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR | Errno::ENXIO | Errno::EINVAL | Errno::ENODATA
            )
    }
}

/// One name in a directory, and where it goes.
#[derive(Clone, Copy)]
struct Entry<'a> {
    source: BorrowedFd<'a>,
    target: &'a OwnedFd,
    name: &'a CStr,
    path: &'a Path,
}

/// Looks after the space on the host's disk.
#[derive(Debug)]
struct Room {
    kept_free: u64,
    unchecked: u64,
}

impl Room {
    fn of(directory: &OwnedFd) -> io::Result<Self> {
        let found = fstatvfs(directory)?;
        let size = found.blocks() * found.fragment_size();
        Ok(Self { kept_free: KEPT_FREE_BYTES.min(size / KEPT_FREE_SHARE), unchecked: 0 })
    }

    fn left(&self, directory: &OwnedFd) -> io::Result<u64> {
        let found = fstatvfs(directory)?;
        Ok((found.blocks_available() * found.fragment_size()).saturating_sub(self.kept_free))
    }

    /// Asked before so many bytes are written.
    fn claim(&mut self, bytes: u64, directory: &OwnedFd, path: &Path) -> Result<(), CopyError> {
        self.unchecked += bytes;
        if self.unchecked < UNCHECKED {
            return Ok(());
        }
        let left = self.left(directory).at(path)?;
        if left < self.unchecked {
            return Err(CopyError::NoRoom { needed: self.unchecked, left });
        }
        self.unchecked = 0;
        Ok(())
    }
}

/// POSIX access lists have two names that begin so.
const ACCESS_LISTS: &[u8] = b"system.posix_acl_";

/// The extended attributes that belong to the files, and not to the host's way of keeping them.
fn attributes(file: BorrowedFd<'_>) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let names = match sys::attribute_names(file) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let wanted = |name: &CString| {
        let name = name.to_bytes();
        name.starts_with(b"user.") || name.starts_with(ACCESS_LISTS) || name == b"security.capability"
    };
    names.into_iter().filter(wanted).map(|name| Ok((name.clone(), sys::attribute(file, &name)?))).collect()
}

/// Opens a directory below `top`, whatever the path has become: no link is followed, and nothing above.
fn open_directory(top: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOATIME | OFlag::O_CLOEXEC)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
    openat2(top, path, how)
}

/// What a directory holds.
fn names(directory: &mut Dir) -> nix::Result<Vec<CString>> {
    directory
        .iter()
        .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
        .filter(|name| !matches!(name.as_deref().map(CStr::to_bytes), Ok(b"." | b"..")))
        .collect()
}

fn kind(meta: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(meta.st_mode & SFlag::S_IFMT.bits())
}

/// Blocks are counted in units of 512 bytes, whatever the file system has.
fn on_disk(meta: &FileStat) -> u64 {
    meta.st_blocks.unsigned_abs() * 512
}

/// Last access and last change.
fn times(meta: &FileStat) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(meta.st_atime, meta.st_atime_nsec), TimeSpec::new(meta.st_mtime, meta.st_mtime_nsec))
}

const fn can_not_clone(code: i32) -> bool {
    matches!(code, libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL | libc::EXDEV | libc::ENOSYS)
}

const fn can_not_copy_range(code: i32) -> bool {
    matches!(code, libc::EINVAL | libc::EXDEV | libc::ENOSYS | libc::EOPNOTSUPP)
}

/// Whether files in a directory can share content.
fn can_clone(directory: &Path) -> io::Result<bool> {
    let (one, other) = (directory.with_extension("one"), directory.with_extension("other"));
    let tried = fs::write(&one, "x").and_then(|()| {
        let (from, to) = (File::open(&one)?, File::create(&other)?);
        Ok(sys::clone_file(from.as_fd(), to.as_fd()).is_ok())
    });
    for path in [one, other] {
        remove_if_there(&path)?;
    }
    tried
}

/// Replaces a small file in a tree that is nobody's yet, if it is a plain file that says something that `change`
/// changes. Its owner and mode stay.
pub(super) fn rewrite(
    top: &Path,
    path: &Path,
    change: impl FnOnce(&str) -> Option<String>,
) -> io::Result<()> {
    const LARGEST: usize = 64 << 10;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let how = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let top = nix::fcntl::openat(AT_FDCWD, top, how, Mode::empty())?;
    // It may be anything, a link too; then it is left alone.
    let Ok(parent) = open_directory(&top, parent) else { return Ok(()) };
    let reading = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let Ok(file) = openat(&parent, name, reading, Mode::empty()) else { return Ok(()) };
    let meta = fstat(&file)?;
    if kind(&meta) != SFlag::S_IFREG {
        return Ok(());
    }
    let mut text = vec![0; LARGEST];
    let length = File::from(file).read_at(&mut text, 0)?;
    let Some(text) = std::str::from_utf8(&text[..length]).ok().and_then(change) else { return Ok(()) };
    unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir)?;
    let writing = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = File::from(openat(&parent, name, writing, Mode::S_IRUSR | Mode::S_IWUSR)?);
    file.write_all_at(text.as_bytes(), 0)?;
    if Uid::effective().is_root() {
        fchown(&file, Some(Uid::from_raw(meta.st_uid)), Some(Gid::from_raw(meta.st_gid)))?;
    }
    Ok(fchmod(&file, Mode::from_bits_truncate(meta.st_mode))?)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink},
        sync::atomic::AtomicU32,
    };

    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
    use sha2::{Digest as _, Sha256};

    use super::{super::mapped, *};

    /// A directory that goes with the test.
    struct Trees(PathBuf);

    impl Trees {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("copy-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(path.join("from")).unwrap();
            Self(path)
        }

        fn from(&self) -> PathBuf {
            self.0.join("from")
        }

        fn to(&self) -> PathBuf {
            self.0.join("to")
        }

        fn begin(&self) -> Copying {
            Copying::begin(&self.from(), &self.to(), Shift::new(0, 0), Unwanted::default()).unwrap()
        }

        fn copy(&self) {
            let mut copy = self.begin();
            copy.last().unwrap();
            copy.finish().unwrap();
        }

        fn are_equal(&self) {
            let (from, to) = (manifest(&self.from()), manifest(&self.to()));
            for (path, is) in &from {
                assert_eq!(to.get(path), Some(is), "{}", path.display());
            }
            assert_eq!(from.len(), to.len());
        }
    }

    impl Drop for Trees {
        fn drop(&mut self) {
            remove_tree(&self.0).unwrap();
        }
    }

    /// All that can be told of a tree, and which names are one file.
    fn manifest(top: &Path) -> BTreeMap<PathBuf, String> {
        let (mut found, mut waiting, mut first) = (BTreeMap::new(), vec![top.to_owned()], HashMap::new());
        while let Some(path) = waiting.pop() {
            let meta = path.symlink_metadata().unwrap();
            let inside = path.strip_prefix(top).unwrap().to_owned();
            let kind = meta.file_type();
            let what = if kind.is_symlink() {
                format!("-> {:?}", fs::read_link(&path).unwrap())
            } else if kind.is_file() {
                let text = fs::read(&path).unwrap();
                format!("{} bytes {:x}", text.len(), Sha256::digest(text))
            } else if kind.is_dir() {
                let mut entries: Vec<_> =
                    fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
                entries.sort();
                waiting.extend(entries.into_iter().rev());
                "directory".to_owned()
            } else {
                format!("fifo {}", kind.is_fifo())
            };
            let attributes = match kind.is_file() || kind.is_dir() {
                true => attributes(File::open(&path).unwrap().as_fd()).unwrap(),
                false => Vec::new(),
            };
            let link = first.entry(meta.ino()).or_insert_with(|| inside.clone());
            let (owner, mode) = ((meta.uid(), meta.gid()), meta.mode());
            let changed = (meta.mtime(), meta.mtime_nsec());
            found.insert(
                inside,
                format!("{what} {owner:?} {mode:o} {changed:?} {attributes:?} as {}", link.display()),
            );
        }
        found
    }

    fn set_attribute(path: &Path, name: &CStr, value: &[u8]) {
        sys::set_attribute(File::open(path).unwrap().as_fd(), name, value).unwrap();
    }

    #[test]
    fn all_that_a_tree_holds_is_kept() {
        let trees = Trees::new();
        let from = trees.from();
        fs::create_dir_all(from.join("a/b/c")).unwrap();
        fs::write(from.join("a/file"), "content").unwrap();
        fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(from.join("a/file"), from.join("a/b/other name")).unwrap();
        symlink("/etc/passwd", from.join("a/b/out")).unwrap();
        symlink("nowhere", from.join("a/b/c/dangling")).unwrap();
        nix::unistd::mkfifo(&from.join("fifo"), Mode::S_IRUSR | Mode::S_IWGRP).unwrap();
        drop(std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap());
        fs::write(from.join(OsStr::from_bytes(b"not \xff text\n")), "x").unwrap();
        set_attribute(&from.join("a/file"), c"user.one", b"1");
        set_attribute(&from.join("a/b"), c"user.two", b"22");
        fs::set_permissions(from.join("a/b"), fs::Permissions::from_mode(0o1555)).unwrap();
        if Uid::effective().is_root() {
            std::os::unix::fs::lchown(from.join("a/b/out"), Some(7), Some(8)).unwrap();
            std::os::unix::fs::chown(from.join("a/file"), Some(9), Some(10)).unwrap();
            fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o4000)).unwrap();
        }
        trees.copy();
        trees.are_equal();
        assert!(trees.to().join("fifo").symlink_metadata().unwrap().file_type().is_fifo());
    }

    #[test]
    fn holes_stay_holes() {
        let trees = Trees::new();
        let path = trees.from().join("sparse");
        let file = File::create(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"in the middle", 1 << 30).unwrap();
        file.write_all_at(b"at the end", (1 << 40) - 10).unwrap();
        trees.copy();
        let (from, to) = (path.metadata().unwrap(), trees.to().join("sparse").metadata().unwrap());
        assert_eq!((to.len(), to.mtime_nsec()), (from.len(), from.mtime_nsec()));
        assert!(to.blocks() <= from.blocks() + 16, "{} blocks", to.blocks());
        let mut text = [0; 13];
        File::open(trees.to().join("sparse")).unwrap().read_exact_at(&mut text, 1 << 30).unwrap();
        assert_eq!(&text, b"in the middle");
    }

    #[test]
    fn a_moved_directory_and_links_into_it_are_seen() {
        let trees = Trees::new();
        let from = trees.from();
        for name in ["one", "two"] {
            fs::create_dir_all(from.join(name).join("deep")).unwrap();
            fs::write(from.join(name).join("deep/file"), name).unwrap();
        }
        fs::hard_link(from.join("one/deep/file"), from.join("link")).unwrap();
        let mut copy = trees.begin();
        copy.live(|| Ok(HashSet::new())).unwrap();
        fs::rename(from.join("one"), from.join("was one")).unwrap();
        fs::rename(from.join("two"), from.join("one")).unwrap();
        fs::rename(from.join("was one"), from.join("two")).unwrap();
        copy.last().unwrap();
        copy.finish().unwrap();
        trees.are_equal();
    }

    /// One random change to a tree, of the kinds that programs make.
    fn change(random: &mut StdRng, top: &Path) -> io::Result<()> {
        let name = |random: &mut StdRng| format!("n{}", random.random_range(0..6));
        let mut at = top.to_owned();
        for _ in 0..random.random_range(0..4) {
            let below = at.join(name(random));
            if below.is_dir() && !below.is_symlink() {
                at = below;
            }
        }
        let (one, other) = (at.join(name(random)), top.join(name(random)));
        match random.random_range(0..10) {
            0 | 1 => fs::create_dir(one),
            2 => fs::write(one, vec![random.random::<u8>(); random.random_range(0..2_000)]),
            3 => File::options().append(true).open(one)?.write_all_at(b"more", 0),
            4 => fs::rename(one, other),
            5 => fs::rename(other, one),
            6 => fs::hard_link(one, other),
            7 => fs::remove_file(one),
            8 => symlink(name(random), one),
            _ => fs::set_permissions(one, fs::Permissions::from_mode(0o700 | random.random_range(0..0o77))),
        }
    }

    #[test]
    fn whatever_happens_meanwhile_the_copy_is_the_tree_at_the_cut() {
        for seed in 0..20 {
            let trees = Trees::new();
            let from = trees.from();
            let mut random = StdRng::seed_from_u64(seed);
            for _ in 0..2_000 {
                // Most fail: there is nothing there, or something else.
                let _often = change(&mut random, &from);
            }
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let (from, done) = (&from, &done);
                let busy = scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let _often = change(&mut random, from);
                    }
                });
                let mut copy = trees.begin();
                let lived = copy.live(|| Ok(HashSet::new()));
                done.store(true, Ordering::Relaxed);
                busy.join().unwrap();
                lived.unwrap();
                copy.last().unwrap();
                copy.finish().unwrap();
            });
            trees.are_equal();
        }
    }

    #[test]
    fn writes_through_a_mapping_are_seen() {
        let trees = Trees::new();
        let path = trees.from().join("mapped");
        fs::write(&path, vec![0; 8192]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                8192,
                protection,
                flags,
                std::os::fd::AsRawFd::as_raw_fd(&file),
                0,
            )
        };
        assert_ne!(map, libc::MAP_FAILED);
        // SAFETY: inside the mapping, which stays until the test's process ends.
        let write = |value: u8| unsafe { map.cast::<u8>().write_volatile(value) };
        write(1);
        let mut copy = trees.begin();
        copy.live(|| mapped::written_by(nix::unistd::getpid())).unwrap();
        write(2);
        copy.last().unwrap();
        copy.finish().unwrap();
        assert_eq!(fs::read(trees.to().join("mapped")).unwrap()[0], 2);
    }

    #[test]
    fn a_copy_that_nobody_wants_ends() {
        let trees = Trees::new();
        fs::write(trees.from().join("file"), "x").unwrap();
        let wanted = Wanted::default();
        let half = wanted.other_half();
        let mut copy = Copying::begin(&trees.from(), &trees.to(), Shift::new(0, 0), half).unwrap();
        drop(wanted);
        assert!(
            matches!(copy.last(), Err(CopyError::At(_, error)) if error.kind() == io::ErrorKind::Interrupted)
        );
    }

    #[test]
    fn ids_are_shifted_within_their_range_only() {
        let shift = Shift::new(100_000, 165_536);
        assert_eq!([0, 100_000, 165_535, 165_536].map(|id| shift.id(id)), [0, 165_536, 231_071, 165_536]);
        let mut list = vec![2, 0, 0, 0, 2, 0, 7, 0];
        list.extend_from_slice(&100_007_u32.to_le_bytes());
        shift.access_list(&mut list);
        assert_eq!(list[8..], 165_543_u32.to_le_bytes());
    }

    #[test]
    fn only_plain_files_are_rewritten() {
        let trees = Trees::new();
        let (from, outside) = (trees.from(), trees.0.join("outside"));
        fs::create_dir(from.join("etc")).unwrap();
        fs::write(from.join("etc/hostname"), "old\n").unwrap();
        fs::write(&outside, "old\n").unwrap();
        symlink("../../outside", from.join("etc/hosts")).unwrap();
        symlink("..", from.join("up")).unwrap();
        for path in ["etc/hostname", "etc/hosts", "up/outside", "none", "etc"] {
            rewrite(&from, Path::new(path), |text| Some(text.replace("old", "new"))).unwrap();
        }
        assert_eq!(fs::read_to_string(from.join("etc/hostname")).unwrap(), "new\n");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "old\n");
    }
}
