//! What a sprite's machine promises, one situation at a time. The situations in all their interleavings
//! are in the simulation.

use std::time::Duration;

use ids::{Epoch, Moment};
use lifecycle::{
    Capabilities, Confirmation, Demand, Depth, Effect, Event, Found, Load, Machine, Public, Refusal,
    Revocation, Settings, Timing, Transition,
};

const IDLE: Duration = Duration::from_secs(30);
const COLD: Duration = Duration::from_secs(600);
const GRACE: Duration = Duration::from_secs(5);
const MS: Duration = Duration::from_millis(1);
const LIGHT: Effect = Effect::AskWake(Load::Light);
const HEAVY: Effect = Effect::AskWake(Load::Heavy);

fn at(ms: u64) -> Moment {
    Moment::from_origin(Duration::from_millis(ms))
}

fn settings(pause: bool, suspend: bool) -> Settings {
    Settings {
        capabilities: Capabilities { pause, suspend },
        timing: Timing { idle_timeout: IDLE, suspend_after: Duration::from_secs(60), cold_after: COLD },
        drain_grace: GRACE,
    }
}

fn cold() -> Machine {
    Machine::new(settings(true, false), Found::Stopped, Epoch(7), at(0), at(0))
}

fn running() -> Machine {
    Machine::new(settings(true, false), Found::Running, Epoch(7), at(0), at(0))
}

fn paused() -> Machine {
    Machine::new(settings(true, false), Found::Paused, Epoch(7), at(0), at(0))
}

fn idle() -> Demand {
    Demand::IdleSince(at(0))
}

/// The driver call among the effects, if there is one.
fn call(effects: &[Effect]) -> Option<Transition> {
    effects.iter().find_map(|effect| match effect {
        Effect::Start { transition, .. } | Effect::Resume { transition, .. } => Some(*transition),
        Effect::Pause(t) | Effect::Suspend(t) | Effect::Stop(t) => Some(*t),
        Effect::Checkpoint(t) | Effect::Restore(t) | Effect::Destroy(t) => Some(*t),
        _ => None,
    })
}

/// Makes the driver call that the effects ask for: confirms it, then ends it well.
fn make(machine: &mut Machine, effects: &[Effect], demand: Demand, now: Moment) -> Vec<Effect> {
    end(machine, effects, Ok(()), demand, now)
}

fn end(
    machine: &mut Machine,
    effects: &[Effect],
    outcome: Result<(), String>,
    demand: Demand,
    now: Moment,
) -> Vec<Effect> {
    let transition = call(effects).expect("a driver call");
    assert_eq!(machine.confirm(transition, demand, now), Confirmation::Go);
    machine.handle(Event::DriverDone { transition, outcome }, demand, now)
}

fn grants(epoch: u64, woken_from: Public) -> Effect {
    Effect::Grant { epoch: Epoch(epoch), woken_from }
}

#[test]
fn a_cold_sprite_starts_when_somebody_waits() {
    let mut machine = cold();
    assert_eq!(machine.handle(Event::Tick, Demand::Waiting, at(0)), [HEAVY]);
    assert_eq!(machine.handle(Event::Tick, Demand::Waiting, at(0)), [], "it is asked for once");
    let started = machine.handle(Event::WakeAdmitted, Demand::Waiting, at(1));
    // The epoch is written down before the driver acts on it.
    assert_eq!(started, [Effect::Changed, Effect::Start { transition: Transition(1), epoch: Epoch(8) }]);
    assert_eq!((machine.phase(), machine.public()), ("starting", Public::Cold));
    let awake = make(&mut machine, &started, Demand::Waiting, at(100));
    assert_eq!(awake, [Effect::WakeDone, Effect::Changed, grants(8, Public::Cold)]);
    assert_eq!(machine.public(), Public::Running);
}

#[test]
fn a_paused_sprite_resumes_in_the_same_epoch_and_a_suspended_one_in_a_new_one() {
    let mut machine = paused();
    let _ = machine.handle(Event::Tick, Demand::Waiting, at(0));
    let resumed = machine.handle(Event::WakeAdmitted, Demand::Waiting, at(0));
    assert_eq!(resumed, [Effect::Resume { transition: Transition(1), epoch: Epoch(7) }]);
    let awake = make(&mut machine, &resumed, Demand::Waiting, at(1));
    assert_eq!(awake, [Effect::WakeDone, Effect::Changed, grants(7, Public::Warm)]);

    let mut machine = Machine::new(settings(true, true), Found::Paused, Epoch(7), at(0), at(0));
    assert_eq!(machine.handle(Event::Tick, idle(), at(0)), []);
    assert_eq!(machine.next_wakeup(), Some(at(60_000)));
    let suspended = machine.handle(Event::Tick, idle(), at(60_000));
    assert_eq!(suspended, [Effect::Suspend(Transition(1))]);
    let _ = make(&mut machine, &suspended, idle(), at(60_500));
    assert_eq!((machine.phase(), machine.public()), ("suspended", Public::Warm));
    assert_eq!(machine.next_wakeup(), Some(at(600_000)), "warm counts from the pause, however deep");
    let _ = machine.handle(Event::Tick, Demand::Waiting, at(61_000));
    let resumed = machine.handle(Event::WakeAdmitted, Demand::Waiting, at(61_000));
    assert_eq!(resumed, [Effect::Changed, Effect::Resume { transition: Transition(2), epoch: Epoch(8) }]);
}

