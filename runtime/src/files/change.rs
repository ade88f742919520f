//! Moving, copying, removing files, and changing whose they are and what may be done with them.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink},
    path::{Path, PathBuf},
};

use nix::sys::{
    stat::{UtimensatFlags, utimensat},
    time::TimeSpec,
};
use serde::Serialize;
use walkdir::WalkDir;

use super::{
    Account, AccountKind, Code, Fault,
    content::{Upload, open},
    fault::at,
};

/// Paths that an answer names; it counts all.
const MAX_NAMED: usize = 1_000;
/// How much is copied at a time.
const BLOCK_BYTES: usize = 256 * 1024;

/// What was changed.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    pub(crate) paths: Vec<String>,
    pub(crate) count: u64,
}

impl Touched {
    fn note(&mut self, path: &Path) {
        self.count += 1;
        if self.paths.len() < MAX_NAMED {
            self.paths.push(path.display().to_string());
        }
    }
}

/// What was copied.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    pub(crate) files: Vec<Pair>,
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

/// From where to where.
#[derive(Debug, Serialize)]
pub(crate) struct Pair {
    source: String,
    dest: String,
}

/// Moves a file or directory, replacing a file that is in the way.
pub(crate) fn rename(source: &Path, dest: &Path) -> Result<(), Fault> {
    not_the_root(source)?;
    match fs::rename(source, dest) {
        // Such as from the disk to /run: copied, then removed.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy(source, dest, true, true)?;
            delete(source, true).map(drop)
        }
        // The message names the one that is missing, which the system does not say.
        Err(error) if error.kind() == io::ErrorKind::NotFound && source.symlink_metadata().is_ok() => {
            Err(Fault::of(&error, dest.parent().unwrap_or(dest)))
        }
        other => other.map_err(at(source)),
    }
}

/// Removes a file, a link, or a directory; one that is not empty only if `recursive`.
pub(crate) fn delete(path: &Path, recursive: bool) -> Result<Touched, Fault> {
    not_the_root(path)?;
    let is_dir = path.symlink_metadata().map_err(at(path))?.is_dir();
    match (is_dir, recursive) {
        (false, _) => fs::remove_file(path),
        (true, true) => fs::remove_dir_all(path),
        (true, false) => fs::remove_dir(path),
    }
    .map_err(at(path))?;
    let mut touched = Touched::default();
    touched.note(path);
    Ok(touched)
}

fn not_the_root(path: &Path) -> Result<(), Fault> {
    if path == Path::new("/") {
        return Err(Fault::new(Code::Denied, "the root of the sprite's files stays where it is", path));
    }
    Ok(())
}

/// Copies a file, or a directory with all below it. An existing directory takes the copy into itself, as `cp`
/// does. Links are copied as links.
pub(crate) fn copy(source: &Path, dest: &Path, recursive: bool, preserve: bool) -> Result<Copied, Fault> {
    let metadata = source.symlink_metadata().map_err(at(source))?;
    let mut dest = dest.to_owned();
    if dest.is_dir()
        && let Some(name) = source.file_name()
    {
        dest.push(name);
    }
    if metadata.is_dir() {
        if !recursive {
            let message = format!("{}: is a directory; copy it with recursive", source.display());
            return Err(Fault::new(Code::IsDirectory, message, source));
        }
        let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let parent = dest.parent().map(whole).unwrap_or_default();
        if parent.starts_with(whole(source)) {
            let message = format!("{} can't be copied into itself", source.display());
            return Err(Fault::new(Code::Invalid, message, source));
        }
    }
    let mut copied = Copied::default();
    for found in WalkDir::new(source).follow_links(false) {
        let found = found.map_err(|error| Fault::of(&error.into(), source))?;
        let below = found.path().strip_prefix(source).unwrap_or(Path::new(""));
        let to = if below.as_os_str().is_empty() { dest.clone() } else { dest.join(below) };
        copied.bytes += copy_one(found.path(), &to, preserve)?;
        copied.count += 1;
        if copied.files.len() < MAX_NAMED {
            let pair = Pair { source: found.path().display().to_string(), dest: to.display().to_string() };
            copied.files.push(pair);
        }
    }
    Ok(copied)
}

/// Returns how many bytes it has.
fn copy_one(from: &Path, to: &Path, preserve: bool) -> Result<u64, Fault> {
    let metadata = from.symlink_metadata().map_err(at(from))?;
    let mut bytes = 0;
    if metadata.is_dir() {
        match fs::create_dir(to) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(to)(error)),
            Ok(()) | Err(_) => {}
        }
    } else if metadata.is_symlink() {
        let target = fs::read_link(from).map_err(at(from))?;
        match fs::remove_file(to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(to)(error)),
            Ok(()) | Err(_) => {}
        }
        symlink(target, to).map_err(at(to))?;
    } else {
        let mut contents = open(from)?;
        let mut upload = Upload::begin(to, Some(metadata.mode() & 0o7777), false)?;
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let read = io::Read::read(&mut contents.file, &mut block).map_err(at(from))?;
            if read == 0 {
                break;
            }
            upload.write(&block[..read])?;
        }
        bytes = upload.finish()?.0;
    }
    if preserve {
        preserve_attributes(&metadata, to)?;
    }
    Ok(bytes)
}

