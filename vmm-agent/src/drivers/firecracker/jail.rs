//! What a jailed machine needs: a user of its own, and the image's files inside its root.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use super::layout::{Files, INITRAMFS, KERNEL, Layout, PROGRAM};
use crate::drivers::files::{remove_if_there, write_durably};

/// The user that a sprite's machine runs as: the one that it has, or the first that no other one has. One
/// caller at a time.
pub(super) fn user(layout: &Layout, files: &Files, first: u32) -> io::Result<u32> {
    if let Some(uid) = read(&files.uid())? {
        return Ok(uid);
    }
    let mut taken = BTreeSet::new();
    for entry in fs::read_dir(layout.sprites())? {
        taken.extend(read(&entry?.path().join("uid"))?);
    }
    let uid = (first..).find(|uid| !taken.contains(uid)).ok_or(io::ErrorKind::StorageFull)?;
    write_durably(&files.uid(), uid.to_string().as_bytes())?;
    Ok(uid)
}

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

fn read(path: &Path) -> io::Result<Option<u32>> {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
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

#[cfg(test)]
mod tests {
    use ids::SpriteId;

    use super::{super::layout::Jailed, *};

    #[test]
    fn two_sprites_have_two_users_and_keep_them() {
        let state = tempfile::tempdir().unwrap();
        let layout = Layout::create(state.path(), Jailed::Yes).unwrap();
        let user_of = |number| {
            let files = layout.sprite(SpriteId::from_u128(number));
            fs::create_dir_all(files.root()).unwrap();
            user(&layout, &files, 500).unwrap()
        };
        assert_eq!((user_of(1), user_of(2), user_of(1)), (500, 501, 500));
        fs::remove_dir_all(layout.sprite(SpriteId::from_u128(1)).root()).unwrap();
        assert_eq!(user_of(3), 500, "one that was destroyed needs none");
    }
}