#[test]
fn a_memory_outlives_a_wake_that_failed_and_changed_nothing() {
    let mut machine = Machine::new(settings(true, true), Found::Suspended, Epoch(7), at(0), at(0));
    let mut now = at(1_000);
    for (failures, wait_ms) in [(1, 1_000), (2, 2_000), (3, 4_000)] {
        assert_eq!(machine.handle(Event::Tick, Demand::Waiting, now), [HEAVY]);
        let resumed = machine.handle(Event::WakeAdmitted, Demand::Waiting, now);
        let transition = call(&resumed).unwrap();
        assert_eq!(machine.confirm(transition, Demand::Waiting, now), Confirmation::Go);
        let declined = Event::DriverDeclined { transition, reason: "no process".into() };
        let wait = Duration::from_millis(wait_ms);
        let refusal = Refusal::Failed("no process".into());
        let refused = Effect::Refuse { refusal: refusal.clone(), retry_after: Some(wait) };
        assert_eq!(machine.handle(declined, Demand::Waiting, now), [Effect::WakeDone, refused]);
        assert_eq!((machine.phase(), machine.public()), ("suspended", Public::Warm));
        assert_eq!(machine.trouble().unwrap().retry_at, Some(now + wait), "after {failures} failures");
        // Whoever comes too early hears the same.
        let early = Effect::Refuse { refusal, retry_after: Some(MS) };
        assert_eq!(machine.handle(Event::Tick, Demand::Waiting, now + (wait - MS)), [early]);
        now = now + wait;
    }
    let _ = machine.handle(Event::Tick, Demand::Waiting, now);
    let resumed = machine.handle(Event::WakeAdmitted, Demand::Waiting, now);
    // Each attempt has an epoch of its own.
    assert!(resumed.contains(&Effect::Resume { transition: Transition(4), epoch: Epoch(11) }), "{resumed:?}");
    let _ = make(&mut machine, &resumed, Demand::Waiting, now);
    assert_eq!((machine.phase(), machine.trouble()), ("running", None));
}

#[test]
fn a_memory_that_can_not_be_woken_goes_cold_in_its_time() {
    let mut machine = Machine::new(settings(true, true), Found::Suspended, Epoch(7), at(0), at(0));
    let _ = machine.handle(Event::Tick, Demand::Waiting, at(1));
    let resumed = machine.handle(Event::WakeAdmitted, Demand::Waiting, at(1));
    let transition = call(&resumed).unwrap();
    assert_eq!(machine.confirm(transition, Demand::Waiting, at(1)), Confirmation::Go);
    let declined = Event::DriverDeclined { transition, reason: "no process".into() };
    let _ = machine.handle(declined, Demand::Waiting, at(2));
    assert_eq!(machine.next_wakeup(), Some(at(0) + COLD));
    assert_eq!(machine.handle(Event::Tick, idle(), at(0) + COLD), [Effect::Stop(Transition(2))]);
}

#[test]
fn what_began_before_an_idle_sprite_slept_wakes_it_and_what_an_order_froze_does_not() {
    for depth in [None, Some(Depth::Warm)] {
        let mut machine = running();
        let paused = match depth {
            None => machine.handle(Event::Tick, idle(), at(30_000)),
            Some(depth) => machine.handle(Event::Sleep(depth), idle(), at(30_000)),
        };
        let transition = call(&paused).unwrap();
        assert_eq!(machine.confirm(transition, idle(), at(30_000)), Confirmation::Go);
        // While the driver works, something begins inside.
        assert_eq!(machine.handle(Event::Tick, Demand::Held, at(30_001)), []);
        let done = Event::DriverDone { transition, outcome: Ok(()) };
        let slept = machine.handle(done, Demand::Held, at(30_100));
        if depth.is_some() {
            assert_eq!(slept, [Effect::Changed]);
            continue;
        }
        assert_eq!(slept, [Effect::Changed, LIGHT]);
        // The host has no room at first: it is asked again, unless it was over by then.
        let full = Event::WakeRefused { refusal: Refusal::HostFull, retry_after: MS * 500 };
        assert_eq!(machine.handle(full, Demand::Held, at(30_100)), []);
        assert_eq!(machine.next_wakeup(), Some(at(30_600)));
        assert_eq!(machine.handle(Event::Tick, Demand::Held, at(30_599)), []);
        assert_eq!(machine.handle(Event::Tick, Demand::Held, at(30_600)), [LIGHT]);
        let resumed = machine.handle(Event::WakeAdmitted, Demand::Held, at(30_601));
        assert_eq!(
            make(&mut machine, &resumed, Demand::Held, at(30_602)),
            [Effect::WakeDone, Effect::Changed]
        );
        assert_eq!(machine.phase(), "running");
    }
    // What is heard of only when it sleeps is no different.
    let mut machine = running();
    let paused = machine.handle(Event::Tick, idle(), at(30_000));
    assert_eq!(make(&mut machine, &paused, idle(), at(30_001)), [Effect::Changed]);
    assert_eq!(machine.handle(Event::Tick, Demand::Held, at(30_002)), [LIGHT]);
}

