//! What the holder's end of a lease promises, one situation at a time.

use std::time::Duration;

use ids::{Attempt, Epoch, Moment};
use lease::holder::{Channel, Effect, Failure, Grant, Holder, Limits};

type Gateway = Holder<&'static str, &'static str>;
type Done = Effect<&'static str, &'static str>;

const TTL: Duration = Duration::from_secs(10);

fn at(ms: u64) -> Moment {
    Moment::from_origin(Duration::from_millis(ms))
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn grant(epoch: u64) -> Grant<&'static str> {
    Grant { epoch: Epoch(epoch), endpoint: "socket" }
}

fn published(epoch: u64) -> Done {
    Effect::Publish(Some(grant(epoch)))
}

fn idle() -> Gateway {
    let limits = Limits { linger: ms(100), acquire_timeout: Duration::from_secs(60), holder_ttl: TTL };
    Holder::new(limits, Channel::Up, Attempt(0))
}

/// Holds epoch 1 under attempt 1, for one use.
fn held() -> Gateway {
    let mut holder = idle();
    assert_eq!(holder.use_begun(at(0)), [Effect::Acquire(Attempt(1))]);
    assert_eq!(holder.granted(Attempt(1), grant(1), at(5)), [published(1)]);
    holder
}

#[test]
fn t11_one_acquire_serves_everyone_and_survives_the_one_who_caused_it() {
    let mut holder = idle();
    assert_eq!(holder.use_begun(at(0)), [Effect::Acquire(Attempt(1))]);
    for now in 1..100 {
        assert_eq!(holder.use_begun(at(now)), []);
    }
    assert_eq!(holder.use_ended(None, at(100)), [], "the first one leaves");
    assert_eq!(holder.granted(Attempt(1), grant(1), at(200)), [published(1)]);
    assert_eq!(holder.uses(), 99);
    assert_eq!(holder.use_begun(at(201)), [], "who comes now finds it held");
}

#[test]
fn t12_a_refusal_is_told_once_and_not_remembered() {
    let mut holder = idle();
    assert_eq!(holder.use_begun(at(0)), [Effect::Acquire(Attempt(1))]);
    assert_eq!(holder.use_begun(at(1)), []);
    assert_eq!(holder.refused(Attempt(1), "no room"), [Effect::Fail(Failure::Refused("no room"))]);
    assert_eq!(holder.refused(Attempt(1), "no room"), []);
    assert_eq!(holder.use_begun(at(2)), [Effect::Acquire(Attempt(2))]);
}

#[test]
fn t17_a_grant_that_nobody_waits_for_lingers_and_is_given_back() {
    let mut holder = idle();
    let _ = holder.use_begun(at(0));
    assert_eq!(holder.use_ended(None, at(1)), [], "the wake goes on");
    assert_eq!(holder.granted(Attempt(1), grant(1), at(2_000)), [published(1)]);
    assert_eq!(holder.next_deadline(), Some(at(2_100)));
    assert_eq!(holder.tick(at(2_099)), []);
    let released = Effect::Release { attempt: Attempt(1), idle_for: ms(100) };
    assert_eq!(holder.tick(at(2_100)), [Effect::Publish(None), released]);
    assert!(holder.is_unused());
}

#[test]
fn a_lease_lingers_for_the_next_use() {
    let mut holder = held();
    assert_eq!(holder.use_ended(None, at(1_000)), []);
    assert_eq!(holder.use_begun(at(1_050)), [], "no message to the agent");
    assert_eq!(holder.tick(at(5_000)), []);
    assert_eq!(holder.use_ended(None, at(6_000)), []);
    let released = Effect::Release { attempt: Attempt(1), idle_for: ms(150) };
    assert_eq!(holder.tick(at(6_150)), [Effect::Publish(None), released]);
}

#[test]
fn t4_a_use_of_any_length_keeps_the_lease() {
    let mut holder = held();
    assert_eq!(holder.next_deadline(), None);
    assert_eq!(holder.tick(at(1_000_000_000)), []);
    assert_eq!(holder.published(), Some(&grant(1)));
}

#[test]
fn a_grant_that_comes_too_late_is_given_back() {
    let mut holder = idle();
    let _ = holder.use_begun(at(0));
    let given_up =
        [Effect::Release { attempt: Attempt(1), idle_for: ms(0) }, Effect::Fail(Failure::TimedOut)];
    assert_eq!(holder.tick(at(59_999)), []);
    assert_eq!(holder.tick(at(60_000)), given_up);
    let given_back = || [Effect::Release { attempt: Attempt(1), idle_for: ms(0) }];
    assert_eq!(holder.granted(Attempt(1), grant(1), at(60_001)), given_back());
    // Also while a newer attempt is out.
    assert_eq!(holder.use_begun(at(60_002)), [Effect::Acquire(Attempt(2))]);
    assert_eq!(holder.granted(Attempt(1), grant(1), at(60_003)), given_back());
    assert_eq!(holder.published(), None);
}

