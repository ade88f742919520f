//! The room that is left on the host's disk.

use std::{io, os::fd::OwnedFd, path::Path};

use nix::sys::statvfs::fstatvfs;

use super::{At as _, CopyError};

/// Data that is copied before the room on the disk is looked at again.
const UNCHECKED: u64 = 64 << 20;
/// A host's disk is never filled further: the agent, and the sprites that run, need some of it. The smaller one
/// counts.
const KEPT_FREE_BYTES: u64 = 1 << 30;
const KEPT_FREE_SHARE: u64 = 20;

/// Looks after the space on the host's disk.
#[derive(Debug)]
pub(super) struct Room {
    kept_free: u64,
    unchecked: u64,
}

impl Room {
    pub(super) fn of(directory: &OwnedFd) -> io::Result<Self> {
        let found = fstatvfs(directory)?;
        let size = found.blocks() * found.fragment_size();
        Ok(Self { kept_free: KEPT_FREE_BYTES.min(size / KEPT_FREE_SHARE), unchecked: 0 })
    }

    pub(super) fn left(&self, directory: &OwnedFd) -> io::Result<u64> {
        let found = fstatvfs(directory)?;
        Ok((found.blocks_available() * found.fragment_size()).saturating_sub(self.kept_free))
    }

    /// Asked before so many bytes are written.
    pub(super) fn claim(&mut self, bytes: u64, directory: &OwnedFd, path: &Path) -> Result<(), CopyError> {
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