#[test]
fn t5_it_sleeps_at_the_idle_timeout_and_not_a_millisecond_sooner() {
    let mut machine = running();
    let last = at(12_345);
    assert_eq!(machine.handle(Event::Tick, Demand::IdleSince(last), at(12_345)), []);
    assert_eq!(machine.next_wakeup(), Some(last + IDLE));
    // A connection at t + idle − 1 ms finds it awake.
    let just_before = at(12_345 + 29_999);
    let mut kept = machine.clone();
    assert_eq!(kept.handle(Event::Tick, Demand::IdleSince(last), just_before), []);
    assert_eq!(kept.handle(Event::Tick, Demand::Waiting, just_before), [grants(7, Public::Running)]);
    // One at t + idle + 1 ms sees one pause and one wake.
    let paused = machine.handle(Event::Tick, Demand::IdleSince(last), last + IDLE);
    assert_eq!(paused, [Effect::Pause(Transition(1))]);
    assert_eq!(machine.confirm(Transition(1), Demand::IdleSince(last), last + IDLE), Confirmation::Go);
    let after = last + IDLE + MS;
    assert_eq!(machine.handle(Event::Tick, Demand::Waiting, after), [], "it waits for the pause to end");
    let done = Event::DriverDone { transition: Transition(1), outcome: Ok(()) };
    assert_eq!(machine.handle(done, Demand::Waiting, after + MS), [Effect::Changed, LIGHT]);
    let resumed = machine.handle(Event::WakeAdmitted, Demand::Waiting, after + MS);
    let awake = make(&mut machine, &resumed, Demand::Waiting, after + MS);
    assert_eq!(awake, [Effect::WakeDone, Effect::Changed, grants(7, Public::Warm)]);
}

#[test]
fn t1_a_pause_that_was_decided_is_not_made_if_somebody_came_meanwhile() {
    for queued_ms in [0, 1, 1_000, 5_000] {
        let decided = at(30_000);
        let asked = decided + MS * queued_ms;

        // Somebody waits: the shell hears of it when it asks.
        let mut machine = running();
        let paused = machine.handle(Event::Tick, idle(), decided);
        let transition = call(&paused).unwrap();
        let abandoned = machine.confirm(transition, Demand::Waiting, asked);
        assert_eq!(abandoned, Confirmation::Abandoned(vec![grants(7, Public::Running)]));
        assert_eq!(machine.phase(), "running");

        // Somebody came and went again: the demand is of the same kind, but younger.
        let mut machine = running();
        let paused = machine.handle(Event::Tick, idle(), decided);
        let touched = Demand::IdleSince(decided);
        let abandoned = machine.confirm(call(&paused).unwrap(), touched, asked);
        assert_eq!(abandoned, Confirmation::Abandoned(Vec::new()));
        assert_eq!(machine.next_wakeup(), Some(decided + IDLE));

        // The machine hears of it first: the old decision is void, also if a new one is of the same kind.
        let mut machine = running();
        let paused = machine.handle(Event::Tick, idle(), decided);
        let old = call(&paused).unwrap();
        assert_eq!(machine.handle(Event::Tick, Demand::Waiting, decided), [grants(7, Public::Running)]);
        let again = machine.handle(Event::Tick, idle(), asked);
        assert_eq!(again, [Effect::Pause(Transition(old.0 + 1))]);
        assert_eq!(machine.confirm(old, idle(), asked), Confirmation::Abandoned(Vec::new()));
    }
}

#[test]
fn t17_a_sprite_that_was_woken_is_idle_from_when_it_was_ready() {
    let mut machine = cold();
    let _ = machine.handle(Event::Tick, Demand::Waiting, at(0));
    let started = machine.handle(Event::WakeAdmitted, Demand::Waiting, at(0));
    // Everyone has left before it is up.
    let awake = make(&mut machine, &started, Demand::IdleSince(at(10)), at(2_000));
    assert_eq!(awake, [Effect::WakeDone, Effect::Changed]);
    assert_eq!(machine.next_wakeup(), Some(at(2_000) + IDLE));
}

#[test]
fn a_wake_that_nobody_waits_for_when_it_is_admitted_is_not_begun() {
    let mut machine = cold();
    let _ = machine.handle(Event::Tick, Demand::Waiting, at(0));
    assert_eq!(machine.handle(Event::WakeAdmitted, idle(), at(1)), [Effect::WakeDone]);
    assert_eq!(machine.phase(), "cold");
    assert_eq!(machine.handle(Event::Tick, Demand::Waiting, at(2)), [HEAVY]);
}

#[test]
fn t2_a_request_in_the_middle_of_a_stop_waits_for_its_end_and_then_starts_it() {
    let mut machine = paused();
    let stopped = machine.handle(Event::Tick, idle(), at(600_000));
    assert_eq!(stopped, [Effect::Stop(Transition(1))]);
    assert_eq!(machine.confirm(Transition(1), idle(), at(600_000)), Confirmation::Go);
    assert_eq!(machine.handle(Event::Tick, Demand::Waiting, at(600_001)), []);
    let done = Event::DriverDone { transition: Transition(1), outcome: Ok(()) };
    assert_eq!(machine.handle(done, Demand::Waiting, at(600_050)), [Effect::Changed, HEAVY]);
    let started = machine.handle(Event::WakeAdmitted, Demand::Waiting, at(600_051));
    assert_eq!(started, [Effect::Changed, Effect::Start { transition: Transition(2), epoch: Epoch(8) }]);
}

