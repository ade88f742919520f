//! Checkpoints: trees beside the disk, each a copy of it as it was.
//!
//! A copy is made where nobody looks and gets its name by a rename, when all of it is on the host's disk. The
//! last few lie in a directory that the sprite sees read-only; they come into it and leave it by renames, too.
//!
//! A restore is two renames: the disk becomes a checkpoint, and the copy that was made before becomes
//! the disk. If the host dies between the two there is no disk, and [`Host::mend`] finishes it.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::Instant,
};

use ids::{CheckpointId, SpriteId};
use tokio::sync::OwnedMutexGuard;
use tracing::{info, warn};

use super::{
    Host, ProcessDriver,
    copy::{self, CopyError, Copying, Shift, Unwanted, Wanted},
    freeze_failed, host_error,
    launcher::Ids,
    layout::SpriteFiles,
    mapped,
    record::Process,
    sys,
};
use crate::drivers::{DriverError, SpriteSpec, Verb, files::remove_if_there};

/// How many of the last checkpoints a sprite sees.
const SHOWN: usize = 5;

/// What was made ahead for a sprite.
#[derive(Debug, Default)]
pub(super) enum Staged {
    #[default]
    Nothing,
    /// Most of a checkpoint; the rest is copied while the sprite's time stands still.
    Checkpoint(CheckpointId, Box<Copying>),
    /// All of one, and not yet on the host's disk.
    Cut(CheckpointId, Box<Copying>),
    /// The next disk, whole.
    Restore(CheckpointId),
}

/// Only one thing is made ahead for a sprite at a time.
pub(super) type Staging = tokio::sync::Mutex<Staged>;

fn copy_failed(verb: Verb, id: SpriteId) -> impl Fn(CopyError) -> DriverError {
    const MIB: u64 = 1 << 20;
    move |error| match error {
        CopyError::NoRoom { needed, left } => {
            DriverError::NoRoom { verb, id, needed_mib: needed.div_ceil(MIB), left_mib: left / MIB }
        }
        CopyError::At(path, source) => {
            DriverError::Host { verb, id, step: format!("copy /{} of its disk", path.display()), source }
        }
    }
}

impl ProcessDriver {
    pub(super) async fn staging(&self, id: SpriteId) -> OwnedMutexGuard<Staged> {
        let staging = Arc::clone(&self.host.staging.entry(id).or_default());
        staging.lock_owned().await
    }

    /// Runs blocking work that ends early if the caller leaves.
    pub(super) async fn wanted<T: Send + 'static>(
        &self,
        verb: Verb,
        id: SpriteId,
        work: impl FnOnce(&Host, Unwanted) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let wanted = Wanted::default();
        let (host, other_half) = (Arc::clone(&self.host), wanted.other_half());
        let done = tokio::task::spawn_blocking(move || work(&host, other_half)).await;
        drop(wanted);
        done.unwrap_or_else(|panic| Err(host_error(verb, id, "finish (a bug)")(io::Error::other(panic))))
    }
}

impl Host {
    /// Makes most of a checkpoint while the sprite goes on.
    pub(super) fn stage_checkpoint(
        &self,
        id: SpriteId,
        checkpoint: CheckpointId,
        unwanted: Unwanted,
    ) -> Result<Box<Copying>, DriverError> {
        let verb = Verb::Checkpoint;
        let files = self.layout.sprite(id);
        make_directories(&files).map_err(host_error(verb, id, "make directories for checkpoints"))?;
        let to = files.unfinished().join(checkpoint.to_string());
        self.copy_most(id, &to, unwanted).inspect_err(|_| self.discard(id, &to))
    }

    /// Copies the disk while the sprite goes on, until little is left to do.
    fn copy_most(&self, id: SpriteId, to: &Path, unwanted: Unwanted) -> Result<Box<Copying>, DriverError> {
        let verb = Verb::Checkpoint;
        let disk = self.layout.sprite(id).disk();
        let begun = Copying::begin(&disk, to, Shift::new(0, 0), unwanted);
        let mut copy = begun.map_err(copy_failed(verb, id))?;
        while copy.wants_live_pass() {
            let stamp = self.hold_still(id, || copy.stamp(self.mapped(id)?))?;
            let stamp = stamp.map_err(host_error(verb, id, "read the clock of the file system"))?;
            copy.live_pass(stamp).map_err(copy_failed(verb, id))?;
        }
        Ok(Box::new(copy))
    }