fn preserve_attributes(metadata: &fs::Metadata, to: &Path) -> Result<(), Fault> {
    lchown(to, Some(metadata.uid()), Some(metadata.gid())).map_err(at(to))?;
    if !metadata.is_symlink() {
        fs::set_permissions(to, Permissions::from_mode(metadata.mode() & 0o7777)).map_err(at(to))?;
    }
    let accessed = TimeSpec::new(metadata.atime(), metadata.atime_nsec());
    let modified = TimeSpec::new(metadata.mtime(), metadata.mtime_nsec());
    utimensat(nix::fcntl::AT_FDCWD, to, &accessed, &modified, UtimensatFlags::NoFollowSymlink)
        .map_err(|errno| Fault::of(&errno.into(), to))
}

/// Changes what may be done with a file, or with all of a tree. Links in a tree are left alone.
pub(crate) fn change_mode(path: &Path, mode: u32, recursive: bool) -> Result<Touched, Fault> {
    each(path, recursive, |path, metadata| {
        if metadata.is_symlink() {
            return Ok(false);
        }
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(at(path)).map(|()| true)
    })
}

/// Changes whom a file, or all of a tree, belongs to: links themselves, not what they lead to.
pub(crate) fn change_owner(
    path: &Path,
    user: Option<&Account>,
    group: Option<&Account>,
    recursive: bool,
) -> Result<Touched, Fault> {
    let uid = user.map(|user| user.id(AccountKind::User)).transpose()?;
    let gid = group.map(|group| group.id(AccountKind::Group)).transpose()?;
    each(path, recursive, |path, _| lchown(path, uid, gid).map_err(at(path)).map(|()| true))
}

/// Does something with `path`, which may be a link to what is meant, and with all below it.
fn each(
    path: &Path,
    recursive: bool,
    mut change: impl FnMut(&Path, &fs::Metadata) -> Result<bool, Fault>,
) -> Result<Touched, Fault> {
    let root: PathBuf = path.canonicalize().map_err(at(path))?;
    let depth = if recursive { usize::MAX } else { 0 };
    let mut touched = Touched::default();
    // Children first: a directory that is closed is still walked.
    for found in WalkDir::new(&root).follow_links(false).max_depth(depth).contents_first(true) {
        let found = found.map_err(|error| Fault::of(&error.into(), path))?;
        let metadata = found.metadata().map_err(|error| Fault::of(&error.into(), path))?;
        if change(found.path(), &metadata)? {
            touched.note(found.path());
        }
    }
    Ok(touched)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("a/b")).expect("made");
        fs::write(dir.path().join("a/one"), "1").expect("written");
        fs::write(dir.path().join("a/b/two"), "22").expect("written");
        symlink("/etc/passwd", dir.path().join("a/out")).expect("linked");
        dir
    }

    #[test]
    fn a_tree_is_copied_with_its_links_and_never_into_itself() {
        let dir = tree();
        let (source, dest) = (dir.path().join("a"), dir.path().join("c"));
        assert_eq!(copy(&source, &dest, false, false).expect_err("not recursive").code, Code::IsDirectory);
        let copied = copy(&source, &dest, true, true).expect("copied");
        assert_eq!((copied.count, copied.bytes), (5, 3));
        assert_eq!(fs::read_link(dest.join("out")).expect("a link"), Path::new("/etc/passwd"));
        assert_eq!(fs::read(dest.join("b/two")).expect("there"), b"22");
        // Once more: into the directory that is there now.
        copy(&source, &dest, true, false).expect("copied");
        assert!(dest.join("a/one").exists());
        for inside in ["a", "a/b", "a/b/new"] {
            let fault = copy(&source, &dir.path().join(inside), true, false).expect_err(inside);
            assert_eq!(fault.code, Code::Invalid, "{inside}");
        }
    }

    #[test]
    fn only_an_empty_directory_is_removed_by_mistake() {
        let dir = tree();
        let full = dir.path().join("a");
        assert_eq!(delete(&full, false).expect_err("not empty").code, Code::NotEmpty);
        assert_eq!(delete(Path::new("/"), true).expect_err("the root").code, Code::Denied);
        delete(&full.join("out"), true).expect("the link");
        assert!(Path::new("/etc/passwd").exists(), "not what it leads to");
        assert_eq!(delete(&full, true).expect("removed").count, 1);
        assert_eq!(delete(&full, true).expect_err("gone").code, Code::NotFound);
    }

    #[test]
    fn modes_change_in_a_tree_and_not_beyond_its_links() {
        let dir = tree();
        let before = fs::metadata("/etc/passwd").expect("there").mode();
        let touched = change_mode(&dir.path().join("a"), 0o700, true).expect("changed");
        assert_eq!(touched.count, 4);
        assert_eq!(fs::metadata("/etc/passwd").expect("there").mode(), before);
        assert_eq!(fs::metadata(dir.path().join("a/b/two")).expect("there").mode() & 0o7777, 0o700);
        assert_eq!(change_mode(&dir.path().join("a"), 0o755, false).expect("changed").count, 1);
    }

    #[test]
    fn a_rename_says_which_end_is_missing() {
        let dir = tree();
        let to = dir.path().join("none/x");
        let fault = rename(&dir.path().join("a/one"), &to).expect_err("no such directory");
        assert!(fault.to_string().contains("none"), "{fault}");
        let fault = rename(&dir.path().join("gone"), &dir.path().join("x")).expect_err("missing");
        assert!(fault.to_string().contains("gone"), "{fault}");
        rename(&dir.path().join("a"), &dir.path().join("z")).expect("moved");
        assert!(dir.path().join("z/b/two").exists());
    }
}