#[test]
fn a_driver_that_cannot_pause_stops_instead() {
    let mut machine = Machine::new(settings(false, false), Found::Running, Epoch(1), at(0), at(0));
    let stopped = machine.handle(Event::Tick, idle(), at(30_000));
    assert_eq!(stopped, [Effect::Stop(Transition(1))]);
    let _ = make(&mut machine, &stopped, idle(), at(30_100));
    assert_eq!(machine.phase(), "cold");
}

#[test]
fn a_sprite_whose_pause_fails_stays_awake_and_is_tried_again_later() {
    let mut machine = running();
    let mut now = at(30_000);
    for wait in [1, 2, 4, 8, 16, 30, 30] {
        let paused = machine.handle(Event::Tick, idle(), now);
        let ended = end(&mut machine, &paused, Err("the freezer is stuck".into()), idle(), now);
        assert_eq!(ended, []);
        assert_eq!(machine.phase(), "running");
        let trouble = machine.trouble().expect("a trouble");
        assert_eq!(trouble.reason, "the freezer is stuck");
        assert_eq!(machine.next_wakeup(), Some(now + Duration::from_secs(wait)));
        now = now + Duration::from_secs(wait);
    }
    let paused = machine.handle(Event::Tick, idle(), now);
    let _ = make(&mut machine, &paused, idle(), now);
    assert_eq!((machine.phase(), machine.trouble()), ("paused", None));
}

#[test]
fn a_failed_resume_loses_the_memory_and_ends_in_a_start() {
    let mut machine = paused();
    let _ = machine.handle(Event::Tick, Demand::Waiting, at(0));
    let resumed = machine.handle(Event::WakeAdmitted, Demand::Waiting, at(0));
    let stopped = end(&mut machine, &resumed, Err("no such cgroup".into()), Demand::Waiting, at(1));
    assert_eq!(stopped, [Effect::Changed, Effect::Stop(Transition(2))]);
    assert_eq!(machine.trouble().map(|trouble| trouble.reason.as_str()), Some("no such cgroup"));
    let started = make(&mut machine, &stopped, Demand::Waiting, at(2));
    assert_eq!(
        started,
        [Effect::Changed, Effect::Start { transition: Transition(3), epoch: Epoch(8) }],
        "in the slot that it has already"
    );
    let awake = make(&mut machine, &started, Demand::Waiting, at(3));
    assert_eq!(awake, [Effect::WakeDone, Effect::Changed, grants(8, Public::Cold)]);
}

#[test]
fn t12_a_failed_start_is_told_to_all_who_wait_and_tried_again_after_a_growing_while() {
    let mut machine = cold();
    let mut now = at(0);
    for wait in [1, 2, 4, 8, 16, 30, 30] {
        let wait = Duration::from_secs(wait);
        assert_eq!(machine.handle(Event::Tick, Demand::Waiting, now), [HEAVY]);
        let started = machine.handle(Event::WakeAdmitted, Demand::Waiting, now);
        let failed = end(&mut machine, &started, Err("no disk".into()), Demand::Waiting, now);
        let refusal =
            |left| Effect::Refuse { refusal: Refusal::Failed("no disk".into()), retry_after: Some(left) };
        assert_eq!(failed, [Effect::WakeDone, refusal(wait)]);
        assert_eq!(machine.phase(), "failed");
        assert_eq!(
            machine.handle(Event::Tick, Demand::Waiting, (now + wait).saturating_before(MS)),
            [refusal(MS)]
        );
        now = now + wait;
    }
    let _ = machine.handle(Event::Tick, Demand::Waiting, now);
    let started = machine.handle(Event::WakeAdmitted, Demand::Waiting, now);
    let _ = make(&mut machine, &started, Demand::Waiting, now);
    assert_eq!((machine.phase(), machine.trouble()), ("running", None));
}

#[test]
fn a_sprite_that_dies_is_started_again_at_once_and_one_that_keeps_dying_is_not() {
    let mut machine = running();
    // It ran for long: nothing is held against it.
    let died = machine.handle(Event::Exited { epoch: Epoch(7) }, Demand::Held, at(20_000));
    assert_eq!(died, [Effect::Revoke(Revocation::Exited), Effect::Changed]);
    assert_eq!((machine.phase(), machine.public()), ("cold", Public::Cold));
    let mut now = at(20_000);
    for wait in [1, 2, 4] {
        let wait = Duration::from_secs(wait);
        assert_eq!(machine.handle(Event::Tick, Demand::Waiting, now), [HEAVY]);
        let started = machine.handle(Event::WakeAdmitted, Demand::Waiting, now);
        let _ = make(&mut machine, &started, Demand::Waiting, now);
        let epoch = machine.epoch();
        now = now + MS;
        let _ = machine.handle(Event::Exited { epoch }, Demand::Held, now);
        assert_eq!(machine.phase(), "failed");
        assert!(matches!(
            machine.handle(Event::Tick, Demand::Waiting, now)[..],
            [Effect::Refuse { refusal: Refusal::Failed(_), retry_after: Some(left) }] if left == wait
        ));
        now = now + wait;
    }
    // A life that ends in sleep clears the record.
    let _ = machine.handle(Event::Tick, Demand::Waiting, now);
    let started = machine.handle(Event::WakeAdmitted, Demand::Waiting, now);
    let _ = make(&mut machine, &started, Demand::IdleSince(now), now);
    let paused = machine.handle(Event::Tick, Demand::IdleSince(now), now + IDLE);
    let _ = make(&mut machine, &paused, Demand::IdleSince(now), now + IDLE);
    let _ = machine.handle(Event::Exited { epoch: machine.epoch() }, Demand::IdleSince(now), now + IDLE);
    assert_eq!(machine.phase(), "cold", "killed in its sleep");
    assert_eq!(machine.handle(Event::Tick, Demand::Waiting, now + IDLE), [HEAVY]);
}