#[test]
fn after_a_revocation_whoever_comes_acquires_anew() {
    let mut holder = held();
    let relied = Some(holder.rely());
    assert_eq!(holder.revoked(Epoch(0)), [], "of an older lease");
    assert_eq!(holder.revoked(Epoch(1)), [Effect::Publish(None)]);
    assert_eq!(holder.use_begun(at(10)), [Effect::Acquire(Attempt(2))]);
    let given_back = [Effect::Release { attempt: Attempt(1), idle_for: ms(0) }];
    assert_eq!(holder.use_ended(relied, at(11)), given_back, "the old use");
    assert_eq!(holder.granted(Attempt(2), grant(1), at(12)), [published(1)], "resumed in the same epoch");
}

#[test]
fn after_a_revocation_those_still_in_line_are_not_forgotten() {
    let mut holder = held();
    let _ = holder.rely();
    let _ = holder.use_begun(at(6));
    assert_eq!(holder.revoked(Epoch(1)), [Effect::Publish(None)]);
    assert_eq!(holder.wanted(at(7)), [Effect::Acquire(Attempt(2))]);
    assert_eq!(holder.wanted(at(8)), []);
}

/// It did: the agent then waited for its whole grace before it went on, and everyone with it.
#[test]
fn those_who_wait_for_the_next_lease_do_not_keep_the_revoked_one_from_ending() {
    let given_back = || [Effect::Release { attempt: Attempt(1), idle_for: ms(0) }];
    let mut holder = held();
    let (first, second) = (Some(holder.rely()), Some(holder.rely()));
    let _ = holder.use_begun(at(6));
    // In line, and there to stay.
    for now in 7..100 {
        let _ = holder.use_begun(at(now));
    }
    assert_eq!(holder.revoked(Epoch(1)), [Effect::Publish(None)]);
    assert_eq!(holder.wanted(at(101)), [Effect::Acquire(Attempt(2))]);
    assert_eq!(holder.use_ended(first, at(102)), []);
    assert_eq!(holder.use_ended(None, at(103)), [], "one that waits has left");
    assert_eq!(holder.use_ended(second, at(104)), given_back());
    // Those of the next lease are none of the last one's.
    assert_eq!(holder.granted(Attempt(2), grant(2), at(105)), [published(2)]);
    let third = Some(holder.rely());
    assert_eq!(holder.use_ended(third, at(106)), []);
    // Nobody relied on it yet: it is given back although many wait.
    let mut holder = held();
    assert_eq!(holder.revoked(Epoch(1)), [Effect::Publish(None), given_back()[0].clone()]);
}

#[test]
fn the_agent_is_told_when_the_uses_of_a_revoked_lease_have_ended() {
    let mut holder = held();
    let first = Some(holder.rely());
    let _ = holder.use_begun(at(6));
    let second = Some(holder.rely());
    let _ = holder.revoked(Epoch(1));
    assert_eq!(holder.use_ended(first, at(7)), []);
    assert_eq!(holder.use_ended(second, at(8)), [Effect::Release { attempt: Attempt(1), idle_for: ms(0) }]);
    assert!(holder.is_unused());
    // A lease that only lingers is given back at once.
    let mut holder = held();
    let _ = holder.use_ended(None, at(6));
    let released = Effect::Release { attempt: Attempt(1), idle_for: ms(0) };
    assert_eq!(holder.revoked(Epoch(1)), [Effect::Publish(None), released]);
}

#[test]
fn a_broken_channel_is_not_felt_by_those_who_hold() {
    let mut holder = held();
    assert_eq!(holder.channel_lost(at(1_000)), []);
    assert_eq!(holder.use_begun(at(1_001)), []);
    assert_eq!(holder.published(), Some(&grant(1)));
    assert_eq!(
        holder.channel_up(TTL, at(20_000)),
        [Effect::Reassert { attempt: Attempt(2), epoch: Epoch(1) }]
    );
    assert_eq!(holder.granted(Attempt(2), grant(1), at(2_000)), [], "nothing has changed");
    assert_eq!(holder.tick(at(100_000)), [], "and nothing is in doubt any more");
}

