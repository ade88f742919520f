//! Where a sprite's files are on the host.
//!
//! ```text
//! {state}/sprites/{id}/
//!   uid               the user that QEMU runs as, if it is not the agent's
//!   layers.json       which layers its disk has
//!   layers/           what it has changed of its image, layer by layer
//!   memory/
//!     ram             its memory, while it runs and while it is suspended
//!     state           its devices and CPUs: there only while it is suspended
//!     manifest.json   what made the state, and whether all of it is on disk
//!   kept/{id}/        a copy of memory/ as it was at a checkpoint, until a fork takes it
//!   run/
//!     v.sock          where its runtime is reached; served by the agent
//!     mux.sock        its serial port; served by QEMU
//!     qmp.sock        where QEMU is commanded
//!     process.json    which process QEMU is
//!     machine.json    what the machine is made of
//!     console.log     what kernel and runtime say
//!     qemu.log        what QEMU says
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ids::SpriteId;

/// The longest path that a Unix socket can be bound to: `sun_path` less its final zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// All sprites' directories.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    sprites: PathBuf,
}

/// One sprite's directory.
#[derive(Clone, Debug)]
pub(super) struct Files {
    root: PathBuf,
}

impl Layout {
    /// Makes the directory of all sprites, for the agent's eyes only.
    ///
    /// # Errors
    /// It can't be made, or it lies so deep that sockets in it could not be bound.
    pub(super) fn create(state: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let layout = Self { sprites: std::path::absolute(state)?.join("sprites") };
        let longest = layout.sprite(SpriteId::from_u128(0)).multiplexed();
        if let Some(over @ 1..) = longest.as_os_str().len().checked_sub(MAX_SOCKET_PATH_BYTES) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the state directory's path is {over} bytes too long for sockets in it: choose a shorter one"
                ),
            ));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&layout.sprites)?;
        Ok(layout)
    }

    /// The files of one sprite, there or not.
    pub(super) fn sprite(&self, id: SpriteId) -> Files {
        Files { root: self.sprites.join(id.to_string()) }
    }

    /// The directory of all sprites.
    pub(super) fn sprites(&self) -> &Path {
        &self.sprites
    }

    /// Where a sprite is moved before it is removed, so that a removal that was interrupted can be
    /// told from a sprite.
    pub(super) fn doomed(&self, id: SpriteId) -> PathBuf {
        self.sprites.join(format!(".removing-{id}"))
    }

    /// Removes what interrupted removals have left.
    pub(super) fn remove_doomed(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.sprites)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(".removing-") {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Files {
    pub(super) fn root(&self) -> &Path {
        &self.root
    }
    /// What QEMU, which runs in the sprite's directory, calls one of its files.
    pub(super) fn inside<'a>(&self, file: &'a Path) -> &'a Path {
        file.strip_prefix(&self.root).unwrap_or(file)
    }
    pub(super) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }
    pub(super) fn layers_record(&self) -> PathBuf {
        self.root.join("layers.json")
    }
    pub(super) fn memory(&self) -> PathBuf {
        self.root.join("memory")
    }
    pub(super) fn ram(&self) -> PathBuf {
        self.root.join("memory/ram")
    }
    pub(super) fn state(&self) -> PathBuf {
        self.root.join("memory/state")
    }
    /// A state that is being written.
    pub(super) fn unfinished_state(&self) -> PathBuf {
        self.root.join("memory/state.unfinished")
    }
    /// A state that is being loaded, or was.
    pub(super) fn used_state(&self) -> PathBuf {
        self.root.join("memory/state.used")
    }
    pub(super) fn manifest(&self) -> PathBuf {
        self.root.join("memory/manifest.json")
    }
    /// Copies of the memory that forks are to have.
    pub(super) fn kept(&self) -> PathBuf {
        self.root.join("kept")
    }
    pub(super) fn run(&self) -> PathBuf {
        self.root.join("run")
    }
    pub(super) fn vsock(&self) -> PathBuf {
        self.root.join("run/v.sock")
    }
    pub(super) fn multiplexed(&self) -> PathBuf {
        self.root.join("run/mux.sock")
    }
    pub(super) fn monitor(&self) -> PathBuf {
        self.root.join("run/qmp.sock")
    }
    pub(super) fn process(&self) -> PathBuf {
        self.root.join("run/process.json")
    }
    pub(super) fn words(&self) -> PathBuf {
        self.root.join("run/machine.json")
    }
    pub(super) fn console(&self) -> PathBuf {
        self.root.join("run/console.log")
    }
    pub(super) fn log(&self) -> PathBuf {
        self.root.join("run/qemu.log")
    }
}