#[test]
fn the_exit_of_an_earlier_life_changes_nothing() {
    let mut machine = running();
    assert_eq!(machine.handle(Event::Exited { epoch: Epoch(6) }, Demand::Held, at(1)), []);
    assert_eq!(machine.phase(), "running");
}

#[test]
fn a_sprite_that_dies_in_the_middle_of_a_call_is_taken_for_what_it_is() {
    let exited =
        |machine: &mut Machine| machine.handle(Event::Exited { epoch: machine.epoch() }, idle(), at(30_000));
    // Pausing
    let mut machine = running();
    let paused = machine.handle(Event::Tick, idle(), at(30_000));
    assert_eq!(machine.confirm(call(&paused).unwrap(), idle(), at(30_000)), Confirmation::Go);
    assert_eq!(exited(&mut machine), []);
    let outcome = Err("no such process".into());
    let _ = machine.handle(Event::DriverDone { transition: Transition(1), outcome }, idle(), at(30_000));
    assert_eq!(machine.phase(), "cold");
    // Starting: the end of its life is heard of before the end of the call.
    let mut machine = cold();
    let _ = machine.handle(Event::Tick, Demand::Waiting, at(0));
    let started = machine.handle(Event::WakeAdmitted, Demand::Waiting, at(0));
    assert_eq!(machine.confirm(call(&started).unwrap(), Demand::Waiting, at(0)), Confirmation::Go);
    assert_eq!(exited(&mut machine), []);
    let done = Event::DriverDone { transition: Transition(1), outcome: Ok(()) };
    let ended = machine.handle(done, Demand::Waiting, at(30_000));
    assert_eq!(ended, [Effect::WakeDone, Effect::Revoke(Revocation::Exited), HEAVY]);
}

#[test]
fn a_sprite_that_dies_before_a_decision_is_made_is_not_taken_back_to_life() {
    // Somebody comes after its death, and the pause that was decided before it is taken back.
    let mut machine = running();
    let paused = machine.handle(Event::Tick, idle(), at(30_000));
    let died = machine.handle(Event::Exited { epoch: Epoch(7) }, idle(), at(30_001));
    assert_eq!(died, [Effect::Revoke(Revocation::Exited), Effect::Changed]);
    let transition = call(&paused).unwrap();
    assert_eq!(machine.confirm(transition, Demand::Waiting, at(30_002)), Confirmation::Abandoned(Vec::new()));
    assert_eq!(machine.handle(Event::Tick, Demand::Waiting, at(30_002)), [HEAVY]);

    let mut machine = paused_and_woken();
    let died = machine.handle(Event::Exited { epoch: Epoch(7) }, Demand::Waiting, at(1));
    assert_eq!(died, [Effect::WakeDone, Effect::Changed, HEAVY]);
}

/// Paused, with a resume that is decided and not made.
fn paused_and_woken() -> Machine {
    let mut machine = paused();
    let _ = machine.handle(Event::Tick, Demand::Waiting, at(0));
    let _ = machine.handle(Event::WakeAdmitted, Demand::Waiting, at(0));
    machine
}

#[test]
fn t3_an_ordered_sleep_lets_requests_in_flight_end_and_holds_new_ones() {
    let mut machine = running();
    let revoked = machine.handle(Event::Sleep(Depth::Warm), Demand::Held, at(1_000));
    assert_eq!(revoked, [Effect::Revoke(Revocation::Sleep)]);
    assert_eq!((machine.phase(), machine.next_wakeup()), ("draining", Some(at(1_000) + GRACE)));
    assert_eq!(machine.handle(Event::Tick, Demand::Waiting, at(2_000)), [], "who comes now is held");

    let mut impatient = machine.clone();
    let paused = machine.handle(Event::Drained, Demand::Waiting, at(3_000));
    assert_eq!(paused, [Effect::Pause(Transition(1))]);
    let asked = make(&mut machine, &paused, Demand::Waiting, at(3_001));
    assert_eq!(asked, [Effect::Changed, LIGHT], "and then wakes it");

    // Those who do not end in time are cut off.
    assert_eq!(impatient.handle(Event::Tick, idle(), at(5_999)), []);
    assert_eq!(impatient.handle(Event::Tick, idle(), at(6_000)), [Effect::Pause(Transition(1))]);
}

