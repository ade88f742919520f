//! What an operator can choose.

use std::path::PathBuf;

use serde::Deserialize;

use crate::{
    drivers::size::DefaultSize,
    images::{Name, Recipe},
};

/// The memory of a machine is a file while it runs. A file that can't grow would end the machine, so it is not
/// started, and not put to sleep on disk, with less room than this.
const DEFAULT_MIN_FREE_DISK_MIB: u64 = 1024;
/// More than the checkpoints that a sprite may have by default, and few enough for a start not to notice.
const DEFAULT_MAX_LAYERS: usize = 64;
/// With fewer a disk could hardly have a checkpoint; with more QEMU takes long, and says more than we read.
const LAYERS: std::ops::RangeInclusive<usize> = 4..=128;
/// Above the ids that people and services have.
const DEFAULT_FIRST_ID: u32 = 200_000;

/// The `[qemu]` table of the agent's configuration.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// QEMU.
    pub(crate) program: PathBuf,
    /// Its tool for disk images.
    pub(crate) image_program: PathBuf,
    /// The kind of machine.
    pub(crate) machine: MachineKind,
    /// How its instructions are run.
    pub(crate) accelerator: Accelerator,
    /// Where images are; `images` in the state directory if absent.
    pub(crate) images_dir: Option<PathBuf>,
    /// The image of new sprites.
    pub(crate) image: Name,
    /// Virtual CPUs of a sprite that asks for none.
    pub(crate) cpus: Option<u32>,
    /// Memory of a sprite that asks for none, in MiB.
    pub(crate) memory_mib: Option<u64>,
    /// The disk of a sprite that asks for none, in GiB.
    pub(crate) disk_gib: Option<u64>,
    /// Whether sprites reach other hosts.
    pub(crate) egress: Egress,
    /// The first of the user and group ids that machines run as, one each, where the agent is root; zero: the agent's
    /// own.
    pub(crate) first_id: u32,
    /// Room that must be free where the state directory is, in MiB.
    pub(crate) min_free_disk_mib: u64,
    /// How many layers a disk may have on each other.
    pub(crate) max_layers: usize,
}

/// Kinds of machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MachineKind {
    /// Nothing but virtio: boots fastest.
    #[default]
    Microvm,
    /// A PC with PCI Express.
    Q35,
}

/// Ways to run a machine's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accelerator {
    /// KVM where it really runs guests, else TCG.
    #[default]
    Auto,
    /// The host's CPU.
    Kvm,
    /// Translated: everywhere, and several times slower.
    Tcg,
}

/// What sprites reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Egress {
    /// Nothing beyond themselves.
    #[default]
    None,
    /// Whatever the agent's host reaches, by QEMU's user-mode network; the host's own loopback services included.
    User,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            program: "qemu-system-x86_64".into(),
            image_program: "qemu-img".into(),
            machine: MachineKind::default(),
            accelerator: Accelerator::default(),
            images_dir: None,
            image: Recipe::Default.name(),
            cpus: None,
            memory_mib: None,
            disk_gib: None,
            egress: Egress::default(),
            first_id: DEFAULT_FIRST_ID,
            min_free_disk_mib: DEFAULT_MIN_FREE_DISK_MIB,
            max_layers: DEFAULT_MAX_LAYERS,
        }
    }
}

impl Settings {
    /// Which key is wrong, and why.
    pub(crate) fn check(self) -> Result<Self, (&'static str, &'static str)> {
        match LAYERS.contains(&self.max_layers) {
            true => Ok(self),
            false => Err(("qemu.max_layers", "must be from 4 to 128")),
        }
    }

    pub(super) const fn size(&self) -> DefaultSize {
        DefaultSize { cpus: self.cpus, memory_mib: self.memory_mib, disk_gib: self.disk_gib }
    }
}
