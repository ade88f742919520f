//! Looking after the host's memory: a thin shell around [`lifecycle::Memory`].
//!
//! It looks once a second, and more often while somebody waits for memory or gives some back: how much the sprites have,
//! how much the host has left, and who has been idle for how long. Sprites that are to sink are told, and decide
//! themselves; wakes that need memory get their turns accordingly.

use std::{collections::HashMap, fs, io, sync::Arc, time::Duration};

use ids::SpriteId;
use lifecycle::{Memory, MemoryLimits, Reading, Residence, Resident, Verdict};
use serde::Deserialize;
use tokio::{task::spawn_blocking, time::sleep};
use tracing::{info, warn};

use crate::{agent::Agent, sprite::Message};

/// Between two looks when all is well.
const CALM: Duration = Duration::from_secs(1);
/// Between two looks when somebody waits, or is on its way.
const PRESSED: Duration = Duration::from_millis(50);
/// Below this the host itself hardly works.
const LEAST_KEPT_FREE_MIB: u64 = 256;
/// Which part of the host's memory stays free by default.
const KEPT_FREE_PART: u64 = 16;

/// The `[memory]` table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// How much of the host's stays free; a part of it by default.
    keep_free_mib: Option<u64>,
    /// How much all sprites have together at most; as much as there is by default.
    sprites_mib: Option<u64>,
    /// What a wake is taken to need.
    wake_mib: u64,
    /// How long a wake waits for memory.
    patience_ms: u64,
}

impl Default for Settings {
    /// A small machine after its boot, or a web server with some room; and what most visitors bear.
    fn default() -> Self {
        Self { keep_free_mib: None, sprites_mib: None, wake_mib: 128, patience_ms: 5_000 }
    }
}

impl Settings {
    /// Which key is wrong, and why.
    pub(crate) const fn check(self) -> Result<Self, (&'static str, &'static str)> {
        if self.wake_mib == 0 {
            return Err((
                "memory.wake_mib",
                "must be at least 1: a wake that needs nothing is always let in",
            ));
        }
        Ok(self)
    }

    fn limits(self, host: Option<Host>) -> MemoryLimits {
        let bytes = |mib: u64| mib.saturating_mul(1 << 20);
        let kept_free = || {
            let part = host.map_or(0, |host| host.total / KEPT_FREE_PART);
            part.max(bytes(LEAST_KEPT_FREE_MIB))
        };
        MemoryLimits {
            keep_free: self.keep_free_mib.map_or_else(kept_free, bytes),
            sprites: self.sprites_mib.map_or(u64::MAX, bytes),
            wake: bytes(self.wake_mib),
            patience: Duration::from_millis(self.patience_ms),
        }
    }
}

/// Looks after it until the agent stops.
pub(crate) async fn look_after(agent: Arc<Agent>) {
    let host = Host::read();
    if let Err(error) = &host {
        warn!(%error, "The host does not say how much memory it has left; only memory.sprites_mib counts");
    }
    let mut memory = Memory::new(agent.config.memory.limits(host.ok()));
    let mut known = Known::new();
    loop {
        // Where the host does not say, the sprites' own limit is all there is.
        let free = Host::read().map_or(u64::MAX, |host| host.free);
        let (waking, blocked) = agent.wakes.wanting_memory();
        let residents = if memory.is_ample(free, waking, blocked) {
            Vec::new()
        } else {
            let (agent, known_so_far) = (Arc::clone(&agent), std::mem::take(&mut known));
            let read = spawn_blocking(move || residents(&agent, known_so_far));
            let Ok((residents, now_known)) = read.await else { return };
            known = now_known;
            residents
        };
        let reading = Reading { free, residents: &residents, waking, blocked };
        carry_out(&agent, memory.look(reading, agent.now()));
        let pause = if memory.is_pressed() { PRESSED } else { CALM };
        tokio::select! {
            () = sleep(pause) => {}
            // Whoever comes now finds somebody who waits already.
            () = agent.wakes.memory_is_wanted(), if !memory.is_pressed() => {}
            () = agent.shutdown.cancelled() => return,
        }
    }
}

