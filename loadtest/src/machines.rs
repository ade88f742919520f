//! What virtual machines cost: how fast they sleep and wake, and what is left of them on the host meanwhile.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::future::join_all;
use serde_json::Value;
use test_support::{Driver, Options, World};

use crate::{
    report::{Rate, Row},
    wake::first_byte,
};

/// Times and amounts.
pub(crate) struct Measured {
    pub(crate) times: Vec<Row>,
    pub(crate) rates: Vec<Rate>,
}

/// `rounds` sleeps and wakes of one machine of each kind; then `sprites` of them asleep, of which `woken` are woken
/// at once.
pub(crate) async fn measure(rounds: usize, sprites: usize, woken: usize) -> anyhow::Result<Measured> {
    ensure!(woken <= sprites, "only those that are there can be woken");
    let options = Options { driver: Driver::Qemu, idle: Duration::from_secs(3600), ..Options::default() };
    let world = World::start(options).await?;
    let one = world.create_with_backend("one", "public").await?;
    first_byte(&world, &one).await?;
    let (mut paused, mut suspended, mut cold) = (Vec::new(), Vec::new(), Vec::new());
    for (depth, times) in [("warm", &mut paused), ("suspended", &mut suspended), ("cold", &mut cold)] {
        for _ in 0..rounds {
            world.sleep("one", depth).await?;
            times.push(first_byte(&world, &one).await?);
        }
    }
    let told = |verb| transitions(&world, verb);
    let mut rates = Vec::new();
    let id = world.id("one").await?;
    let sprite = world.state_dir().join("sprites").join(&id);
    rates.push(amount(
        "a running machine's RAM on the host",
        resident_mib(&sprite)?,
        "its QEMU's resident set",
    ));
    world.sleep("one", "warm").await?;
    rates.push(amount("a paused machine's", resident_mib(&sprite)?, "the same"));
    world.sleep("one", "suspended").await?;
    rates.push(amount("a suspended machine's", resident_mib(&sprite)?, "no process is left"));
    let bytes =
        |file: &str| -> anyhow::Result<f64> { Ok(fs::metadata(sprite.join(file))?.blocks() as f64 / 2048.0) };
    rates.push(amount("on disk: its RAM", bytes("memory/ram")?, "allocated of 256 MiB"));
    rates.push(amount("on disk: the state of its devices", bytes("memory/state")?, "allocated"));
    rates.push(amount("on disk: what it changed of its image", bytes("layers/1.qcow2")?, "allocated"));
    let times = vec![
        Row::new("hibernate, to QEMU's end", told("suspend")?, "before what it wrote is synced"),
        Row::new(
            "resume from disk, to the runtime's answer",
            told_last(&world, "resume", rounds)?,
            "page cache hot",
        ),
        Row::new("paused wake: connect to first byte", paused, "through the gateway"),
        Row::new("suspended wake: connect to first byte", suspended, "through the gateway; page cache hot"),
        Row::new("cold wake: connect to first byte", cold, "a boot; through the gateway"),
        many(&world, sprites, woken).await?,
    ];
    world.stop().await?;
    Ok(Measured { times, rates })
}

/// Many asleep, and some of them woken at once.
async fn many(world: &World, sprites: usize, woken: usize) -> anyhow::Result<Row> {
    let mut urls = Vec::new();
    for n in 0..sprites {
        let sprite = world.create_with_backend(&format!("m{n}"), "public").await?;
        first_byte(world, &sprite).await?;
        world.sleep(&sprite.name, "suspended").await?;
        urls.push(sprite);
    }
    let began = Instant::now();
    let answers = join_all(urls.iter().take(woken).map(|sprite| first_byte(world, sprite))).await;
    let times = answers.into_iter().collect::<anyhow::Result<Vec<Duration>>>()?;
    let note = format!(
        "{sprites} suspended; the last after {:.0} ms; none failed",
        began.elapsed().as_secs_f64() * 1000.0
    );
    Ok(Row::new(&format!("{woken} suspended machines hit at once"), times, note))
}

fn amount(what: &str, mib: f64, note: &str) -> Rate {
    Rate { what: what.to_owned(), value: mib, unit: "MiB", share: None, note: note.to_owned() }
}

/// The resident set of a machine's process; none if there is no process.
fn resident_mib(sprite: &Path) -> anyhow::Result<f64> {
    let record = match fs::read(sprite.join("run/process.json")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0.0),
        other => other?,
    };
    let record: Value = serde_json::from_slice(&record)?;
    let status = fs::read_to_string(format!("/proc/{}/status", record["pid"]))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0)
}

/// How long the agent says that its transitions took.
fn transitions(world: &World, verb: &str) -> anyhow::Result<Vec<Duration>> {
    let log = fs::read_to_string(world.path().join("agent.log"))?;
    let wanted = format!("verb=\"{verb}\"");
    let lines = log.lines().filter(|line| line.contains("Transition done") && line.contains(&wanted));
    lines
        .map(|line| {
            let text = line.rsplit_once("elapsed=").context("an elapsed time")?.1;
            let number: f64 = text.trim_end_matches(|letter: char| !letter.is_ascii_digit()).parse()?;
            let unit = text.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
            Ok(Duration::from_secs_f64(match unit {
                "s" => number,
                "ms" => number / 1e3,
                _ => number / 1e6,
            }))
        })
        .collect()
}

/// The last `n` of them.
fn told_last(world: &World, verb: &str, n: usize) -> anyhow::Result<Vec<Duration>> {
    let all = transitions(world, verb)?;
    Ok(all[all.len().saturating_sub(n)..].to_vec())
}
