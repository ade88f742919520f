//! A machine's memory on disk.
//!
//! The RAM is a file all the time; what a suspend adds is the state of CPUs and devices. The two belong together only
//! as long as the machine has not run on, so a state has a name under which it can be loaded exactly from the moment
//! it is whole until the moment somebody begins to load it:
//!
//! ```text
//! state.unfinished ──whole, machine stopped──► state ──claimed──► state.used ──machine runs──► removed
//! ```
//!
//! Each arrow is one rename. Whoever is killed between two of them leaves a memory that is loaded once or never. A
//! loss of power is another matter: then the state must be on the disk, and all of the RAM, which is said in the
//! manifest once both were written out.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt as _,
};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    arguments::{Runs, boots_from},
    faults::{Point, pass},
    layout::Files,
    machine::{Failure, Machine, failed},
    qmp::Direction,
};
use crate::drivers::{
    files::{remove_if_there, sync_directory, write_durably, write_whole},
    pid::boot_id,
};

/// What made a state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// QEMU, as it calls itself. Another version may not understand the state.
    pub(super) qemu: String,
    pub(super) runs: Runs,
    /// What the machine is made of.
    pub(super) machine: Vec<String>,
    /// How large its RAM's file is, in bytes.
    ram: u64,
    /// Which boot of the host it was.
    boot: String,
    /// Whether state and RAM were written out.
    durable: bool,
}

/// What is on disk of a sprite's memory.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// A memory that can be loaded.
    Whole(Manifest),
    /// A memory that can't, and why.
    Unusable(String),
}

/// Saves the state of a machine that is paused, and ends it. Its RAM is in its file.
///
/// After an error the machine is paused.
pub(super) async fn save(
    machine: &Machine,
    files: &Files,
    qemu: &str,
    runs: Runs,
    words: &[String],
) -> Result<(), Failure> {
    machine.close();
    let unfinished = files.unfinished_state();
    let state = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(failed("make the file for its state"))?;
    let manifest = Manifest {
        qemu: qemu.to_owned(),
        runs,
        machine: words.to_vec(),
        ram: fs::metadata(files.ram()).map_err(failed("look at its RAM"))?.len(),
        boot: boot_id().map_err(failed("read which boot this is"))?,
        durable: false,
    };
    let text = serde_json::to_vec(&manifest).map_err(|error| Failure::new("describe its state", error))?;
    write_whole(&files.manifest(), &text).map_err(failed("describe its state"))?;
    pass(Point::SuspendDescribed, files);
    {
        let mut monitor = machine.monitor().lock().await;
        without_ram(&mut monitor).await?;
        use std::os::fd::AsFd as _;
        monitor.migrate(Direction::Save, state.as_fd()).await?;
    }
    pass(Point::SuspendSaved, files);
    fs::rename(&unfinished, files.state()).map_err(failed("name its state"))?;
    pass(Point::SuspendNamed, files);
    let quit = machine.quit().await;
    if quit.is_err() {
        // It may run on, and then this state is not its own any more.
        remove_if_there(&files.state()).map_err(failed("take its state back"))?;
    }
    quit
}

/// Has QEMU leave the RAM out of a state: it is a file of its own.
pub(super) async fn without_ram(monitor: &mut super::qmp::Qmp) -> Result<(), Failure> {
    let capabilities = json!({"capabilities": [
        {"capability": "x-ignore-shared", "state": true},
        {"capability": "events", "state": true},
    ]});
    monitor.command("migrate-set-capabilities", capabilities).await?;
    Ok(())
}

/// Writes state and RAM out, and says so in the manifest. Takes as long as the disk does. Blocks.
pub(super) fn make_durable(files: &Files) -> io::Result<()> {
    let Some(manifest) = read_manifest(files)? else { return Ok(()) };
    File::open(files.state())?.sync_all()?;
    let ram = File::open(files.ram())?;
    ram.sync_data()?;
    // The host needs its own memory for those that run.
    nix::fcntl::posix_fadvise(&ram, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    pass(Point::SuspendSynced, files);
    if !files.state().exists() {
        // It has been claimed meanwhile.
        return Ok(());
    }
    write_durably(&files.manifest(), &serde_json::to_vec(&Manifest { durable: true, ..manifest })?)
}

fn read_manifest(files: &Files) -> io::Result<Option<Manifest>> {
    match fs::read(files.manifest()) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is to be said of a copy that is made of a memory now: it is not written out.
pub(super) fn describe_copy(files: &Files) -> io::Result<Vec<u8>> {
    let manifest = read_manifest(files)?.ok_or(io::ErrorKind::NotFound)?;
    Ok(serde_json::to_vec(&Manifest { durable: false, boot: boot_id()?, ..manifest })?)
}

/// What there is, for this QEMU.
pub(super) fn find(files: &Files, qemu: &str) -> io::Result<Found> {
    if !files.state().try_exists()? {
        let was_used = files.used_state().try_exists()?;
        let lost = "its memory was being loaded when that was cut short".to_owned();
        return Ok(if was_used { Found::Unusable(lost) } else { Found::Nothing });
    }
    let Some(manifest) = read_manifest(files)? else {
        return Ok(Found::Unusable("nothing says what made its memory".into()));
    };
    if manifest.qemu != qemu {
        return Ok(Found::Unusable(format!("its memory is of {}, and this is {qemu}", manifest.qemu)));
    }
    // QEMU would make a RAM that is not there anew, and the rest is not there for a later attempt either.
    let ram = fs::metadata(files.ram()).map(|ram| ram.len()).ok();
    if ram != Some(manifest.ram) {
        return Ok(Found::Unusable(format!("its RAM was {} bytes, and is now {ram:?}", manifest.ram)));
    }
    if let Some(missing) = boots_from(&manifest.machine).find(|file| !file.exists()) {
        return Ok(Found::Unusable(format!("it was started with {}, which is gone", missing.display())));
    }
    if !manifest.durable && manifest.boot != boot_id()? {
        return Ok(Found::Unusable("the host went down before its memory was on disk".into()));
    }
    Ok(Found::Whole(manifest))
}

/// Takes a state, so that nobody loads it again, whatever becomes of it now. After an error it may be taken; it was
/// not used.
pub(super) fn claim(files: &Files) -> io::Result<()> {
    fs::rename(files.state(), files.used_state())?;
    // Before the RAM changes, or a loss of power could bring the name back.
    sync_directory(&files.memory())
}

/// Gives a state back that was taken and certainly not used.
pub(super) fn unclaim(files: &Files) -> io::Result<()> {
    match fs::rename(files.used_state(), files.state()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

/// Forgets a memory that runs again, or is not wanted any more. The RAM's file stays if `ram` says so.
pub(super) fn forget_state(files: &Files) -> io::Result<()> {
    remove_if_there(&files.state())?;
    remove_if_there(&files.used_state())?;
    remove_if_there(&files.unfinished_state())?;
    remove_if_there(&files.manifest())
}

/// Forgets all of it.
pub(super) fn forget(files: &Files) -> io::Result<()> {
    forget_state(files)?;
    remove_if_there(&files.ram())
}
