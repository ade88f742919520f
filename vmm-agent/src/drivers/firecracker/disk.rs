//! The disk of a new sprite: a copy of its image's root filesystem that shares blocks where the host's
//! filesystem can, and is as large as the sprite may fill it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::chown,
    path::Path,
};

use super::layout::Files;
use crate::{
    drivers::files::{remove_if_there, sync_directory},
    sparse,
};

/// Makes the disk if there is none. Blocks.
pub(super) fn make(files: &Files, root: &Path, gib: u64, uid: Option<u32>) -> io::Result<()> {
    if files.disk().try_exists()? {
        return Ok(());
    }
    let unfinished = files.unfinished_disk();
    remove_if_there(&unfinished)?;
    let (from, to) = (File::open(root)?, File::create_new(&unfinished)?);
    sparse::copy(&from, &to)?;
    let size = from.metadata()?.len();
    // The guest finds out and grows its filesystem.
    to.set_len(size.max(gib << 30))?;
    chown(&unfinished, uid, uid)?;
    to.sync_all()?;
    fs::rename(&unfinished, files.disk())?;
    sync_directory(files.machine())
}
