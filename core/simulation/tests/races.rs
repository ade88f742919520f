//! Situations in which a wake-on-request edge goes wrong, each at every moment it can happen. What must
//! hold in all of them (nothing reaches a sleeping sprite, nothing in use is put to sleep, nobody is
//! forgotten, everything ends) is checked after every step anyway; here is what is special to each.

use std::time::Duration;

use lifecycle::Depth;
use simulation::{Ending, Happening, Report, Scenario, World};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn visit(sprite: usize) -> Happening {
    Happening::Visit { gateway: 0, sprite }
}

/// Runs what `happens` in a world of this kind to its end.
fn run(scenario: Scenario, seed: u64, happens: impl IntoIterator<Item = (Duration, Happening)>) -> Report {
    let mut world = World::new(scenario, seed);
    for (at, happening) in happens {
        world.at(at, happening);
    }
    world.finish().unwrap_or_else(|violation| panic!("{violation}"))
}

/// When a sprite that is visited at 100 ms falls asleep, more or less.
const ASLEEP_AFTER: u64 = 1_500;

#[test]
fn t1_a_pause_that_lies_in_the_queue_is_rejected_when_somebody_comes() {
    let mut abandoned = 0;
    for seed in 0..50 {
        for second in (500..6_500).step_by(250) {
            let visits = [(ms(100), visit(0)), (ms(second), visit(0))];
            let report = run(Scenario::default().hesitant(), seed, visits);
            assert_eq!(report.ended(Ending::Served), 2);
            abandoned += report.abandoned;
        }
    }
    assert!(abandoned > 30, "{abandoned}");
}

#[test]
fn t2_a_request_in_the_middle_of_any_transition_is_served_after_it() {
    let scenario = Scenario { driver: ms(400), ..Scenario::default() };
    // Starting, running, pausing, paused, stopping, cold.
    for second in (100..9_000).step_by(7) {
        let report = run(scenario, second, [(ms(100), visit(0)), (ms(second), visit(0))]);
        assert_eq!(report.ended(Ending::Served), 2, "at {second} ms");
        assert!(report.starts + report.resumes <= 2, "at {second} ms: {report:?}");
    }
}

#[test]
fn t3_who_comes_after_an_order_to_sleep_is_held_and_then_wakes_the_sprite() {
    for after in 0..150 {
        let happens = [
            (ms(100), visit(0)),
            (ms(400), visit(0)),
            (ms(410), Happening::Sleep(0, Depth::Warm)),
            (ms(410) + ms(after) / 10, visit(0)),
        ];
        let report = run(Scenario::default(), after, happens);
        assert_eq!(report.ended(Ending::Served), 3, "{report:?}");
        assert_eq!(report.bounced, 0, "nothing was sent to a sprite that was going to sleep: {report:?}");
    }
}

#[test]
fn t4_a_request_of_any_length_vetoes_sleep() {
    let scenario = Scenario { service: Duration::from_secs(120), ..Scenario::default() };
    for seed in 0..50 {
        let report = run(scenario, seed, [(ms(0), visit(0))]);
        assert_eq!(
            (report.ended(Ending::Served), report.sinks),
            (1, 2),
            "one pause and one stop, after it: {report:?}"
        );
    }
}

#[test]
fn t5_who_comes_just_before_and_just_after_the_idle_timeout_is_served() {
    let scenario = Scenario {
        service: Duration::ZERO,
        driver: ms(10),
        latency: ms(0),
        confirm: ms(0),
        ..Scenario::default()
    };
    let (mut kept_awake, mut woken) = (0, 0);
    for seed in 0..20 {
        // The first visit is over after some 10 ms, and from then on idleness counts.
        for microseconds in (495_000..560_000).step_by(250) {
            let second = Duration::from_micros(microseconds);
            let report = run(scenario, seed, [(ms(0), visit(0)), (second, visit(0))]);
            assert_eq!(report.ended(Ending::Served), 2);
            match report.resumes {
                0 => kept_awake += 1,
                1 => woken += 1,
                resumes => panic!("{resumes} resumes"),
            }
            assert_eq!(report.sinks, 2 + report.resumes, "one pause for each life, and one stop: {report:?}");
        }
    }
    assert!(kept_awake > 10 && woken > 10, "{kept_awake} {woken}");
}

