//! A command's process: spawned in a session of its own, with pipes or on a terminal.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{ExitStatus, Stdio},
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{Pid, setsid},
};
use tokio::{io::AsyncWriteExt as _, net::unix::pipe, sync::oneshot};
use tracing::warn;

use super::{
    command::{Command, Unfit},
    terminal::{self, Terminal},
};
use crate::{limits, reap::Reaper};

/// How many generations of processes are looked through.
const MAX_DEPTH: usize = 64;

/// A process that runs.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// It leads a session and a process group of the same number.
    pub(crate) pid: i32,
    pub(crate) ended: oneshot::Receiver<ExitStatus>,
    /// What it writes, stdout first.
    pub(crate) taps: Vec<Tap>,
    /// What it reads, if it was given something to read.
    pub(crate) feed: Option<Feed>,
    pub(crate) terminal: Option<Arc<Terminal>>,
}

/// Where output comes from.
#[derive(Debug)]
pub(crate) enum Tap {
    Pipe(pipe::Receiver),
    Terminal(Arc<Terminal>),
}

impl Tap {
    /// Resolves when there may be something to read. Cancel safe.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.readable().await,
            Self::Terminal(terminal) => terminal.readable().await,
        }
    }

    /// Reads what is there; zero is the end.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.try_read(buffer),
            Self::Terminal(terminal) => terminal.try_read(buffer),
        }
    }

    /// How many bytes can be read now.
    pub(crate) fn waiting(&self) -> usize {
        match self {
            Self::Pipe(pipe) => terminal::waiting(pipe.as_raw_fd()),
            Self::Terminal(terminal) => terminal.waiting(),
        }
    }
}

/// Where input goes. Dropping a pipe is the end of it.
#[derive(Debug)]
pub(crate) enum Feed {
    Pipe(pipe::Sender),
    Terminal(Arc<Terminal>),
}

impl Feed {
    /// Writes, and waits while the process does not read.
    ///
    /// # Errors
    /// The process reads no more.
    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            Self::Terminal(terminal) => terminal.write_all(bytes).await,
        }
    }
}

/// Starts a command.
///
/// # Errors
/// It can't be run, and what a shell would say.
pub(crate) fn spawn(reaper: &Reaper, command: &Command) -> Result<Spawned, Unfit> {
    let program = command.program.as_ref().map_err(Clone::clone)?;
    let unfit = |error: io::Error| Unfit::not_run(&command.argv[0], &plain(&error));
    let mut process = std::process::Command::new(program);
    process
        .arg0(&command.argv[0])
        .args(&command.argv[1..])
        .env_clear()
        .envs(&command.environment)
        .current_dir(&command.directory);
    let ends = match command.terminal {
        Some(size) => {
            let (terminal, slave) = Terminal::open(size).map_err(unfit)?;
            on_terminal(&mut process, &slave).map_err(unfit)?;
            let terminal = Arc::new(terminal);
            let taps = vec![Tap::Terminal(Arc::clone(&terminal))];
            (taps, Some(Feed::Terminal(Arc::clone(&terminal))), Some(terminal))
        }
        None => {
            let (taps, feed) = with_pipes(&mut process, command.stdin).map_err(unfit)?;
            (taps, feed, None)
        }
    };
    let (child, ended) = reaper.spawn(|| process.spawn()).map_err(unfit)?;
    let (taps, feed, terminal) = ends;
    Ok(Spawned { pid: child.id().cast_signed(), ended, taps, feed, terminal })
}

fn on_terminal(process: &mut std::process::Command, slave: &OwnedFd) -> io::Result<()> {
    process.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave.try_clone()?);
    // SAFETY: setsid, ioctl, setrlimit, open and write are async-signal-safe; nothing is allocated.
    unsafe {
        process.pre_exec(|| {
            setsid()?;
            // Stdin is the terminal by now; it becomes the one that sends signals and hangs up.
            if libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            limits::of_program()
        });
    }
    Ok(())
}

fn with_pipes(process: &mut std::process::Command, stdin: bool) -> io::Result<(Vec<Tap>, Option<Feed>)> {
    let (stdout, stdout_end) = io::pipe()?;
    let (stderr, stderr_end) = io::pipe()?;
    process.stdout(stdout_end).stderr(stderr_end);
    let feed = if stdin {
        let (stdin_end, stdin) = io::pipe()?;
        process.stdin(stdin_end);
        Some(Feed::Pipe(pipe::Sender::from_owned_fd(stdin.into())?))
    } else {
        process.stdin(Stdio::null());
        None
    };
    // SAFETY: setsid, setrlimit, open and write are async-signal-safe; nothing is allocated.
    unsafe {
        process.pre_exec(|| {
            setsid()?;
            limits::of_program()
        });
    }
    let tap = |end: io::PipeReader| pipe::Receiver::from_owned_fd(end.into()).map(Tap::Pipe);
    Ok((vec![tap(stdout)?, tap(stderr)?], feed))
}

/// "argument list too long" without the number that Rust appends.
fn plain(error: &io::Error) -> String {
    let text = error
        .raw_os_error()
        .map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().to_owned());
    text.to_lowercase()
}

/// Sends a process group a signal. That it is gone already is no error.
pub(crate) fn signal_group(group: i32, signal: frames::Signal) {
    // SAFETY: kill(2) touches no memory of ours. Unlike nix, it knows real-time signals.
    let sent = unsafe { libc::killpg(group, signal.number()) };
    if sent != 0 && Errno::last() != Errno::ESRCH {
        warn!(group, %signal, error = %Errno::last(), "Could not signal a command");
    }
}

/// Kills all processes of a session, also those in other process groups, as jobs of a shell are.
pub(crate) fn kill_session(leader: i32) {
    signal_group(leader, frames::Signal::KILL);
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(pid) = pid.filter(|pid| session_of(*pid) == Some(leader)) {
            // It may have ended meanwhile.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Whether a process belongs to a session: it is in it, or descends from its leader.
pub(crate) fn belongs(pid: u32, leader: i32) -> bool {
    let mut pid = pid.cast_signed();
    if session_of(pid) == Some(leader) {
        return true;
    }
    for _ in 0..MAX_DEPTH {
        if pid == leader {
            return true;
        }
        match parent_of(pid) {
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}

/// "pid (name) state parent ...", where the name may hold anything.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&stat[after_name..]).ok()?.split_ascii_whitespace();
    fields.nth(1)?.parse().ok()
}

/// The session that a process is in, as the kernel says.
fn session_of(pid: i32) -> Option<i32> {
    nix::unistd::getsid(Some(Pid::from_raw(pid))).ok().map(Pid::as_raw)
}
