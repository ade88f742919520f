//! Watching files change, with all below them if that is wanted.

use std::{
    collections::{HashMap, VecDeque},
    io,
    path::{Path, PathBuf},
};

use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use jiff::Timestamp;
use walkdir::WalkDir;

use super::{Fault, fault::at};

/// Directories of one watch: each costs the kernel a kibibyte, and a user has some hundred thousand.
const MAX_WATCHED: usize = 16_384;
/// What is read of the kernel's queue at once, in bytes: some hundred events.
const BUFFER_BYTES: usize = 16 * 1024;

/// What happened to a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Happening {
    pub(crate) path: PathBuf,
    pub(crate) what: What,
    pub(crate) at: Timestamp,
}

/// Kinds of [`Happening`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    Created,
    Written,
    Removed,
    Renamed,
    ModeChanged,
}

/// A watch, until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    events: EventStream<Vec<u8>>,
    tree: Tree,
    waiting: VecDeque<Happening>,
    lost: u64,
}

/// What is watched.
#[derive(Debug)]
struct Tree {
    watches: Watches,
    paths: HashMap<WatchDescriptor, PathBuf>,
    recursive: bool,
}

impl Watch {
    /// Begins to watch. Blocks as long as it takes to walk what is watched recursively.
    pub(crate) fn begin(paths: &[PathBuf], recursive: bool) -> Result<Self, Fault> {
        let root = Path::new("/");
        let inotify = Inotify::init().map_err(at(root))?;
        let mut tree = Tree { watches: inotify.watches(), paths: HashMap::new(), recursive };
        for path in paths {
            tree.add(path)?;
            tree.add_below(path, |_| {})?;
        }
        let events = inotify.into_event_stream(vec![0; BUFFER_BYTES]).map_err(at(root))?;
        Ok(Self { events, tree, waiting: VecDeque::new(), lost: 0 })
    }

    /// What happened next; `None` if the watch can't go on. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Happening> {
        loop {
            if let Some(happening) = self.waiting.pop_front() {
                return Some(happening);
            }
            let event = self.events.next().await?.ok()?;
            self.take(&event.wd, event.mask, event.name.as_deref());
        }
    }

    /// How much could not be told since it was last asked: more than the kernel keeps has come at once, or
    /// there is more to watch than may be.
    pub(crate) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn take(&mut self, of: &WatchDescriptor, mask: EventMask, name: Option<&std::ffi::OsStr>) {
        if mask.contains(EventMask::Q_OVERFLOW) {
            self.lost += 1;
            return;
        }
        if mask.contains(EventMask::IGNORED) {
            self.tree.paths.remove(of);
            return;
        }
        let Some(base) = self.tree.paths.get(of) else { return };
        let path = name.map_or_else(|| base.clone(), |name| base.join(name));
        let is_dir = mask.contains(EventMask::ISDIR);
        let at = Timestamp::now();
        if let Some(what) = what(mask) {
            self.waiting.push_back(Happening { path: path.clone(), what, at });
        }
        if !self.tree.recursive || !is_dir {
            return;
        }
        if mask.contains(EventMask::MOVED_FROM) {
            self.tree.forget_below(&path);
        } else if mask.intersects(EventMask::CREATE | EventMask::MOVED_TO) {
            // What is in it already came before we looked.
            let waiting = &mut self.waiting;
            let found = |path: &Path| {
                waiting.push_back(Happening { path: path.to_owned(), what: What::Created, at });
            };
            // One that is gone again needs no watch; one that is too much is said to be lost.
            let watched = self.tree.add(&path).and_then(|()| self.tree.add_below(&path, found));
            if watched.is_err() && path.exists() {
                self.lost += 1;
            }
        }
    }
}

