//! Whatever is killed at whatever moment: no disk is lost or damaged, no memory is used twice, and every sprite comes
//! back: warm, or cold with a reason.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use test_support::{Driver, Options, SpriteUrl, World, eventually};

const SOON: Duration = Duration::from_secs(60);
const SPRITES: usize = 4;
/// Kills of the agent, each of which finds every sprite in the middle of something.
const ROUNDS: usize = 50;

/// What becomes of one sprite, as its database tells it.
struct Witness {
    url: SpriteUrl,
    /// The last row that was acknowledged.
    written: u64,
    nonce: String,
    calls: u64,
}

impl Witness {
    async fn new(world: &World, name: &str) -> anyhow::Result<Self> {
        let url = world.create_with_backend(name, "public").await?;
        Ok(Self { url, written: 0, nonce: String::new(), calls: 0 })
    }

    /// Writes a row; whether it was acknowledged or not, it must not hurt.
    async fn write(&mut self, world: &World) {
        let next = self.written + 1;
        if let Ok(answer) = world.get(&self.url, &format!("/insert?id={next}")).await
            && answer.status == 200
        {
            self.written = next;
        }
    }

    /// Everything acknowledged is there, and the memory is the one from before, or a new one.
    async fn check(&mut self, world: &World) -> anyhow::Result<()> {
        let name = &self.url.name;
        eventually(SOON, || async { Ok(world.get(&self.url, "/").await?.status == 200) })
            .await
            .with_context(|| format!("{name} does not come back"))?;
        let rows = world.get(&self.url, "/rows").await?.json()?;
        ensure!(rows["integrity"] == "ok", "{name}: {rows}");
        let last = rows["last"].as_u64().unwrap_or_default();
        ensure!(last == self.written || last == self.written + 1, "{name}: {} written, {rows}", self.written);
        self.written = last;
        let told: Value = world.get(&self.url, "/nonce").await?.json()?;
        let (nonce, calls) = (told["nonce"].to_string(), told["calls"].as_u64().context("a count")?);
        // The same memory counts on; one that was used twice would count from an earlier number.
        let expected = if nonce == self.nonce { self.calls + 1 } else { 1 };
        ensure!(calls == expected, "{name}: {calls} calls, not {expected}; its memory was used twice");
        (self.nonce, self.calls) = (nonce, calls);
        Ok(())
    }
}

/// The pids of all machines of this world.
fn machines(world: &World) -> anyhow::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for sprite in std::fs::read_dir(world.state_dir().join("sprites"))? {
        let Ok(record) = std::fs::read(sprite?.path().join("run/process.json")) else { continue };
        // It may be on its way.
        let Ok(record) = serde_json::from_slice::<Value>(&record) else { continue };
        pids.extend(record["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()));
    }
    Ok(pids)
}

fn kill(pid: i32) {
    // One that has gone by itself meanwhile is as good.
    let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_a_machine_keeps_its_disk_and_never_uses_a_memory_twice() -> anyhow::Result<()> {
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let options = Options { driver: Driver::Qemu, idle: Duration::from_secs(600), ..Options::default() };
    let mut world = World::start(options).await?;
    let mut witnesses = Vec::new();
    for n in 0..SPRITES {
        witnesses.push(Witness::new(&world, &format!("w{n}")).await?);
    }
    for witness in &mut witnesses {
        witness.check(&world).await?;
    }
    let (mut kept, mut faults) = (0, 0);
    for round in 0..ROUNDS {
        let before: Vec<String> = witnesses.iter().map(|witness| witness.nonce.clone()).collect();
        // Each sprite is on its way to another state, from the one in which the last round left it.
        let depths: Vec<&str> = (0..SPRITES)
            .map(|_| match random.random_range(0..10) {
                0 => "cold",
                1 | 2 => "warm",
                3 => "",
                _ => "suspended",
            })
            .collect();
        let moment = Duration::from_micros(random.random_range(0..120_000));
        // A machine that is killed while it runs must boot, which takes most of this test's time.
        let whole_tree = random.random_range(0..8) == 0;
        let only_machines = random.random_range(0..8) == 0;
        let moves = witnesses.iter_mut().zip(&depths).map(|(witness, depth)| {
            let world = &world;
            async move {
                if !depth.is_empty() {
                    let path = format!("/v1/sprites/{}/sleep", witness.url.name);
                    let body = serde_json::json!({ "depth": depth });
                    // The agent may be killed before it answers.
                    let _answer = world.call("POST", &path, Some(body)).await;
                }
                witness.write(world).await;
            }
        });
        // Whoever is asked meanwhile may wait long for an agent that is gone.
        let _late = tokio::time::timeout(moment, join_all(moves)).await;
        faults += SPRITES;
        if only_machines {
            machines(&world)?.into_iter().for_each(kill);
        } else {
            world.kill_agent()?;
            if whole_tree {
                machines(&world)?.into_iter().for_each(kill);
            }
            world.start_agent().await?;
        }
        let checked = join_all(witnesses.iter_mut().map(|witness| witness.check(&world))).await;
        for outcome in checked {
            outcome.with_context(|| {
                format!("round {round}: {depths:?}, killed after {moment:?}, whole tree {whole_tree}, only machines {only_machines}")
            })?;
        }
        kept += witnesses.iter().zip(&before).filter(|(witness, before)| witness.nonce == **before).count();
    }
    eprintln!("{faults} faults; {kept} times the memory was kept");
    // Agents that are killed take no memory with them: most of these sprites must have been warm.
    ensure!(kept * 3 > faults, "only {kept} of {faults} kept their memory");
    world.stop().await
}
