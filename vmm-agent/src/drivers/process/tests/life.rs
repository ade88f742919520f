//! From the start of a sprite to its end.

use std::{fs, path::Path, time::Duration};

use ids::{Epoch, SpriteId};
use nix::sys::signal::Signal;
use runtime_api::{Address, Command, DialError, Event, RefusalCode, Target, open_control};
use tokio::time::{Instant, sleep, timeout};

use super::world::{World, eventually, port, spec};
use crate::drivers::{Adopted, Driver as _, DriverError, Resources, SpriteSpec, Verb, process::Settings};

/// Counts in a file that the host can read.
const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo $i > /home/sprite/new && mv /home/sprite/new /home/sprite/count; sleep 0.01; done";
const GRACE: Duration = Duration::from_secs(5);

fn count(world: &World, id: SpriteId) -> u64 {
    let text = fs::read_to_string(world.files(id).join("disk/home/sprite/count")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

async fn counts_on(world: &World, id: SpriteId) {
    let before = count(world, id);
    eventually("the counter goes on", || count(world, id) > before + 3).await;
}

/// Processes whose root is the sprite's disk would show it in their mounts.
fn left_on_the_host(world: &World, id: SpriteId) -> Vec<String> {
    let (name, mark) = (id.to_string(), format!("{}/sprites/{id}", world.name()));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if mounts.contains(&mark) {
            found.push(format!("process {pid}"));
        }
    }
    for hierarchy in ["unified", "freezer", "pids", "memory", "cpu", ""] {
        let dir = Path::new("/sys/fs/cgroup").join(hierarchy).join("sprites").join(&name);
        if dir.exists() {
            found.push(format!("cgroup {}", dir.display()));
        }
    }
    for file in ["runtime.sock", "process.json", "stopped.json"] {
        if world.files(id).join("run").join(file).exists() {
            found.push(file.to_owned());
        }
    }
    found
}

#[tokio::test]
async fn a_web_server_inside_answers() {
    let world = World::new();
    let (id, _control) = world.sprite(1).await;
    let server = "cd /tmp && echo 'it works' > index.html && exec /usr/bin/python3 -m http.server 8000";
    world.service(id, "web", server, Some(8000)).await;
    // Without waiting for it: the dial does.
    let answer = world.request(id, Target::Web, "GET /", "").await;
    assert!(answer.contains("200 OK") && answer.ends_with("it works\n"), "{answer}");
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn no_process_runs_while_the_sprite_is_paused() {
    let world = World::new();
    let (id, _control) = world.sprite(2).await;
    world.service(id, "counter", COUNTER, None).await;
    for _ in 0..5 {
        counts_on(&world, id).await;
        world.driver.pause(id).await.unwrap();
        let frozen = count(&world, id);
        sleep(Duration::from_millis(100)).await;
        assert_eq!(count(&world, id), frozen);
        world.driver.pause(id).await.unwrap();
        world.driver.resume(id).await.unwrap();
        world.driver.resume(id).await.unwrap();
    }
    counts_on(&world, id).await;
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn a_thousand_pauses_and_resumes_end_running() {
    let world = World::new();
    let (id, _control) = world.sprite(3).await;
    // Processes that come and go all the time are the hard ones to stop.
    world.service(id, "forks", "while true; do /bin/true & wait; done", None).await;
    world.service(id, "counter", COUNTER, None).await;
    counts_on(&world, id).await;
    for _ in 0..1000 {
        world.driver.pause(id).await.unwrap();
        world.driver.resume(id).await.unwrap();
    }
    counts_on(&world, id).await;
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn a_stop_leaves_the_disk_and_nothing_else() {
    let world = World::new();
    let (id, mut control) = world.sprite(4).await;
    world.run(id, "echo kept > /home/sprite/kept; mkdir -p /data; echo kept > /data/kept").await;
    // One that obeys, one that does not, one that ran away, one that is stopped.
    world
        .service(
            id,
            "obeys",
            "trap 'echo ended > /home/sprite/ended; exit' TERM; while true; do sleep 0.01; done",
            None,
        )
        .await;
    world.service(id, "runs-away", "setsid sh -c 'while true; do sleep 1; done' & sleep 1000", None).await;
    world.service(id, "stopped", "kill -STOP $$; sleep 1000", None).await;
    world.driver.pause(id).await.unwrap();
    world.driver.stop(id, GRACE).await.unwrap();
    assert_eq!(left_on_the_host(&world, id), [""; 0]);
    timeout(GRACE, world.driver.exited(id)).await.unwrap();
    while timeout(GRACE, control.next()).await.unwrap().is_ok_and(|event| event.is_some()) {}
    let disk = world.files(id).join("disk");
    assert_eq!(fs::read_to_string(disk.join("home/sprite/ended")).unwrap(), "ended\n");
    world.driver.stop(id, GRACE).await.unwrap();

    world.driver.prepare(&spec(4)).await.unwrap();
    world.driver.start(&spec(4), Epoch(2)).await.unwrap();
    world.configure(id).await;
    assert_eq!(world.run(id, "cat /home/sprite/kept /data/kept").await, "kept\nkept\n");
    world.driver.destroy(id).await.unwrap();
    assert_eq!(left_on_the_host(&world, id), [""; 0]);
    assert!(!world.files(id).exists());
    eventually("its files are gone", || fs::read_dir(world.state().join("sprites")).unwrap().count() == 0)
        .await;
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn services_end_before_those_that_they_need_even_in_a_short_grace() {
    let world = World::new();
    let (id, _control) = world.sprite(14).await;
    let script = |name: &str| {
        let script =
            format!("trap 'echo {name} >> /home/sprite/ends; exit' TERM; while true; do sleep 0.01; done");
        serde_json::json!(["-c", script])
    };
    for (name, needs) in [("db", vec![]), ("web", vec!["db"])] {
        let body = serde_json::json!({ "cmd": "/bin/sh", "args": script(name), "needs": needs });
        let put = format!("PUT /services/{name}?duration=50ms");
        world.request(id, Target::Api, &put, &body.to_string()).await;
    }
    // One that takes all the time there is does not take it from them.
    world.service(id, "deaf", "trap '' TERM; while true; do sleep 1; done", None).await;
    sleep(Duration::from_millis(50)).await;
    world.driver.pause(id).await.unwrap();
    world.driver.stop(id, Duration::from_secs(1)).await.unwrap();
    let ends = fs::read_to_string(world.files(id).join("disk/home/sprite/ends")).unwrap();
    assert_eq!(ends, "web\ndb\n");
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn orphans_are_collected() {
    let world = World::new();
    let (id, _control) = world.sprite(15).await;
    world.run(id, "for i in $(seq 50); do (sleep 0.01 & ) ; done").await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(world.run(id, "grep -l '^State:.Z' /proc/[0-9]*/status").await, "");
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn a_stop_kills_what_does_not_obey() {
    let world = World::new();
    let (id, _control) = world.sprite(5).await;
    world
        .service(
            id,
            "deaf",
            "trap '' TERM; echo deaf > /home/sprite/count; while true; do sleep 1; done",
            None,
        )
        .await;
    let file = world.files(id).join("disk/home/sprite/count");
    eventually("the service is up", || file.exists()).await;
    let begun = Instant::now();
    world.driver.stop(id, Duration::from_millis(300)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(left_on_the_host(&world, id), [""; 0]);
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn a_sprite_outlives_its_agent() {
    let mut world = World::new();
    let (id, _control) = world.sprite(6).await;
    world.service(id, "counter", COUNTER, None).await;
    counts_on(&world, id).await;
    world.replace_agent();
    assert_eq!(world.driver.adopt(id).await.unwrap(), Some(Adopted::Running));
    counts_on(&world, id).await;
    let mut control = open_control(&Address::Socket(world.socket(id))).await.unwrap();
    let hello = control.next().await.unwrap();
    assert!(matches!(hello, Some(Event::Hello { configured: Some(Epoch(1)), .. })), "{hello:?}");

    world.driver.pause(id).await.unwrap();
    world.replace_agent();
    assert_eq!(world.driver.adopt(id).await.unwrap(), Some(Adopted::Paused));
    assert_eq!(world.driver.adopt(id).await.unwrap(), Some(Adopted::Paused));
    world.driver.resume(id).await.unwrap();
    counts_on(&world, id).await;

    // Stopped by one that never adopted it.
    world.replace_agent();
    world.driver.stop(id, GRACE).await.unwrap();
    assert_eq!(left_on_the_host(&world, id), [""; 0]);
    world.replace_agent();
    assert_eq!(world.driver.adopt(id).await.unwrap(), None);
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn a_sprite_that_died_unseen_is_cleaned_up() {
    let mut world = World::new();
    let (id, _control) = world.sprite(7).await;
    kill_first_process(&world, id);
    timeout(GRACE, world.driver.exited(id)).await.unwrap();
    world.replace_agent();
    assert_eq!(world.driver.adopt(id).await.unwrap(), None);
    assert_eq!(left_on_the_host(&world, id), [""; 0]);
    world.driver.start(&spec(7), Epoch(2)).await.unwrap();
    world.driver.destroy(id).await.unwrap();
}

fn kill_first_process(world: &World, id: SpriteId) {
    let record = fs::read_to_string(world.files(id).join("run/process.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let pid = nix::unistd::Pid::from_raw(record["pid"].as_i64().unwrap() as i32);
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn the_end_of_the_first_process_is_noticed() {
    let world = World::new();
    let (id, mut control) = world.sprite(8).await;
    let exited = world.driver.exited(id);
    tokio::pin!(exited);
    assert!(timeout(Duration::from_millis(50), &mut exited).await.is_err());
    control.send(&Command::Shutdown { grace_ms: 1000 }).await.unwrap();
    timeout(GRACE, exited).await.unwrap();
    world.driver.stop(id, GRACE).await.unwrap();
    assert_eq!(left_on_the_host(&world, id), [""; 0]);
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn verbs_in_the_wrong_state_are_refused_and_change_nothing() {
    let world = World::new();
    let spec = spec(9);
    let refused = world.driver.pause(spec.id).await;
    assert!(matches!(refused, Err(DriverError::NotRunning { verb: Verb::Pause, .. })), "{refused:?}");
    assert!(matches!(world.driver.suspend(spec.id).await, Err(DriverError::Unsupported { .. })));
    // Without a disk.
    let refused = world.driver.start(&spec, Epoch(1)).await;
    assert!(matches!(&refused, Err(DriverError::Host { step, .. }) if step.contains("disk")), "{refused:?}");
    assert_eq!(left_on_the_host(&world, spec.id), [""; 0]);
    world.driver.prepare(&spec).await.unwrap();
    world.driver.prepare(&spec).await.unwrap();
    world.driver.start(&spec, Epoch(1)).await.unwrap();
    let refused = world.driver.start(&spec, Epoch(1)).await;
    assert!(matches!(refused, Err(DriverError::AlreadyRunning { .. })), "{refused:?}");
    world.driver.destroy(spec.id).await.unwrap();
}

#[tokio::test]
async fn a_dial_says_what_listens_instead() {
    let world = World::new();
    let (id, mut control) = world.sprite(10).await;
    let server = "exec /usr/bin/python3 -m http.server 3000 --bind 127.0.0.2";
    world.service(id, "web", server, None).await;
    // On an address that is neither of the usual two; the first port that may be HTTP is the web's.
    let answer = world.request(id, Target::Web, "GET /", "").await;
    assert!(answer.contains("200 OK"), "{answer}");
    let refused = world.dial(id, port(5000), 50).await;
    let Err(DialError::Refused(refusal)) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.code, RefusalCode::NotListening);
    assert!(refusal.message.contains("5000") && refusal.message.contains("3000"), "{}", refusal.message);
    loop {
        match timeout(GRACE, control.next()).await.unwrap().unwrap().unwrap() {
            Event::PortOpened(opened) => {
                assert_eq!((opened.port.get(), opened.address.as_str()), (3000, "127.0.0.2"));
                assert!(opened.pid.is_some());
                break;
            }
            Event::Hello { .. } | Event::Ready | Event::Pong => {}
            other => panic!("{other:?}"),
        }
    }
    world.request(id, Target::Api, "DELETE /services/web", "").await;
    let closed = timeout(GRACE, control.next()).await.unwrap().unwrap();
    assert!(matches!(closed, Some(Event::PortClosed(_))), "{closed:?}");
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn the_web_service_is_started_for_a_request_unless_a_person_stopped_it() {
    let world = World::new();
    let (id, _control) = world.sprite(11).await;
    let body = r#"{"cmd":"/bin/nope","http_port":8000}"#;
    let answer = world.request(id, Target::Api, "PUT /services/web?duration=2s", body).await;
    assert!(answer.contains("failed to start: /bin/nope: No such file or directory"), "{answer}");
    let refused = world.dial(id, Target::Web, 5000).await;
    let Err(DialError::Refused(refusal)) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.code, RefusalCode::ServiceDown);
    assert_eq!(refusal.message, "service \"web\" failed to start: /bin/nope: No such file or directory");

    world.service(id, "web", "exec /usr/bin/python3 -m http.server 8000", Some(8000)).await;
    assert!(world.request(id, Target::Web, "GET /", "").await.contains("200 OK"));
    let taken =
        world.request(id, Target::Api, "PUT /services/other", r#"{"cmd":"x","http_port":9000}"#).await;
    assert!(
        taken.starts_with("HTTP/1.1 409") && taken.contains("another service already has an HTTP port"),
        "{taken}"
    );

    let stopped = world.request(id, Target::Api, "POST /services/web/stop", "").await;
    assert!(
        stopped.contains("stopping") && stopped.contains("\"stopped\"") && stopped.contains("complete"),
        "{stopped}"
    );
    let again = world.request(id, Target::Api, "POST /services/web/stop", "").await;
    assert!(again.starts_with("HTTP/1.1 409"), "{again}");
    let refused = world.dial(id, Target::Web, 5000).await;
    let Err(DialError::Refused(refusal)) = refused else { panic!("{refused:?}") };
    assert!(refusal.message.contains("stopped by hand") && refusal.message.contains("services/web/start"));

    // It stays stopped over a boot, and starts when told.
    world.driver.stop(id, GRACE).await.unwrap();
    world.driver.start(&spec(11), Epoch(2)).await.unwrap();
    world.configure(id).await;
    assert!(world.dial(id, Target::Web, 100).await.is_err());
    let started = world.request(id, Target::Api, "POST /services/web/start?duration=50ms", "").await;
    assert!(started.contains("\"started\""), "{started}");
    assert!(world.request(id, Target::Web, "GET /", "").await.contains("200 OK"));

    // And a boot starts what was not stopped.
    world.driver.stop(id, GRACE).await.unwrap();
    world.driver.start(&spec(11), Epoch(3)).await.unwrap();
    world.configure(id).await;
    assert!(world.request(id, Target::Web, "GET /", "").await.contains("200 OK"));
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn two_thousand_dials_at_once_all_arrive() {
    const DIALS: usize = 2000;
    raise_descriptors();
    let world = World::new();
    let (id, _control) = world.sprite(12).await;
    // It listens half a second after they have come, and never accepts: the kernel's queue is enough.
    let server = "exec /usr/bin/python3 -c 'import socket, time; time.sleep(0.5); s = socket.socket(); \
                  s.bind((\"\", 8080)); s.listen(4096); time.sleep(1000)'";
    world.service(id, "server", server, None).await;
    let dials = (0..DIALS).map(|_| world.dial(id, Target::Web, 15_000));
    let connections = futures_util::future::join_all(dials).await;
    let failed: Vec<_> = connections.iter().filter_map(|one| one.as_ref().err()).take(3).collect();
    assert!(failed.is_empty(), "{failed:?}");
    world.driver.destroy(id).await.unwrap();
}

fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// What the next test kills: an agent that starts, pauses and stops a sprite without end.
#[test]
fn agent_to_be_killed() {
    let Some(state) = std::env::var_os("SPRITES_TEST_VICTIM") else { return };
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    tokio.block_on(async {
        let driver = super::world::driver(Path::new(&state), Settings::default());
        let spec = victims_sprite();
        loop {
            driver.stop(spec.id, Duration::ZERO).await.unwrap();
            driver.prepare(&spec).await.unwrap();
            driver.start(&spec, Epoch(1)).await.unwrap();
            driver.pause(spec.id).await.unwrap();
            driver.resume(spec.id).await.unwrap();
        }
    });
}

/// The same for the agent and for the test that kills it, another one for another user's.
fn victims_sprite() -> SpriteSpec {
    let user = u128::from(nix::unistd::geteuid().as_raw());
    SpriteSpec {
        id: SpriteId::from_u128(13 + (user << 64)),
        name: "demo".parse().unwrap(),
        resources: Resources::default(),
    }
}

#[tokio::test]
async fn an_agent_killed_at_any_moment_loses_no_sprite() {
    const KILLS: u64 = 60;
    let mut world = World::new();
    let spec = victims_sprite();
    world.driver.prepare(&spec).await.unwrap();
    let mut found = [0; 3];
    for kill in 0..KILLS {
        let mut agent = std::process::Command::new("/proc/self/exe")
            .args(["drivers::process::tests::life::agent_to_be_killed", "--exact"])
            .env("SPRITES_TEST_VICTIM", world.state())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Between its first action and its second round, in steps that share no divisor with them.
        sleep(Duration::from_micros(20_000 + kill * 1_733)).await;
        agent.kill().unwrap();
        agent.wait().unwrap();
        world.replace_agent();
        let adopted = world.driver.adopt(spec.id).await.unwrap();
        match adopted {
            None => found[0] += 1,
            Some(Adopted::Running) => found[1] += 1,
            Some(Adopted::Paused) => found[2] += 1,
            Some(Adopted::Suspended) => unreachable!("it can't"),
        }
        if adopted.is_some() {
            world.driver.stop(spec.id, Duration::ZERO).await.unwrap();
        }
        // A launcher that lost its agent may still be on its way out.
        let deadline = tokio::time::Instant::now() + GRACE;
        while !left_on_the_host(&world, spec.id).is_empty() && tokio::time::Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(left_on_the_host(&world, spec.id), [""; 0], "after kill {kill}, which left {adopted:?}");
    }
    // Otherwise the moments were not well chosen.
    assert!(found[0] > 0 && found[1] > 0, "{found:?}");
    world.driver.destroy(spec.id).await.unwrap();
}
