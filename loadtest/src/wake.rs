//! How long a request to a sleeping sprite waits for its first byte.

use std::time::{Duration, Instant};

use test_support::{Options, Raw, SpriteUrl, World};

use crate::report::Row;

const PATIENCE: Duration = Duration::from_secs(30);

/// One request on a connection of its own, from before the connect to the first byte.
pub(crate) async fn first_byte(world: &World, sprite: &SpriteUrl) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut client = Raw::connect(world.http).await?;
    client.send(format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", sprite.host)).await?;
    let line = client.until("\r\n", PATIENCE).await?;
    let elapsed = began.elapsed();
    anyhow::ensure!(line.contains("200"), "answered {line:?}");
    client.closed(PATIENCE).await?;
    Ok(elapsed)
}

/// Paused sprites fall asleep by themselves; cold ones are told to.
pub(crate) async fn measure(n: usize) -> anyhow::Result<Vec<Row>> {
    let world = World::start(Options { idle: Duration::from_millis(150), ..Options::default() }).await?;
    let sprite = world.create_with_backend("wake", "public").await?;
    let (mut warm, mut paused, mut cold) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..n {
        first_byte(&world, &sprite).await?;
        warm.push(first_byte(&world, &sprite).await?);
    }
    for _ in 0..n {
        world.until("wake", "warm", PATIENCE).await?;
        paused.push(first_byte(&world, &sprite).await?);
    }
    for _ in 0..n {
        world.sleep("wake", "cold").await?;
        cold.push(first_byte(&world, &sprite).await?);
    }
    world.stop().await?;
    Ok(vec![
        Row::new("awake: connect to first byte", warm, "for comparison"),
        Row::new("paused wake: connect to first byte", paused, "fell asleep by itself"),
        Row::new(
            "cold wake: connect to first byte",
            cold,
            "page cache hot; the service starts with the sprite",
        ),
    ])
}