    /// The files that processes of the sprite have mapped to write to them.
    fn mapped(&self, id: SpriteId) -> io::Result<HashSet<u64>> {
        match self.running.get(&id).map(|entry| Arc::clone(&entry)) {
            Some(process) => mapped::written_by(process.pid()),
            None => Ok(HashSet::new()),
        }
    }

    /// Copies the rest while the sprite's time stands still.
    pub(super) fn cut(
        &self,
        id: SpriteId,
        checkpoint: CheckpointId,
        mut copy: Box<Copying>,
    ) -> Result<Box<Copying>, DriverError> {
        let from = self.layout.sprite(id).unfinished().join(checkpoint.to_string());
        copy.be_wanted();
        let cut = self.hold_still(id, || {
            let began = Instant::now();
            let copied = copy.last().map_err(copy_failed(Verb::Checkpoint, id));
            (copied, began.elapsed())
        });
        let cut = cut.and_then(|(copied, stood_still)| {
            info!(sprite = %id, %checkpoint, ?stood_still, "Cut a checkpoint");
            copied
        });
        cut.inspect_err(|_| self.discard(id, &from)).map(|()| copy)
    }

    /// Has the checkpoint on the host's disk, and gives it its name.
    pub(super) fn complete_checkpoint(
        &self,
        id: SpriteId,
        checkpoint: CheckpointId,
        copy: Box<Copying>,
    ) -> Result<(), DriverError> {
        let verb = Verb::Checkpoint;
        let files = self.layout.sprite(id);
        let from = files.unfinished().join(checkpoint.to_string());
        let named = copy.finish().map_err(copy_failed(verb, id)).and_then(|()| {
            let to = files.kept().join(checkpoint.to_string());
            move_tree(&from, &to).map_err(host_error(verb, id, "give the checkpoint its name"))
        });
        named.inspect_err(|_| self.discard(id, &from))?;
        show_last(&files).map_err(host_error(verb, id, "show the checkpoint in the sprite"))
    }

    /// Does something while the time of the sprite stands still, if it runs.
    fn hold_still<T>(&self, id: SpriteId, work: impl FnOnce() -> T) -> Result<T, DriverError> {
        let verb = Verb::Checkpoint;
        let Ok(process) = self.running(verb, id) else { return Ok(work()) };
        let mark = self.layout.sprite(id).held();
        process.freezer.hold_still(&mark, work).map_err(freeze_failed(verb, id))
    }

    /// Copies a checkpoint to where the next disk is expected.
    pub(super) fn stage_restore(
        &self,
        id: SpriteId,
        checkpoint: CheckpointId,
        unwanted: Unwanted,
    ) -> Result<(), DriverError> {
        let verb = Verb::Restore;
        let files = self.layout.sprite(id);
        let from = files.checkpoint(checkpoint).ok_or(DriverError::NoCheckpoint { verb, id, checkpoint })?;
        make_directories(&files).map_err(host_error(verb, id, "make directories for checkpoints"))?;
        self.discard(id, &files.next_disk());
        let to = files.unfinished().join("disk");
        copy_whole(&from, &to, Shift::new(0, 0), unwanted)
            .inspect_err(|_| self.discard(id, &to))
            .map_err(copy_failed(verb, id))?;
        move_tree(&to, &files.next_disk()).map_err(host_error(
            verb,
            id,
            "put the next disk beside the present one",
        ))
    }

