//! Removes a sprite's disk, which may hold anything: links to the host's files, directories that
//! forbid everything, or a chain of directories deeper than any stack and any limit of descriptors.
//!
//! It may also hold millions of files, which takes minutes; so it is done behind everybody's back, by
//! one thread, which the next agent continues where this one is killed.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, renameat},
    sys::stat::{FchmodatFlags, Mode, fchmodat},
    unistd::{UnlinkatFlags, unlinkat},
};

/// Directories below this depth are moved up before they are emptied. Each level holds a descriptor.
const MAX_DEPTH: usize = 32;

/// Disks that wait to be removed. One more, and a destroy waits: so they can't grow without limit.
const MAX_WAITING: usize = 4096;

/// Removes trees one after the other. Dropping it leaves what is not removed yet to the next one.
#[derive(Debug)]
pub(super) struct Remover {
    trees: Option<mpsc::SyncSender<PathBuf>>,
    leaving: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Remover {
    /// Starts the thread, which calls `remove` with each tree.
    pub(super) fn start(remove: impl Fn(&Path) + Send + 'static) -> io::Result<Self> {
        let (trees, receiver) = mpsc::sync_channel::<PathBuf>(MAX_WAITING);
        let leaving = Arc::new(AtomicBool::new(false));
        let left = Arc::clone(&leaving);
        let work = move || {
            for tree in receiver {
                if left.load(Ordering::Relaxed) {
                    break;
                }
                remove(&tree);
            }
        };
        let thread = std::thread::Builder::new().name("remover".into()).spawn(work)?;
        Ok(Self { trees: Some(trees), leaving, thread: Some(thread) })
    }

    /// Has a tree removed soon.
    pub(super) fn remove(&self, tree: PathBuf) {
        if let Some(trees) = &self.trees {
            // Fails only if the thread has panicked; then the next agent removes it.
            let _next_time = trees.send(tree);
        }
    }
}

impl Drop for Remover {
    fn drop(&mut self) {
        self.leaving.store(true, Ordering::Relaxed);
        drop(self.trees.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported where it happened.
            let _panicked = thread.join();
        }
    }
}

/// Removes a tree that may not be there. Links are removed, never followed.
///
/// # Errors
/// The host's; what has been removed by then stays removed, and calling again goes on.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(meta) if !meta.is_dir() => return fs::remove_file(path),
        Ok(_) => {}
    }
    make_accessible(nix::fcntl::AT_FDCWD, path)?;
    let top = Dir::open(path, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut removal = Removal { top: top.as_fd(), moved_up: 0 };
    // A pass moves up what lies too deep; the next one empties that.
    loop {
        let before = removal.moved_up;
        let mut dir =
            Dir::open(path, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
        removal.empty(&mut dir, 0)?;
        if removal.moved_up == before {
            break;
        }
    }
    fs::remove_dir(path)
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    moved_up: u64,
}

impl Removal<'_> {
    fn empty(&mut self, dir: &mut Dir, depth: usize) -> io::Result<()> {
        // Read to the end first: removing while reading may skip entries.
        let names = dir
            .iter()
            .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
            .filter(|name| !matches!(name.as_deref().map(std::ffi::CStr::to_bytes), Ok(b"." | b"..")))
            .collect::<nix::Result<Vec<_>>>()?;
        for name in names {
            match unlinkat(dir.as_fd(), name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => continue,
                // It is a directory.
                Err(Errno::EISDIR | Errno::EPERM) => {}
                Err(error) => return Err(error.into()),
            }
            make_accessible(dir.as_fd(), name.as_c_str())?;
            if depth == MAX_DEPTH {
                self.moved_up += 1;
                // Longer than any name that a program inside would have had reason to choose, and if
                // one did, the rename refuses to replace a directory that is not empty.
                let aside = format!(".removing-what-lay-too-deep-{}-{}", std::process::id(), self.moved_up);
                renameat(dir.as_fd(), name.as_c_str(), self.top, aside.as_str())?;
                continue;
            }
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut child = Dir::openat(dir.as_fd(), name.as_c_str(), flags, Mode::empty())?;
            self.empty(&mut child, depth + 1)?;
            match unlinkat(dir.as_fd(), name.as_c_str(), UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// An agent that is not root can't empty a directory that its owner, itself, may not write.
fn make_accessible(at: BorrowedFd<'_>, name: &(impl nix::NixPath + ?Sized)) -> io::Result<()> {
    let all = Mode::S_IRWXU;
    let meta = nix::sys::stat::fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if Mode::from_bits_truncate(meta.st_mode).contains(all) {
        return Ok(());
    }
    // It was seen not to be a link, and whoever could make it one has ended.
    fchmodat(at, name, all, FchmodatFlags::FollowSymlink)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{PermissionsExt as _, symlink},
        path::PathBuf,
    };

    use super::*;

    fn tempdir(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("removal-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn links_are_not_followed_and_closed_directories_are_opened() {
        let files = tempdir("links");
        let (doomed, kept) = (files.join("doomed"), files.join("kept"));
        fs::create_dir_all(doomed.join("closed/inside")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        symlink(&kept, doomed.join("link")).unwrap();
        symlink(&kept, doomed.join("closed/inside/link")).unwrap();
        fs::set_permissions(doomed.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree(&doomed).unwrap();
        assert!(!doomed.exists());
        assert!(kept.join("file").exists());
        remove_tree(&doomed).unwrap();
        remove_tree(&files).unwrap();
    }

    #[test]
    fn no_depth_is_too_deep() {
        let files = tempdir("deep");
        // Made from inside: no path could name the last of them.
        let mut at = fs::File::open(&files).unwrap();
        for _ in 0..1000 {
            nix::sys::stat::mkdirat(at.as_fd(), "d", Mode::S_IRWXU).unwrap();
            let below = nix::fcntl::openat(at.as_fd(), "d", OFlag::O_DIRECTORY, Mode::empty()).unwrap();
            at = fs::File::from(below);
        }
        drop(at);
        remove_tree(&files).unwrap();
        assert!(!files.exists());
    }
}
