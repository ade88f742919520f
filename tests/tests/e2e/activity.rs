//! Sleep truth: each activity alone keeps a sprite awake, its end starts the idle clock, nothing else does, and
//! `why` names each.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::SinkExt;
use serde_json::{Value, json};
use test_support::{Options, Raw, World, eventually, exit_of, next_text as text};
use tokio_tungstenite::tungstenite::Message;

const SOON: Duration = Duration::from_secs(10);
/// Six idle timeouts.
const LONG: Duration = Duration::from_secs(3);

/// It runs all the time.
async fn stays_awake(world: &World, sprite: &str) -> anyhow::Result<()> {
    let until = Instant::now() + LONG;
    while Instant::now() < until {
        let status = world.status(sprite).await?;
        ensure!(status == "running", "{sprite} is {status}: {}", world.why(sprite).await?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// One that has fallen asleep by itself: a fresh start for the next case.
async fn asleep(world: &World, sprite: &str) -> anyhow::Result<()> {
    world.until(sprite, "warm", SOON).await?;
    let why = world.why(sprite).await?;
    ensure!(why["holders"] == json!([]), "nothing holds what sleeps: {why}");
    Ok(())
}

fn holds(why: &Value, activity: &str, name: &str) -> bool {
    let holders = why["holders"].as_array();
    holders.is_some_and(|holders| {
        holders.iter().any(|holder| {
            holder["activity"] == activity
                && (name.is_empty() || holder["name"].as_str().is_some_and(|text| text.contains(name)))
        })
    })
}

async fn says(world: &World, sprite: &str, activity: &str, name: &str) -> anyhow::Result<()> {
    let told = eventually(SOON, || async { Ok(holds(&world.why(sprite).await?, activity, name)) }).await;
    if told.is_err() {
        bail!("why does not name {activity} {name:?}: {}", world.why(sprite).await?);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_activity_alone_keeps_a_sprite_awake_and_why_names_it() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("busy", "public").await?;
    asleep(&world, "busy").await?;

    // A running command with its client.
    let mut running = world.exec("busy", "read line; exit 7", "&stdin=true").await?;
    assert_eq!(text(&mut running).await?["type"], "session_info");
    says(&world, "busy", "exec", "read line").await?;
    stays_awake(&world, "busy").await?;
    running.send(Message::binary(&b"\x00go\n"[..])).await?;
    assert_eq!(exit_of(running).await?.0, 7);
    asleep(&world, "busy").await?;

    // A session without a client.
    let mut session = world.exec("busy", "sleep 1000", "&detachable=true").await?;
    let id = text(&mut session).await?["session_id"].as_str().context("an id")?.to_owned();
    session.close(None).await?;
    says(&world, "busy", "session", "sleep 1000").await?;
    stays_awake(&world, "busy").await?;
    let (status, killed) = world.call("POST", &format!("/v1/sprites/busy/exec/{id}/kill"), None).await?;
    ensure!(status == 200 && killed["type"] == "complete", "{status} {killed}");
    asleep(&world, "busy").await?;

    // An open connection over its URL.
    let mut client = Raw::connect(world.http).await?;
    client.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", sprite.host)).await?;
    client.answer(SOON).await?;
    says(&world, "busy", "connections", "").await?;
    stays_awake(&world, "busy").await?;
    drop(client);
    asleep(&world, "busy").await?;

    // A tunnel.
    let mut tunnel = world.websocket("/v1/sprites/busy/proxy").await?;
    tunnel.send(Message::text(r#"{"host":"localhost","port":8080}"#)).await?;
    assert_eq!(text(&mut tunnel).await?["status"], "connected");
    says(&world, "busy", "connections", "").await?;
    stays_awake(&world, "busy").await?;
    tunnel.close(None).await?;
    asleep(&world, "busy").await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_activity_lets_a_sprite_sleep() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("idle", "sprite").await?;
    // A service runs in it all the time. Beside that, a process that a command left behind;
    let left = world.exec("idle", "setsid sleep 1000 >/dev/null 2>&1 &", "").await?;
    assert_eq!(exit_of(left).await?.0, 0);
    asleep(&world, "idle").await?;
    // and visitors who may not enter.
    let until = Instant::now() + LONG;
    while Instant::now() < until {
        assert_eq!(world.get(&sprite, "/").await?.status, 401);
        let status = world.status("idle").await?;
        ensure!(status == "warm", "{status}");
    }
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_keeps_nobody_awake_and_goes_on_when_somebody_else_wakes_the_sprite() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    world.create("watched", "public").await?;
    let mut ports = world.websocket("/v1/sprites/watched/ports/watch").await?;
    assert_eq!(text(&mut ports).await?["type"], "port_list");
    let mut files = world.websocket("/v1/sprites/watched/fs/watch").await?;
    files.send(Message::text(r#"{"type":"subscribe","paths":["/tmp"]}"#)).await?;
    assert_eq!(text(&mut files).await?["type"], "subscribed");
    asleep(&world, "watched").await?;
    let touched = world.exec("watched", "echo x > /tmp/seen", "").await?;
    assert_eq!(exit_of(touched).await?.0, 0);
    loop {
        let event = text(&mut files).await?;
        ensure!(event["type"] == "event", "{event}");
        if event["path"] == "/tmp/seen" && event["event"] == "write" {
            break;
        }
    }
    asleep(&world, "watched").await?;
    // It ends with the life of the sprite.
    world.sleep("watched", "cold").await?;
    let end = tokio::time::timeout(SOON, async { while text(&mut ports).await.is_ok() {} }).await;
    ensure!(end.is_ok(), "the watch of ports goes on");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_session_may_sleep_where_only_output_counts() -> anyhow::Result<()> {
    let options = Options { lifecycle: "session_activity = \"output\"".into(), ..Options::default() };
    let world = World::start(options).await?;
    world.create("quiet", "public").await?;
    let mut session = world.exec("quiet", "echo before; read line; echo after", "&tty=true").await?;
    let id = text(&mut session).await?["session_id"].as_str().context("an id")?.to_owned();
    session.close(None).await?;
    asleep(&world, "quiet").await?;
    // It goes on where it was.
    let mut again = world.websocket(&format!("/v1/sprites/quiet/exec/{id}")).await?;
    assert_eq!(text(&mut again).await?["session_id"], id.as_str());
    again.send(Message::binary(&b"x\n"[..])).await?;
    assert_eq!(exit_of(again).await?.0, 0);
    // One that writes all the time stays up.
    let mut loud = world.exec("quiet", "while sleep 0.1; do echo tick; done", "&tty=true").await?;
    let id = text(&mut loud).await?["session_id"].as_str().context("an id")?.to_owned();
    loud.close(None).await?;
    let idle = json!({ "idle_timeout_ms": 2500 });
    assert_eq!(world.call("PUT", "/v1/sprites/quiet", Some(idle)).await?.0, 200);
    stays_awake(&world, "quiet").await?;
    world.call("POST", &format!("/v1/sprites/quiet/exec/{id}/kill"), None).await?;
    asleep(&world, "quiet").await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_client_gateway_and_agent_and_goes_on_keeping_its_sprite_awake()
-> anyhow::Result<()> {
    let mut world = World::start(Options::default()).await?;
    world.create("lasting", "public").await?;
    let mut session =
        world.exec("lasting", "n=0; while read line; do n=$((n+1)); echo $n; done", "&tty=true").await?;
    let id = text(&mut session).await?["session_id"].as_str().context("an id")?.to_owned();
    world.kill_gateway()?;
    drop(session);
    world.kill_agent()?;
    world.start_agent().await?;
    world.start_gateway().await?;
    says(&world, "lasting", "session", "while read line").await?;
    stays_awake(&world, "lasting").await?;
    let (_, list) = world.call("GET", "/v1/sprites/lasting/exec", None).await?;
    ensure!(list["sessions"][0]["id"] == id.as_str() && list["count"] == 1, "{list}");
    let (status, _) = world.call("POST", &format!("/v1/sprites/lasting/exec/{id}/kill"), None).await?;
    assert_eq!(status, 200);
    asleep(&world, "lasting").await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_a_cold_start_and_an_upgrade_of_one_that_sleeps_wakes_nobody() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    world.create("again", "public").await?;
    let (status, answer) = world.call("POST", "/v1/sprites/again/upgrade", None).await?;
    ensure!(status == 200 && answer["status"] == "upgraded", "{status} {answer}");
    assert_eq!(world.status("again").await?, "cold");
    let mut session = world.exec("again", "sleep 1000", "&tty=true").await?;
    text(&mut session).await?;
    let before = world.why("again").await?["epoch"].as_u64().context("an epoch")?;
    let (status, answer) = world.call("POST", "/v1/sprites/again/restart", None).await?;
    ensure!(status == 200 && answer["sprite_name"] == "again", "{status} {answer}");
    let after = world.why("again").await?["epoch"].as_u64().context("an epoch")?;
    ensure!(after > before, "{before} {after}");
    let (_, list) = world.call("GET", "/v1/sprites/again/exec", None).await?;
    ensure!(list == json!({ "sessions": [], "count": 0 }), "{list}");
    world.stop().await
}
