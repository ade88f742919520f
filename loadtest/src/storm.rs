//! Many sleeping sprites hit within one second while a hot one serves.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::{StreamExt, stream};
use test_support::{Options, Raw, SpriteUrl, World};

use crate::report::Row;

const PATIENCE: Duration = Duration::from_secs(60);
/// How often the hot sprite is asked.
const HOT_PERIOD: Duration = Duration::from_millis(5);

/// Asks the hot sprite at a fixed rate on one connection. A request that could not be sent when it was
/// due, because the answer before was late, is timed from when it was due (no coordinated omission).
async fn hot(port: u16, host: String, until: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut client = Raw::connect(port).await?;
    let mut samples = Vec::new();
    let mut due = Instant::now();
    while due < until {
        let late = due < Instant::now();
        tokio::time::sleep_until(due.into()).await;
        let began = if late { due } else { Instant::now() };
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await?;
        client.answer(PATIENCE).await?;
        samples.push(began.elapsed());
        due += HOT_PERIOD;
    }
    Ok(samples)
}

async fn hit(world: &World, sprite: &SpriteUrl, delay: Duration) -> anyhow::Result<Duration> {
    tokio::time::sleep(delay).await;
    let began = Instant::now();
    let answer = world.get(sprite, "/").await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    Ok(began.elapsed())
}

pub(crate) async fn measure(n: usize) -> anyhow::Result<Vec<Row>> {
    let world = World::start(Options { idle: Duration::from_secs(3600), ..Options::default() }).await?;
    let hot_sprite = world.create_with_backend("hot", "public").await?;
    world.get(&hot_sprite, "/").await?;
    let mut sprites = Vec::with_capacity(n);
    for number in 0..n {
        sprites.push(world.create_with_backend(&format!("s{number}"), "public").await?);
    }
    let mut rows = Vec::new();
    let quiet = hot(world.http, hot_sprite.host.clone(), Instant::now() + Duration::from_secs(3)).await?;
    rows.push(Row::new("hot sprite, quiet", quiet, "200 requests/s, timed from when each was due"));
    for depth in ["warm", "cold"] {
        for sprite in &sprites {
            world.sleep(&sprite.name, depth).await?;
        }
        let during =
            tokio::spawn(hot(world.http, hot_sprite.host.clone(), Instant::now() + Duration::from_secs(3)));
        let second = Duration::from_secs(1);
        let hits = stream::iter(sprites.iter().enumerate())
            .map(|(number, sprite)| {
                hit(
                    &world,
                    sprite,
                    second * u32::try_from(number).unwrap_or(0) / u32::try_from(n).unwrap_or(1),
                )
            })
            .buffer_unordered(n);
        let woken: Vec<_> = hits.collect().await;
        let woken = woken.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let from = if depth == "warm" { "paused" } else { depth };
        rows.push(Row::new(&format!("{n} {from} sprites hit in one second"), woken, "all served"));
        rows.push(Row::new(&format!("hot sprite meanwhile ({from})"), during.await??, ""));
    }
    world.stop().await?;
    Ok(rows)
}
