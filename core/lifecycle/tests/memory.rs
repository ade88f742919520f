//! What the host's memory promises: there is room again, and nobody who is in use makes it.

use std::time::Duration;

use ids::{Moment, SpriteId};
use lifecycle::{Memory, MemoryLimits, Reading, Resident, Verdict};
use proptest::prelude::*;

/// What a wake is taken to need.
const WAKE: u64 = 100;
const LIMITS: MemoryLimits =
    MemoryLimits { keep_free: 1_000, sprites: 500, wake: WAKE, patience: Duration::from_secs(5) };
/// So much that only the sprites' own limit counts.
const PLENTY: u64 = 1_000_000;

fn at(ms: u64) -> Moment {
    Moment::from_origin(Duration::from_millis(ms))
}

fn sprite(n: u64) -> SpriteId {
    SpriteId::from_u128(n.into())
}

fn asleep(n: u64, bytes: u64, since_ms: u64) -> Resident {
    Resident { sprite: sprite(n), bytes, idle_since: Some(at(since_ms)) }
}

fn in_use(n: u64, bytes: u64) -> Resident {
    Resident { sprite: sprite(n), bytes, idle_since: None }
}

fn reading(residents: &[Resident]) -> Reading<'_> {
    Reading { free: PLENTY, residents, waking: 0, blocked: 0 }
}

fn room(room: usize) -> Verdict {
    Verdict { room, ..Verdict::default() }
}

#[test]
fn as_long_as_there_is_room_nobody_sinks() {
    let mut memory = Memory::new(LIMITS);
    assert_eq!(memory.look(reading(&[]), at(0)), room(5));
    assert_eq!(memory.look(reading(&[asleep(1, 200, 0), in_use(2, 200)]), at(60_000)), room(1));
    let one = [asleep(1, 200, 0)];
    let waking = Reading { waking: 2, ..reading(&one) };
    assert_eq!(memory.look(waking, at(60_000)), room(1), "those that wake will take theirs");
    assert!(!memory.is_pressed());
}

#[test]
fn who_was_used_longest_ago_sinks_first_and_no_more_than_needed() {
    let mut memory = Memory::new(LIMITS);
    let residents = [
        asleep(1, 120, 3_000),
        asleep(2, 120, 1_000),
        asleep(3, 120, 2_000),
        in_use(4, 50),
        asleep(5, 10, 4_000),
    ];
    // 80 are left; wanted are 100, and 100 more.
    let verdict = memory.look(reading(&residents), at(60_000));
    assert_eq!(verdict, Verdict { sink: vec![sprite(2)], ..room(0) });
    assert!(memory.is_pressed());
    assert_eq!(memory.look(reading(&residents), at(60_100)), room(0), "it is on its way");
    // It never went.
    assert_eq!(memory.look(reading(&residents), at(71_000)).sink, [sprite(2)], "it is asked again");
    let gone = [residents[0], residents[2], residents[3], residents[4]];
    assert_eq!(memory.look(reading(&gone), at(71_100)), room(2));
    assert!(!memory.is_pressed());
}

#[test]
fn one_that_is_used_again_is_not_counted_on() {
    let mut memory = Memory::new(LIMITS);
    let residents = [asleep(1, 230, 1_000), asleep(2, 230, 2_000)];
    assert_eq!(memory.look(reading(&residents), at(60_000)).sink, [sprite(1)]);
    let residents = [in_use(1, 230), asleep(2, 230, 2_000)];
    assert_eq!(memory.look(reading(&residents), at(60_100)).sink, [sprite(2)]);
}

#[test]
fn who_is_in_use_or_was_a_moment_ago_is_left_alone() {
    let mut memory = Memory::new(LIMITS);
    let residents = [in_use(1, 400), asleep(2, 90, 59_500), asleep(3, 0, 0)];
    assert_eq!(memory.look(reading(&residents), at(60_000)), room(0), "nor one of whom nothing is known");
    assert_eq!(memory.look(reading(&residents), at(60_500)).sink, [sprite(2)]);
}

