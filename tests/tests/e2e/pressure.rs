//! A host that is short of memory: whoever was used longest ago gives some back, and whoever is in use is left alone.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use test_support::{Answer, Driver, Options, SpriteUrl, World, eventually};
use tokio::sync::OnceCell;

const SOON: Duration = Duration::from_secs(30);
/// What the web server of each sprite has in memory: much more than the programs themselves.
const KEPT_MIB: u64 = 64;

fn options(memory: &str) -> Options {
    Options {
        // Nothing sinks for want of use.
        lifecycle: "suspend_after_ms = 3600000\n".into(),
        cold_after: Duration::from_secs(7200),
        agent: format!("[memory]\nkeep_free_mib = 0\n{memory}\n"),
        ..Options::default()
    }
}

/// A sprite with a web server that has its share of memory, and the server's nonce.
async fn sprite(world: &World, name: &str) -> anyhow::Result<(SpriteUrl, Value)> {
    let sprite = world.create_with_backend(name, "public").await?;
    let nonce = nonce(world, &sprite).await?;
    let kept = world.get(&sprite, &format!("/keep?mib={KEPT_MIB}")).await?;
    ensure!(kept.status == 200, "{}", kept.body);
    Ok((sprite, nonce))
}

async fn nonce(world: &World, sprite: &SpriteUrl) -> anyhow::Result<Value> {
    let answer = world.get(sprite, "/nonce").await?;
    ensure!(answer.status == 200, "{}: {} {}", sprite.name, answer.status, answer.body);
    Ok(answer.json()?["nonce"].clone())
}

async fn phase(world: &World, name: &str) -> anyhow::Result<String> {
    Ok(world.why(name).await?["phase"].as_str().context("a phase")?.to_owned())
}

async fn until_phase(world: &World, name: &str, expected: &str) -> anyhow::Result<()> {
    let reached = eventually(SOON, || async { Ok(phase(world, name).await? == expected) }).await;
    reached.with_context(|| format!("{name} is to be {expected}"))
}

/// What such a sprite has, in MiB, as the agent counts it.
async fn each_has() -> anyhow::Result<u64> {
    static EACH: OnceCell<u64> = OnceCell::const_new();
    let measure = || async {
        let world = World::start(options("")).await?;
        sprite(&world, "measured").await?;
        world.sleep("measured", "warm").await?;
        let bytes = world.agent_metric("agent_memory_bytes", "sprites").await?;
        world.stop().await?;
        anyhow::Ok(bytes as u64 >> 20)
    };
    EACH.get_or_try_init(measure).await.copied()
}

/// Waits until the agent has seen that there is no room for another one.
async fn until_full(world: &World) -> anyhow::Result<()> {
    eventually(SOON, || async { Ok(world.agent_metric("agent_wakes_with_memory", "").await? == 0.0) }).await
}

/// As deep as the driver can.
const fn deepest(driver: Driver) -> &'static str {
    match driver {
        Driver::Process => "cold",
        Driver::Qemu | Driver::Firecracker => "suspended",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sprite_that_was_used_longest_ago_sinks_first_and_no_more_than_must() -> anyhow::Result<()> {
    let each = each_has().await?;
    // Two fit in, and half of what a third would need.
    let (sprites, wake) = (each * 9 / 4, each / 2);
    let world = World::start(options(&format!("sprites_mib = {sprites}\nwake_mib = {wake}"))).await?;
    let (first, first_nonce) = sprite(&world, "first").await?;
    until_phase(&world, "first", "paused").await?;
    let (second, second_nonce) = sprite(&world, "second").await?;
    let deepest = deepest(world.driver());
    until_phase(&world, "first", deepest).await?;
    until_phase(&world, "second", "paused").await?;
    ensure!(world.agent_metric("agent_squeezed_sprites_total", "").await? >= 1.0);
    let trouble = world.why("first").await?["trouble"]["message"].clone();
    // What goes to disk is not lost.
    let is_told = trouble.as_str().is_some_and(|text| text.contains("short of it"));
    assert_eq!(is_told, world.driver() == Driver::Process, "{trouble}");

    // There is room for one: it stays as it is.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(phase(&world, "second").await?, "paused");
    assert_eq!(nonce(&world, &second).await?, second_nonce);
    let now = nonce(&world, &first).await?;
    assert_eq!(now == first_nonce, world.driver() != Driver::Process, "a memory on disk comes back");
    assert_eq!(world.why("first").await?["trouble"], Value::Null);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_waits_until_somebody_sleeps_and_nobody_in_use_is_disturbed() -> anyhow::Result<()> {
    let each = each_has().await?;
    let memory = format!("sprites_mib = {}\nwake_mib = {}\npatience_ms = 20000", each * 5 / 4, each / 2);
    let world = World::start(options(&memory)).await?;
    // It takes its memory only when it is asked to: so it can be made while the other one is there.
    let late = world.create("late", "public").await?;
    world.install_backend("late").await?;
    let service = serde_json::json!({ "cmd": "/opt/backend", "args": ["8080"], "http_port": 8080 });
    world.service("late", "web", service).await?;
    world.sleep("late", "cold").await?;
    let (busy, busy_nonce) = sprite(&world, "busy").await?;
    let long = tokio::spawn(world.request("GET", &busy, "/slow?ms=5000").send());
    until_full(&world).await?;
    let began = Instant::now();
    let waits = world.get(&late, "/").await?;
    let waited = began.elapsed();
    assert_eq!(waits.status, 200, "{}", waits.body);
    let long = Answer::read(long.await??).await?;
    assert_eq!((long.status, long.body.as_str()), (200, "slow\n"));
    ensure!(waited > Duration::from_secs(2), "it was let in after {waited:?}, and nobody had made room");
    ensure!(phase(&world, "busy").await? == deepest(world.driver()));
    let now = nonce(&world, &busy).await?;
    assert_eq!(now == busy_nonce, world.driver() != Driver::Process);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_that_finds_no_memory_in_time_is_refused_and_says_so() -> anyhow::Result<()> {
    let each = each_has().await?;
    let memory = format!("sprites_mib = {}\nwake_mib = {}\npatience_ms = 500", each * 5 / 4, each / 2);
    let world = World::start(options(&memory)).await?;
    let late = world.create("late", "public").await?;
    let (busy, _) = sprite(&world, "busy").await?;
    let long = tokio::spawn(world.request("GET", &busy, "/slow?ms=4000").send());
    until_full(&world).await?;
    let answer = world.request("GET", &late, "/").send().await?;
    assert_eq!(answer.status(), 503);
    ensure!(answer.headers().contains_key("retry-after"), "{:?}", answer.headers());
    let refusal: Value = answer.json().await?;
    ensure!(refusal["error"] == "host_full" && refusal.to_string().contains("memory"), "{refusal}");
    assert_eq!(phase(&world, "late").await?, "cold");
    let long = Answer::read(long.await??).await?;
    assert_eq!(long.status, 200);
    world.stop().await
}