/// What the sprites have of the host's memory, and what it has left, in bytes. Blocks.
pub(crate) fn measure(agent: &Agent) -> (u64, u64) {
    let (residents, _) = residents(agent, Known::new());
    let free = Host::read().map_or(0, |host| host.free);
    (residents.iter().map(|resident| resident.bytes).sum(), free)
}

fn carry_out(agent: &Agent, Verdict { room, sink, refuse }: Verdict) {
    if !sink.is_empty() {
        info!(
            sprites = sink.len(),
            "The host is short of memory; those that were used longest ago give theirs back"
        );
    }
    for sprite in sink {
        agent.metrics.squeezed.inc();
        // One that can't even be told is busy. It is asked again.
        let _told = agent.sprite(sprite).is_some_and(|handle| handle.tell_now(Message::Squeeze));
    }
    agent.wakes.set_room(room);
    if refuse {
        let refused = agent.wakes.refuse_heavy();
        warn!(refused, "Wakes were refused: the host's memory is full of sprites that are in use");
    }
}

/// What those have that stand still: it does not change.
type Known = HashMap<SpriteId, (Residence, u64)>;

/// Reads who has how much. Blocks.
fn residents(agent: &Agent, known: Known) -> (Vec<Resident>, Known) {
    let mut now_known = Known::new();
    let mut residents = Vec::new();
    for (sprite, residence) in agent.residences() {
        let (idle_since, stands_still) = match residence {
            Residence::None => continue,
            Residence::InUse => (None, false),
            Residence::Idle(since) => (Some(since), false),
            Residence::Asleep(since) => (Some(since), true),
        };
        let bytes = match known.get(&sprite) {
            Some((before, bytes)) if stands_still && *before == residence => *bytes,
            _ => agent.driver.footprint(sprite),
        };
        if stands_still {
            now_known.insert(sprite, (residence, bytes));
        }
        residents.push(Resident { sprite, bytes, idle_since });
    }
    (residents, now_known)
}

/// The host's memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Host {
    total: u64,
    /// What can be had without taking anything from anybody. Files that are mapped count as taken, though the kernel
    /// could read them again: the RAM of a virtual machine is one.
    free: u64,
}

impl Host {
    fn read() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/meminfo")?)
    }

    fn parse(text: &str) -> io::Result<Self> {
        let bytes = |name: &str| -> io::Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            let kib = kib.ok_or_else(|| io::Error::other(format!("/proc/meminfo has no {name}")))?;
            Ok(kib.saturating_mul(1024))
        };
        let free = bytes("MemAvailable")?.saturating_sub(bytes("Mapped")?);
        Ok(Self { total: bytes("MemTotal")?, free })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_own_words_are_understood() {
        let text = "MemTotal:       24576000 kB\nMemFree:         1 kB\nMemAvailable:   20480000 kB\n\
            MappedOther:    1 kB\nMapped:           480000 kB\n";
        let host = Host::parse(text).unwrap();
        assert_eq!(host, Host { total: 24_576_000 << 10, free: 20_000_000 << 10 });
        assert!(
            Host::parse("MemTotal: 1 kB\nMapped: 1 kB\n").unwrap_err().to_string().contains("MemAvailable")
        );
        assert!(Host::read().unwrap().free <= Host::read().unwrap().total);
    }

    #[test]
    fn by_default_a_part_of_the_host_stays_free_and_sprites_have_the_rest() {
        let host = |mib: u64| Some(Host { total: mib << 20, free: 0 });
        let limits = Settings::default().limits(host(65_536));
        assert_eq!((limits.keep_free, limits.sprites), (4_096 << 20, u64::MAX));
        assert_eq!(Settings::default().limits(host(1_024)).keep_free, LEAST_KEPT_FREE_MIB << 20);
        let chosen = Settings { keep_free_mib: Some(7), sprites_mib: Some(9), ..Settings::default() };
        let limits = chosen.limits(None);
        assert_eq!((limits.keep_free, limits.sprites), (7 << 20, 9 << 20));
    }
}
