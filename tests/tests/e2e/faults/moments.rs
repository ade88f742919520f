//! Kills at random moments.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use rand::{Rng, SeedableRng, rngs::StdRng};
use test_support::{Driver, Options, World};

use super::{
    disk::{self, Left},
    kill, machines,
    witness::Witness,
};

const SPRITES: usize = 4;
/// Kills of the agent, each of which finds every sprite in the middle of something.
const ROUNDS: usize = 30;

/// What a sprite is in the middle of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Move {
    Sleep(&'static str),
    Checkpoint,
    Restore(usize),
    Nothing,
}

impl Move {
    fn any(random: &mut impl Rng) -> Self {
        match random.random_range(0..20) {
            0 => Self::Sleep("cold"),
            1..=4 => Self::Sleep("warm"),
            5 => Self::Nothing,
            6..=8 => Self::Checkpoint,
            9 => Self::Restore(random.random_range(0..100)),
            _ => Self::Sleep("suspended"),
        }
    }

    async fn make(self, world: &World, witness: &mut Witness) {
        match self {
            Self::Sleep(depth) => witness.sleep(world, depth).await,
            Self::Checkpoint => witness.checkpoint(world).await,
            Self::Restore(choice) => witness.restore(world, choice).await,
            Self::Nothing => {}
        }
        witness.write(world).await;
    }
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
        let moves: Vec<Move> = (0..SPRITES).map(|_| Move::any(&mut random)).collect();
        let moment = Duration::from_micros(random.random_range(0..120_000));
        // A machine that is killed while it runs must boot, which takes most of this test's time.
        let whole_tree = random.random_range(0..8) == 0;
        let only_machines = random.random_range(0..8) == 0;
        let under_way = witnesses.iter_mut().zip(&moves).map(|(witness, next)| next.make(&world, witness));
        // Whoever is asked meanwhile may wait long for an agent that is gone.
        let _late = tokio::time::timeout(moment, join_all(under_way)).await;
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
                format!("round {round}: {moves:?}, killed after {moment:?}, whole tree {whole_tree}, only machines {only_machines}")
            })?;
        }
        kept += witnesses.iter().zip(&before).filter(|(witness, before)| witness.nonce == **before).count();
    }
    eprintln!("{faults} faults; {kept} times the memory was kept");
    // Agents that are killed take no memory with them: most of these sprites must have been warm.
    ensure!(kept * 3 > faults, "only {kept} of {faults} kept their memory");
    for witness in &mut witnesses {
        witness.check_checkpoints(&world).await?;
        let name = &witness.url.name;
        let dir = world.state_dir().join("sprites").join(world.id(name).await?);
        world.sleep(name, "cold").await?;
        disk::check(&dir, Left::Unmounted).await?;
    }
    world.stop().await
}