#[test]
fn what_the_agent_may_have_let_expire_is_used_no_longer() {
    let mut holder = held();
    let _ = holder.channel_lost(at(1_000));
    assert_eq!(holder.next_deadline(), Some(at(1_000) + TTL));
    assert_eq!(holder.tick(at(10_999)), []);
    assert_eq!(holder.tick(at(11_000)), [Effect::Publish(None)]);
    // Its uses are still there: when the channel is back, they have it awake again.
    assert_eq!(holder.channel_up(TTL, at(20_000)), [Effect::Acquire(Attempt(3))]);

    // A channel that is back but silent does not make it certain, and a second break not longer.
    let mut holder = held();
    let _ = holder.channel_lost(at(1_000));
    let _ = holder.channel_up(TTL, at(20_000));
    let _ = holder.channel_lost(at(9_000));
    let _ = holder.channel_up(TTL, at(20_000));
    assert_eq!(holder.tick(at(11_000)), [Effect::Publish(None), Effect::Acquire(Attempt(4))]);
}

#[test]
fn a_restarted_agent_with_another_epoch_is_noticed() {
    let mut holder = held();
    let _ = holder.channel_lost(at(1_000));
    let _ = holder.channel_up(TTL, at(20_000));
    assert_eq!(holder.granted(Attempt(2), grant(2), at(2_000)), [published(2)]);
    let mut holder = held();
    let _ = holder.channel_lost(at(1_000));
    let _ = holder.channel_up(TTL, at(20_000));
    let gone = [Effect::Publish(None), Effect::Fail(Failure::Refused("not found"))];
    assert_eq!(holder.refused(Attempt(2), "not found"), gone);
}

#[test]
fn who_waits_while_the_channel_is_down_is_served_when_it_is_up_or_told_in_time() {
    let mut holder = idle();
    let _ = holder.channel_lost(at(0));
    assert_eq!(holder.use_begun(at(1)), [], "nothing can be sent");
    assert_eq!(holder.clone().tick(at(60_001)), [Effect::Fail(Failure::Unreachable)]);
    assert_eq!(holder.channel_up(TTL, at(20_000)), [Effect::Acquire(Attempt(2))]);
    // What was sent into a channel that broke is sent again, as a new attempt.
    let _ = holder.channel_lost(at(2));
    assert_eq!(holder.channel_up(TTL, at(20_000)), [Effect::Acquire(Attempt(3))]);
    assert_eq!(holder.granted(Attempt(3), grant(1), at(4)), [published(1)]);
}

#[test]
fn what_ends_while_the_channel_is_down_is_left_to_expire() {
    let mut holder = held();
    let _ = holder.channel_lost(at(1_000));
    let _ = holder.use_ended(None, at(1_001));
    assert_eq!(holder.tick(at(1_101)), [Effect::Publish(None)]);
    assert!(holder.is_unused());
    assert_eq!(holder.channel_up(TTL, at(20_000)), [], "the agent drops what is not asserted again");
}

#[test]
fn attempts_go_on_where_an_earlier_holder_left_off() {
    let limits = Limits { linger: ms(100), acquire_timeout: ms(1), holder_ttl: TTL };
    let mut holder = Gateway::new(limits, Channel::Up, Attempt(41));
    assert_eq!(holder.use_begun(at(0)), [Effect::Acquire(Attempt(42))]);
    assert_eq!(holder.newest_attempt(), Attempt(42));
}

#[test]
fn what_is_still_open_after_a_long_outage_has_the_sprite_awake_again() {
    let mut holder = held();
    let _ = holder.channel_lost(at(1_000));
    let _ = holder.tick(at(11_000));
    // The outage outlasts even the acquire that followed.
    assert_eq!(holder.tick(at(71_000)), [Effect::Fail(Failure::Unreachable)]);
    assert_eq!(holder.channel_up(TTL, at(80_000)), [Effect::Acquire(Attempt(3))]);
    // But not what an order has put to sleep.
    let mut holder = held();
    let _ = holder.revoked(Epoch(1));
    let _ = holder.channel_lost(at(1_000));
    assert_eq!(holder.channel_up(TTL, at(2_000)), []);
}

#[test]
fn a_lease_that_is_revoked_and_granted_anew_by_a_reassertion_is_held() {
    let mut holder = held();
    let _ = holder.channel_lost(at(1_000));
    assert_eq!(
        holder.channel_up(TTL, at(1_100)),
        [Effect::Reassert { attempt: Attempt(2), epoch: Epoch(1) }]
    );
    let _ = holder.rely();
    // The agent ordered the sprite to sleep before it heard that.
    assert_eq!(holder.revoked(Epoch(1)), [Effect::Publish(None)]);
    assert_eq!(holder.granted(Attempt(2), grant(1), at(1_200)), [published(1)]);
    assert_eq!(holder.tick(at(50_000)), [], "and nothing is in doubt");
}
