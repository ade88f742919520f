//! What the agent's end of a lease promises, one situation at a time.

use std::time::Duration;

use ids::{Attempt, Epoch, HolderId, Moment};
use lease::grantor::{Demand, Grantor, LeaseState, Usage, Who};

const TTL: Duration = Duration::from_secs(10);

fn at(ms: u64) -> Moment {
    Moment::from_origin(Duration::from_millis(ms))
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn holder(name: &str) -> HolderId {
    name.parse().expect("a holder id")
}

fn acquire(grantor: &mut Grantor, name: &str, attempt: u64, now: u64) {
    grantor.acquire(holder(name), Attempt(attempt), Some(format!("request-{attempt}")), at(now));
}

/// One holder, `a`, that was granted epoch 1 under attempt 1.
fn granted() -> Grantor {
    let mut grantor = Grantor::new(TTL, at(0));
    acquire(&mut grantor, "a", 1, 100);
    assert_eq!(grantor.granted(Epoch(1)), [(holder("a"), Attempt(1))]);
    grantor
}

#[test]
fn a_sprite_is_needed_while_anyone_waits_or_holds() {
    let mut grantor = Grantor::new(TTL, at(0));
    assert_eq!(grantor.demand(), Demand::IdleSince(at(0)));
    acquire(&mut grantor, "a", 1, 100);
    acquire(&mut grantor, "b", 7, 200);
    assert_eq!(grantor.demand(), Demand::Waiting);
    assert_eq!(grantor.granted(Epoch(1)), [(holder("a"), Attempt(1)), (holder("b"), Attempt(7))]);
    assert_eq!(grantor.granted(Epoch(1)), [], "each is told once");
    assert_eq!(grantor.demand(), Demand::Held);
    grantor.release(&holder("a"), Attempt(1), ms(0), at(1_000));
    assert_eq!(grantor.demand(), Demand::Held);
    grantor.release(&holder("b"), Attempt(7), ms(150), at(2_000));
    assert_eq!(grantor.demand(), Demand::IdleSince(at(1_850)), "idleness counts from the last use");
}

#[test]
fn a_release_can_neither_backdate_another_use_nor_postdate_its_own() {
    let mut grantor = granted();
    acquire(&mut grantor, "b", 1, 5_000);
    grantor.release(&holder("b"), Attempt(1), ms(0), at(6_000));
    grantor.release(&holder("a"), Attempt(1), ms(100_000), at(6_001));
    assert_eq!(grantor.demand(), Demand::IdleSince(at(6_000)));
}

#[test]
fn an_old_release_ends_no_new_lease() {
    let mut grantor = granted();
    acquire(&mut grantor, "a", 2, 200);
    grantor.release(&holder("a"), Attempt(1), ms(0), at(300));
    grantor.release(&holder("stranger"), Attempt(9), ms(0), at(300));
    assert_eq!(grantor.demand(), Demand::Waiting);
    acquire(&mut grantor, "a", 1, 400);
    assert_eq!(grantor.granted(Epoch(1)), [(holder("a"), Attempt(2))], "an old acquire changes nothing");
}

#[test]
fn who_gives_up_waiting_is_not_answered() {
    let mut grantor = Grantor::new(TTL, at(0));
    acquire(&mut grantor, "a", 1, 100);
    grantor.release(&holder("a"), Attempt(1), ms(0), at(200));
    assert_eq!(grantor.granted(Epoch(1)), []);
    assert_eq!(grantor.demand(), Demand::IdleSince(at(200)));
}

#[test]
fn a_refusal_goes_to_those_who_wait_and_leaves_those_who_hold() {
    let mut grantor = granted();
    acquire(&mut grantor, "b", 1, 200);
    assert_eq!(grantor.refused(), [(holder("b"), Attempt(1))]);
    assert_eq!(grantor.demand(), Demand::Held);
}

#[test]
fn no_lease_outlives_its_holder() {
    let mut grantor = granted();
    grantor.holder_lost(&holder("a"), at(1_000));
    grantor.holder_lost(&holder("a"), at(9_000));
    assert_eq!(grantor.next_expiry(), Some(at(11_000)));
    assert_eq!(grantor.expire(at(10_999)), []);
    assert_eq!(grantor.demand(), Demand::Held);
    assert_eq!(grantor.expire(at(11_000)), [holder("a")]);
    assert_eq!(grantor.demand(), Demand::IdleSince(at(1_000)), "idle since it was lost");
    assert_eq!(grantor.next_expiry(), None);
}

#[test]
fn a_holder_that_comes_back_keeps_what_it_asserts_and_nothing_else() {
    let mut grantor = granted();
    grantor.holder_lost(&holder("a"), at(1_000));
    assert_eq!(grantor.next_expiry(), Some(at(11_000)));
    grantor.reassert(holder("a"), Attempt(2), at(2_001));
    assert_eq!(grantor.next_expiry(), None);
    assert_eq!(grantor.granted(Epoch(1)), [(holder("a"), Attempt(2))], "it is answered like an acquire");
    // After a restart the agent knows of nobody; those who hold say so.
    let mut grantor = Grantor::new(TTL, at(0));
    grantor.reassert(holder("a"), Attempt(5), at(10));
    assert_eq!(grantor.demand(), Demand::Waiting);
}

#[test]
fn a_revoked_lease_keeps_nothing_awake_but_is_seen_to_drain() {
    let mut grantor = granted();
    acquire(&mut grantor, "b", 3, 200);
    assert_eq!(grantor.revoke(), [holder("a")], "who waits goes on waiting");
    assert!(grantor.is_draining());
    assert_eq!(grantor.demand(), Demand::Waiting);
    assert_eq!(grantor.refused(), [(holder("b"), Attempt(3))]);
    assert_eq!(grantor.demand(), Demand::IdleSince(at(200)));
    // The holder wants it again while its old uses end.
    acquire(&mut grantor, "a", 2, 300);
    assert!(grantor.is_draining());
    grantor.release(&holder("a"), Attempt(1), ms(0), at(400));
    assert!(!grantor.is_draining());
    assert_eq!(grantor.demand(), Demand::Waiting);
    // Or does not.
    let mut grantor = granted();
    let _ = grantor.revoke();
    grantor.release(&holder("a"), Attempt(1), ms(0), at(400));
    assert!(!grantor.is_draining() && grantor.why().is_empty());
}

#[test]
fn what_runs_inside_keeps_a_sprite_awake_but_makes_nobody_wait() {
    let mut grantor = Grantor::new(TTL, at(0));
    grantor.activity_begun(1, "exec", "make", at(10));
    grantor.activity_begun(2, "exec", "make", at(20));
    grantor.activity_begun(2, "exec", "make", at(20));
    assert_eq!(grantor.demand(), Demand::Held);
    grantor.activity_ended(1, at(30));
    assert_eq!(grantor.demand(), Demand::Held);
    grantor.activity_ended(2, at(40));
    grantor.activity_ended(2, at(50));
    assert_eq!(grantor.demand(), Demand::IdleSince(at(50)));
    grantor.activity_begun(3, "session", "bash", at(60));
    grantor.activities_gone(at(70));
    assert_eq!(grantor.demand(), Demand::IdleSince(at(70)));
    grantor.touch(at(80));
    grantor.touch(at(75));
    assert_eq!(grantor.demand(), Demand::IdleSince(at(80)));
}

#[test]
fn a_sprite_that_says_too_much_is_kept_awake_and_fills_no_memory() {
    let mut grantor = Grantor::new(TTL, at(0));
    for id in 0..100_000 {
        grantor.activity_begun(id, "exec", &"é".repeat(1_000), at(id));
    }
    let why = grantor.why();
    assert_eq!(why.len(), 1025);
    assert!(why.iter().all(|why| match &why.who {
        Who::Activity { name, .. } => name.len() == 256,
        Who::Unlisted(count) => *count == 100_000 - 1024,
        Who::Holder { .. } => false,
    }));
    for id in 0..100_000 {
        assert_eq!(grantor.demand(), Demand::Held, "{id} and later ones go on");
        grantor.activity_ended(id, at(200_000));
    }
    assert_eq!(grantor.demand(), Demand::IdleSince(at(200_000)));
}

#[test]
fn it_can_say_why_a_sprite_is_awake() {
    let mut grantor = granted();
    let usage = Usage { connections: 2, requests: 1, last_byte: at(150) };
    grantor.report(&holder("a"), usage);
    grantor.report(&holder("stranger"), usage);
    grantor.activity_begun(9, "exec", "make -j2", at(500));
    let why = grantor.why();
    assert_eq!(why.len(), 2);
    assert_eq!(why[0].since, at(100));
    let holder = Who::Holder {
        holder: holder("a"),
        lease: LeaseState::Granted(Epoch(1)),
        usage: Some(usage),
        request_id: Some("request-1".into()),
    };
    assert_eq!(why[0].who, holder);
    let command = Who::Activity { kind: "exec", name: "make -j2".into() };
    assert_eq!((&why[1].who, why[1].since), (&command, at(500)));
}
