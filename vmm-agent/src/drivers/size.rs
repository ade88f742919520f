//! How large a virtual machine is.

use super::Resources;

/// What Sprites have.
const DEFAULT_CPUS: u32 = 8;
/// What Sprites have.
const DEFAULT_MEMORY_MIB: u64 = 8192;
/// What Sprites have. It is sparse: what is not written takes no room.
const DEFAULT_DISK_GIB: u64 = 100;
/// Less does not boot.
const LEAST_MEMORY_MIB: u64 = 96;

/// What an operator gives to a sprite that asks for nothing; where he says nothing, what Sprites have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct DefaultSize {
    pub(super) cpus: Option<u32>,
    pub(super) memory_mib: Option<u64>,
    pub(super) disk_gib: Option<u64>,
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

impl DefaultSize {
    /// What a sprite that asks for `wanted` gets on `host`: what it asks for, or the default, but no more CPUs than the
    /// host has, and no more than three quarters of its memory.
    pub(super) fn of(self, wanted: Resources, host: Host) -> Size {
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
    pub(super) fn shortfall(self, host: Host) -> Option<String> {
        let size = self.of(Resources::default(), host);
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
        let settings = DefaultSize::default();
        let default = settings.of(Resources::default(), LARGE);
        assert_eq!(default, Size { cpus: 8, memory_mib: 8192, disk_gib: 100 });
        assert_eq!(settings.shortfall(LARGE), None);
        let small = settings.of(Resources::default(), SMALL);
        assert_eq!(small, Size { cpus: 2, memory_mib: 3072, disk_gib: 100 });
        assert!(settings.shortfall(SMALL).is_some_and(|words| words.contains("3072")));
        let wanted = Resources { cpus: Some(0), ram_mb: Some(1), storage_gb: Some(0) };
        assert_eq!(settings.of(wanted, LARGE), Size { cpus: 1, memory_mib: LEAST_MEMORY_MIB, disk_gib: 1 });
        let wanted = Resources { cpus: Some(16), ram_mb: Some(16_384), storage_gb: Some(7) };
        assert_eq!(settings.of(wanted, LARGE), Size { cpus: 16, memory_mib: 16_384, disk_gib: 7 });
    }
}