    /// Exchanges the disk for the one that was staged.
    pub(super) fn restore(&self, id: SpriteId, replaced: CheckpointId) -> Result<(), DriverError> {
        let verb = Verb::Restore;
        let files = self.layout.sprite(id);
        if self.take_charge(verb, id)? {
            return Err(DriverError::AlreadyRunning { verb, id });
        }
        let (disk, next, old) = (files.disk(), files.next_disk(), files.kept().join(replaced.to_string()));
        move_tree(&disk, &old).map_err(host_error(verb, id, "set its disk aside"))?;
        if let Err(error) = fs::rename(&next, &disk) {
            move_tree(&old, &disk).map_err(host_error(verb, id, "put its disk back"))?;
            return Err(host_error(verb, id, "put the restored disk in its place")(error));
        }
        sync_directories(&files).map_err(host_error(verb, id, "write its new disk down"))
    }

    /// Whether the checkpoint `replaced` shows that a restore was done before. Finishes one that was cut short.
    pub(super) fn is_restored(&self, id: SpriteId, replaced: CheckpointId) -> Result<bool, DriverError> {
        let files = self.layout.sprite(id);
        mend(&files).map_err(host_error(Verb::Restore, id, "finish an interrupted restore"))?;
        Ok(files.checkpoint(replaced).is_some())
    }

    pub(super) fn forget_checkpoint(
        &self,
        id: SpriteId,
        checkpoint: CheckpointId,
    ) -> Result<(), DriverError> {
        let files = self.layout.sprite(id);
        self.discard(id, &files.unfinished().join(checkpoint.to_string()));
        let Some(path) = files.checkpoint(checkpoint) else { return Ok(()) };
        let failed = |step| host_error(Verb::ForgetCheckpoint, id, step);
        let doomed = self.layout.doomed(id);
        move_tree(&path, &doomed).map_err(failed("set the checkpoint aside"))?;
        self.remover.remove(doomed);
        show_last(&files).map_err(failed("show the last checkpoints in the sprite"))
    }

    /// The disk of a new sprite, from another one's checkpoint.
    pub(super) fn fork(
        &self,
        source: SpriteId,
        checkpoint: CheckpointId,
        sprite: &SpriteSpec,
        unwanted: Unwanted,
    ) -> Result<(), DriverError> {
        let (verb, id) = (Verb::Fork, sprite.id);
        let failed = |step| host_error(verb, id, step);
        let (files, origin) = (self.layout.sprite(id), self.layout.sprite(source));
        if files.disk().exists() {
            return Ok(());
        }
        let from = origin.checkpoint(checkpoint).ok_or(DriverError::NoCheckpoint {
            verb,
            id: source,
            checkpoint,
        })?;
        fs::create_dir_all(files.root()).map_err(failed("make its directory"))?;
        let ids = self.ids.ids_of(&files).map_err(failed("choose its user ids"))?;
        let origin_ids = self.ids.ids_of(&origin).map_err(failed("read the user ids of the source"))?;
        let to = files.unfinished_disk();
        copy_whole(&from, &to, shift(origin_ids, ids), unwanted).map_err(copy_failed(verb, source))?;
        rename_inside(&to, sprite.name.as_str()).map_err(failed("give it its host name"))?;
        sys::sync_file_system(&to)
            .and_then(|()| move_tree(&to, &files.disk()))
            .map_err(failed("name its disk"))
    }

    /// Puts right what an agent that was killed has left, once, before anything else is done with the sprite.
    pub(super) fn recover(&self, id: SpriteId) -> io::Result<()> {
        let files = self.layout.sprite(id);
        mend(&files)?;
        self.discard(id, &files.next_disk());
        self.discard(id, &files.unfinished());
        if files.kept().is_dir() {
            show_last(&files)?;
        }
        Ok(())
    }

    /// Has something of no use removed, if it is there.
    fn discard(&self, id: SpriteId, path: &Path) {
        if path.symlink_metadata().is_err() {
            return;
        }
        let doomed = self.layout.doomed(id);
        match move_tree(path, &doomed) {
            Ok(()) => self.remover.remove(doomed),
            // The next agent, or the sprite's end, removes it.
            Err(error) => warn!(path = %path.display(), %error, "Could not set something aside to remove it"),
        }
    }
}

