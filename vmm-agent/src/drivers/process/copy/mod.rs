//! Copies a sprite's disk, which may hold anything and may be in use.
//!
//! ```text
//!  live pass: everything ──▶ live passes: what has changed since ──▶ (time stands still) last pass ──▶ finish
//! ```
//!
//! Each live pass begins with a stamp of the file system's clock and walks the tree. What was changed before the
//! stamp of the last pass has been copied as it is: whoever changes an inode, its names included, moves its
//! change time, which nobody can set. There are two ways around it. A write moves the time when it begins, and
//! its data may follow for seconds; so the stamp is taken in an instant when no system call is under way.
//! And writes through a mapping to a page that is dirty already move nothing; so what was mapped at
//! the time of the stamp counts as changed.
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
    time::{Duration, Instant},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat, futimens,
            mkdirat, mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, Uid, Whence, fchown, fchownat, ftruncate, linkat, lseek, symlinkat},
};

mod rewrite;
mod room;
mod shift;
#[cfg(test)]
mod tests;
mod wanted;

use room::Room;

pub(super) use self::{
    rewrite::rewrite,
    shift::Shift,
    wanted::{Unwanted, Wanted},
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
/// Live passes at the most. What a sprite rewrites faster than we copy is left to the last one.
const MOST_LIVE_PASSES: u32 = 5;
/// After a live pass as short as this, the last one is short, too.
const SHORT_PASS: Duration = Duration::from_millis(200);

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

/// An instant in the life of a tree.
#[derive(Debug)]
pub(super) struct Stamp {
    /// Of the file system's clock. It is coarse: what happens in the same tick counts as later.
    time: Time,
    /// The inodes whose times do not tell all.
    mapped: HashSet<u64>,
}

/// What a directory was when it was seen last. Set when all else is done: its content is made by then.
#[derive(Debug)]
struct Directory {
    inode: u64,
    meta: FileStat,
    attributes: Vec<(CString, Vec<u8>)>,
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
    /// How long the last two live passes took, the last one first.
    took: [Option<Duration>; 2],
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
            took: [None; 2],
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

    /// Whether one more live pass would make the last one shorter.
    pub(super) fn wants_live_pass(&self) -> bool {
        let gains = match self.took {
            // One pass more than seems needed: it finds little, and the last one less.
            [_, None] => true,
            [Some(took), Some(before)] => took >= SHORT_PASS && took <= before / 2,
            [None, Some(_)] => false,
        };
        // Without times, all would have to be copied again.
        self.tells_changes && self.pass < MOST_LIVE_PASSES && gains
    }

    /// Copies what has changed since the stamp of the pass before, while the tree may change. The stamp was taken
    /// a moment ago.
    pub(super) fn live_pass(&mut self, stamp: Stamp) -> Result<(), CopyError> {
        let began = Instant::now();
        self.walk(true)?;
        (self.since, self.mapped) = (Some(stamp.time), stamp.mapped);
        self.took = [Some(began.elapsed()), self.took[0]];
        Ok(())
    }

    /// What is to be known before a live pass. No system call that writes to the tree may be under way.
    /// `mapped` says which files somebody has mapped so that he can write to them.
    pub(super) fn stamp(&self, mapped: HashSet<u64>) -> io::Result<Stamp> {
        let path = self.to_path.with_extension("stamp");
        let meta = File::create(&path)?.metadata()?;
        fs::remove_file(&path)?;
        Ok(Stamp { time: (meta.ctime(), meta.ctime_nsec()), mapped })
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
