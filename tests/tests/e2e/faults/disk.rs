//! What the tools of QEMU and of the file system say about a disk that nobody has open.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
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
    let layers = Layers::read(dir)?;
    for file in layers.files.keys().map(|layer| layers.file(*layer)) {
        // By itself: a name that it has for the layer below may be that of one which was merged.
        let alone =
            json!({ "driver": "qcow2", "backing": null, "file": { "driver": "file", "filename": &file } });
        let checked = run(Command::new("qemu-img").args(["check", "-q", &format!("json:{alone}")])).await?;
        // 3: clusters that nothing uses, which is what a kill may leave.
        ensure!(matches!(checked.status.code(), Some(0 | 3)), "{}: {checked:?}", file.display());
    }
    let scratch = tempfile::tempdir()?;
    let raw = scratch.path().join("disk");
    let disk = layers.disk().await?;
    let convert = ["convert", "-q", "-O", "raw", "--image-opts", &disk];
    let converted = run(Command::new("qemu-img").args(convert).arg(&raw)).await?;
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

/// Which layers a disk has, as the agent has written it down.
pub(super) struct Layers {
    dir: PathBuf,
    active: u64,
    /// The layer below each.
    files: BTreeMap<u64, Option<u64>>,
    /// Those that checkpoints are.
    named: Vec<u64>,
}

impl Layers {
    /// Those of the sprite whose files are in `dir`.
    pub(super) fn read(dir: &Path) -> anyhow::Result<Self> {
        let record: Value = serde_json::from_slice(&std::fs::read(dir.join("layers.json"))?)?;
        let below = record["below"].as_object().context("layers")?;
        let files = below.iter().map(|(layer, below)| Ok((layer.parse()?, below.as_u64())));
        let named = record["checkpoints"].as_object().context("checkpoints")?;
        Ok(Self {
            dir: dir.to_owned(),
            active: record["active"].as_u64().context("an active layer")?,
            files: files.collect::<anyhow::Result<_>>()?,
            named: named.values().filter_map(Value::as_u64).collect(),
        })
    }

    fn file(&self, layer: u64) -> PathBuf {
        self.dir.join(format!("layers/{layer}.qcow2"))
    }

    /// Whether each layer that is not needed by itself has been merged with the one that stands on it.
    pub(super) fn are_merged(&self) -> bool {
        let is_left = |layer: &u64| {
            let mut uppers = self.files.iter().filter(|(_, below)| **below == Some(*layer));
            let only = uppers.next().filter(|_| uppers.next().is_none());
            !self.named.contains(layer) && only.is_some_and(|(upper, _)| *upper != self.active)
        };
        !self.files.keys().any(is_left)
    }

    /// The disk, for QEMU's tools: what stands on what says the record, and not the files.
    async fn disk(&self) -> anyhow::Result<String> {
        let (mut disk, mut at, mut layer) = (String::new(), String::new(), self.active);
        loop {
            let file = self.file(layer);
            disk.push_str(&format!(
                "{at}driver=qcow2,{at}file.driver=file,{at}file.filename={},",
                file.display()
            ));
            at.push_str("backing.");
            match self.files.get(&layer).context("a layer that is not there")? {
                Some(below) => layer = *below,
                None => {
                    let told =
                        run(Command::new("qemu-img").args(["info", "--output=json"]).arg(&file)).await?;
                    let told: Value = serde_json::from_slice(&told.stdout)?;
                    let image = told["backing-filename"].as_str().context("an image")?;
                    disk.push_str(&format!("{at}driver=raw,{at}file.driver=file,{at}file.filename={image}"));
                    return Ok(disk);
                }
            }
        }
    }
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
