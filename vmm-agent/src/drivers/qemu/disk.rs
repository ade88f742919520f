//! A sprite's disk: what it has changed of its image, in [layers](super::layers).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use ids::CheckpointId;
use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};

use super::{
    faults::{Point, pass},
    layers::{Layer, Layers},
    layout::Files,
    machine::{Failure, Machine, failed},
    merges::Measure,
    owner::{self, Owner},
};
use crate::drivers::{
    files::{remove_if_there, sync_directory},
    size::Size,
};

/// How long QEMU's tool may take to write a few headers.
const TOOL_LIMIT: Duration = Duration::from_secs(30);

/// How many times what a disk may have in layers a machine may have open of them.
const MOST_OPENED: usize = 2;

/// What QEMU calls a layer that was put on while the machine ran; its number follows.
const LAYER_NODE: &str = "layer-";

/// Makes the disk, if there is none: a difference to the root filesystem `base`, which never changes. Its device is
/// as large as the sprite may fill; the runtime grows the file system to it.
pub(super) async fn make(files: &Files, tool: &Path, base: &Path, size: Size) -> Result<(), Failure> {
    make_directories(files)?;
    if read(files)?.is_some() {
        return Ok(());
    }
    let layers = Layers::new();
    create(files, tool, layers.active(), &base.to_string_lossy(), "raw", &format!("{}G", size.disk_gib))
        .await?;
    layers.commit(files).map_err(failed("write down its disk"))
}

fn make_directories(files: &Files) -> Result<(), Failure> {
    for directory in [files.layers(), files.run(), files.memory()] {
        fs::create_dir_all(directory).map_err(failed("make its directory"))?;
    }
    Ok(())
}

pub(super) fn read(files: &Files) -> Result<Option<Layers>, Failure> {
    Layers::read(files).map_err(failed("read which layers its disk has"))
}

/// The files of a disk, from `top` (what the sprite writes, say) down to the image. A machine must be given them by these names and no
/// others: QEMU opens a layer by its name again when a checkpoint makes it read-only.
pub(super) fn chain(files: &Files, layers: &Layers, top: Layer) -> Result<Vec<PathBuf>, Failure> {
    let layers = layers.chain(top);
    let paths = layers.iter().map(|layer| Layers::path(files, *layer));
    let lowest = layers.last().map(|layer| image(files, *layer));
    let image = lowest.ok_or_else(|| Failure::new("find its disk", io::ErrorKind::NotFound))??;
    Ok(paths.map(|path| files.inside(&path).to_owned()).chain([image]).collect())
}

/// The image that the lowest layer of a disk stands on.
pub(super) fn image(files: &Files, lowest: Layer) -> Result<PathBuf, Failure> {
    backing(&Layers::path(files, lowest)).map_err(failed("read which image its disk stands on"))
}

/// The layers of a disk that must be there.
pub(super) fn layers(files: &Files) -> Result<Layers, Failure> {
    read(files)?.ok_or_else(|| Failure::new("find its disk (it is prepared first)", io::ErrorKind::NotFound))
}

/// The same for a machine that is about to be started, where there is none.
pub(super) fn settled(files: &Files) -> Result<Layers, Failure> {
    let layers = layers(files)?;
    let Some(settled) = layers.settled() else { return Ok(layers) };
    settled.commit(files).map_err(failed("write down that no machine writes its last layer"))?;
    Ok(settled)
}

/// What each layer takes on the host.
pub(super) fn measure(files: &Files, layers: &Layers) -> Result<BTreeMap<Layer, Measure>, Failure> {
    use std::os::unix::fs::MetadataExt as _;
    /// What the host counts by.
    const BLOCK_BYTES: u64 = 512;
    let measure = |layer| {
        let file = fs::metadata(Layers::path(files, layer))?;
        Ok((layer, Measure { bytes: file.blocks() * BLOCK_BYTES, shared: file.nlink() > 1 }))
    };
    layers.all().map(measure).collect::<io::Result<_>>().map_err(failed("look at its layers"))
}

/// Refuses a layer over `below` if there would be more than `most` on each other.
pub(super) fn check_depth(layers: &Layers, below: Layer, most: usize) -> Result<(), Failure> {
    let depth = layers.depth(below);
    if depth < most {
        return Ok(());
    }
    let message = format!(
        "there are {depth} layers below it, and qemu.max_layers is {most}: delete checkpoints, so that layers can be merged"
    );
    Err(Failure::new("put a layer on its disk", io::Error::other(message)))
}

/// Removes what was cut short: layers that were made and not written down.
pub(super) fn tidy(files: &Files) -> Result<(), Failure> {
    let Some(layers) = read(files)? else { return Ok(()) };
    layers.sweep(files).map_err(failed("tidy up its disk"))
}

