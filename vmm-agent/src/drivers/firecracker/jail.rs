//! What a jailed machine needs: a program of its own, and the image's files inside its root.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use super::layout::{Files, INITRAMFS, KERNEL, PROGRAM};
use crate::drivers::files::remove_if_there;

/// A copy of the program by a name that stays when it is replaced by another release: the jailer calls jails
/// after it. Blocks.
pub(super) fn own_program(state: &Path, program: &Path) -> io::Result<PathBuf> {
    let from = find(program)?;
    let dir = std::path::absolute(state)?.join("bin");
    fs::create_dir_all(&dir)?;
    let (to, new) = (dir.join(PROGRAM), dir.join("new"));
    fs::copy(&from, &new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    // A running one keeps the file that it was started from.
    fs::rename(&new, &to)?;
    Ok(to)
}

/// The path of a program that may be a name only.
fn find(program: &Path) -> io::Result<PathBuf> {
    if program.components().count() > 1 {
        return Ok(program.to_owned());
    }
    let directories = ["/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin"];
    let found = directories.iter().map(|dir| Path::new(dir).join(program)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let message = format!("there is no {} in {directories:?}; name its path", program.display());
        io::Error::new(io::ErrorKind::NotFound, message)
    })
}

/// Puts kernel and initramfs where Firecracker finds them by their plain names, and removes what the
/// jailer would not make again. Blocks.
pub(super) fn furnish(files: &Files, kernel: &Path, initramfs: &Path, uid: Option<u32>) -> io::Result<()> {
    for (from, name) in [(kernel, KERNEL), (initramfs, INITRAMFS)] {
        let to = files.machine().join(name);
        remove_if_there(&to)?;
        if uid.is_none() {
            std::os::unix::fs::symlink(from, &to)?;
            continue;
        }
        // A jailed one can't follow a link to the outside. Another filesystem needs a copy.
        if fs::hard_link(from, &to).is_err() {
            fs::copy(from, &to)?;
        }
        fs::set_permissions(&to, fs::Permissions::from_mode(0o444))?;
    }
    if uid.is_some() {
        chown(files.machine(), uid, uid)?;
        match fs::remove_dir_all(files.machine().join("dev")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
