//! A suspended sprite's memory: written whole, used once.
//!
//! ```text
//!            create N, sync            ready.json      load N, paused        used.json       resume
//!  paused ────────────────▶ written ──────────────▶ suspended ──▶ loaded ──────────────▶ taken ────▶ running
//! ```
//!
//! Each suspension writes new files: a machine that was loaded from memory N reads from its file for as
//! long as it lives. What counts is one small file. While `ready.json` is there, nothing has run since that
//! memory was written, whoever is killed and whenever the power goes; its change of name to `used.json` is on
//! the disk before the guest's first instruction. After that the memory is never loaded again, because the disk
//! has gone on.

use std::{fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::layout::{Files, open_own};
use crate::drivers::files::{remove_if_there, sync_directory, write_durably};

/// Which memory, and what can load it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Memory {
    pub(super) number: u64,
    /// The Firecracker that wrote it, as it names itself.
    pub(super) version: String,
}

impl Memory {
    /// The name that Firecracker is told for the machine's state.
    pub(super) fn state_name(&self) -> String {
        format!("state.{}", self.number)
    }

    /// The name that Firecracker is told for the guest's memory.
    pub(super) fn memory_name(&self) -> String {
        format!("memory.{}", self.number)
    }

    /// The one that a suspended sprite goes on from.
    pub(super) fn ready(files: &Files) -> io::Result<Option<Self>> {
        read(files.ready())
    }

    /// The one that a sprite went on from.
    pub(super) fn used(files: &Files) -> io::Result<Option<Self>> {
        read(files.used())
    }

    /// The next one to be written.
    pub(super) fn next(files: &Files, version: &str) -> io::Result<Self> {
        let last = Self::used(files)?.map_or(0, |memory| memory.number);
        let memory = Self { number: last + 1, version: version.to_owned() };
        memory.remove_files(files)?;
        Ok(memory)
    }

    /// Makes it what the sprite goes on from: on the disk, and all that it needs too. Blocks.
    pub(super) fn commit(&self, files: &Files) -> io::Result<()> {
        // The guest's disk as well: memory that is newer than its disk would be the ruin of both.
        for name in [self.state_name(), self.memory_name(), super::layout::DISK.to_owned()] {
            open_own(&files.machine().join(name))?.sync_all()?;
        }
        sync_directory(files.machine())?;
        write_durably(&files.ready(), &serde_json::to_vec(self)?)
    }

    /// Takes back one that could not be committed, or perhaps was: it does not count, even after a loss of power,
    /// because the machine goes on. Blocks.
    pub(super) fn withdraw(&self, files: &Files) -> io::Result<()> {
        remove_if_there(&files.ready())?;
        sync_directory(files.root())?;
        self.remove_files(files)
    }

    /// Uses it up: once this returns it is never ready again. Blocks.
    pub(super) fn take(files: &Files) -> io::Result<()> {
        fs::rename(files.ready(), files.used())?;
        sync_directory(files.root())
    }

    /// Removes what is not `self`: memories of before. The machine that was loaded from one must be gone.
    pub(super) fn remove_older(&self, files: &Files) -> io::Result<()> {
        remove_if_there(&files.used())?;
        for entry in fs::read_dir(files.machine())? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            let is_memory = name.starts_with("state.") || name.starts_with("memory.");
            if is_memory && name != self.state_name() && name != self.memory_name() {
                remove_if_there(&files.machine().join(&*name))?;
            }
        }
        Ok(())
    }

    /// Removes one that was not finished.
    fn remove_files(&self, files: &Files) -> io::Result<()> {
        remove_if_there(&files.machine().join(self.state_name()))?;
        remove_if_there(&files.machine().join(self.memory_name()))
    }

    /// Removes all memory: the sprite starts cold next. The name that counts goes first. Blocks.
    pub(super) fn forget(files: &Files) -> io::Result<()> {
        if !files.root().try_exists()? {
            return Ok(());
        }
        remove_if_there(&files.ready())?;
        sync_directory(files.root())?;
        remove_if_there(&files.used())?;
        if !files.machine().try_exists()? {
            return Ok(());
        }
        Self { number: 0, version: String::new() }.remove_older(files)
    }
}

fn read(path: PathBuf) -> io::Result<Option<Memory>> {
    match fs::read(&path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