/// Lets a sprite go on that an agent had frozen for a cut, and was killed.
pub(super) fn release(files: &SpriteFiles, process: &Process) -> io::Result<()> {
    if files.held().try_exists()? {
        process.freezer.thaw()?;
        remove_if_there(&files.held())?;
    }
    Ok(())
}

/// Finishes a restore that was cut short between its renames.
pub(super) fn mend(files: &SpriteFiles) -> io::Result<()> {
    if files.disk().try_exists()? || !files.next_disk().try_exists()? {
        return Ok(());
    }
    fs::rename(files.next_disk(), files.disk())?;
    sync_directories(files)
}

/// The directory that the sprite sees is there from the start, for it is mounted while the sprite runs.
pub(super) fn make_directories(files: &SpriteFiles) -> io::Result<()> {
    for path in [files.shown(), files.kept(), files.unfinished()] {
        fs::create_dir_all(path)?;
    }
    // Whatever the agent's umask is: root inside is somebody else outside.
    for path in [files.shown(), files.root().join("checkpoints")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// What is root's in the one is root's in the other.
const fn shift(from: Ids, to: Ids) -> Shift {
    match (from, to) {
        (Ids::Range { base: from }, Ids::Range { base: to }) => Shift::new(from, to),
        (Ids::Range { .. } | Ids::Single { .. }, _) => Shift::new(0, 0),
    }
}

fn copy_whole(from: &Path, to: &Path, shift: Shift, unwanted: Unwanted) -> Result<(), CopyError> {
    let mut copy = Copying::begin(from, to, shift, unwanted)?;
    copy.last()?;
    copy.finish()
}

/// Moves checkpoints so that the sprite sees the last ones of those that somebody asked for.
fn show_last(files: &SpriteFiles) -> io::Result<()> {
    let (shown, kept) = (files.shown(), files.kept());
    let in_sight = numbered(&shown)?;
    let mut all: Vec<(CheckpointId, bool)> = in_sight.into_iter().map(|id| (id, true)).collect();
    all.extend(numbered(&kept)?.into_iter().map(|id| (id, false)));
    all.sort_unstable_by(|(one, _), (other, _)| other.cmp(one));
    for (place, (id, is_shown)) in all.into_iter().enumerate() {
        let name = id.to_string();
        match (place < SHOWN, is_shown) {
            (true, false) => move_tree(&kept.join(&name), &shown.join(&name))?,
            (false, true) => move_tree(&shown.join(&name), &kept.join(&name))?,
            (true, true) | (false, false) => {}
        }
    }
    sync_directories(files)
}

fn numbered(directory: &Path) -> io::Result<Vec<CheckpointId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let id = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(id.filter(|id: &CheckpointId| !id.is_automatic()));
    }
    Ok(found)
}

fn sync_directories(files: &SpriteFiles) -> io::Result<()> {
    for path in [files.root().to_owned(), files.shown(), files.kept()] {
        File::open(path)?.sync_all()?;
    }
    Ok(())
}

/// Renames a directory. An agent that is not root may do that to another parent only if it may write to it.
fn move_tree(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        other => return other,
    }
    let mode = from.symlink_metadata()?.permissions();
    fs::set_permissions(from, fs::Permissions::from_mode(mode.mode() | 0o200))?;
    let moved = fs::rename(from, to);
    let at = if moved.is_ok() { to } else { from };
    fs::set_permissions(at, mode)?;
    moved
}

/// A fork knows itself by its own name. What its source has made of these files otherwise stays.
fn rename_inside(disk: &Path, name: &str) -> io::Result<()> {
    let mut former = String::new();
    copy::rewrite(disk, Path::new("etc/hostname"), |text| {
        text.trim().clone_into(&mut former);
        Some(format!("{name}\n"))
    })?;
    if former.is_empty() {
        return Ok(());
    }
    copy::rewrite(disk, Path::new("etc/hosts"), |text| {
        let word = |word: &str| if word == former { name.to_owned() } else { word.to_owned() };
        let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ") + "\n";
        Some(text.lines().map(line).collect())
    })
}
