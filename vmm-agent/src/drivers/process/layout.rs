//! Where a sprite's files are on the host.
//!
//! ```text
//! {state}/sprites/{id}/
//!   ids             what 0 inside is outside, when the agent is root
//!   disk/           the sprite's root; everything in it may be hostile
//!   disk.next/      whole, and about to become the disk; if there is no disk, it is the disk
//!   checkpoints/
//!     shown/        the last ones, which the sprite sees
//!     kept/         the others
//!     unfinished/   whatever is in there when an agent starts is of no use
//!   run/
//!     runtime.sock  where the runtime is reached
//!     process.json  which process is PID 1, in which cgroups
//!     stopped.json  which processes were stopped already when it was paused by signals
//!     held          it is frozen only for the instant of a checkpoint
//!     console.log   what the runtime says about itself
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ids::{CheckpointId, SpriteId};

/// The longest path that a Unix socket can be bound to: `sun_path` less its final zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// All sprites' directories.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    sprites: PathBuf,
}

/// One sprite's directory.
#[derive(Clone, Debug)]
pub(super) struct SpriteFiles {
    root: PathBuf,
}

impl Layout {
    /// Makes the directory of all sprites, for the agent's eyes only.
    ///
    /// # Errors
    /// It can't be made, or it lies so deep that sockets in it could not be bound.
    pub(super) fn create(state: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let sprites = std::path::absolute(state)?.join("sprites");
        let layout = Self { sprites };
        let longest = layout.sprite(SpriteId::from_u128(0)).socket();
        if longest.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the state directory's path is {} bytes too long for sockets inside it: choose a shorter one",
                    longest.as_os_str().len() - MAX_SOCKET_PATH_BYTES
                ),
            ));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&layout.sprites)?;
        Ok(layout)
    }

    /// The directory that holds all sprites.
    pub(super) fn sprites(&self) -> &Path {
        &self.sprites
    }

    /// The files of one sprite, there or not.
    pub(super) fn sprite(&self, id: SpriteId) -> SpriteFiles {
        SpriteFiles { root: self.sprites.join(id.to_string()) }
    }

    /// Where a sprite is moved before it is removed, so that a removal that was interrupted can be
    /// told from a sprite.
    pub(super) fn doomed(&self, id: SpriteId) -> PathBuf {
        let free = |n: u32| self.sprites.join(format!(".removing-{id}-{n}"));
        // There may be one already: a sprite's id is its own for ever, but a prepare can be repeated.
        (0..).map(free).find(|path| !path.exists()).unwrap_or_default()
    }

    /// Removals that were interrupted.
    pub(super) fn all_doomed(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.sprites)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(".removing-") {
                found.push(entry.path());
            }
        }
        Ok(found)
    }
}

impl SpriteFiles {
    pub(super) fn root(&self) -> &Path {
        &self.root
    }
    pub(super) fn ids(&self) -> PathBuf {
        self.root.join("ids")
    }
    pub(super) fn disk(&self) -> PathBuf {
        self.root.join("disk")
    }
    /// Where a disk is made before it is given its name.
    pub(super) fn unfinished_disk(&self) -> PathBuf {
        self.root.join("disk.unfinished")
    }
    /// A disk that waits to take the place of the present one.
    pub(super) fn next_disk(&self) -> PathBuf {
        self.root.join("disk.next")
    }
    /// Checkpoints that the sprite sees.
    pub(super) fn shown(&self) -> PathBuf {
        self.root.join("checkpoints/shown")
    }
    /// Checkpoints that it does not see.
    pub(super) fn kept(&self) -> PathBuf {
        self.root.join("checkpoints/kept")
    }
    /// Where checkpoints, and disks from checkpoints, are made before they are given their names.
    pub(super) fn unfinished(&self) -> PathBuf {
        self.root.join("checkpoints/unfinished")
    }
    /// Where a checkpoint is, if there is one.
    pub(super) fn checkpoint(&self, id: CheckpointId) -> Option<PathBuf> {
        let name = id.to_string();
        [self.shown().join(&name), self.kept().join(&name)].into_iter().find(|path| path.is_dir())
    }
    pub(super) fn held(&self) -> PathBuf {
        self.root.join("run/held")
    }
    pub(super) fn run(&self) -> PathBuf {
        self.root.join("run")
    }
    pub(super) fn socket(&self) -> PathBuf {
        self.root.join("run/runtime.sock")
    }
    pub(super) fn process(&self) -> PathBuf {
        self.root.join("run/process.json")
    }
    pub(super) fn stopped(&self) -> PathBuf {
        self.root.join("run/stopped.json")
    }
    pub(super) fn console(&self) -> PathBuf {
        self.root.join("run/console.log")
    }
}
