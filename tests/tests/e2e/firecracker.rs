//! Sprites in a real Firecracker, where there is one. The whole suite runs over it with
//! `SPRITES_TEST_DRIVER=firecracker`.

use std::{process::Command, time::Duration};

use anyhow::ensure;
use test_support::{Driver, Options, Program, World, program};

/// What `vmm-agent probe` says of this host.
fn probe() -> anyhow::Result<String> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("agent.toml");
    std::fs::write(&config, format!("state_dir = {:?}\ndriver = \"firecracker\"\n", dir.path()))?;
    let output = Command::new(program(Program::Agent)?).arg("probe").arg("--config").arg(config).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_of_a_real_firecracker_keeps_its_memory() -> anyhow::Result<()> {
    let found = probe()?;
    ensure!(found.contains("firecracker") && found.contains("KVM"), "{found}");
    if found.contains("unusable") {
        println!("skipped: this host has no Firecracker that runs guests\n{found}");
        return Ok(());
    }
    let idle = Duration::from_secs(600);
    let world = World::start(Options { driver: Driver::Firecracker, idle, ..Options::default() }).await?;
    let sprite = world.create_with_backend("real", "public").await?;
    let before = world.get(&sprite, "/nonce").await?.json()?;
    for (round, depth) in (2..).zip(["warm", "suspended", "suspended", "warm"]) {
        world.sleep("real", depth).await?;
        let after = world.get(&sprite, "/nonce").await?.json()?;
        assert_eq!(after["nonce"], before["nonce"], "its memory is the same after {depth}");
        assert_eq!(after["calls"], round, "and its counter goes on");
    }
    world.stop().await
}
