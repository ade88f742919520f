//! Whatever is killed at whatever moment: no disk is lost or damaged, no memory is used twice, and every sprite comes
//! back: warm, or cold with a reason.

mod disk;
mod moments;
mod steps;
mod witness;

use std::time::Duration;

use serde_json::Value;
use test_support::World;

/// How long a sprite may take to come back, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

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
