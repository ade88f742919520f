//! What the host's wake scheduler promises (T18).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ids::{OrgSlug, SpriteId};
use lifecycle::{Ask, Full, Load, WakeLimits, Wakes};
use proptest::prelude::*;

const LIMITS: WakeLimits = WakeLimits { at_once: 4, queued: 1_000, queued_per_organization: 600 };

fn sprite(n: u64) -> SpriteId {
    SpriteId::from_u128(n.into())
}

fn organization(n: u64) -> OrgSlug {
    format!("org-{n}").parse().expect("an organization")
}

#[test]
fn t18_a_thousand_sprites_hit_at_once_wake_a_few_at_a_time_and_the_rest_is_queued_or_refused() {
    let mut wakes = Wakes::new(LIMITS);
    let mut going = VecDeque::new();
    let (mut queued, mut refused) = (0, 0);
    for n in 0..1_100 {
        match wakes.ask(sprite(n), &organization(n % 3), Load::Heavy) {
            Ask::Go => going.push_back(sprite(n)),
            Ask::Queued => queued += 1,
            Ask::Full(Full::Host) => refused += 1,
            Ask::Full(Full::Organization) => panic!("no organization is near its share"),
        }
    }
    assert_eq!((going.len(), queued, refused), (4, 1_000, 96));
    let mut woken = 0;
    while let Some(sprite) = going.pop_front() {
        assert!(wakes.under_way() <= 4);
        woken += 1;
        going.extend(wakes.finished(sprite));
    }
    assert_eq!((woken, wakes.under_way(), wakes.queued()), (1_004, 0, 0));
}

#[test]
fn t18_one_organization_does_not_starve_another() {
    let mut wakes = Wakes::new(WakeLimits { at_once: 1, ..LIMITS });
    let (crowd, lonely) = (organization(1), organization(2));
    assert_eq!(wakes.ask(sprite(0), &crowd, Load::Heavy), Ask::Go);
    for n in 1..=600 {
        assert_eq!(wakes.ask(sprite(n), &crowd, Load::Heavy), Ask::Queued);
    }
    assert_eq!(wakes.ask(sprite(601), &crowd, Load::Heavy), Ask::Full(Full::Organization));
    assert_eq!(wakes.ask(sprite(1_000), &lonely, Load::Heavy), Ask::Queued);
    assert_eq!(wakes.ask(sprite(1_001), &lonely, Load::Heavy), Ask::Queued);
    // By turns, and within each by arrival.
    let mut order = vec![sprite(0)];
    for _ in 0..5 {
        order.extend(wakes.finished(order[order.len() - 1]));
    }
    assert_eq!(order, [0, 1, 1_000, 2, 1_001, 3].map(sprite));
}

#[test]
fn asking_again_changes_nothing() {
    let mut wakes = Wakes::new(WakeLimits { at_once: 1, ..LIMITS });
    assert_eq!(wakes.ask(sprite(1), &organization(1), Load::Heavy), Ask::Go);
    assert_eq!(wakes.ask(sprite(1), &organization(1), Load::Heavy), Ask::Go);
    assert_eq!(wakes.ask(sprite(2), &organization(1), Load::Heavy), Ask::Queued);
    assert_eq!(wakes.ask(sprite(2), &organization(1), Load::Heavy), Ask::Queued);
    assert_eq!((wakes.under_way(), wakes.queued()), (1, 1));
    assert_eq!(wakes.finished(sprite(2)), None, "it has not begun");
    assert_eq!(wakes.finished(sprite(1)), Some(sprite(2)));
    assert_eq!(wakes.finished(sprite(1)), None, "it has ended");
    assert_eq!(wakes.cancel(sprite(2)), None);
    assert_eq!((wakes.under_way(), wakes.queued()), (0, 0));
}

#[test]
fn who_needs_no_memory_does_not_wait_for_it() {
    let mut wakes = Wakes::new(WakeLimits { at_once: 2, ..LIMITS });
    let ours = organization(1);
    assert_eq!(wakes.set_room(1), []);
    assert_eq!(wakes.ask(sprite(1), &ours, Load::Heavy), Ask::Go);
    assert_eq!(wakes.ask(sprite(2), &ours, Load::Heavy), Ask::Queued, "the memory was for one");
    assert_eq!((wakes.without_memory(), wakes.heavy_under_way()), (1, 1));
    assert_eq!(wakes.ask(sprite(3), &ours, Load::Light), Ask::Go);
    assert_eq!(wakes.without_memory(), 0, "now it would have to wait anyway");
    assert_eq!(wakes.ask(sprite(4), &ours, Load::Light), Ask::Queued);
    assert_eq!(wakes.finished(sprite(1)), Some(sprite(4)));
    assert_eq!(wakes.finished(sprite(3)), None);
    assert_eq!(wakes.set_room(5), [sprite(2)]);
    assert_eq!((wakes.under_way(), wakes.queued()), (2, 0));
}

