//! What an operator can choose.

use std::path::PathBuf;

use serde::Deserialize;

use crate::{
    drivers::Resources,
    images::{Name, Recipe},
};

/// What Sprites have.
const DEFAULT_CPUS: u32 = 8;
/// What Sprites have.
const DEFAULT_MEMORY_MIB: u64 = 8192;
/// What Sprites have. It is sparse: what is not written takes no room.
const DEFAULT_DISK_GIB: u64 = 100;
/// Less does not boot.
const LEAST_MEMORY_MIB: u64 = 96;
/// The memory of a machine is a file while it runs. A file that can't grow would end the machine, so it is not
/// started, and not put to sleep on disk, with less room than this.
const DEFAULT_MIN_FREE_DISK_MIB: u64 = 1024;

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
    /// Room that must be free where the state directory is, in MiB.
    pub(crate) min_free_disk_mib: u64,
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
            min_free_disk_mib: DEFAULT_MIN_FREE_DISK_MIB,
        }
    }
}

/// What a machine gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Size {
    pub(super) cpus: u32,
    pub(super) memory_mib: u64,
    pub(super) disk_gib: u64,
}

/// What the host has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Host {
    pub(super) cpus: u32,
    pub(super) memory_mib: u64,
}

impl Host {
    pub(super) fn look() -> std::io::Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib: u64 = total
            .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok())
            .ok_or_else(|| std::io::Error::other("/proc/meminfo has no MemTotal"))?;
        Ok(Self { cpus: u32::try_from(cpus).unwrap_or(u32::MAX), memory_mib: kib / 1024 })
    }
}

impl Settings {
    /// What a sprite that asks for `wanted` gets on `host`: what it asks for, or the default, but no more CPUs than the
    /// host has, and no more than three quarters of its memory.
    pub(super) fn size(&self, wanted: Resources, host: Host) -> Size {
        let cpus = wanted.cpus.or(self.cpus).unwrap_or(DEFAULT_CPUS);
        let memory = wanted.ram_mb.or(self.memory_mib).unwrap_or(DEFAULT_MEMORY_MIB);
        let most_memory = (host.memory_mib / 4 * 3).max(LEAST_MEMORY_MIB);
        Size {
            cpus: cpus.clamp(1, host.cpus),
            memory_mib: memory.clamp(LEAST_MEMORY_MIB, most_memory),
            disk_gib: wanted.storage_gb.or(self.disk_gib).unwrap_or(DEFAULT_DISK_GIB).max(1),
        }
    }

    /// What the host is too small for, in words; `None` if it is large enough for the defaults.
    pub(super) fn shortfall(&self, host: Host) -> Option<String> {
        let size = self.size(Resources::default(), host);
        let cpus = self.cpus.unwrap_or(DEFAULT_CPUS);
        let memory = self.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB);
        (size.cpus < cpus || size.memory_mib < memory).then(|| {
            format!(
                "sprites get {} CPUs and {} MiB instead of {cpus} and {memory}: the host has {} CPUs and {} MiB",
                size.cpus, size.memory_mib, host.cpus, host.memory_mib
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Host = Host { cpus: 2, memory_mib: 4096 };
    const LARGE: Host = Host { cpus: 64, memory_mib: 262_144 };

    #[test]
    fn a_sprite_gets_what_it_asks_for_as_far_as_the_host_has_it() {
        let settings = Settings::default();
        let default = settings.size(Resources::default(), LARGE);
        assert_eq!(default, Size { cpus: 8, memory_mib: 8192, disk_gib: 100 });
        assert_eq!(settings.shortfall(LARGE), None);
        let small = settings.size(Resources::default(), SMALL);
        assert_eq!(small, Size { cpus: 2, memory_mib: 3072, disk_gib: 100 });
        assert!(settings.shortfall(SMALL).is_some_and(|words| words.contains("3072")));
        let wanted = Resources { cpus: Some(0), ram_mb: Some(1), storage_gb: Some(0) };
        assert_eq!(settings.size(wanted, LARGE), Size { cpus: 1, memory_mib: LEAST_MEMORY_MIB, disk_gib: 1 });
        let wanted = Resources { cpus: Some(16), ram_mb: Some(16_384), storage_gb: Some(7) };
        assert_eq!(settings.size(wanted, LARGE), Size { cpus: 16, memory_mib: 16_384, disk_gib: 7 });
    }
}
