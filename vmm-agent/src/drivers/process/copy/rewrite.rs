//! Small changes to a copy, before it is a sprite's.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use nix::{
    fcntl::{AT_FDCWD, OFlag, openat},
    sys::stat::{Mode, SFlag, fchmod, fstat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat},
};

use super::{kind, open_directory};

/// Replaces a small file in a tree that is nobody's yet, if it is a plain file that says something that `change`
/// changes. Its owner and mode stay.
pub(in super::super) fn rewrite(
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
