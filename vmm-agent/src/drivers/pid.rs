//! Processes that outlive the agent that started them, and how the next one finds them again.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{sys::signal::Signal, unistd::Pid};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

/// How long the kernel may take to end a killed process, in milliseconds.
const KILL_LIMIT_MS: u16 = 5_000;

/// Which process it is: what tells it from one that got the same pid later. To be written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Identity {
    pid: i32,
    /// Clock ticks since boot: a process that was given the same pid later started later.
    started: u64,
    /// Which boot of the host: after another one, nothing of before runs.
    boot: String,
}

/// A process that we watch: alive, or just dead.
#[derive(Debug)]
pub(super) struct Watched {
    pid: Pid,
    handle: AsyncFd<OwnedFd>,
}

impl Identity {
    /// The process, if it is still the one that was written down.
    ///
    /// Needs a tokio runtime.
    pub(super) fn find(&self) -> io::Result<Option<Watched>> {
        if self.boot != boot_id()? {
            return Ok(None);
        }
        let pid = Pid::from_raw(self.pid);
        let handle = match open(pid) {
            Ok(handle) => handle,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Looked at after it was opened: what we look at is what we have opened, unless that has
        // exited meanwhile, which the handle would tell.
        let same = stat(pid)?.is_some_and(|stat| stat.started == self.started && stat.state != b'Z');
        if !same {
            reap(&handle);
            return Ok(None);
        }
        Watched::new(pid, handle).map(Some)
    }
}

/// How much memory a process has, in bytes. Nothing, if it is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Footprint {
    /// What only it has, and what it shares without a file.
    pub(super) own: u64,
    /// What of files it has mapped and is in RAM: that of a machine, or a library that others have, too.
    pub(super) files: u64,
}

impl Footprint {
    pub(super) fn of(pid: Pid) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            kib.unwrap_or(0).saturating_mul(1024)
        };
        Self { own: bytes("RssAnon:") + bytes("RssShmem:"), files: bytes("RssFile:") }
    }
}

impl Watched {
    /// Takes charge of a child that can't have ended unseen, and says which it is.
    ///
    /// Needs a tokio runtime.
    pub(super) fn child(pid: Pid) -> io::Result<(Self, Identity)> {
        let handle = open(pid)?;
        let started = stat(pid)?.ok_or(io::ErrorKind::NotFound)?.started;
        let identity = Identity { pid: pid.as_raw(), started, boot: boot_id()? };
        Ok((Self::new(pid, handle)?, identity))
    }

    fn new(pid: Pid, handle: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` that we don't touch stays the same open descriptor until it is dropped.
        let handle = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }?;
        Ok(Self { pid, handle })
    }

    /// Its number while it lives.
    pub(super) const fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal; does nothing to one that is gone.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        let no_info: *const libc::siginfo_t = std::ptr::null();
        let fd = self.as_fd().as_raw_fd();
        // SAFETY: a null `info` makes the kernel fill it in, as kill(2) does.
        let sent =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as libc::c_int, no_info, 0) };
        match sent {
            0.. => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Kills it and waits until it is gone. Blocks, for a bounded time.
    pub(super) fn end_now(&self) {
        use nix::poll::{PollFd, PollFlags, poll};
        // Fails if it is gone, which is what we want.
        let _gone = self.signal(Signal::SIGKILL);
        let mut wanted = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        let _gone = poll(&mut wanted, KILL_LIMIT_MS);
        reap(self);
    }

    /// Resolves when it is gone. Cancel safe.
    pub(super) async fn exited(&self) {
        // An error would mean that the tokio runtime is shutting down, and nobody waits any more.
        let _ready = self.handle.readable().await;
        reap(self);
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.get_ref().as_fd()
    }
}

/// Refers to a process in a way that a reused pid can't confuse. Readable once it has exited.
pub(super) fn open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let opened = RawFd::try_from(opened).map_err(io::Error::other)?;
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

/// Collects the exit status of the process if it has exited and is our child; otherwise does nothing.
fn reap(process: &impl AsFd) {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    // One that an earlier agent started is somebody else's child, who collects it: not our error.
    let _not_ours = waitid(Id::PIDFd(process.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
}

/// Which boot of the host this is.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// What we read of a process's `stat` file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stat {
    /// `R`, `S`, `D`, `T`, `t`, `Z`, `X`, `I`.
    pub(super) state: u8,
    /// Who started it.
    pub(super) parent: i32,
    /// When it started, in clock ticks since the machine's boot: with the pid, its identity.
    pub(super) started: u64,
}

/// The state of a process; `None` if it does not exist.
pub(super) fn stat(pid: Pid) -> io::Result<Option<Stat>> {
    read_stat(&format!("/proc/{pid}/stat"))
}

/// The state of a process or thread from its file; `None` if it does not exist.
pub(super) fn read_stat(path: &str) -> io::Result<Option<Stat>> {
    match fs::read_to_string(path) {
        Ok(text) => parse_stat(&text).map(Some).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("could not understand {path}"))
        }),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an error of a file below `/proc` means that the process has ended.
pub(super) fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // "pid (name) state parent ... starttime ...": the name may hold spaces and parentheses.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Some(Stat {
        state: *fields.first()?.as_bytes().first()?,
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_hold_anything() {
        let text = "7 (a) R 1 (b)) T 3 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 2 3";
        assert_eq!(parse_stat(text), Some(Stat { state: b'T', parent: 3, started: 12_345 }));
        assert_eq!(parse_stat("7 (sh) T"), None);
    }

    #[tokio::test]
    async fn a_process_is_found_again_and_not_mistaken_for_another() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (watched, identity) = Watched::child(Pid::from_raw(child.id().cast_signed())).unwrap();
        assert_eq!(identity.find().unwrap().unwrap().pid(), watched.pid());
        let later = Identity { started: identity.started + 1, ..identity.clone() };
        assert!(later.find().unwrap().is_none());
        let another_boot = Identity { boot: "another".into(), ..identity.clone() };
        assert!(another_boot.find().unwrap().is_none());
        watched.end_now();
        watched.exited().await;
        assert!(identity.find().unwrap().is_none());
        // Collected already; this says so to the library.
        assert!(child.wait().is_err());
    }
}
