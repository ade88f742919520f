//! What the tools of QEMU and of the file system say about a disk that nobody has open.

use std::{path::Path, process::Output};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use test_support::eventually;
use tokio::process::Command;

use super::SOON;

/// How the file system was left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Left {
    /// In order: nothing is to be replayed.
    Unmounted,
    /// By a kill: as after a loss of power, its journal is replayed first.
    Killed,
}

/// Checks the disk of the sprite whose files are in `dir`, as soon as nobody has it open any more.
pub(super) async fn check(dir: &Path, left: Left) -> anyhow::Result<()> {
    eventually(SOON, || async { Ok(!is_locked(dir).await?) }).await.context("its machine does not end")?;
    let layers: Value = serde_json::from_slice(&std::fs::read(dir.join("layers.json"))?)?;
    let active = layers["active"].as_u64().context("an active layer")?;
    let below = layers["below"].as_object().context("layers")?;
    for layer in below.keys() {
        let file = dir.join(format!("layers/{layer}.qcow2"));
        let checked = run(Command::new("qemu-img").args(["check", "-q"]).arg(&file)).await?;
        // 3: clusters that nothing uses, which is what a kill may leave.
        ensure!(matches!(checked.status.code(), Some(0 | 3)), "{}: {checked:?}", file.display());
    }
    let scratch = tempfile::tempdir()?;
    let raw = scratch.path().join("disk");
    let top = dir.join(format!("layers/{active}.qcow2"));
    let converted =
        run(Command::new("qemu-img").args(["convert", "-q", "-O", "raw"]).args([&top, &raw])).await?;
    ensure!(converted.status.success(), "{converted:?}");
    if left == Left::Killed {
        let replayed = run(e2fsck("-fp").arg(&raw)).await?;
        // 1: it was mended without a question.
        ensure!(matches!(replayed.status.code(), Some(0 | 1)), "{replayed:?}");
    }
    let checked = run(e2fsck("-fn").arg(&raw)).await?;
    ensure!(checked.status.success(), "{checked:?}");
    Ok(())
}

fn e2fsck(how: &str) -> Command {
    let mut command = Command::new("e2fsck");
    let path = std::env::var("PATH").unwrap_or_default();
    // Tools for file systems are where an ordinary user's PATH does not look.
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).arg(how);
    command
}

async fn run(command: &mut Command) -> anyhow::Result<Output> {
    match tokio::time::timeout(SOON, command.kill_on_drop(true).output()).await {
        Ok(output) => output.with_context(|| format!("{command:?}")),
        Err(_) => bail!("{command:?} does not end"),
    }
}

/// Whether a machine has it open: one that was killed closes its files last, when its process can hardly be seen.
async fn is_locked(dir: &Path) -> anyhow::Result<bool> {
    for layer in std::fs::read_dir(dir.join("layers"))? {
        let told = run(Command::new("qemu-img").args(["info", "--output=json"]).arg(layer?.path())).await?;
        if String::from_utf8_lossy(&told.stderr).contains("lock") {
            return Ok(true);
        }
    }
    Ok(false)
}
