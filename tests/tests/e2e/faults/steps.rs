//! Kills at each step of pause, suspend, load, checkpoint, fork, restore, merge, stop and boot, by name.

use std::{collections::VecDeque, sync::Mutex, time::Duration};

use anyhow::{Context, ensure};
use test_support::{Driver, Options, Program, World, eventually, program};

use super::{
    SOON,
    disk::{self, Layers, Left},
    witness::Witness,
};

/// Worlds at once: as many as this takes processors.
const WORLDS: usize = 2;

/// One kill.
#[derive(Clone, Debug)]
struct Case {
    point: String,
    victim: &'static str,
}

/// All points that the agent knows, each with each victim.
fn cases() -> anyhow::Result<VecDeque<Case>> {
    let listed = std::process::Command::new(program(Program::Agent)?).arg("faults").output()?;
    ensure!(listed.status.success(), "{listed:?}");
    let points = String::from_utf8(listed.stdout)?;
    let cases = points.lines().flat_map(|point| {
        // A machine alone dies at random moments elsewhere, and most of its steps are the agent's.
        let alone =
            point.starts_with("suspend.") || point.starts_with("checkpoint.") || point == "load.claimed";
        let victims: &[&'static str] = if alone { &["agent", "both", "machine"] } else { &["agent", "both"] };
        victims.iter().map(|victim| Case { point: point.to_owned(), victim })
    });
    let cases: VecDeque<Case> = cases.collect();
    ensure!(!cases.is_empty(), "there are no points");
    Ok(cases)
}

/// What leads to a point.
async fn approach(world: &World, witness: &mut Witness, point: &str) -> anyhow::Result<()> {
    let (name, going_on) = (witness.url.name.clone(), point.split('.').next().unwrap_or_default());
    match going_on {
        "pause" | "suspend" => witness.sleep(world, "suspended").await,
        "checkpoint" => witness.checkpoint(world).await,
        "fork" => witness.fork(world).await?,
        "merge" => {
            witness.write(world).await;
            witness.checkpoint(world).await;
            // The agent may be killed before that, when it merges what an earlier fault has left.
            let _unheard = witness.note_checkpoints(world).await;
            witness.write(world).await;
            witness.checkpoint(world).await;
            let _unheard = witness.forget_checkpoint(world).await;
        }
        "stop" | "restore" => witness.restore(world, 0).await,
        "resume" | "load" | "boot" | "launch" => {
            let depth = match going_on {
                "resume" => "warm",
                "load" => "suspended",
                _ => "cold",
            };
            world.sleep(&name, depth).await?;
            witness.write(world).await;
        }
        _ => anyhow::bail!("nothing is known to lead to {point}"),
    }
    Ok(())
}

/// Makes one fault, and sees what becomes of the sprite.
async fn make(world: &mut World, witness: &mut Witness, case: &Case) -> anyhow::Result<()> {
    let dir = world.state_dir().join("sprites").join(world.id(&witness.url.name).await?);
    let log = world.path().join("agent.log");
    let seen = std::fs::metadata(&log)?.len();
    world.kill_agent()?;
    let fault = format!("{}:{}", case.point, case.victim);
    world.start_agent_with(&[("SPRITES_FAULT", &fault)]).await?;
    {
        let (world, log, mark) = (&*world, &log, format!("fault: {}\n", case.point));
        let reached = eventually(SOON, || async {
            let text = std::fs::read(log)?;
            let new = text.get(usize::try_from(seen)?..).unwrap_or_default();
            Ok(String::from_utf8_lossy(new).contains(&mark))
        });
        let approach = approach(world, witness, &case.point);
        let reached = async {
            if case.victim == "machine" {
                // The agent goes on, and ends what it had begun.
                let (reached, approached) = tokio::join!(reached, tokio::time::timeout(SOON, approach));
                approached.context("the agent does not answer")??;
                return reached;
            }
            tokio::select! {
                reached = reached => reached,
                // What led to the point has ended; the point may be a little later.
                Err(error) = approach => Err(error),
            }
        };
        reached.await.with_context(|| format!("{} is not reached", case.point))?;
    }
    if case.victim == "both" && case.point != "launch.executed" {
        disk::check(&dir, Left::Killed).await?;
    }
    if case.victim != "machine" {
        world.kill_agent()?;
        world.start_agent().await?;
    }
    witness.check(world).await?;
    if case.point.starts_with("fork.") {
        witness.check_fork(world).await?;
    }
    if case.point.starts_with("merge.") {
        let merged = eventually(SOON, || async { Ok(Layers::read(&dir)?.are_merged()) });
        merged.await.context("what was begun is not made by the next agent")?;
    }
    Ok(())
}

/// Makes faults until none is left.
async fn work(number: usize, cases: &Mutex<VecDeque<Case>>) -> anyhow::Result<()> {
    let options = Options { driver: Driver::Qemu, idle: Duration::from_secs(600), ..Options::default() };
    let mut world = World::start(options).await?;
    let mut witness = Witness::new(&world, &format!("w{number}")).await?;
    witness.write(&world).await;
    witness.checkpoint(&world).await;
    witness.check(&world).await?;
    let next = || cases.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
    while let Some(case) = next() {
        let began = std::time::Instant::now();
        witness.write(&world).await;
        make(&mut world, &mut witness, &case).await.with_context(|| format!("{case:?}"))?;
        eprintln!("{} {}: {:?}", case.point, case.victim, began.elapsed());
    }
    witness.check_checkpoints(&world).await?;
    let dir = world.state_dir().join("sprites").join(world.id(&witness.url.name).await?);
    world.sleep(&witness.url.name, "cold").await?;
    disk::check(&dir, Left::Unmounted).await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_each_step_a_machine_keeps_its_disk_and_never_uses_a_memory_twice() -> anyhow::Result<()> {
    let cases = Mutex::new(cases()?);
    let workers = (0..WORLDS).map(|number| work(number, &cases));
    for ended in futures_util::future::join_all(workers).await {
        ended?;
    }
    Ok(())
}
