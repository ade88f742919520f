//! The agent's side of a launch (the launcher's is in [`launcher`](super::launcher)). Blocks.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::sys::{
    socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, setsockopt, socket, socketpair, sockopt,
    },
    time::{TimeVal, TimeValLike as _},
};

use super::{
    super::files::remove_if_there,
    cgroups::SpriteCgroups,
    identity::map_ids,
    launcher::{ARGUMENT, Channel, Failure, Ids, Order, Plan, Report},
    layout::SpriteFiles,
    record::Process,
};

/// How long the launcher may take for one step. All of them together take some 10 ms on an idle host.
const STEP_LIMIT: Duration = Duration::from_secs(20);

/// A step of a launch that failed.
#[derive(Debug)]
pub(super) struct LaunchError {
    pub(super) step: String,
    pub(super) source: io::Error,
}

fn at<T>(step: &str, result: io::Result<T>) -> Result<T, LaunchError> {
    result.map_err(|source| LaunchError { step: step.into(), source })
}

impl From<Failure> for LaunchError {
    fn from(failure: Failure) -> Self {
        Self { source: failure.source(), step: failure.step }
    }
}

/// Starts a runtime as `plan` says. When this returns it has been executed; after an error nothing
/// of it is left but the cgroups, which the caller made.
///
/// Needs a tokio runtime, though it blocks.
pub(super) fn launch(
    files: &SpriteFiles,
    plan: Plan,
    cgroups: SpriteCgroups,
) -> Result<Process, LaunchError> {
    let listener = at("make the runtime's socket", listen(files))?;
    let console = at("open the runtime's log", open_console(files))?;
    let launcher = Launcher::spawn(Stdio::from(console))?;
    let outcome = launcher.build(files, plan, cgroups, &listener);
    launcher.end(outcome.is_ok());
    outcome
}

/// Finds out whether namespaces with these ids can be made.
pub(super) fn try_namespaces(ids: Ids) -> Result<(), LaunchError> {
    let launcher = Launcher::spawn(Stdio::null())?;
    let outcome = launcher.tell(&Order::Try { ids }, None).and_then(|()| {
        launcher.map(ids)?;
        match launcher.hear()? {
            Report::Executed => Ok(()),
            Report::Unshared | Report::Forked { .. } | Report::Failed(_) => Err(out_of_order()),
        }
    });
    launcher.end(outcome.is_ok());
    outcome
}

fn listen(files: &SpriteFiles) -> io::Result<OwnedFd> {
    std::fs::create_dir_all(files.run())?;
    remove_if_there(&files.socket())?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(&files.socket())?)?;
    // As many as the kernel lets wait: requests come in thousands at once when a sprite has slept, and
    // one that finds the queue full is refused.
    nix::sys::socket::listen(&socket, Backlog::MAXALLOWABLE)?;
    Ok(socket)
}

/// The log of this boot; that of the boot before is kept beside it.
fn open_console(files: &SpriteFiles) -> io::Result<File> {
    let path = files.console();
    if path.exists() {
        std::fs::rename(&path, path.with_extension("log.before"))?;
    }
    // Appended to, so that the runtime and the launcher don't write over each other.
    File::options().create(true).append(true).open(path)
}

struct Launcher {
    child: Child,
    channel: Channel,
}

impl Launcher {
    fn spawn(log: Stdio) -> Result<Self, LaunchError> {
        let (ours, theirs) = at("make a channel to the launcher", pair())?;
        let child = at(
            "execute the launcher",
            Command::new("/proc/self/exe")
                .arg(ARGUMENT)
                .env_clear()
                .stdin(Stdio::from(theirs))
                .stdout(Stdio::null())
                .stderr(log)
                .spawn(),
        )?;
        Ok(Self { child, channel: Channel::new(ours) })
    }

    fn build(
        &self,
        files: &SpriteFiles,
        plan: Plan,
        cgroups: SpriteCgroups,
        listener: &OwnedFd,
    ) -> Result<Process, LaunchError> {
        let ids = plan.ids;
        self.tell(&Order::Build(plan), Some(listener.as_raw_fd()))?;
        // While the launcher opens mounts: to move a process takes the kernel milliseconds. It does not
        // fork before it is told that its ids are mapped.
        at("enter the cgroups", cgroups.enter(self.child.id()))?;
        self.map(ids)?;
        let pid = match self.hear()? {
            Report::Forked { pid } => pid,
            Report::Unshared | Report::Executed | Report::Failed(_) => return Err(out_of_order()),
        };
        // Before it may go on: from its first instruction, the next agent could find it.
        let process = at("record PID 1", Process::record(pid, files, cgroups))?;
        let executed = self.tell(&Order::Go, None).and_then(|()| match self.hear()? {
            Report::Executed => Ok(()),
            Report::Unshared | Report::Forked { .. } | Report::Failed(_) => Err(out_of_order()),
        });
        executed.inspect_err(|_| process.end_now()).map(|()| process)
    }

    fn map(&self, ids: Ids) -> Result<(), LaunchError> {
        match self.hear()? {
            Report::Unshared => {}
            Report::Forked { .. } | Report::Executed | Report::Failed(_) => return Err(out_of_order()),
        }
        at("map user and group ids", map_ids(self.child.id(), ids))?;
        self.tell(&Order::Mapped, None)
    }

    fn tell(&self, order: &Order, descriptor: Option<i32>) -> Result<(), LaunchError> {
        at("talk to the launcher", self.channel.send(order, descriptor))
    }

    /// The launcher's next report; a failure that it reports is an error.
    fn hear(&self) -> Result<Report, LaunchError> {
        match at("hear from the launcher (its last words are in console.log)", self.channel.receive())?.0 {
            Report::Failed(failure) => Err(failure.into()),
            report @ (Report::Unshared | Report::Forked { .. } | Report::Executed) => Ok(report),
        }
    }

    /// Collects it. One that failed may hang: it is killed, and a PID 1 that waits for it then ends too,
    /// since nobody can tell it to go on.
    fn end(self, went_well: bool) {
        let Self { mut child, channel } = self;
        drop(channel);
        if !went_well {
            // Fails if it has ended by itself, as it should.
            let _ended = child.kill();
        }
        // Only fails if somebody else has collected it.
        let _collected = child.wait();
    }
}

fn out_of_order() -> LaunchError {
    LaunchError {
        step: "follow the launcher (it reported something out of order)".into(),
        source: io::ErrorKind::InvalidData.into(),
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let limit = TimeVal::milliseconds(STEP_LIMIT.as_millis() as i64);
    setsockopt(&ours, sockopt::ReceiveTimeout, &limit)?;
    setsockopt(&ours, sockopt::SendTimeout, &limit)?;
    Ok((ours, theirs))
}