/// Keeps the disk as it is now under a name. A machine that runs has written everything out, and stands still.
pub(super) async fn checkpoint(
    files: &Files,
    tool: &Path,
    machine: Option<&Machine>,
    owner: Option<Owner>,
    id: &CheckpointId,
    most: usize,
) -> Result<(), Failure> {
    let before = layers(files)?;
    if before.checkpoint(id).is_some() {
        return Ok(());
    }
    check_depth(&before, before.active(), most)?;
    let after = before.cut(id);
    let nodes = match machine {
        Some(machine) => {
            let mut monitor = machine.monitor().lock().await;
            let nodes = monitor.command("query-named-block-nodes", json!({"flat": true})).await?;
            check_opened(&nodes, most)?;
            nodes
        }
        None => Value::Null,
    };
    over(files, tool, after.active(), before.active()).await?;
    pass(Point::CheckpointLayered, files);
    let Some(machine) = machine else {
        keep_if(owner, files, before.active())?;
        return after.commit(files).map_err(failed("write down the checkpoint"));
    };
    if let Some(owner) = owner {
        let active = Layers::path(files, after.active());
        owner.give(&active).map_err(failed("give the machine its new layer"))?;
    }
    // From here on the next start opens the new layer. The machine, which stands still, writes nothing until it has
    // changed over as well; the checkpoint is there when it can't change any more.
    before.cutting().commit(files).map_err(failed("write down the new layer"))?;
    pass(Point::CheckpointNoted, files);
    let node = top_node(&nodes);
    let mut monitor = machine.monitor().lock().await;
    let arguments = json!({
        "node-name": node,
        "snapshot-file": files.inside(&Layers::path(files, after.active())),
        "snapshot-node-name": format!("{LAYER_NODE}{}", after.active().number()),
        "mode": "existing",
        "format": "qcow2",
    });
    monitor.command("blockdev-snapshot-sync", arguments).await?;
    drop(monitor);
    pass(Point::CheckpointSwitched, files);
    fs::File::open(Layers::path(files, before.active()))
        .and_then(|layer| layer.sync_all())
        .map_err(failed("write the checkpoint out"))?;
    keep_if(owner, files, before.active())?;
    after.commit(files).map_err(failed("write down the checkpoint"))?;
    pass(Point::CheckpointNamed, files);
    Ok(())
}

/// Refuses a machine that has opened too many layers since it was started: it does not let go of those that were
/// merged, and what it says of them grows with the square of their number.
fn check_opened(nodes: &Value, most: usize) -> Result<(), Failure> {
    let nodes = nodes.as_array().into_iter().flatten();
    let opened = nodes.filter(|node| node["drv"] == "qcow2").count();
    let most = most * MOST_OPENED;
    if opened < most {
        return Ok(());
    }
    let message = format!(
        "its machine has {opened} layers open, and may have {most}: let it sleep on disk once, after which it goes on with merged ones"
    );
    Err(Failure::new("put a layer on its disk", io::Error::other(message)))
}

/// The node that the machine writes its disk through: the layer that was put on last, or the one that it was started
/// with. (What QEMU says of its devices names none for a disk of this kind, and what it says of nodes leaves those below
/// writable at times.)
fn top_node(nodes: &Value) -> String {
    let names = nodes.as_array().into_iter().flatten().filter_map(|node| node["node-name"].as_str());
    let ours = names.filter_map(|name| name.strip_prefix(LAYER_NODE)?.parse::<u32>().ok());
    ours.max().map_or_else(|| "disk".to_owned(), |layer| format!("{LAYER_NODE}{layer}"))
}

/// Refuses a restore for which there are too many layers: a restore of what a restore replaced stands on it. One that was
/// made is refused no more.
pub(super) fn check_restore(
    files: &Files,
    of: &CheckpointId,
    replaced: Option<&CheckpointId>,
    most: usize,
) -> Result<(), Failure> {
    let layers = layers(files)?;
    let is_made = replaced.is_some_and(|replaced| layers.checkpoint(replaced).is_some());
    match layers.checkpoint(of) {
        Some(below) if !is_made => check_depth(&layers, below, most),
        _ => Ok(()),
    }
}

/// Makes the disk what it was at a checkpoint; what it was until now becomes the checkpoint `replaced`.
pub(super) async fn restore(
    files: &Files,
    tool: &Path,
    owner: Option<Owner>,
    of: &CheckpointId,
    replaced: &CheckpointId,
) -> Result<Option<()>, Failure> {
    let before = layers(files)?;
    if before.checkpoint(replaced).is_some() {
        return Ok(Some(()));
    }
    let Some(layer) = before.checkpoint(of) else { return Ok(None) };
    let after = before.back_to(layer, replaced);
    over(files, tool, after.active(), layer).await?;
    keep_if(owner, files, before.active())?;
    pass(Point::RestoreLayered, files);
    after.commit(files).map_err(failed("write down the restored disk"))?;
    pass(Point::RestoreNoted, files);
    Ok(Some(()))
}

/// Forgets a checkpoint, and removes what nothing stands on any more.
pub(super) fn forget_checkpoint(files: &Files, id: &CheckpointId) -> Result<(), Failure> {
    let Some(before) = read(files)? else { return Ok(()) };
    let after = before.without(id);
    if after != before {
        after.commit(files).map_err(failed("write down that the checkpoint is gone"))?;
    }
    after.sweep(files).map_err(failed("remove the checkpoint's files"))
}

