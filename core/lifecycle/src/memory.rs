//! The host's memory: whether there is some for one more sprite, and who gives some back.
//!
//! Whoever was used last gives last. What sleeps, or could, is put to sleep more deeply, until there is room for the
//! next wake again and one more; what is in use is never touched. A wake that finds no room waits for that, and is sent
//! away when its patience is over.

use std::{collections::BTreeMap, time::Duration};

use ids::{Moment, SpriteId};

/// How long a sprite must have been idle: between two requests of one visitor it is not worth it.
const LEAST_IDLE: Duration = Duration::from_secs(1);
/// How long one that was asked to sink counts as if it did. Afterwards it may be asked again.
const SINKS_WITHIN: Duration = Duration::from_secs(10);

/// What may be taken of a host's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryLimits {
    /// How much of the host's stays free, in bytes.
    pub keep_free: u64,
    /// How much all sprites have together at most, in bytes.
    pub sprites: u64,
    /// How much a wake is taken to need, in bytes. Zero counts as one.
    pub wake: u64,
    /// How long a wake waits for memory.
    pub patience: Duration,
}

/// A sprite that has memory in RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resident {
    /// Which.
    pub sprite: SpriteId,
    /// How much, in bytes. Zero if that can't be known.
    pub bytes: u64,
    /// Since when nobody has used it, if nobody does.
    pub idle_since: Option<Moment>,
}

/// What there is to know of a host at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading<'a> {
    /// What could still be taken without disturbing anybody, in bytes.
    pub free: u64,
    /// Everyone who has some.
    pub residents: &'a [Resident],
    /// Wakes that are under way and may not have taken theirs.
    pub waking: usize,
    /// Wakes that wait for some.
    pub blocked: usize,
}

/// What follows from it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use = "a verdict that nobody carries out leaves wakes waiting"]
pub struct Verdict {
    /// How many more wakes there is memory for.
    pub room: usize,
    /// Who is to sink.
    pub sink: Vec<SpriteId>,
    /// Whether those who wait have waited for long enough.
    pub refuse: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Memory {
    limits: MemoryLimits,
    sinking: BTreeMap<SpriteId, Sinking>,
    blocked_since: Option<Moment>,
}

/// One that was asked to sink.
#[derive(Clone, Copy, Debug)]
struct Sinking {
    /// It has not been used since, or it would not be on its way any more.
    idle_since: Moment,
    until: Moment,
}

impl Memory {
    /// Nobody has been asked for anything.
    #[must_use]
    pub const fn new(limits: MemoryLimits) -> Self {
        Self { limits, sinking: BTreeMap::new(), blocked_since: None }
    }

    /// Whether the host has so much left that it does not matter who has how much.
    #[must_use]
    pub fn is_ample(&self, free: u64, waking: usize, blocked: usize) -> bool {
        let nobody = Reading { free, residents: &[], waking, blocked };
        self.limits.sprites == u64::MAX && self.spare(nobody) >= self.wanted(nobody)
    }

    /// Whether something is under way that should be looked at again soon.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.blocked_since.is_some() || !self.sinking.is_empty()
    }

    /// Looks at the host. Both the sprites' own limit and the host's free memory count, whichever leaves less.
    pub fn look(&mut self, reading: Reading<'_>, now: Moment) -> Verdict {
        let (spare, wanted) = (self.spare(reading), self.wanted(reading));
        let room = usize::try_from(spare / self.wake()).unwrap_or(0);
        let coming = self.coming(reading.residents, now);
        let sink = match spare + coming < wanted {
            // One more than that, or it would begin again with the next wake.
            true => self.choose(reading.residents, wanted + self.wake() - spare - coming, now),
            false => Vec::new(),
        };

        let stuck = reading.blocked > 0 && room == 0;
        self.blocked_since = stuck.then(|| self.blocked_since.unwrap_or(now));
        let refuse = self.blocked_since.is_some_and(|since| now - since >= self.limits.patience);
        if refuse {
            self.blocked_since = None;
        }
        Verdict { room, sink, refuse }
    }

    /// What may still be taken, in bytes, when those that wake have theirs; negative if it is too much already.
    fn spare(&self, reading: Reading<'_>) -> i128 {
        let used = reading.residents.iter().map(|resident| i128::from(resident.bytes)).sum::<i128>();
        let own = i128::from(self.limits.sprites) - used;
        let hosts = i128::from(reading.free) - i128::from(self.limits.keep_free);
        own.min(hosts) - self.wake() * count(reading.waking)
    }

    /// Room for whoever waits, or for the next to come.
    fn wanted(&self, reading: Reading<'_>) -> i128 {
        self.wake() * count(reading.blocked.max(1))
    }

    fn wake(&self) -> i128 {
        i128::from(self.limits.wake.max(1))
    }

    /// What those will give back who were asked and are still on their way, in bytes.
    fn coming(&mut self, residents: &[Resident], now: Moment) -> i128 {
        let asked = std::mem::take(&mut self.sinking);
        let mut coming = 0;
        for resident in residents {
            let Some(sinking) = asked.get(&resident.sprite) else { continue };
            if resident.idle_since == Some(sinking.idle_since) && now < sinking.until {
                coming += i128::from(resident.bytes);
                self.sinking.insert(resident.sprite, *sinking);
            }
        }
        coming
    }

    /// Those who were used longest ago and together give `needed` bytes back, or all that can.
    fn choose(&mut self, residents: &[Resident], needed: i128, now: Moment) -> Vec<SpriteId> {
        let idle = |resident: &Resident| {
            let since = resident.idle_since?;
            let gives = resident.bytes > 0 && since + LEAST_IDLE <= now;
            (gives && !self.sinking.contains_key(&resident.sprite)).then_some((
                since,
                resident.sprite,
                resident.bytes,
            ))
        };
        let mut idle = residents.iter().filter_map(idle).collect::<Vec<_>>();
        idle.sort_unstable();
        let (mut chosen, mut gives) = (Vec::new(), 0);
        for (idle_since, sprite, bytes) in idle {
            if gives >= needed {
                break;
            }
            gives += i128::from(bytes);
            self.sinking.insert(sprite, Sinking { idle_since, until: now + SINKS_WITHIN });
            chosen.push(sprite);
        }
        chosen
    }
}

fn count(count: usize) -> i128 {
    i128::try_from(count).unwrap_or(i128::MAX)
}
