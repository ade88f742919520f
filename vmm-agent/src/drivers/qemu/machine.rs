//! A machine that is there: its process, its monitor, the way into it.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::OpenOptionsExt as _, net::UnixListener, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        signal::Signal,
        stat::{Mode, umask},
    },
    unistd::{Pid, setsid},
};
use parking_lot::Mutex as SyncMutex;
use runtime_api::{Address, Woken, tell_woken};
use serde_json::json;
use tokio::{sync::Mutex, time::timeout};

use super::{
    arguments::Run,
    channel::Channel,
    faults::{Point, pass},
    layout::Files,
    owner::Owner,
    qmp::{Qmp, QmpError},
};
use crate::drivers::{
    files::{remove_if_there, write_whole},
    pid::{Footprint, Identity, Watched},
};

/// How long the kernel may take to end QEMU.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long a machine that goes on may take to say that it does.
const WOKEN_LIMIT: Duration = Duration::from_secs(10);
/// How much rather than others QEMU is ended when memory is short, of 1000: its disk survives that.
const OOM_SCORE: &str = "500";

/// What could not be done, and why.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub(super) struct Failure {
    pub(super) step: String,
    #[source]
    pub(super) source: io::Error,
}

impl Failure {
    pub(super) fn new(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { step: step.into(), source: source.into() }
    }
}

impl From<QmpError> for Failure {
    fn from(error: QmpError) -> Self {
        match error {
            QmpError::Broken(source) => Self::new("command QEMU", source),
            other => Self::new("command QEMU", io::Error::other(other)),
        }
    }
}

/// Names the step of an error.
pub(super) fn failed(step: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    let step = step.into();
    move |source| Failure { step, source }
}

/// How QEMU is started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start<'a> {
    pub(super) program: &'a Path,
    /// What the machine is made of.
    pub(super) words: &'a [String],
    /// Whether its state comes in.
    pub(super) incoming: bool,
    /// Where images are.
    pub(super) images: &'a Path,
    /// Who it runs as; as the agent if nobody else.
    pub(super) owner: Option<Owner>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Machine {
    process: Watched,
    monitor: Mutex<Qmp>,
    /// `None` while nobody is to get in.
    channel: SyncMutex<Option<Channel>>,
}

impl Machine {
    /// Starts QEMU for a machine that is made of `words`. When this returns, the process is written down and its
    /// monitor answers.
    ///
    /// # Cancel safety
    /// A dropped future may leave a process that [`Machine::find`] finds.
    pub(super) async fn spawn(start: Start<'_>, files: &Files) -> Result<Self, Failure> {
        let process = launch(start, files)?;
        match Qmp::connect(&files.monitor()).await {
            Ok(monitor) => Ok(Self { process, monitor: Mutex::new(monitor), channel: SyncMutex::new(None) }),
            Err(error) => {
                process.end_now();
                let words = last_words(&files.log());
                Err(Failure::new(format!("start QEMU ({error}): {words}"), io::Error::other(error)))
            }
        }
    }

    /// How much of the host's memory it has, in bytes: its RAM, which is a file, as far as it is used.
    pub(super) fn footprint(&self) -> u64 {
        let Footprint { own, files } = Footprint::of(self.process.pid());
        own + files
    }

    /// A machine that an earlier agent started; `None` if there is none any more.
    pub(super) async fn find(files: &Files) -> Result<Option<Self>, Failure> {
        let record = match fs::read(files.process()) {
            Ok(record) => record,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::new("read which process it is", error)),
        };
        let identity: Identity = serde_json::from_slice(&record)
            .map_err(|error| Failure::new("read which process it is", io::Error::other(error)))?;
        let Some(process) = identity.find().map_err(failed("look for its process"))? else { return Ok(None) };
        match Qmp::connect(&files.monitor()).await {
            Ok(monitor) => {
                Ok(Some(Self { process, monitor: Mutex::new(monitor), channel: SyncMutex::new(None) }))
            }
            Err(error) => {
                // It is on its way out, or hangs: nothing can be done with it.
                tracing::warn!(%error, "A machine's monitor does not answer; it is ended");
                process.end_now();
                Ok(None)
            }
        }
    }

    /// Lets gateways and agent in.
    pub(super) fn open(&self, files: &Files) -> Result<(), Failure> {
        let mut channel = self.channel.lock();
        if channel.is_none() {
            let opened = Channel::open(&files.vsock(), &files.multiplexed());
            *channel = Some(opened.map_err(failed("make its socket"))?);
        }
        Ok(())
    }

    /// Shuts everybody out: what is under way ends.
    pub(super) fn close(&self) {
        *self.channel.lock() = None;
    }

    pub(super) fn monitor(&self) -> &Mutex<Qmp> {
        &self.monitor
    }

    pub(super) async fn pause(&self) -> Result<(), Failure> {
        self.monitor.lock().await.command("stop", json!({})).await?;
        Ok(())
    }

    /// Lets its CPUs run on.
    pub(super) async fn unpause(&self) -> Result<(), Failure> {
        self.monitor.lock().await.command("cont", json!({})).await?;
        Ok(())
    }

    /// Tells the runtime the time, and waits until it has heard.
    pub(super) async fn tell_woken(&self, files: &Files) -> Result<(), Failure> {
        tell_woken(&Address::Vsock(files.vsock()), &Woken::now(), WOKEN_LIMIT)
            .await
            .map_err(|error| Failure::new("tell its runtime that it is awake", io::Error::other(error)))
    }

    /// Has QEMU end itself, or ends it. Its disk is whole either way.
    pub(super) async fn quit(&self) -> Result<(), Failure> {
        self.close();
        // It may leave before it has answered.
        let _leaves = self.monitor.lock().await.command("quit", json!({})).await;
        self.end(KILL_LIMIT).await
    }

    /// Waits for QEMU's end for `grace`, then kills it.
    pub(super) async fn end(&self, grace: Duration) -> Result<(), Failure> {
        if timeout(grace, self.process.exited()).await.is_err() {
            self.process.signal(Signal::SIGKILL).map_err(failed("kill QEMU"))?;
            timeout(KILL_LIMIT, self.process.exited())
                .await
                .map_err(|late| Failure::new("see QEMU end after a KILL", late))?;
        }
        Ok(())
    }

    /// Resolves when QEMU is gone. Cancel safe.
    pub(super) async fn exited(&self) {
        self.process.exited().await;
    }
}