#[test]
fn an_ordered_sleep_of_an_idle_sprite_is_at_once_and_as_deep_as_ordered() {
    let mut machine = running();
    let paused = machine.handle(Event::Sleep(Depth::Warm), idle(), at(1));
    assert_eq!(paused, [Effect::Pause(Transition(1))]);
    let _ = make(&mut machine, &paused, idle(), at(2));
    assert_eq!(machine.phase(), "paused");
    let stopped = machine.handle(Event::Sleep(Depth::Cold), idle(), at(3));
    assert_eq!(stopped, [Effect::Stop(Transition(2))]);
    let _ = make(&mut machine, &stopped, idle(), at(4));
    assert_eq!(machine.phase(), "cold");
    assert_eq!(machine.handle(Event::Sleep(Depth::Warm), idle(), at(5)), [], "it sleeps deeper already");
}

#[test]
fn what_an_ordered_sleep_froze_does_not_wake_the_sprite() {
    let mut machine = running();
    let _ = machine.handle(Event::Sleep(Depth::Warm), Demand::Held, at(1));
    let paused = machine.handle(Event::Drained, Demand::Held, at(2));
    let _ = make(&mut machine, &paused, Demand::Held, at(3));
    assert_eq!(machine.handle(Event::Tick, Demand::Held, at(4)), []);
    assert_eq!(machine.phase(), "paused");
}

#[test]
fn an_ordered_sleep_that_fails_is_not_tried_without_end() {
    let mut machine = running();
    let paused = machine.handle(Event::Sleep(Depth::Warm), idle(), at(1));
    let failed = end(&mut machine, &paused, Err("stuck".into()), Demand::Waiting, at(2));
    assert_eq!(failed, [grants(7, Public::Running)]);
}

#[test]
fn t9_an_ordered_sleep_is_never_turned_into_destruction() {
    let mut machine = running();
    let mut effects = machine.handle(Event::Sleep(Depth::Cold), idle(), at(0));
    for hour in 0..24 * 365 {
        let now = at(hour * 3_600_000 + 1);
        effects = match call(&effects) {
            Some(_) => make(&mut machine, &effects, idle(), now),
            None => machine.handle(Event::Tick, idle(), now),
        };
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Destroy(_))));
    }
    assert_eq!((machine.phase(), machine.next_wakeup()), ("cold", None));
}

#[test]
fn t10_a_pause_and_a_resume_a_thousand_times_over_end_running() {
    let mut machine = running();
    let mut now = at(0);
    for _ in 0..1_000 {
        now = now + MS;
        let paused = machine.handle(Event::Sleep(Depth::Warm), Demand::IdleSince(now), now);
        let asked = make(&mut machine, &paused, Demand::Waiting, now);
        assert_eq!(asked, [Effect::Changed, LIGHT]);
        let resumed = machine.handle(Event::WakeAdmitted, Demand::Waiting, now);
        let awake = make(&mut machine, &resumed, Demand::Waiting, now);
        assert_eq!(awake, [Effect::WakeDone, Effect::Changed, grants(7, Public::Warm)]);
    }
    assert_eq!((machine.phase(), machine.epoch()), ("running", Epoch(7)));
}

#[test]
fn t38_a_refused_wake_leaves_the_sprite_as_it_was() {
    for (mut machine, asked) in [(cold(), HEAVY), (paused(), LIGHT)] {
        let phase = machine.phase();
        assert_eq!(machine.handle(Event::Tick, Demand::Waiting, at(0)), std::slice::from_ref(&asked));
        let retry_after = Duration::from_secs(3);
        let refused = machine.handle(
            Event::WakeRefused { refusal: Refusal::HostFull, retry_after },
            Demand::Waiting,
            at(1),
        );
        assert_eq!(refused, [Effect::Refuse { refusal: Refusal::HostFull, retry_after: Some(retry_after) }]);
        assert_eq!(machine.phase(), phase);
        // Whoever comes next asks again.
        assert_eq!(machine.handle(Event::Tick, Demand::Waiting, at(2)), [asked]);
    }
}

#[test]
fn t38_a_destroy_wakes_nothing() {
    for found in [Found::Stopped, Found::Paused, Found::Running] {
        for demand in [idle(), Demand::Held, Demand::Waiting] {
            let mut machine = Machine::new(settings(true, true), found, Epoch(7), at(0), at(0));
            let mut effects = machine.handle(Event::Destroy, demand, at(1));
            let mut all = effects.clone();
            while call(&effects).is_some() {
                effects = make(&mut machine, &effects, demand, at(2));
                all.extend(effects.clone());
            }
            let wakes = all.iter().any(|effect| {
                matches!(
                    effect,
                    Effect::AskWake(_) | Effect::Start { .. } | Effect::Resume { .. } | Effect::Grant { .. }
                )
            });
            assert!(!wakes, "{found:?} {demand:?}: {all:?}");
            assert!(all.contains(&Effect::Gone), "{all:?}");
            let stopped = all.iter().any(|effect| matches!(effect, Effect::Stop(_)));
            assert_eq!(stopped, found != Found::Stopped);
            let refused =
                all.iter().any(|e| matches!(e, Effect::Refuse { refusal: Refusal::Destroying, .. }));
            assert_eq!(refused, demand == Demand::Waiting);
            assert_eq!(machine.phase(), "destroyed");
        }
    }
}