/// Makes a new sprite's disk from a checkpoint of another one. They share what is below.
pub(super) async fn fork(
    source: &Files,
    tool: &Path,
    of: &CheckpointId,
    files: &Files,
) -> Result<Option<()>, Failure> {
    make_directories(files)?;
    if read(files)?.is_some() {
        return Ok(Some(()));
    }
    let theirs = layers(source)?;
    let Some(layer) = theirs.checkpoint(of) else { return Ok(None) };
    let ours = theirs.fork(layer);
    for shared in theirs.chain(layer) {
        let to = Layers::path(files, shared);
        remove_if_there(&to).map_err(failed("remove what an interrupted fork left"))?;
        fs::hard_link(Layers::path(source, shared), to).map_err(failed("share the checkpoint's files"))?;
    }
    over(files, tool, ours.active(), layer).await?;
    ours.commit(files).map_err(failed("write down its disk"))?;
    Ok(Some(()))
}

/// Sees to it that the machine does not write a layer any more.
pub(super) fn keep_if(owner: Option<Owner>, files: &Files, layer: Layer) -> Result<(), Failure> {
    match owner {
        Some(_) => owner::keep(&Layers::path(files, layer)).map_err(failed("keep the layer as it is")),
        None => Ok(()),
    }
}

/// Makes a layer over another one.
async fn over(files: &Files, tool: &Path, layer: Layer, below: Layer) -> Result<(), Failure> {
    let size = virtual_size(&Layers::path(files, below)).map_err(failed("read the size of its disk"))?;
    create(files, tool, layer, &below.file(), "qcow2", &size.to_string()).await
}

/// Makes a layer's file. What is below is not looked at: it may be in use.
pub(super) async fn create(
    files: &Files,
    tool: &Path,
    layer: Layer,
    below: &str,
    format: &str,
    size: &str,
) -> Result<(), Failure> {
    let path = Layers::path(files, layer);
    remove_if_there(&path).map_err(failed("remove a layer that was left half made"))?;
    let text = path.to_string_lossy();
    run(tool, &["create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", below, &text, size]).await?;
    fs::File::open(&path)
        .and_then(|file| file.sync_all())
        .and_then(|()| sync_directory(&files.layers()))
        .map_err(failed("write its disk out"))
}

/// The size of a qcow2 file's device, in bytes, from its header.
pub(super) fn virtual_size(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::FileExt as _;
    /// Where the header says it, as a big-endian number.
    const SIZE_AT: u64 = 24;
    let mut size = [0; 8];
    fs::File::open(path)?.read_exact_at(&mut size, SIZE_AT)?;
    Ok(u64::from_be_bytes(size))
}

/// The name of what a qcow2 file stands on, from its header.
fn backing(path: &Path) -> io::Result<PathBuf> {
    use std::os::unix::{ffi::OsStringExt as _, fs::FileExt as _};
    /// Where the header says where the name is and how long, as big-endian numbers.
    const NAME_AT: u64 = 8;
    /// The longest that the format allows, in bytes.
    const LONGEST: u32 = 1023;
    let file = fs::File::open(path)?;
    let (mut at, mut length) = ([0; 8], [0; 4]);
    file.read_exact_at(&mut at, NAME_AT)?;
    file.read_exact_at(&mut length, NAME_AT + 8)?;
    let length = u32::from_be_bytes(length);
    if length == 0 || length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it stands on nothing"));
    }
    let mut name = vec![0; length as usize];
    file.read_exact_at(&mut name, u64::from_be_bytes(at))?;
    Ok(std::ffi::OsString::from_vec(name).into())
}

/// Runs QEMU's tool for disk images.
async fn run(tool: &Path, arguments: &[&str]) -> Result<(), Failure> {
    let name = || format!("run {} {}", tool.display(), arguments.join(" "));
    let output = Command::new(tool).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(TOOL_LIMIT, output)
        .await
        .map_err(|late| Failure::new(name(), late))?
        .map_err(|error| Failure::new(name(), error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Failure::new(name(), io::Error::other(said)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_has_opened_too_many_layers_is_told_to_sleep() {
        let node = |number: usize| json!({ "drv": if number.is_multiple_of(2) { "qcow2" } else { "file" } });
        let nodes = |layers: usize| -> Value { (0..2 * layers).map(node).collect() };
        check_opened(&nodes(7), 4).unwrap();
        assert!(check_opened(&nodes(8), 4).unwrap_err().source.to_string().contains("sleep on disk once"));
    }

    #[test]
    fn a_checkpoint_is_made_of_what_the_machine_writes() {
        let nodes =
            |names: &[&str]| -> Value { names.iter().map(|name| json!({ "node-name": name })).collect() };
        assert_eq!(top_node(&nodes(&["#block123", "disk"])), "disk");
        assert_eq!(top_node(&nodes(&["disk", "layer-9", "#block7", "layer-10", "layer-2"])), "layer-10");
    }
}