/// Removes what a run leaves on the host; the record goes last, so that it can be tried again.
pub(super) fn clean(files: &Files) -> io::Result<()> {
    remove_if_there(&files.vsock())?;
    remove_if_there(&files.multiplexed())?;
    remove_if_there(&files.monitor())?;
    remove_if_there(&files.process())
}

/// What a machine that runs was made of.
pub(super) fn words(files: &Files) -> io::Result<Vec<String>> {
    serde_json::from_slice(&fs::read(files.words())?).map_err(io::Error::other)
}

/// A process that no agent knows: one that was started and not written down.
pub(super) async fn end_unknown(files: &Files) {
    if let Ok(mut monitor) = Qmp::connect(&files.monitor()).await {
        let _leaves = monitor.command("quit", json!({})).await;
    }
}

/// Starts the process, and writes down which it is.
fn launch(start: Start<'_>, files: &Files) -> Result<Watched, Failure> {
    let Start { program, words, incoming, images, owner } = start;
    fs::create_dir_all(files.run()).map_err(failed("make its directory"))?;
    clean(files).map_err(failed("remove what its last run left"))?;
    let monitor = listen(&files.monitor())?;
    let multiplexed = listen(&files.multiplexed())?;
    let log = fs::File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(files.log())
        .map_err(failed("make its log"))?;
    let described = serde_json::to_vec(words).map_err(io::Error::other);
    described
        .and_then(|text| write_whole(&files.words(), &text))
        .map_err(failed("write down what it is made of"))?;
    let images_fd = open_directory(images).map_err(failed("open the directory of images"))?;
    let run = Run {
        monitor: monitor.as_raw_fd(),
        multiplexed: multiplexed.as_raw_fd(),
        images: (images, images_fd.as_raw_fd()),
        incoming,
    };
    let mut command = Command::new(program);
    command.args(run.arguments(words)).env_clear().stdin(Stdio::null()).stderr(log);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.stdout(Stdio::null()).current_dir(files.root());
    let inherited = [monitor, multiplexed, images_fd];
    // SAFETY: only system calls that may be made between fork and exec.
    unsafe {
        command.pre_exec(move || {
            // A signal to the agent's group, such as Ctrl-C, is not meant for sprites.
            setsid()?;
            // What QEMU makes holds the sprite's memory.
            umask(Mode::S_IRWXG | Mode::S_IRWXO);
            for descriptor in &inherited {
                fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            owner.map_or(Ok(()), Owner::become_it)
        });
    }
    let child = command.spawn().map_err(failed(format!("execute {}", program.display())))?;
    let pid = Pid::from_raw(child.id().cast_signed());
    pass(Point::LaunchExecuted, files);
    let recorded = Watched::child(pid).and_then(|(process, identity)| {
        write_whole(&files.process(), &serde_json::to_vec(&identity)?)?;
        // Where it is refused, nothing but the order changes in which processes go when memory is short.
        let _refused = fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE);
        Ok(process)
    });
    recorded
        .inspect_err(|_| {
            // It is our child, and nobody has collected it: the number is its own.
            let _gone = nix::sys::signal::kill(pid, Signal::SIGKILL);
        })
        .map_err(failed("write down which process it is"))
}

/// A directory whose files are to be reached by whoever gets the descriptor, and may not reach the directory itself.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    fs::File::options().read(true).custom_flags(flags).open(path).map(OwnedFd::from)
}

/// A listening socket for QEMU: whoever connects is answered as soon as QEMU is up, without asking again and again.
fn listen(path: &Path) -> Result<OwnedFd, Failure> {
    UnixListener::bind(path).map(OwnedFd::from).map_err(failed(format!("make the socket {}", path.display())))
}

/// The end of a log, for an error.
fn last_words(log: &Path) -> String {
    const MOST: usize = 600;
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(MOST)..]).trim().replace('\n', "; ");
    if text.is_empty() { "it said nothing".to_owned() } else { text }
}