#[test]
fn a_destroy_takes_back_a_wake_that_was_not_made_yet() {
    let mut machine = cold();
    let _ = machine.handle(Event::Tick, Demand::Waiting, at(0));
    let started = machine.handle(Event::WakeAdmitted, Demand::Waiting, at(0));
    let destroyed = machine.handle(Event::Destroy, Demand::Waiting, at(1));
    assert_eq!(machine.confirm(call(&started).unwrap(), idle(), at(1)), Confirmation::Abandoned(Vec::new()));
    assert!(destroyed.contains(&Effect::WakeDone), "{destroyed:?}");
    assert!(matches!(destroyed.last(), Some(Effect::Destroy(_))), "{destroyed:?}");
}

#[test]
fn a_destroy_waits_for_the_driver_call_that_is_out() {
    let mut machine = cold();
    let _ = machine.handle(Event::Tick, Demand::Waiting, at(0));
    let started = machine.handle(Event::WakeAdmitted, Demand::Waiting, at(0));
    assert_eq!(machine.confirm(call(&started).unwrap(), Demand::Waiting, at(0)), Confirmation::Go);
    let refusal = Effect::Refuse { refusal: Refusal::Destroying, retry_after: None };
    assert_eq!(machine.handle(Event::Destroy, Demand::Waiting, at(1)), [refusal]);
    let done = Event::DriverDone { transition: Transition(1), outcome: Ok(()) };
    let stopped = machine.handle(done, idle(), at(2));
    assert!(matches!(stopped.last(), Some(Effect::Stop(_))), "{stopped:?}");
}

#[test]
fn a_queued_wake_is_cancelled_by_a_destroy() {
    let mut machine = cold();
    let _ = machine.handle(Event::Tick, Demand::Waiting, at(0));
    let destroyed = machine.handle(Event::Destroy, idle(), at(1));
    assert!(destroyed.contains(&Effect::CancelWake), "{destroyed:?}");
    assert_eq!(machine.handle(Event::WakeAdmitted, idle(), at(2)), [], "the scheduler has taken it out");
}

#[test]
fn a_stop_that_fails_is_tried_again_and_holds_no_wake() {
    let mut machine = paused();
    let _ = machine.handle(Event::Tick, Demand::Waiting, at(0));
    let resumed = machine.handle(Event::WakeAdmitted, Demand::Waiting, at(0));
    let stopped = end(&mut machine, &resumed, Err("lost".into()), Demand::Waiting, at(1));
    let stuck = end(&mut machine, &stopped, Err("it does not die".into()), Demand::Waiting, at(2));
    let second = Duration::from_secs(1);
    let refusal =
        Effect::Refuse { refusal: Refusal::Failed("it does not die".into()), retry_after: Some(second) };
    assert_eq!(stuck, [Effect::WakeDone, refusal]);
    assert_eq!(machine.next_wakeup(), Some(at(1_002)));
    let stopped = machine.handle(Event::Tick, idle(), at(1_002));
    let _ = make(&mut machine, &stopped, idle(), at(1_003));
    assert_eq!(machine.phase(), "cold");
}

#[test]
fn a_sprite_found_running_does_not_sleep_before_its_holders_can_come_back() {
    let ttl = Duration::from_secs(60);
    let mut machine = Machine::new(settings(true, false), Found::Running, Epoch(3), at(0), at(0) + ttl);
    assert_eq!(machine.handle(Event::Tick, idle(), at(0)), []);
    assert_eq!(machine.next_wakeup(), Some(at(60_000)));
    assert_eq!(machine.handle(Event::Tick, idle(), at(59_999)), []);
    assert_eq!(machine.handle(Event::Tick, idle(), at(60_000)), [Effect::Pause(Transition(1))]);
}

#[test]
fn a_checkpoint_disturbs_nothing() {
    for mut machine in [cold(), paused(), running()] {
        let (phase, public) = (machine.phase(), machine.public());
        let taken = machine.handle(Event::Checkpoint, Demand::Held, at(1));
        assert_eq!(taken, [Effect::Checkpoint(Transition(1))]);
        assert_eq!((machine.phase(), machine.public()), ("checkpointing", public));
        assert_eq!(make(&mut machine, &taken, Demand::Held, at(2)), []);
        assert_eq!(machine.phase(), phase);
    }
}

#[test]
fn a_restore_ends_the_present_life_and_the_next_has_a_new_epoch() {
    let mut machine = running();
    let stopped = machine.handle(Event::Restore, Demand::Held, at(1));
    assert_eq!(stopped, [Effect::Revoke(Revocation::Restore), Effect::Stop(Transition(1))]);
    let restored = make(&mut machine, &stopped, Demand::Waiting, at(2));
    assert_eq!(restored, [Effect::Changed, Effect::Restore(Transition(2))]);
    let asked = make(&mut machine, &restored, Demand::Waiting, at(3));
    assert_eq!(asked, [HEAVY]);
    let started = machine.handle(Event::WakeAdmitted, Demand::Waiting, at(4));
    assert_eq!(started, [Effect::Changed, Effect::Start { transition: Transition(3), epoch: Epoch(8) }]);
}

#[test]
fn a_shutdown_stops_the_sprite_and_sends_everyone_away() {
    let mut machine = running();
    let stopped = machine.handle(Event::Shutdown, Demand::Held, at(1));
    assert_eq!(stopped, [Effect::Revoke(Revocation::Shutdown), Effect::Stop(Transition(1))]);
    let refusal = Effect::Refuse { refusal: Refusal::ShuttingDown, retry_after: None };
    let cold = make(&mut machine, &stopped, Demand::Waiting, at(2));
    assert_eq!(cold, [Effect::Changed, refusal.clone()]);
    assert_eq!(machine.handle(Event::Tick, Demand::Waiting, at(3)), [refusal]);
}