#[test]
fn t6_a_request_for_a_sprite_that_has_just_died_is_served_once_by_the_next_life() {
    for after in [0, 1, 2, 5, 10, 20, 50, 100, 1_000] {
        for seed in 0..20 {
            let happens =
                [(ms(0), visit(0)), (ms(450), Happening::SpriteDies(0)), (ms(450 + after), visit(0))];
            let scenario = Scenario { service: ms(5), ..Scenario::default() };
            let report = run(scenario, seed, happens);
            assert_eq!((report.ended(Ending::Served), report.starts), (2, 2), "after {after} ms: {report:?}");
        }
    }
}

#[test]
fn t8_a_sprite_that_was_woken_by_a_visitor_goes_to_sleep_again() {
    let report = run(Scenario::default(), 1, [(ms(0), visit(0))]);
    // One pause and one stop: the run ends with every sprite cold.
    assert_eq!((report.starts, report.sinks), (1, 2), "{report:?}");
}

#[test]
fn t10_an_order_to_sleep_followed_by_a_visit_a_thousand_times_over_serves_everyone() {
    let happens = (0..1_000)
        .flat_map(|n| [(ms(n * 1_000), Happening::Sleep(0, Depth::Warm)), (ms(n * 1_000 + n % 7), visit(0))]);
    let report = run(Scenario::default(), 3, happens);
    assert_eq!(report.ended(Ending::Served), 1_000, "{report:?}");
    assert!(report.resumes > 500, "{report:?}");
}

#[test]
fn t11_whenever_the_first_client_leaves_the_others_are_served_by_the_same_wake() {
    for leaves in (0..400).step_by(2) {
        let leader = Happening::ShortVisit { gateway: 0, sprite: 0, leaves_after: ms(leaves) };
        let followers = (0..20).map(|n| (ms(1), Happening::Visit { gateway: n % 3, sprite: 0 }));
        let report = run(Scenario::default(), leaves, std::iter::once((ms(0), leader)).chain(followers));
        assert!(report.ended(Ending::Served) >= 20, "{report:?}");
        assert_eq!((report.ended(Ending::Refused), report.starts), (0, 1), "{report:?}");
    }
}

#[test]
fn t12_when_a_wake_fails_everyone_is_told_at_once_and_the_next_try_is_a_new_one() {
    let mut scenario = Scenario::default();
    scenario.faults.driver_failures_per_mille = 1_000;
    let visits = (0..10).map(|n| (ms(n), visit(0))).chain([(ms(5_000), visit(0))]);
    let mut world = World::new(scenario, 1);
    visits.for_each(|(at, happening)| world.at(at, happening));
    world.run_until(Duration::from_secs(2)).unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(world.report().ended(Ending::Refused), 10, "long before anyone's budget is spent");
    let report = world.finish().unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.ended(Ending::Refused), 11);
}

#[test]
fn t13_requests_for_a_sprite_that_is_awake_need_no_wake() {
    // The only wake that may be under way is taken by another sprite.
    let mut scenario = Scenario { driver: Duration::from_secs(4), ..Scenario::default() };
    scenario.wakes.at_once = 1;
    scenario.settings.timing.idle_timeout = Duration::from_secs(60);
    let awake = (0..100).map(|n| (Duration::from_secs(30) + ms(n * 10), visit(0)));
    let others = (1..4).map(|sprite| (Duration::from_secs(30), visit(sprite)));
    let report = run(scenario, 5, std::iter::once((ms(0), visit(0))).chain(others).chain(awake));
    assert_eq!(
        (report.ended(Ending::Served), report.passed),
        (104, 99),
        "only the first has to ask the agent: {report:?}"
    );
}

