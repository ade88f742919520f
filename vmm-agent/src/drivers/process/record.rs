//! Which process is a sprite's PID 1, written down so that the next agent finds it.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{sys::signal::Signal, unistd::Pid};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    cgroups::SpriteCgroups,
    freezer::Freezer,
    layout::{SpriteFiles, write_whole},
    sys, tree,
};

/// How long the kernel may take to end all processes of a sprite, in milliseconds.
const KILL_LIMIT_MS: u16 = 5_000;

/// What is written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pid: i32,
    /// Clock ticks since boot: a process that was given the same pid later started later.
    started: u64,
    /// Which boot of the host: after another one, nothing of before runs.
    boot: String,
    pub(super) cgroups: SpriteCgroups,
}

/// A sprite's PID 1, alive or just dead.
#[derive(Debug)]
pub(super) struct Process {
    handle: AsyncFd<OwnedFd>,
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
        if self.boot != boot_id()? {
            return Ok(None);
        }
        let pid = Pid::from_raw(self.pid);
        let handle = match sys::open_process(pid) {
            Ok(handle) => handle,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Looked at after it was opened: what we look at is what we have opened, unless that has
        // exited meanwhile, which the handle would tell.
        let same = tree::stat(pid)?.is_some_and(|stat| stat.started == self.started && stat.state != b'Z');
        if !same {
            sys::reap_process(&handle);
            return Ok(None);
        }
        Process::new(pid, handle, files, self.cgroups).map(Some)
    }
}

impl Process {
    /// Takes charge of PID 1 while it waits for its launcher, and writes it down.
    ///
    /// Needs a tokio runtime.
    pub(super) fn record(pid: i32, files: &SpriteFiles, cgroups: SpriteCgroups) -> io::Result<Self> {
        let pid = Pid::from_raw(pid);
        let handle = sys::open_process(pid)?;
        let started = tree::stat(pid)?.ok_or(io::ErrorKind::NotFound)?.started;
        let record = Record { pid: pid.as_raw(), started, boot: boot_id()?, cgroups };
        write_whole(&files.process(), &serde_json::to_vec(&record)?)?;
        Self::new(pid, handle, files, record.cgroups)
    }

    fn new(pid: Pid, handle: OwnedFd, files: &SpriteFiles, cgroups: SpriteCgroups) -> io::Result<Self> {
        let freezer = Freezer::of(&cgroups, pid, files.stopped());
        // SAFETY: an `OwnedFd` that we don't touch stays the same open descriptor until it is dropped.
        let handle = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }?;
        Ok(Self { handle, freezer, cgroups })
    }

    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match sys::signal_process(self.as_fd(), signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Kills it and waits until it is gone. Blocks, for a bounded time.
    pub(super) fn end_now(&self) {
        use nix::poll::{PollFd, PollFlags, poll};
        // Fails if it is gone, which is what we want.
        let _gone = self.signal(Signal::SIGKILL);
        let mut wanted = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        let _gone = poll(&mut wanted, KILL_LIMIT_MS);
        sys::reap_process(self);
    }

    /// Resolves when the process is gone, and with it every process of its pid namespace. Cancel safe.
    pub(super) async fn exited(&self) {
        // An error would mean that the tokio runtime is shutting down, and nobody waits any more.
        let _ready = self.handle.readable().await;
        sys::reap_process(self.handle.get_ref());
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.get_ref().as_fd()
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