#[test]
fn t7_a_success_clears_the_record_of_failures_for_good() {
    // splitmix64
    let mut seed = 7_u64;
    let mut random = move |end: u64| {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)) % end
    };
    let mut machine = running();
    let mut now = at(0);
    let mut failures = 0;
    for _ in 0..50_000 {
        now = now + Duration::from_millis(random(40_000));
        let since = now.saturating_before(Duration::from_secs(60));
        let demand = match random(3) {
            0 => Demand::Waiting,
            1 => Demand::Held,
            _ => Demand::IdleSince(since),
        };
        let effects = machine.handle(Event::Tick, demand, now);
        let Some(transition) = call(&effects) else { continue };
        if machine.confirm(transition, Demand::IdleSince(since), now) != Confirmation::Go {
            continue;
        }
        let fails = random(2) == 0;
        let outcome = if fails { Err("stuck".into()) } else { Ok(()) };
        let _ = machine.handle(Event::DriverDone { transition, outcome }, Demand::IdleSince(since), now);
        failures = if fails { failures + 1 } else { 0 };
        let waits = machine.trouble().and_then(|trouble| trouble.retry_at).map(|at| at - now);
        let expected = (failures > 0).then(|| Duration::from_secs((1 << (failures - 1).min(5)).min(30)));
        assert_eq!(waits, expected, "after {failures} failures in a row");
        if machine.phase() == "paused" {
            let _ = machine.handle(Event::Tick, Demand::Waiting, now);
            let resumed = machine.handle(Event::WakeAdmitted, Demand::Waiting, now);
            let _ = make(&mut machine, &resumed, Demand::Waiting, now);
        }
    }
}

/// A machine of a host that is short of memory, with what it does about that.
fn squeezed(found: Found, suspend: bool, demand: Demand, now: Moment) -> (Machine, Vec<Effect>) {
    let mut machine = Machine::new(settings(true, suspend), found, Epoch(7), at(0), at(0));
    let _ = machine.handle(Event::Tick, demand, at(0));
    let effects = machine.handle(Event::Squeeze, demand, now);
    (machine, effects)
}

#[test]
fn a_short_host_sinks_what_nobody_uses_at_once_and_as_deep_as_it_can() {
    let (mut machine, paused) = squeezed(Found::Running, true, idle(), at(1_000));
    assert_eq!(paused, [Effect::Pause(Transition(1))]);
    let suspended = make(&mut machine, &paused, idle(), at(1_001));
    assert_eq!(suspended, [Effect::Changed, Effect::Suspend(Transition(2))]);
    assert_eq!(make(&mut machine, &suspended, idle(), at(1_050)), []);
    assert_eq!((machine.phase(), machine.trouble()), ("suspended", None), "nothing is lost");
    assert_eq!(machine.next_wakeup(), Some(at(601_001)), "and it stays there for as long as usual");

    let (mut machine, stopped) = squeezed(Found::Paused, false, idle(), at(1_000));
    assert_eq!(stopped, [Effect::Stop(Transition(1))]);
    assert_eq!(make(&mut machine, &stopped, idle(), at(1_001)), [Effect::Changed]);
    let trouble = machine.trouble().expect("a reason");
    assert!(trouble.reason.contains("short of it"), "{trouble:?}");
}

#[test]
fn a_short_host_disturbs_nobody_and_forgets_it_once_the_sprite_is_used() {
    for suspend in [false, true] {
        for demand in [Demand::Held, Demand::Waiting] {
            let (mut machine, effects) = squeezed(Found::Running, suspend, demand, at(1_000));
            assert_eq!(call(&effects), None);
            assert_eq!(machine.handle(Event::Tick, Demand::IdleSince(at(2_000)), at(2_000)), []);
            assert_eq!(machine.next_wakeup(), Some(at(32_000)), "its idle time is its own again");
        }
        // Somebody comes before the driver is called.
        let (mut machine, paused) = squeezed(Found::Running, suspend, idle(), at(1_000));
        let transition = call(&paused).expect("a driver call");
        let Confirmation::Abandoned(effects) = machine.confirm(transition, Demand::Waiting, at(1_001)) else {
            panic!("it is put to sleep under somebody's hands");
        };
        assert_eq!(effects, [grants(7, Public::Running)]);
        assert_eq!(machine.handle(Event::Tick, Demand::IdleSince(at(2_000)), at(2_000)), []);
    }
    let (mut machine, deeper) = squeezed(Found::Paused, true, idle(), at(1_000));
    let transition = call(&deeper).expect("a driver call");
    let confirmation = machine.confirm(transition, Demand::Waiting, at(1_001));
    assert_eq!(confirmation, Confirmation::Abandoned(vec![LIGHT]));
}

#[test]
fn what_an_order_froze_is_not_lost_to_a_short_host() {
    // A command runs inside, and stands still.
    let (_, effects) = squeezed(Found::Paused, false, Demand::Held, at(1_000));
    assert_eq!(effects, []);
    let (_, effects) = squeezed(Found::Paused, true, Demand::Held, at(1_000));
    assert_eq!(effects, [Effect::Suspend(Transition(1))]);
}