#[test]
fn t15_as_many_wait_as_may_and_the_next_is_refused_at_once() {
    let scenario = Scenario::default();
    let most = scenario.line.max_waiting as u64;
    let visits = (0..most + 10).map(|_| (ms(0), visit(0)));
    let report = run(scenario, 1, visits);
    assert_eq!((report.ended(Ending::Served), report.ended(Ending::Refused)), (most, 10), "{report:?}");
}

#[test]
fn t16_five_thousand_held_requests_are_served_at_the_pace_of_one_fresh_sprite() {
    let mut scenario = Scenario::default();
    scenario.line.max_waiting = 10_000;
    scenario.line.release_at_once = 64;
    scenario.held_in_all = 10_000;
    // That no more than 64 are on their way at once is checked after every step.
    let report = run(scenario, 1, (0..5_000).map(|n| (ms(n / 100), visit(0))));
    assert_eq!((report.ended(Ending::Served), report.starts), (5_000, 1), "{report:?}");
}

#[test]
fn t17_when_all_have_left_before_it_is_up_the_wake_ends_and_the_sprite_sleeps_again() {
    for seed in 0..100 {
        let visits = (0..10)
            .map(|n| (ms(n), Happening::ShortVisit { gateway: 0, sprite: 0, leaves_after: ms(20 - n) }));
        let scenario = Scenario { driver: ms(1_000), ..Scenario::default() };
        let report = run(scenario, seed, visits);
        assert_eq!(report.ended(Ending::Left) + report.ended(Ending::Served), 10, "{report:?}");
        assert!(report.starts <= 1 && report.sinks == 2 * report.starts, "{report:?}");
    }
}

#[test]
fn t18_a_thousand_sprites_hit_within_a_second_wake_a_few_at_a_time_beside_a_hot_one() {
    let mut scenario = Scenario {
        sprites: 1_001,
        organizations: 10,
        driver: ms(40),
        service: ms(10),
        ..Scenario::default()
    };
    scenario.wakes = lifecycle::WakeLimits { at_once: 16, queued: 800, queued_per_organization: 200 };
    scenario.held_in_all = 10_000;
    scenario.settings.timing.idle_timeout = Duration::from_secs(30);
    let hot = (0..200).map(|n| (Duration::from_secs(10) + ms(n * 10), visit(0)));
    let storm = (1..=1_000_usize).map(|sprite| {
        (Duration::from_secs(10) + ms(sprite as u64), Happening::Visit { gateway: sprite % 3, sprite })
    });
    let report = run(scenario, 1, std::iter::once((ms(0), visit(0))).chain(hot).chain(storm));
    assert_eq!(report.most_wakes, 16, "as many as may: {report:?}");
    assert_eq!(
        report.passed, 199,
        "but for the first, the hot sprite's requests all go on at once: {report:?}"
    );
    assert_eq!(report.requests(), 1_201);
    assert!(report.ended(Ending::Served) >= 201 + 816, "{report:?}");
    assert_eq!(
        report.ended(Ending::Served) + report.ended(Ending::Refused),
        1_201,
        "nobody is left waiting: {report:?}"
    );
}

#[test]
fn t35_a_host_name_that_is_not_canonical_wakes_nothing() {
    let malformed = [
        "0--sprite-0-abcde.sprites.localhost",
        "65536--sprite-0-abcde.sprites.localhost",
        "03000--sprite-0-abcde.sprites.localhost",
        "xn--sprite-0-abcde.sprites.localhost",
        "second.sprite-0-abcde.sprites.localhost",
        "sprite-0-abcde.sprites.localhost..",
        "sprite-0-abcde.sprites.localhost:99999",
        "user@sprite-0-abcde.sprites.localhost",
        "sprite-0-abcde.elsewhere.localhost",
        "sprite-99-abcde.sprites.localhost",
        "",
    ];
    let visit = |authority: &str| Happening::VisitHost { gateway: 0, authority: authority.into() };
    let report = run(Scenario::default(), 1, malformed.map(|authority| (ms(1), visit(authority))));
    assert_eq!((report.ended(Ending::Refused), report.starts), (malformed.len() as u64, 0));

    let canonical = ["SPRITE-0-abcde.Sprites.Localhost.", "3000--sprite-0-abcde.sprites.localhost:8080"];
    let report = run(Scenario::default(), 1, canonical.map(|authority| (ms(1), visit(authority))));
    assert_eq!((report.ended(Ending::Served), report.starts), (2, 1));
}

