//! The promises of the architecture, over some four million random steps.
//!
//! Each world is run for a while, then left alone until nothing happens any more, with every check after
//! every step; see `check.rs` for what these are. `cargo run -p simulation -- --steps N --seed S` goes on
//! from here.

use std::time::Duration;

use simulation::{Ending, Report, Scenario, World};

const STEPS: u64 = 500_000;
const STEPS_EACH: u64 = 15_000;

fn run(scenario: Scenario) -> Report {
    let mut all = Report::default();
    let mut seed = 1_000;
    while all.steps < STEPS {
        let mut world = World::new(scenario, seed);
        let report = world.run(STEPS_EACH).and_then(|()| world.finish());
        all.add(&report.unwrap_or_else(|violation| panic!("{violation}")));
        seed += 1;
    }
    assert!(all.ended(Ending::Served) > all.requests() / 2, "{all:#?}");
    assert!(all.starts > 500 && all.sinks > 1_000, "hardly anything happened: {all:#?}");
    all
}

#[test]
fn no_request_is_lost_or_duplicated_by_a_sleep() {
    let report = run(Scenario::calm());
    assert_eq!(
        report.bounced + report.ended(Ending::Broken) + report.ended(Ending::Expired),
        0,
        "{report:#?}"
    );
    let report = run(Scenario::calm().stopping());
    assert_eq!(
        report.bounced + report.ended(Ending::Broken) + report.ended(Ending::Expired),
        0,
        "{report:#?}"
    );
}

#[test]
fn no_sprite_sleeps_under_a_lease_and_no_lease_outlives_its_holder() {
    let report = run(Scenario::flaky());
    // Whatever breaks between gateway and agent, what is in use goes on.
    assert_eq!(report.ended(Ending::Broken), 0, "{report:#?}");
    assert!(report.ended(Ending::GatewayDied) > 100, "{report:#?}");
}

#[test]
fn a_lease_that_was_lost_is_used_no_longer() {
    let report = run(Scenario::forgetful());
    assert_eq!(report.ended(Ending::Expired), 0, "{report:#?}");
}

#[test]
fn a_host_that_is_short_of_memory_disturbs_nobody_and_leaves_nobody_waiting() {
    for scenario in [Scenario::short(), Scenario::short().suspending()] {
        let report = run(scenario);
        assert_eq!(
            report.bounced + report.ended(Ending::Broken) + report.ended(Ending::Expired),
            0,
            "{report:#?}"
        );
    }
}

#[test]
fn a_crowd_is_served_or_sent_away_and_no_wake_is_lost() {
    let report = run(Scenario::crowded());
    assert_eq!((report.most_wakes, report.bounced), (1, 0), "{report:#?}");
    assert!(report.ended(Ending::Refused) > 1_000, "{report:#?}");
}

#[test]
fn no_sprite_is_kept_awake_by_nothing() {
    let _ = run(Scenario::rough());
}

#[test]
fn what_is_decided_and_not_yet_made_is_taken_back_when_somebody_comes() {
    // T1, with decisions that lie for up to five seconds.
    let report = run(Scenario::calm().hesitant());
    assert!(report.abandoned > 100, "{report:#?}");
    assert_eq!(report.bounced + report.ended(Ending::Broken), 0, "{report:#?}");
}

#[test]
fn nothing_hangs_and_nothing_is_left_over_after_a_storm() {
    let report = run(Scenario::stormy());
    assert!(report.bounced > 0 && report.ended(Ending::Broken) > 0, "{report:#?}");
}

#[test]
fn drivers_that_suspend_keep_the_same_promises() {
    let _ = run(Scenario::rough().suspending());
    let _ = run(Scenario::stormy().hesitant().suspending());
}

#[test]
fn a_seed_gives_the_same_run_each_time() {
    let run = || {
        let mut world = World::new(Scenario::stormy(), 7);
        world.run(20_000).unwrap_or_else(|violation| panic!("{violation}"));
        format!("{:?}", world.finish().unwrap_or_else(|violation| panic!("{violation}")))
    };
    assert_eq!(run(), run());
}

#[test]
fn an_hour_of_sleep_and_wake_under_load_fails_no_request() {
    for mut scenario in [Scenario::calm(), Scenario::calm().stopping(), Scenario::flaky().suspending()] {
        scenario.line.max_waiting = 10_000;
        scenario.held_in_all = 10_000;
        scenario.wakes = lifecycle::WakeLimits { at_once: 8, queued: 100, queued_per_organization: 100 };
        // An agent may be away for longer than the usual budget.
        scenario.line.budget = Duration::from_secs(110);
        scenario.holder.acquire_timeout = Duration::from_secs(111);
        // Clients of a gateway that is killed have to come again; nobody else notices anything.
        scenario.faults.gateway_dies = Duration::ZERO;
        let mut world = World::new(scenario, 1);
        world.run_until(Duration::from_secs(3_600)).unwrap_or_else(|violation| panic!("{violation}"));
        let report = world.finish().unwrap_or_else(|violation| panic!("{violation}"));
        let (served, left) = (report.ended(Ending::Served), report.ended(Ending::Left));
        assert!(served > 10_000 && report.starts + report.resumes > 1_000, "{report:#?}");
        assert_eq!(report.requests(), served + left, "{report:#?}");
    }
}
