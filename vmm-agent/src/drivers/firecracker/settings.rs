//! What an operator can choose.

use std::path::PathBuf;

use serde::Deserialize;

use crate::{drivers::size::DefaultSize, images};

/// Above the ids that systems hand out to users, below none that they reserve.
const DEFAULT_FIRST_ID: u32 = 200_000;

/// The `[firecracker]` table of the agent's configuration.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Firecracker.
    pub(crate) program: PathBuf,
    /// Its jailer, of the same release, if every machine is to have a user and a root of its own; needs root.
    pub(crate) jailer: Option<PathBuf>,
    /// The first of the user and group ids that jailed machines run as, one each.
    pub(crate) first_id: u32,
    /// Where images are; `images` in the state directory if absent.
    pub(crate) images_dir: Option<PathBuf>,
    /// The image of new sprites.
    pub(crate) image: images::Name,
    /// How the memory of a sprite comes back from disk.
    pub(crate) memory_backend: MemoryBackend,
    /// Whether what a guest says on its serial port is kept, for finding out why it does not boot.
    pub(crate) console: bool,
    /// Virtual CPUs of a sprite that asks for none.
    pub(crate) cpus: Option<u32>,
    /// Memory of a sprite that asks for none, in MiB.
    pub(crate) memory_mib: Option<u64>,
    /// The disk of a sprite that asks for none, in GiB.
    pub(crate) disk_gib: Option<u64>,
}

/// Ways to bring memory back from disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MemoryBackend {
    /// The kernel maps the file.
    #[default]
    File,
    /// A process of ours brings each page that is missed.
    Uffd,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            program: "firecracker".into(),
            jailer: None,
            first_id: DEFAULT_FIRST_ID,
            images_dir: None,
            image: images::Recipe::Default.name(),
            memory_backend: MemoryBackend::default(),
            console: false,
            cpus: None,
            memory_mib: None,
            disk_gib: None,
        }
    }
}

impl Settings {
    pub(super) const fn size(&self) -> DefaultSize {
        DefaultSize { cpus: self.cpus, memory_mib: self.memory_mib, disk_gib: self.disk_gib }
    }
}
