//! What the host's wake scheduler promises (T18).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ids::{OrgSlug, SpriteId};
use lifecycle::{Ask, Full, WakeLimits, Wakes};
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
        match wakes.ask(sprite(n), &organization(n % 3)) {
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
    assert_eq!(wakes.ask(sprite(0), &crowd), Ask::Go);
    for n in 1..=600 {
        assert_eq!(wakes.ask(sprite(n), &crowd), Ask::Queued);
    }
    assert_eq!(wakes.ask(sprite(601), &crowd), Ask::Full(Full::Organization));
    assert_eq!(wakes.ask(sprite(1_000), &lonely), Ask::Queued);
    assert_eq!(wakes.ask(sprite(1_001), &lonely), Ask::Queued);
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
    assert_eq!(wakes.ask(sprite(1), &organization(1)), Ask::Go);
    assert_eq!(wakes.ask(sprite(1), &organization(1)), Ask::Go);
    assert_eq!(wakes.ask(sprite(2), &organization(1)), Ask::Queued);
    assert_eq!(wakes.ask(sprite(2), &organization(1)), Ask::Queued);
    assert_eq!((wakes.under_way(), wakes.queued()), (1, 1));
    assert_eq!(wakes.finished(sprite(2)), None, "it has not begun");
    assert_eq!(wakes.finished(sprite(1)), Some(sprite(2)));
    assert_eq!(wakes.finished(sprite(1)), None, "it has ended");
    assert_eq!(wakes.cancel(sprite(2)), None);
    assert_eq!((wakes.under_way(), wakes.queued()), (0, 0));
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Ask(u64),
    Finish(u64),
    Cancel(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..30_u64).prop_map(Op::Ask),
        3 => (0..30_u64).prop_map(Op::Finish),
        1 => (0..30_u64).prop_map(Op::Cancel),
    ]
}

proptest! {
    #[test]
    fn nobody_is_forgotten_and_never_too_many_wake(ops in prop::collection::vec(op(), 0..300), at_once in 1..4_usize) {
        let limits = WakeLimits { at_once, queued: 12, queued_per_organization: 6 };
        let mut wakes = Wakes::new(limits);
        let (mut under_way, mut waiting) = (BTreeSet::new(), BTreeMap::new());
        for op in ops {
            let next = match op {
                Op::Ask(n) => {
                    match wakes.ask(sprite(n), &organization(n % 3)) {
                        Ask::Go => { under_way.insert(sprite(n)); }
                        Ask::Queued => { waiting.insert(sprite(n), n % 3); }
                        Ask::Full(_) => {
                            let of_organization = waiting.values().filter(|of| **of == n % 3).count();
                            prop_assert!(waiting.len() == 12 || of_organization == 6);
                        }
                    }
                    None
                }
                Op::Finish(n) => { under_way.remove(&sprite(n)); wakes.finished(sprite(n)) }
                Op::Cancel(n) => { under_way.remove(&sprite(n)); waiting.remove(&sprite(n)); wakes.cancel(sprite(n)) }
            };
            if let Some(next) = next {
                prop_assert!(waiting.remove(&next).is_some());
                prop_assert!(under_way.insert(next));
            }
            prop_assert_eq!((wakes.under_way(), wakes.queued()), (under_way.len(), waiting.len()));
            prop_assert!(under_way.len() <= at_once);
            prop_assert!(waiting.is_empty() || under_way.len() == at_once, "somebody waits for nothing");
        }
    }
}
