//! Awake for a reason, asleep without one.

use std::time::Duration;

use anyhow::ensure;
use test_support::{Answer, Options, Raw, World};

const SOON: Duration = Duration::from_secs(10);
/// Six idle timeouts.
const LONG: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_any_length_vetoes_sleep() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("slow", "public").await?;
    let slow = world.request("GET", &sprite, &format!("/slow?ms={}", LONG.as_millis()));
    let answer = Answer::read(slow.send().await?).await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "slow\n"));
    let drip = world.request("GET", &sprite, "/drip?ms=300&count=10");
    let answer = Answer::read(drip.send().await?).await?;
    assert_eq!(answer.body.lines().count(), 10);
    // It was never paused on the way, or its epoch of running would be younger.
    world.until("slow", "warm", SOON).await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_connection_keeps_a_sprite_awake_and_why_says_so() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("open", "public").await?;
    world.sleep("open", "warm").await?;
    let mut client = Raw::connect(world.http).await?;
    client.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", sprite.host)).await?;
    client.answer(SOON).await?;
    tokio::time::sleep(LONG).await;
    assert_eq!(world.status("open").await?, "running");
    let why = world.why("open").await?;
    ensure!(why["holders"][0]["connections"] == 1, "{why}");
    ensure!(why["holders"][0]["request_id"].is_string(), "{why}");
    drop(client);
    world.until("open", "warm", SOON).await?;
    let why = world.why("open").await?;
    ensure!(why["holders"].as_array().is_some_and(Vec::is_empty), "{why}");
    ensure!(why["sinks_to"] == "cold" && why["sleeps_in_ms"].is_u64(), "{why}");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_it_is_held_frees_its_place_and_the_sprite_sleeps_again()
-> anyhow::Result<()> {
    let options = Options { gateway: "[timing]\nport_wait_ms = 20000\n".into(), ..Options::default() };
    let world = World::start(options).await?;
    // Nothing ever listens in it, so a request waits until its client loses patience.
    let sprite = world.create("void", "public").await?;
    for _ in 0..20 {
        let mut client = Raw::connect(world.http).await?;
        client.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", sprite.host)).await?;
    }
    world.until("void", "running", SOON).await?;
    world.until("void", "warm", SOON).await?;
    test_support::eventually(SOON, || async { Ok(world.metric("gateway_held_requests", "").await? == 0.0) })
        .await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_about_a_sprite_does_not_wake_it() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    world.create("still", "public").await?;
    for path in ["", "/why", "/check", "/control", "/checkpoints", "/checkpoints/v0"] {
        world.call("GET", &format!("/v1/sprites/still{path}"), None).await?;
    }
    world.call("GET", "/v1/sprites", None).await?;
    for path in ["policy/network", "tasks"] {
        let (status, answer) = world.call("GET", &format!("/v1/sprites/still/{path}"), None).await?;
        ensure!(status == 501 && answer["error"] == "not_implemented", "{path}: {status} {answer}");
    }
    assert_eq!(world.status("still").await?, "cold");
    world.stop().await
}