impl Tree {
    fn add(&mut self, path: &Path) -> Result<(), Fault> {
        if self.paths.len() >= MAX_WATCHED {
            return Err(too_much(path));
        }
        let mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE
            | WatchMask::MOVE_SELF;
        let watch = self.watches.add(path, mask).map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull => too_much(path),
            _ => at(path)(error),
        })?;
        self.paths.insert(watch, path.to_owned());
        Ok(())
    }

    /// Adds the directories below `path`, if they are wanted, and tells of everything there.
    fn add_below(&mut self, path: &Path, mut found: impl FnMut(&Path)) -> Result<(), Fault> {
        if !self.recursive {
            return Ok(());
        }
        for entry in WalkDir::new(path).min_depth(1).follow_root_links(true) {
            // Gone while we looked.
            let Ok(entry) = entry else { continue };
            found(entry.path());
            if entry.file_type().is_dir() {
                match self.add(entry.path()) {
                    Err(fault) if entry.path().exists() => return Err(fault),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// What was moved away is not ours to watch any more.
    fn forget_below(&mut self, path: &Path) {
        let gone: Vec<_> =
            self.paths.extract_if(|_, watched| watched.starts_with(path)).map(|(watch, _)| watch).collect();
        for watch in gone {
            // The kernel may have forgotten it first.
            let _forgotten = self.watches.remove(watch);
        }
    }
}

fn too_much(path: &Path) -> Fault {
    let message = format!("there are more than {MAX_WATCHED} directories to watch; watch a part of them");
    Fault::invalid(message, Some(&path.display().to_string()))
}

/// What clients are told of an event. A file is written when its writer closes it, too: some programs map it
/// and write without a call.
fn what(mask: EventMask) -> Option<What> {
    if mask.contains(EventMask::CREATE) {
        Some(What::Created)
    } else if mask.intersects(EventMask::MODIFY | EventMask::CLOSE_WRITE) {
        Some(What::Written)
    } else if mask.intersects(EventMask::DELETE | EventMask::DELETE_SELF) {
        Some(What::Removed)
    } else if mask.intersects(EventMask::MOVED_FROM | EventMask::MOVED_TO | EventMask::MOVE_SELF) {
        Some(What::Renamed)
    } else if mask.contains(EventMask::ATTRIB) {
        Some(What::ModeChanged)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tokio::time::timeout;

    use super::*;

    async fn next(watch: &mut Watch, root: &Path) -> (What, String) {
        let next = timeout(Duration::from_secs(10), watch.next()).await.expect("in time");
        let next = next.expect("it goes on");
        let below = next.path.strip_prefix(root).unwrap_or(&next.path);
        (next.what, below.display().to_string())
    }

    #[tokio::test]
    async fn what_happens_below_is_told_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        fs::create_dir(root.join("sub")).expect("made");
        let mut watch = Watch::begin(&[root.to_owned()], true).expect("watched");
        let file = root.join("sub/file");
        fs::write(&file, "1").expect("written");
        fs::rename(&file, root.join("sub/other")).expect("renamed");
        fs::remove_file(root.join("sub/other")).expect("removed");
        let mut seen = Vec::new();
        while seen.last() != Some(&What::Removed) {
            let (what, _) = next(&mut watch, root).await;
            if seen.last() != Some(&what) {
                seen.push(what);
            }
        }
        assert_eq!(seen, [What::Created, What::Written, What::Renamed, What::Removed]);
        assert_eq!(watch.take_lost(), 0);
    }

    #[tokio::test]
    async fn directories_that_come_later_are_watched_and_those_that_leave_are_not() {
        let (dir, elsewhere) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("another"));
        let root = dir.path();
        let mut watch = Watch::begin(&[root.to_owned()], true).expect("watched");
        fs::create_dir_all(root.join("new/deep")).expect("made");
        // Either the walk or the watch tells of it.
        while next(&mut watch, root).await != (What::Created, "new/deep".into()) {}
        fs::write(root.join("new/deep/file"), "1").expect("written");
        while next(&mut watch, root).await != (What::Written, "new/deep/file".into()) {}
        fs::rename(root.join("new"), elsewhere.path().join("new")).expect("moved");
        while next(&mut watch, root).await != (What::Renamed, "new".into()) {}
        fs::write(elsewhere.path().join("new/deep/file"), "2").expect("written");
        fs::write(root.join("last"), "").expect("written");
        loop {
            let (what, path) = next(&mut watch, root).await;
            assert!(!path.contains("file") || what != What::Written, "{what:?} {path}");
            if path == "last" {
                break;
            }
        }
    }

    #[tokio::test]
    async fn what_is_not_there_can_not_be_watched() {
        let fault = Watch::begin(&["/no/such/place".into()], false).expect_err("missing");
        assert_eq!(fault.code, super::super::Code::NotFound);
    }
}
