//! A sprite's URL wakes it, and nothing else is needed.

use std::time::Duration;

use test_support::{Options, World};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_new_sprite_is_cold_and_its_url_wakes_it() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create("fresh", "public").await?;
    assert_eq!(world.status("fresh").await?, "cold");
    world.install_backend("fresh").await?;
    world.service("fresh", "web", serde_json::json!({ "cmd": "/opt/backend", "args": ["8080"] })).await?;
    let answer = world.get(&sprite, "/").await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"));
    assert_eq!(world.status("fresh").await?, "running");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sprite_goes_on_where_it_was() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("nap", "public").await?;
    let before = world.get(&sprite, "/nonce").await?.json()?;
    world.until("nap", "warm", SOON).await?;
    let after = world.get(&sprite, "/nonce").await?.json()?;
    assert_eq!(before["nonce"], after["nonce"], "its memory is the same");
    assert_eq!(after["calls"], 2, "and so is its counter");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_sprite_keeps_its_disk_and_starts_its_services() -> anyhow::Result<()> {
    let options = Options { cold_after: Duration::from_millis(500), ..Options::default() };
    let world = World::start(options).await?;
    let sprite = world.create_with_backend("deep", "public").await?;
    let before = world.get(&sprite, "/nonce").await?.json()?;
    world.until("deep", "cold", SOON).await?;
    let after = world.get(&sprite, "/nonce").await?.json()?;
    assert_ne!(before["nonce"], after["nonce"], "its memory is gone");
    assert_eq!(after["calls"], 1);
    world.stop().await
}