#[test]
fn who_waits_for_memory_can_be_sent_away_and_nobody_else_is() {
    let mut wakes = Wakes::new(WakeLimits { at_once: 1, ..LIMITS });
    let ours = organization(1);
    assert_eq!(wakes.set_room(0), []);
    assert_eq!(wakes.ask(sprite(1), &ours, Load::Light), Ask::Go);
    assert_eq!(wakes.ask(sprite(2), &ours, Load::Light), Ask::Queued);
    for n in [3, 4] {
        assert_eq!(wakes.ask(sprite(n), &organization(n), Load::Heavy), Ask::Queued);
    }
    assert_eq!(wakes.refuse_heavy(), [sprite(3), sprite(4)]);
    assert_eq!(wakes.queued(), 1);
    assert_eq!(wakes.ask(sprite(3), &organization(3), Load::Heavy), Ask::Queued, "it may ask again");
}

#[test]
fn boots_do_not_stand_in_the_way_of_those_who_only_go_on() {
    let mut wakes = Wakes::new(WakeLimits { at_once: 1, ..LIMITS });
    let ours = organization(1);
    assert_eq!(wakes.ask(sprite(0), &ours, Load::Heavy), Ask::Go);
    for n in 1..=3 {
        assert_eq!(wakes.ask(sprite(n), &ours, Load::Heavy), Ask::Queued);
        assert_eq!(wakes.ask(sprite(10 + n), &ours, Load::Light), Ask::Queued);
    }
    let mut order = vec![sprite(0)];
    for _ in 0..6 {
        order.extend(wakes.finished(order[order.len() - 1]));
    }
    assert_eq!(order, [0, 11, 1, 12, 2, 13, 3].map(sprite));
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Ask(u64),
    Finish(u64),
    Cancel(u64),
    Room(usize),
    Refuse,
}

fn load(n: u64) -> Load {
    if n.is_multiple_of(2) { Load::Light } else { Load::Heavy }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..30_u64).prop_map(Op::Ask),
        3 => (0..30_u64).prop_map(Op::Finish),
        1 => (0..30_u64).prop_map(Op::Cancel),
        1 => (0..4_usize).prop_map(Op::Room),
        1 => Just(Op::Refuse),
    ]
}

proptest! {
    #[test]
    fn nobody_is_forgotten_and_never_too_many_wake(ops in prop::collection::vec(op(), 0..300), at_once in 1..4_usize) {
        let limits = WakeLimits { at_once, queued: 12, queued_per_organization: 6 };
        let mut wakes = Wakes::new(limits);
        let (mut under_way, mut waiting) = (BTreeSet::new(), BTreeMap::new());
        let mut room = usize::MAX;
        for op in ops {
            let next = match op {
                Op::Ask(n) => {
                    let was_there = under_way.contains(&n);
                    match wakes.ask(sprite(n), &organization(n % 3), load(n)) {
                        Ask::Go => {
                            under_way.insert(n);
                            if !was_there && load(n) == Load::Heavy {
                                prop_assert!(room > 0, "it has no memory");
                                room -= 1;
                            }
                        }
                        Ask::Queued => { waiting.insert(n, n % 3); }
                        Ask::Full(_) => {
                            let of_organization = waiting.values().filter(|of| **of == n % 3).count();
                            prop_assert!(waiting.len() == 12 || of_organization == 6);
                        }
                    }
                    Vec::new()
                }
                Op::Finish(n) => { under_way.remove(&n); wakes.finished(sprite(n)).into_iter().collect() }
                Op::Cancel(n) => {
                    under_way.remove(&n);
                    waiting.remove(&n);
                    wakes.cancel(sprite(n)).into_iter().collect()
                }
                Op::Room(now) => { room = now; wakes.set_room(now) }
                Op::Refuse => {
                    for refused in wakes.refuse_heavy() {
                        let n = (0..30).find(|n| sprite(*n) == refused).expect("one of ours");
                        prop_assert!(load(n) == Load::Heavy && waiting.remove(&n).is_some());
                    }
                    prop_assert!(waiting.keys().all(|n| load(*n) == Load::Light), "somebody was left");
                    Vec::new()
                }
            };
            for next in next {
                let n = (0..30).find(|n| sprite(*n) == next).expect("one of ours");
                prop_assert!(waiting.remove(&n).is_some());
                prop_assert!(under_way.insert(n));
                if load(n) == Load::Heavy {
                    prop_assert!(room > 0, "it has no memory");
                    room -= 1;
                }
            }
            prop_assert_eq!((wakes.under_way(), wakes.queued()), (under_way.len(), waiting.len()));
            prop_assert!(under_way.len() <= at_once);
            let could_go = waiting.keys().any(|n| load(*n) == Load::Light || room > 0);
            prop_assert!(!could_go || under_way.len() == at_once, "somebody waits for nothing");
        }
    }
}