#[test]
fn t38_a_refused_wake_leaves_a_paused_sprite_as_it_was() {
    let mut scenario = Scenario { driver: ms(800), service: ms(1), ..Scenario::default() };
    scenario.wakes = lifecycle::WakeLimits { at_once: 1, queued: 0, queued_per_organization: 0 };
    scenario.settings.timing.cold_after = Duration::from_secs(60);
    let (first, paused) = (ms(0), ms(8_000));
    for seed in 0..50 {
        let happens = [
            (first, visit(0)),
            // The one wake that may be under way is another sprite's.
            (paused, visit(1)),
            (paused + ms(20), visit(0)),
            (paused + ms(10_000), visit(0)),
        ];
        let report = run(scenario, seed, happens);
        let refused = report.ended(Ending::Refused);
        assert_eq!(report.ended(Ending::Served) + refused, 4);
        assert_eq!(report.starts, 2, "its memory was kept: {report:?}");
        assert!(refused <= 1 && report.resumes == 2 - refused, "{report:?}");
    }
}

#[test]
fn t38_destroying_a_sprite_in_any_state_wakes_nothing() {
    for at in (0..9_000).step_by(13) {
        let happens = [(ms(100), visit(0)), (ms(at), Happening::Destroy(0)), (ms(at + 1), visit(0))];
        // That nothing marked for destruction is ever woken is checked with every call of the driver.
        let report = run(Scenario::default(), at, happens);
        assert!(report.starts <= 1 && report.resumes == 0, "at {at} ms: {report:?}");
        assert_eq!(report.requests(), 2, "at {at} ms: {report:?}");
    }
}

#[test]
fn an_agent_that_is_killed_at_any_moment_adopts_what_runs_and_serves_everyone() {
    for at in (90..4_000).step_by(9) {
        let scenario = Scenario { service: ms(300), ..Scenario::default() };
        let happens = [
            (ms(100), visit(0)),
            (ms(at), Happening::AgentDies),
            (ms(ASLEEP_AFTER), visit(0)),
            (ms(4_000), visit(0)),
        ];
        let report = run(scenario, at, happens);
        assert_eq!(report.ended(Ending::Served), 3, "killed at {at} ms: {report:?}");
        assert!(report.starts <= 2, "{report:?}");
    }
}

#[test]
fn a_gateway_that_is_killed_at_any_moment_keeps_nothing_awake() {
    for at in (90..2_000).step_by(9) {
        let scenario = Scenario { service: Duration::from_secs(5), ..Scenario::default() };
        let happens = [(ms(100), visit(0)), (ms(at), Happening::GatewayDies(0))];
        // That the sprite is asleep in time is checked after every step.
        let report = run(scenario, at, happens);
        assert!(report.requests() <= 1 && report.sinks == 2 * report.starts, "killed at {at} ms: {report:?}");
    }
}

#[test]
fn channels_that_break_at_any_moment_are_not_felt() {
    for at in (90..2_500).step_by(5) {
        let happens = [
            (ms(100), visit(0)),
            (ms(at), Happening::ChannelsBreak),
            (ms(at + 1), Happening::Visit { gateway: 1, sprite: 0 }),
            (ms(ASLEEP_AFTER), Happening::ChannelsBreak),
            (ms(ASLEEP_AFTER + 1), visit(0)),
        ];
        let report = run(Scenario::default(), at, happens);
        assert_eq!((report.ended(Ending::Served), report.bounced), (3, 0), "broken at {at} ms: {report:?}");
    }
}