#[test]
fn what_the_host_has_left_counts_as_well() {
    let mut memory = Memory::new(LIMITS);
    let residents = [asleep(1, 50, 0), asleep(2, 50, 1)];
    let tight = |free| Reading { free, ..reading(&residents) };
    assert_eq!(memory.look(tight(1_150), at(60_000)), room(1));
    assert_eq!(
        memory.look(tight(1_090), at(60_000)),
        Verdict { sink: vec![sprite(1), sprite(2)], ..room(0) }
    );
    let mut memory = Memory::new(LIMITS);
    assert_eq!(memory.look(tight(0), at(60_000)).sink.len(), 2, "much too little is no less");
}

#[test]
fn who_has_how_much_matters_only_when_it_is_limited_or_short() {
    let unlimited = Memory::new(MemoryLimits { sprites: u64::MAX, ..LIMITS });
    assert!(unlimited.is_ample(1_100, 0, 0) && unlimited.is_ample(1_100, 0, 1));
    assert!(
        !unlimited.is_ample(1_099, 0, 0)
            && !unlimited.is_ample(1_100, 1, 0)
            && !unlimited.is_ample(1_100, 0, 2)
    );
    assert!(!Memory::new(LIMITS).is_ample(PLENTY, 0, 0));
}

#[test]
fn a_wake_waits_for_memory_and_not_for_ever() {
    let mut memory = Memory::new(LIMITS);
    let full = [in_use(1, 500)];
    let blocked = |residents| Reading { blocked: 3, ..reading(residents) };
    for ms in [0, 1_000, 4_999] {
        assert_eq!(memory.look(blocked(&full), at(ms)), room(0));
        assert!(memory.is_pressed());
    }
    assert_eq!(memory.look(blocked(&full), at(5_000)), Verdict { refuse: true, ..room(0) });
    assert_eq!(memory.look(reading(&full), at(5_001)), room(0));
    // Others, later: their patience is their own.
    assert_eq!(memory.look(blocked(&full), at(60_000)), room(0));
    assert_eq!(memory.look(blocked(&[]), at(64_000)), room(5), "there is room");
    assert_eq!(memory.look(blocked(&full), at(66_000)), room(0));
}

#[test]
fn for_each_who_waits_room_is_made() {
    let mut memory = Memory::new(LIMITS);
    let residents: Vec<_> = (0..5).map(|n| asleep(n, 100, n)).collect();
    let verdict = memory.look(Reading { blocked: 2, ..reading(&residents) }, at(60_000));
    assert_eq!(verdict.sink, [0, 1, 2].map(sprite), "two, and the next to come");
}

proptest! {
    #[test]
    fn only_the_idle_sink_the_oldest_first_and_none_in_vain(
        sizes in prop::collection::vec((0..300_u64, prop::option::of(0..100_000_u64)), 0..20),
        free in 0..3_000_u64,
        waking in 0..3_usize,
        blocked in 0..3_usize,
    ) {
        let now = at(100_000);
        let residents: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(n, (bytes, since))| Resident { sprite: sprite(n as u64), bytes: *bytes, idle_since: since.map(at) })
            .collect();
        let verdict = Memory::new(LIMITS).look(Reading { free, residents: &residents, waking, blocked }, now);
        let of = |id: &SpriteId| residents.iter().find(|one| one.sprite == *id).expect("one of them");
        let sunk: Vec<_> = verdict.sink.iter().map(of).collect();
        prop_assert!(sunk.iter().all(|one| one.idle_since.is_some() && one.bytes > 0));
        prop_assert!(sunk.is_sorted_by_key(|one| one.idle_since));
        let youngest = sunk.last().and_then(|one| one.idle_since);
        let older = residents.iter().filter(|one| {
            one.bytes > 0 && one.idle_since.is_some_and(|since| Some(since) < youngest)
        });
        prop_assert!(older.clone().all(|one| verdict.sink.contains(&one.sprite)), "an older one was spared");
        let used: u64 = residents.iter().map(|one| one.bytes).sum();
        let spare = (500 - used as i64).min(free as i64 - 1_000) - (100 * waking as i64);
        prop_assert_eq!(verdict.room as i64, spare.max(0) / 100);
        let wanted = 100 * blocked.max(1) as i64;
        prop_assert!(spare < wanted || verdict.sink.is_empty(), "there was room");
        let but_the_last: u64 = sunk.iter().rev().skip(1).map(|one| one.bytes).sum();
        prop_assert!(sunk.is_empty() || spare + (but_the_last as i64) < wanted + 100, "one too many sank");
    }
}
