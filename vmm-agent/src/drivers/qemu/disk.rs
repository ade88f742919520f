//! A sprite's disk: what it has changed of its image.

use std::{fs, io, path::Path, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use super::{
    layout::Files,
    machine::{Failure, failed},
};
use crate::drivers::{
    files::{remove_if_there, sync_directory},
    size::Size,
};

/// How long QEMU's tool may take to write a few headers.
const TOOL_LIMIT: Duration = Duration::from_secs(30);

/// Makes the disk, if there is none: a difference to the root filesystem `base`, which never changes. Its device is
/// as large as the sprite may fill; the runtime grows the file system to it.
pub(super) async fn make(files: &Files, tool: &Path, base: &Path, size: Size) -> Result<(), Failure> {
    for directory in [files.root().to_owned(), files.run(), files.memory()] {
        fs::create_dir_all(directory).map_err(failed("make its directory"))?;
    }
    if files.disk().try_exists().map_err(failed("look for its disk"))? {
        return Ok(());
    }
    let unfinished = files.unfinished_disk();
    remove_if_there(&unfinished).map_err(failed("remove a disk that was left half made"))?;
    let size = format!("{}G", size.disk_gib);
    let base = base.to_string_lossy();
    let path = unfinished.to_string_lossy();
    run(tool, &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base, &path, &size]).await?;
    let named = fs::File::open(&unfinished)
        .and_then(|disk| disk.sync_all())
        .and_then(|()| fs::rename(&unfinished, files.disk()))
        .and_then(|()| sync_directory(files.root()));
    named.map_err(failed("give its disk a name"))
}

/// Runs QEMU's tool for disk images.
pub(super) async fn run(tool: &Path, arguments: &[&str]) -> Result<(), Failure> {
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
