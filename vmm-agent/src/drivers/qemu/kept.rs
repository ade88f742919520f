//! Copies of a sprite's memory that forks go on from.
//!
//! A copy belongs to a checkpoint, which is the disk at the same instant, and is the whole directory of a memory: it is
//! there under its name when it is whole, and is taken by one rename. Nobody wakes the source meanwhile: the lifecycle
//! makes no other driver call while it cuts a checkpoint.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use ids::CheckpointId;

use super::{layout::Files, memory};
use crate::{drivers::files::write_whole, sparse};

/// How much a copy takes of the host's disk at most, in bytes.
pub(super) fn size(files: &Files) -> io::Result<u64> {
    /// What the host counts by.
    const BLOCK_BYTES: u64 = 512;
    let of = |file: PathBuf| Ok::<u64, io::Error>(fs::metadata(file)?.blocks() * BLOCK_BYTES);
    Ok(of(files.ram())? + of(files.state())?)
}

/// Copies the memory of a suspended sprite. Blocks.
pub(super) fn keep(files: &Files, checkpoint: &CheckpointId) -> io::Result<()> {
    let kept = of(files, checkpoint);
    let unfinished = kept.with_extension("unfinished");
    for old in [&kept, &unfinished] {
        remove(old)?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(&unfinished)?;
    // The names are those of the directory of a memory, in which it will be.
    let inside = |file: &Path| unfinished.join(file.file_name().unwrap_or_default());
    for file in [files.ram(), files.state()] {
        let copy = File::options().write(true).create_new(true).mode(0o600).open(inside(&file))?;
        sparse::copy(&File::open(&file)?, &copy)?;
    }
    write_whole(&inside(&files.manifest()), &memory::describe_copy(files)?)?;
    fs::rename(&unfinished, &kept)
}

/// Makes a copy the memory of a new sprite; `false` if there is none.
pub(super) fn take(files: &Files, checkpoint: &CheckpointId, fork: &Files) -> io::Result<bool> {
    let kept = of(files, checkpoint);
    if !kept.try_exists()? {
        return Ok(false);
    }
    // The place of a directory that is empty, or not there.
    fs::create_dir_all(fork.root())?;
    fs::rename(kept, fork.memory())?;
    Ok(true)
}

/// Forgets a copy that nobody has taken.
pub(super) fn forget(files: &Files, checkpoint: &CheckpointId) -> io::Result<()> {
    remove(&of(files, checkpoint))
}

/// Forgets what an earlier agent left.
pub(super) fn forget_all(files: &Files) -> io::Result<()> {
    remove(&files.kept())
}

fn of(files: &Files, checkpoint: &CheckpointId) -> PathBuf {
    files.kept().join(checkpoint.to_string())
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
