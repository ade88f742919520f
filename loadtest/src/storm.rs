//! Many sleeping sprites hit within one second while a hot one serves.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::{StreamExt, stream};
use test_support::{Options, Raw, SpriteUrl, World};
use tokio::task::JoinHandle;

use crate::report::Row;

const PATIENCE: Duration = Duration::from_secs(60);
/// How often the hot sprite is asked.
const HOT_PERIOD: Duration = Duration::from_millis(5);

/// How long it is watched.
const WATCH: Duration = Duration::from_secs(3);
/// Sprites that are put to sleep at once.
const SLEEPING: usize = 16;

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

/// What happened while the others woke.
#[derive(Debug, Default)]
pub(crate) struct Meanwhile {
    /// Answers of the hot sprite, sorted.
    pub(crate) hot: Vec<Duration>,
    /// Answers of those that were woken, sorted.
    pub(crate) woken: Vec<Duration>,
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Storm {
    /// Answers of the hot sprite before, sorted.
    pub(crate) quiet: Vec<Duration>,
    pub(crate) paused: Meanwhile,
    pub(crate) cold: Meanwhile,
}

/// Asks the hot sprite from a thread of its own: its client is another one than those that hit the others, and does not wait
/// for them.
fn watch(port: u16, host: String) -> JoinHandle<anyhow::Result<Vec<Duration>>> {
    tokio::task::spawn_blocking(move || {
        let own = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        own.block_on(hot(port, host, Instant::now() + WATCH))
    })
}

/// Hits `n` sleeping sprites within a second, first paused, then cold.
pub(crate) async fn run(n: usize) -> anyhow::Result<Storm> {
    let world = World::start(Options { idle: Duration::from_secs(3600), ..Options::default() }).await?;
    let hot_sprite = world.create_with_backend("hot", "public").await?;
    world.get(&hot_sprite, "/").await?;
    let mut sprites = Vec::with_capacity(n);
    for number in 0..n {
        sprites.push(world.create_with_backend(&format!("s{number}"), "public").await?);
    }
    let watch = || watch(world.http, hot_sprite.host.clone());
    let mut storm = Storm { quiet: watch().await??, ..Storm::default() };
    storm.quiet.sort_unstable();
    for (depth, meanwhile) in [("warm", &mut storm.paused), ("cold", &mut storm.cold)] {
        let asleep = stream::iter(&sprites).map(|sprite| world.sleep(&sprite.name, depth));
        asleep
            .buffer_unordered(SLEEPING)
            .collect::<Vec<_>>()
            .await
            .into_iter()
            .collect::<anyhow::Result<()>>()?;
        let during = watch();
        let hits = stream::iter(sprites.iter().enumerate())
            .map(|(number, sprite)| {
                hit(&world, sprite, Duration::from_secs(1).mul_f64(number as f64 / n as f64))
            })
            .buffer_unordered(n);
        let woken: Vec<_> = hits.collect().await;
        meanwhile.woken = woken.into_iter().collect::<anyhow::Result<_>>()?;
        meanwhile.woken.sort_unstable();
        meanwhile.hot = during.await??;
        meanwhile.hot.sort_unstable();
    }
    world.stop().await?;
    Ok(storm)
}

pub(crate) async fn measure(n: usize) -> anyhow::Result<Vec<Row>> {
    let Storm { quiet, paused, cold } = run(n).await?;
    let mut rows = vec![Row::new("hot sprite, quiet", quiet, "200 requests/s, timed from when each was due")];
    for (from, Meanwhile { hot, woken }) in [("paused", paused), ("cold", cold)] {
        rows.push(Row::new(&format!("{n} {from} sprites hit in one second"), woken, "all served"));
        rows.push(Row::new(&format!("hot sprite meanwhile ({from})"), hot, ""));
    }
    Ok(rows)
}
