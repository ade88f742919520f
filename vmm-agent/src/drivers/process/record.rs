//! Which process is a sprite's PID 1, written down so that the next agent finds it.

use std::{fs, io, ops::Deref};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{
    super::{
        files::write_whole,
        pid::{Identity, Watched},
    },
    cgroups::SpriteCgroups,
    freezer::Freezer,
    layout::SpriteFiles,
};

/// What is written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    identity: Identity,
    pub(super) cgroups: SpriteCgroups,
}

/// A sprite's PID 1, alive or just dead. With it ends every process of its pid namespace.
#[derive(Debug)]
pub(super) struct Process {
    watched: Watched,
    pub(super) freezer: Freezer,
    pub(super) cgroups: SpriteCgroups,
}

impl Record {
    /// The record of a sprite; `None` if it was never started, or ended in good order.
    pub(super) fn read(files: &SpriteFiles) -> io::Result<Option<Self>> {
        match fs::read(files.process()) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The process, if it is still the one that was recorded.
    ///
    /// Needs a tokio runtime.
    pub(super) fn find(self, files: &SpriteFiles) -> io::Result<Option<Process>> {
        let found = self.identity.find()?;
        Ok(found.map(|watched| Process::new(watched, files, self.cgroups)))
    }
}

impl Process {
    /// Takes charge of PID 1 while it waits for its launcher, and writes it down.
    ///
    /// Needs a tokio runtime.
    pub(super) fn record(pid: i32, files: &SpriteFiles, cgroups: SpriteCgroups) -> io::Result<Self> {
        let (watched, identity) = Watched::child(Pid::from_raw(pid))?;
        let record = Record { identity, cgroups };
        write_whole(&files.process(), &serde_json::to_vec(&record)?)?;
        Ok(Self::new(watched, files, record.cgroups))
    }

    fn new(watched: Watched, files: &SpriteFiles, cgroups: SpriteCgroups) -> Self {
        let freezer = Freezer::of(&cgroups, watched.pid(), files.stopped());
        Self { watched, freezer, cgroups }
    }
}

impl Deref for Process {
    type Target = Watched;

    fn deref(&self) -> &Watched {
        &self.watched
    }
}
